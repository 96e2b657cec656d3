#include "services/metrics/main.h"

#include <sys/socket.h>

#include <memory>
#include <string>

#include "absl/strings/strip.h"
#include "lib/base/status_macros.h"
#include "lib/log/log.h"
#include "lib/service/service.h"
#include "services/metrics/collector.h"
#include "services/metrics/http_server.h"
#include "services/metrics/status_page.h"

namespace bulkhead {
namespace {

absl::Status Serve(service::Context& context) {
  std::string address = context.config().metrics.address;
  if (address.empty()) {
    address = context.config().ServiceDir("metrics") + "/http.sock";
  }
  os::UniqueFd listener;
  if (metrics::IsSocketPath(address)) {
    address = std::string(absl::StripPrefix(address, "unix:"));
    address = std::string(absl::StripPrefix(address, "//"));
    ASSIGN_OR_RETURN(listener,
                     context.Listen("http", address, 0600, SOCK_STREAM));
  } else {
    ASSIGN_OR_RETURN(listener, metrics::ListenTcp(address));
  }
  // The threads that serve never end, so neither do these.
  auto* collector = new metrics::Collector(context.config());
  auto* page = new metrics::StatusPage;
  metrics::ServeHttp(
      std::move(listener),
      [collector, page](const std::string& path) -> metrics::HttpResponse {
        if (path == "/metrics" || path == "/v1/metrics") {
          return {200, "text/plain; version=0.0.4; charset=utf-8",
                  metrics::Collector::Exposition(*collector->Gather())};
        }
        if (path == "/") {
          return {200, "text/html; charset=utf-8",
                  page->Render(collector->Gather())};
        }
        return {404, "text/plain; charset=utf-8", "not found\n"};
      });
  log::Info("serving metrics", {{"address", address}});
  context.Run();
  return absl::OkStatus();
}

}  // namespace

int MetricsMain(int argc, char** argv) {
  return service::Main(
      argc, argv,
      {.name = "metrics",
       .summary = "Prometheus figures of the whole suite, and a status page."},
      Serve);
}

}  // namespace bulkhead
