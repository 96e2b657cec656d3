#include "services/metrics/http_server.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <cerrno>
#include <memory>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "lib/os/socket.h"

namespace bulkhead::metrics {
namespace {

constexpr int kThreads = 4;
constexpr size_t kRequestBytesMax = 16 << 10;
constexpr int kReadsMax = 64;  // Of a request that comes in crumbs.
constexpr timeval kTimeout{3, 0};
constexpr int kBacklog = 64;

void SendAll(int fd, const std::string& data) {
  size_t sent = 0;
  while (sent < data.size()) {
    const ssize_t count =
        ::send(fd, data.data() + sent, data.size() - sent, MSG_NOSIGNAL);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return;  // Gone, or too slow.
    sent += static_cast<size_t>(count);
  }
}

void Answer(int fd, const HttpHandler& handler) {
  ::setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &kTimeout, sizeof(kTimeout));
  ::setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &kTimeout, sizeof(kTimeout));
  std::string request;
  char buffer[4096];
  for (int reads = 0; request.find("\r\n\r\n") == std::string::npos; ++reads) {
    if (reads >= kReadsMax || request.size() > kRequestBytesMax) return;
    const ssize_t count = ::recv(fd, buffer, sizeof(buffer), 0);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return;
    request.append(buffer, static_cast<size_t>(count));
  }
  const std::string line = request.substr(0, request.find("\r\n"));
  const size_t first = line.find(' ');
  const size_t second = line.find(' ', first + 1);
  HttpResponse response;
  bool head = false;
  if (first == std::string::npos || second == std::string::npos) {
    response = {400, "text/plain", "bad request\n"};
  } else {
    const std::string method = line.substr(0, first);
    std::string path = line.substr(first + 1, second - first - 1);
    path.resize(std::min(path.find('?'), path.size()));
    head = method == "HEAD";
    if (method == "GET" || head) {
      response = handler(path);
    } else {
      response = {405, "text/plain", "method not allowed\n"};
    }
  }
  const char* reason = response.code == 200   ? "OK"
                       : response.code == 404 ? "Not Found"
                       : response.code == 405 ? "Method Not Allowed"
                                              : "Bad Request";
  SendAll(fd, absl::StrCat("HTTP/1.1 ", response.code, " ", reason,
                           "\r\nContent-Type: ", response.content_type,
                           "\r\nContent-Length: ", response.body.size(),
                           "\r\nCache-Control: no-store"
                           "\r\nX-Content-Type-Options: nosniff"
                           "\r\nContent-Security-Policy: default-src 'none'; "
                           "style-src 'unsafe-inline'"
                           "\r\nConnection: close\r\n\r\n",
                           head ? "" : response.body));
  ::shutdown(fd, SHUT_WR);
}

}  // namespace

bool IsSocketPath(const std::string& address) {
  return absl::StartsWith(address, "/") || absl::StartsWith(address, "unix:");
}

absl::StatusOr<os::UniqueFd> ListenTcp(const std::string& address) {
  const size_t colon = address.rfind(':');
  int port = 0;
  if (colon == std::string::npos ||
      !absl::SimpleAtoi(address.substr(colon + 1), &port) || port < 0 ||
      port > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat("metrics.address \"", address,
                     "\" is neither \"host:port\" nor a socket's path"));
  }
  std::string host = address.substr(0, colon);
  if (host == "localhost") host = "127.0.0.1";
  if (host.empty()) host = "0.0.0.0";
  sockaddr_storage storage{};
  socklen_t size = 0;
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    auto* v6 = reinterpret_cast<sockaddr_in6*>(&storage);
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(static_cast<uint16_t>(port));
    if (::inet_pton(AF_INET6, host.substr(1, host.size() - 2).c_str(),
                    &v6->sin6_addr) == 1) {
      size = sizeof(*v6);
    }
  } else {
    auto* v4 = reinterpret_cast<sockaddr_in*>(&storage);
    v4->sin_family = AF_INET;
    v4->sin_port = htons(static_cast<uint16_t>(port));
    if (::inet_pton(AF_INET, host.c_str(), &v4->sin_addr) == 1) {
      size = sizeof(*v4);
    }
  }
  if (size == 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "metrics.address \"", address, "\": the host must be an IP address"));
  }
  os::UniqueFd fd(::socket(storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return os::ErrnoStatus(errno, "socket");
  const int yes = 1;
  ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
  if (::bind(fd.get(), reinterpret_cast<sockaddr*>(&storage), size) != 0 ||
      ::listen(fd.get(), kBacklog) != 0) {
    return os::ErrnoStatus(errno, absl::StrCat("listen on ", address));
  }
  return fd;
}

void ServeHttp(os::UniqueFd listener, HttpHandler handler) {
  auto shared = std::make_shared<std::pair<os::UniqueFd, HttpHandler>>(
      std::move(listener), std::move(handler));
  for (int i = 0; i < kThreads; ++i) {
    std::thread([shared] {
      for (;;) {
        const absl::StatusOr<os::UniqueFd> fd = os::Accept(shared->first.get());
        if (!fd.ok()) {
          // Out of descriptors, perhaps: others will be closed.
          std::this_thread::sleep_for(std::chrono::milliseconds(100));
          continue;
        }
        Answer(fd->get(), shared->second);
      }
    }).detach();
  }
}

}  // namespace bulkhead::metrics
