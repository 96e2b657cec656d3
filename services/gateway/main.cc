#include "services/gateway/main.h"

#include <linux/capability.h>
#include <sys/capability.h>
#include <sys/socket.h>
#include <unistd.h>

#include <memory>

#include "lib/base/status_macros.h"
#include "lib/config/config.h"
#include "lib/os/fd.h"
#include "lib/service/service.h"
#include "services/gateway/local_services.h"
#include "services/gateway/proxy.h"

namespace bulkhead {
namespace {

constexpr absl::Duration kDrainGrace = absl::Seconds(2);

absl::Status Serve(service::Context& context) {
  const config::Config& config = context.config();
  const std::string address = config.GatewayAddress();
  ASSIGN_OR_RETURN(
      os::UniqueFd listener,
      context.Listen("grpc", address, config.gateway.mode, SOCK_STREAM));
  if ((config.gateway.uid != ::geteuid() ||
       config.gateway.gid != ::getegid()) &&
      ::chown(address.c_str(), config.gateway.uid, config.gateway.gid) != 0) {
    return os::ErrnoStatus(errno, "chown " + address);
  }
  // Only that took a capability.
  cap_t none = ::cap_init();
  const int dropped = ::cap_set_proc(none);
  ::cap_free(none);
  if (dropped != 0) return os::ErrnoStatus(errno, "drop capabilities");
  gateway::LocalServices local(
      config, service::kVersion,
      gateway::LoadServerUuid(config.RootDir("gateway")));
  ASSIGN_OR_RETURN(
      std::unique_ptr<gateway::Proxy> proxy,
      gateway::Proxy::Start(std::move(listener), config::Routes(config),
                            {.connect_timeout = config.gateway.connect_timeout},
                            &local));
  context.OnReload([&](const config::Config& fresh) {
    local.SetConfig(fresh);
    proxy->SetRoutes(config::Routes(fresh));
  });
  context.Run();
  proxy->Stop(kDrainGrace);
  return absl::OkStatus();
}

}  // namespace

int GatewayMain(int argc, char** argv) {
  return service::Main(argc, argv,
                       {.name = "gateway",
                        .summary = "The socket that clients use: forwards each "
                                   "gRPC service to the process that owns it.",
                        .capabilities = {CAP_CHOWN},
                        .no_network = true},
                       Serve);
}

}  // namespace bulkhead
