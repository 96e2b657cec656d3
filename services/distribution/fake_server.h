// A small HTTP/1.1 server for tests: a handler a request, on loopback, on a
// port of its own, that can break every rule.
#ifndef BULKHEAD_SERVICES_DISTRIBUTION_FAKE_SERVER_H_
#define BULKHEAD_SERVICES_DISTRIBUTION_FAKE_SERVER_H_

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace bulkhead::distribution {

struct FakeRequest {
  std::string method;
  std::string target;                          // With the query.
  std::map<std::string, std::string> headers;  // Names in lower case.
  std::string body;
};

// The bytes to send back; the connection is closed after them.
using FakeHandler = std::function<std::string(const FakeRequest&)>;

inline std::string Answer(int status, const std::string& headers,
                          const std::string& body) {
  return absl::StrCat("HTTP/1.1 ", status, " X\r\nConnection: close\r\n",
                      headers, "Content-Length: ", body.size(), "\r\n\r\n",
                      body);
}

class FakeServer {
 public:
  explicit FakeServer(FakeHandler handler) : handler_(std::move(handler)) {
    listener_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    (void)bind(listener_, reinterpret_cast<sockaddr*>(&address), size);
    (void)listen(listener_, 64);
    (void)getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size);
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this] { Loop(); });
  }
  ~FakeServer() {
    shutdown(listener_, SHUT_RDWR);
    thread_.join();
    close(listener_);
  }

  std::string host() const { return absl::StrCat("127.0.0.1:", port_); }
  std::vector<FakeRequest> requests() {
    std::lock_guard<std::mutex> lock(mutex_);
    return requests_;
  }

 private:
  void Loop() {
    for (;;) {
      const int peer = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
      if (peer < 0) return;
      Serve(peer);
      shutdown(peer, SHUT_WR);
      char rest[4096];
      while (recv(peer, rest, sizeof(rest), 0) > 0) {
      }
      close(peer);
    }
  }

  void Serve(int peer) {
    std::string in;
    char buffer[4096];
    size_t end;
    while ((end = in.find("\r\n\r\n")) == std::string::npos) {
      const ssize_t got = recv(peer, buffer, sizeof(buffer), 0);
      if (got <= 0) return;
      in.append(buffer, got);
      if (in[0] == 0x16) return;  // TLS: hang up with rubbish.
    }
    FakeRequest request;
    size_t at = in.find("\r\n");
    const std::string line = in.substr(0, at);
    request.method = line.substr(0, line.find(' '));
    request.target = line.substr(request.method.size() + 1,
                                 line.rfind(' ') - request.method.size() - 1);
    while (at < end) {
      const size_t start = at + 2;
      at = in.find("\r\n", start);
      const std::string header = in.substr(start, at - start);
      const size_t colon = header.find(':');
      std::string value = header.substr(colon + 1);
      absl::StripAsciiWhitespace(&value);
      request.headers[absl::AsciiStrToLower(header.substr(0, colon))] = value;
    }
    size_t length = 0;
    (void)absl::SimpleAtoi(request.headers["content-length"], &length);
    request.body = in.substr(end + 4);
    while (request.body.size() < length) {
      const ssize_t got = recv(peer, buffer, sizeof(buffer), 0);
      if (got <= 0) return;
      request.body.append(buffer, got);
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      requests_.push_back(request);
    }
    const std::string out = handler_(request);
    for (size_t sent = 0; sent < out.size();) {
      const ssize_t n =
          send(peer, out.data() + sent, out.size() - sent, MSG_NOSIGNAL);
      if (n <= 0) return;
      sent += n;
    }
  }

  const FakeHandler handler_;
  int listener_ = -1;
  int port_ = 0;
  std::mutex mutex_;
  std::vector<FakeRequest> requests_;  // Guarded by mutex_.
  std::thread thread_;
};

}  // namespace bulkhead::distribution

#endif  // BULKHEAD_SERVICES_DISTRIBUTION_FAKE_SERVER_H_
