#include "services/runtime/main.h"

#include <linux/limits.h>
#include <sys/socket.h>
#include <unistd.h>

#include <memory>
#include <mutex>
#include <string>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/log/log.h"
#include "lib/os/fd.h"
#include "lib/service/service.h"
#include "lib/ttrpc/reactor.h"
#include "services/runtime/checkpoint_store.h"
#include "services/runtime/event_forwarder.h"
#include "services/runtime/grpc_shim.h"
#include "services/runtime/introspection_service.h"
#include "services/runtime/metadata_client.h"
#include "services/runtime/mounts_client.h"
#include "services/runtime/restart_monitor.h"
#include "services/runtime/restart_source.h"
#include "services/runtime/sandbox_manager.h"
#include "services/runtime/sandbox_service.h"
#include "services/runtime/shim_binary.h"
#include "services/runtime/shim_events.h"
#include "services/runtime/task_manager.h"
#include "services/runtime/tasks_service.h"

namespace bulkhead {
namespace runtime {
namespace {

constexpr char kBundleFolder[] = "io.containerd.runtime.v2.task";
constexpr char kSandboxFolder[] = "io.containerd.sandbox.controller.v1.shim";

std::string OwnBinary() {
  char path[PATH_MAX];
  const ssize_t n = ::readlink("/proc/self/exe", path, sizeof(path));
  return n > 0 ? std::string(path, static_cast<size_t>(n)) : "bulkhead-runtime";
}

absl::Status Serve(service::Context& context) {
  const config::Config& config = context.config();
  ShimEnvironment environment;
  environment.grpc_address = config.GatewayAddress();
  environment.ttrpc_address = config.TtrpcAddress();
  environment.own_binary = OwnBinary();
  environment.socket_dir = config.state + "/s";
  environment.oci_runtime = config.runtime.oci_runtime;
  environment.oci_root = config.OciRoot();
  environment.search_paths = config.runtime.shim_paths;
  environment.debug = log::Enabled(log::Level::kDebug);
  RETURN_IF_ERROR(os::MakeDirs(environment.socket_dir, 0700));
  RETURN_IF_ERROR(os::MakeDirs(config.ServiceDir("runtime"), 0700));

  ttrpc::Reactor reactor;
  ShimBinaries shims(environment);
  MetadataClient metadata(config.Socket("metadata"));
  std::mutex restarts_mutex;
  RestartMonitor* restarts = nullptr;  // While it lives.
  EventForwarder events(
      [&](const containerd::types::Envelope& envelope) {
        const absl::Status status = metadata.ForwardEvent(envelope);
        std::lock_guard<std::mutex> lock(restarts_mutex);
        if (status.ok() && restarts != nullptr) restarts->OnEvent(envelope);
        return status;
      },
      config.ServiceDir("runtime") + "/events.spool");
  const ShimDialer dialer = MakeShimDialer(reactor);
  SandboxManager sandboxes(
      {Bundles(absl::StrCat(config.state, "/", kSandboxFolder),
               absl::StrCat(config.RootDir("runtime"), "/", kSandboxFolder)),
       dialer, &reactor},
      shims, events, [&metadata](const std::string& ns, const std::string& id) {
        return metadata.GetSandbox(ns, id);
      });
  const std::unique_ptr<RootfsMounts> rootfs_mounts =
      MakeRootfsMounts(config.Socket("snapshotter"));
  auto tasks = std::make_shared<TaskManager>(
      TaskManager::Options{
          Bundles(absl::StrCat(config.state, "/", kBundleFolder),
                  absl::StrCat(config.RootDir("runtime"), "/", kBundleFolder)),
          config.runtime.default_runtime, Deadlines(), dialer,
          [&sandboxes](const std::string& ns, const std::string& id) {
            return sandboxes.BootstrapOf(ns, id);
          },
          rootfs_mounts.get()},
      reactor, shims, events,
      [&metadata](const std::string& ns, const std::string& id) {
        return metadata.GetContainer(ns, id);
      });
  ASSIGN_OR_RETURN(
      os::UniqueFd listener,
      context.Listen("ttrpc", config.TtrpcAddress(), 0600, SOCK_STREAM));
  std::unique_ptr<ttrpc::Server> shim_events =
      ServeShimEvents(reactor, std::move(listener), tasks, events);
  RETURN_IF_ERROR(sandboxes.Recover());
  RETURN_IF_ERROR(tasks->Recover());
  std::unique_ptr<RestartSource> source =
      MakeRestartSource(config.Socket("metadata"));
  RestartMonitor monitor(*tasks, *source);
  CheckpointStore checkpoints(config.DataSocket("metadata"));
  std::unique_ptr<grpc::Service> tasks_service = MakeTasksService(
      *tasks, checkpoints,
      [&metadata](const std::string& ns, const std::string& id) {
        return metadata.GetContainer(ns, id);
      });
  std::unique_ptr<grpc::Service> controller = MakeSandboxController(sandboxes);
  std::unique_ptr<grpc::Service> introspection =
      MakeIntrospectionService(shims, config.runtime.default_runtime);
  RETURN_IF_ERROR(context.ListenGrpc(
      {tasks_service.get(), controller.get(), introspection.get()}));
  const auto watch = [&](RestartMonitor* who) {
    std::lock_guard<std::mutex> lock(restarts_mutex);
    restarts = who;
  };
  watch(&monitor);
  context.Run();
  watch(nullptr);
  shim_events.reset();
  return absl::OkStatus();
}

}  // namespace
}  // namespace runtime

int RuntimeMain(int argc, char** argv) {
  return service::Main(argc, argv,
                       {.name = "runtime",
                        .summary = "Runs containers: the Tasks service, over "
                                   "one shim a container.",
                        .keep_privileges = true},
                       runtime::Serve);
}

}  // namespace bulkhead
