// The frame every service's main() hangs in: flags, config, logging, sockets,
// readiness, drain.
//
//   int ContentMain(int argc, char** argv) {
//     return service::Main(argc, argv, {.name = "content", ...},
//         [](service::Context& context) -> absl::Status {
//           ... build objects, context.ListenGrpc({&content_service}) ...
//           context.Run();          // Ready; returns at SIGTERM or SIGINT.
//           return absl::OkStatus();
//         });
//   }
//
// Flags: --config FILE (default /etc/bulkhead/config.toml if it is there),
// --root DIR, --state DIR, --log-level, --log-format, --help, --version.
// Exit codes: 0 after a signal, 1 on a failed start (one line on stderr), 2 on
// bad flags or config.
#ifndef BULKHEAD_LIB_SERVICE_SERVICE_H_
#define BULKHEAD_LIB_SERVICE_SERVICE_H_

#include <grpcpp/impl/codegen/service_type.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lib/config/config.h"
#include "lib/os/fd.h"
#include "lib/rpc/server.h"

namespace bulkhead::service {

// The release, as Version answers it and --version prints it.
inline constexpr char kVersion[] = "v2.1.0-bulkhead.0.1.0";
inline constexpr char kProductVersion[] = "0.1.0";

struct Options {
  std::string name;     // The folder name under services/: "content".
  std::string summary;  // One line for --help.
  // Capabilities that survive start-up (CAP_* numbers); all others are dropped
  // from every set, bounding set included, and no_new_privs is set. Only when
  // `keep_privileges` is false.
  std::vector<int> capabilities;
  bool keep_privileges = false;
  // Moves the process into an empty network namespace (path-named Unix sockets
  // go on working). Skipped without CAP_SYS_ADMIN.
  bool no_network = false;
};

class Context {
 public:
  virtual ~Context() = default;
  virtual const config::Config& config() const = 0;

  // Re-reads the config; called on SIGHUP, from Run()'s thread.
  virtual void OnReload(std::function<void(const config::Config&)> hook) = 0;

  // A listening socket, by preference one that systemd passed under the name
  // `name` ("grpc", "data", ...), else bound at `path` with `mode`.
  virtual absl::StatusOr<os::UniqueFd> Listen(const std::string& name,
                                              const std::string& path,
                                              mode_t mode, int type) = 0;

  // Serves on config().Socket(name), mode 0600, until Run() returns.
  virtual absl::Status ListenGrpc(
      const std::vector<grpc::Service*>& services) = 0;

  // Serves stats, tells systemd READY=1 (and, for `up`, writes a line to the
  // descriptor in $BULKHEAD_READY_FD), then blocks until SIGTERM or SIGINT;
  // stops the gRPC server with a grace of 2 s.
  virtual void Run() = 0;
};

int Main(int argc, char** argv, const Options& options,
         const std::function<absl::Status(Context&)>& body);

}  // namespace bulkhead::service

#endif  // BULKHEAD_LIB_SERVICE_SERVICE_H_
