// Just enough HTTP for a scraper and a browser: GET, one request a
// connection, on TCP or a Unix socket.
#ifndef BULKHEAD_SERVICES_METRICS_HTTP_SERVER_H_
#define BULKHEAD_SERVICES_METRICS_HTTP_SERVER_H_

#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "lib/os/fd.h"

namespace bulkhead::metrics {

struct HttpResponse {
  int code = 200;
  std::string content_type = "text/plain; charset=utf-8";
  std::string body;
};
// From the path without its query; called from several threads.
using HttpHandler = std::function<HttpResponse(const std::string& path)>;

// Listens on "host:port" with a numeric host ("[::1]:9323") or "localhost".
absl::StatusOr<os::UniqueFd> ListenTcp(const std::string& address);

// Whether `address` is a socket's path and not "host:port".
bool IsSocketPath(const std::string& address);

// Answers from a few detached threads for as long as the process lives. A
// client that is slow to ask or to read is dropped after a few seconds.
void ServeHttp(os::UniqueFd listener, HttpHandler handler);

}  // namespace bulkhead::metrics

#endif  // BULKHEAD_SERVICES_METRICS_HTTP_SERVER_H_
