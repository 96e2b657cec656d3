// An HTTP client on libcurl's multi interface: one thread and one pool of
// connections for the process, HTTP/1.1 and HTTP/2, bodies streamed to a sink.
// It never follows redirects and adds no credentials: its users do. Proxies
// are those of the environment: http_proxy, https_proxy, all_proxy, no_proxy,
// in upper case too; never for loopback addresses.
#ifndef BULKHEAD_SERVICES_DISTRIBUTION_HTTP_H_
#define BULKHEAD_SERVICES_DISTRIBUTION_HTTP_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace bulkhead::distribution {

constexpr size_t kHeaderBytesMax = 64 << 10;     // All of one response.
constexpr size_t kErrorBodyBytesMax = 16 << 10;  // Kept of a failed response.
// A body that is slower is as good as none.
constexpr long kStallBytesPerSecond = 1024;

struct TlsOptions {
  std::vector<std::string> ca_files;  // Beside the system's authorities.
  std::string client_cert;            // PEM files.
  std::string client_key;
  bool skip_verify = false;
};

struct HttpResponse {
  int status = 0;
  std::string version;  // "HTTP/2".
  // Names in lower case, in the order received.
  std::vector<std::pair<std::string, std::string>> headers;
  std::string body;  // Empty if a sink took it.

  // The first value, or "".
  std::string Header(const std::string& name) const;
};

struct HttpRequest {
  std::string method = "GET";  // GET, HEAD, POST, PUT or PATCH.
  std::string url;             // http or https.
  std::vector<std::pair<std::string, std::string>> headers;
  std::string body;  // POST, PUT, PATCH.
  TlsOptions tls;
  absl::Duration connect_timeout = absl::Seconds(30);
  // Less than kStallBytesPerSecond either way for this long fails the request.
  absl::Duration stall_timeout = absl::Seconds(30);
  size_t body_bytes_max = 1 << 20;  // Of an answer without a sink.

  // Called once with status and headers, before the body. An error ends the
  // request and is what Do() returns. In the client's thread: must not block.
  std::function<absl::Status(const HttpResponse&)> on_headers;
  // Takes the body of a 200 or 206. Same rules; may write to a file.
  std::function<absl::Status(const char* data, size_t size_bytes)> sink;
  // Body of a PUT or PATCH from elsewhere: `upload_bytes` in all; puts the
  // bytes from `offset_bytes` on into the buffer and returns how many, 0 at the
  // end, negative to fail. Never sent twice: cut off is kUnavailable.
  std::function<int64_t(char* buffer, size_t size_bytes, int64_t offset_bytes)>
      source;
  int64_t upload_bytes = 0;
  // Asked about ten times a second; true ends the request with kCancelled.
  std::function<bool()> cancelled;
};

struct HttpLimits {
  // Of all bodies together, each way; 0: none. Requests take turns: each gets
  // an even share of what the others leave. Exact but for 0.2 s of it.
  int64_t bytes_per_second = 0;
  int connections_per_host_max = 0;  // 0: none. Requests past it wait.
};

class HttpClient {
 public:
  static std::unique_ptr<HttpClient> Create(const std::string& user_agent);
  virtual ~HttpClient() = default;

  // Runs one request and waits for it. Thread-safe. Any complete answer is
  // OK, whatever its status. Errors:
  //   kUnavailable: no connection, reset, stalled: worth another try.
  //   kFailedPrecondition: TLS: the certificate was not accepted, or ours.
  //   kAborted: an https request was answered in plain HTTP.
  //   kResourceExhausted: headers or body over their limit.
  //   kInvalidArgument: bad URL or TLS files.
  //   kCancelled.
  virtual absl::StatusOr<HttpResponse> Do(const HttpRequest& request) = 0;

  // From now on, for requests that are running too. Thread-safe.
  virtual void SetLimits(const HttpLimits& limits) = 0;
};

}  // namespace bulkhead::distribution

#endif  // BULKHEAD_SERVICES_DISTRIBUTION_HTTP_H_
