#include "services/metadata/main.h"

#include <sys/socket.h>

#include <filesystem>
#include <map>
#include <string>

#include "lib/config/config.h"
#include "lib/os/fd.h"
#include "lib/service/service.h"
#include "services/metadata/admin_service.h"
#include "services/metadata/content_service.h"
#include "services/metadata/data_server.h"
#include "services/metadata/db.h"
#include "services/metadata/gc.h"
#include "services/metadata/grpc_content_backend.h"
#include "services/metadata/grpc_snapshot_backend.h"
#include "services/metadata/object_services.h"
#include "services/metadata/offline.h"
#include "services/metadata/retention.h"
#include "services/metadata/snapshot_service.h"
#include "services/metadata/store.h"

namespace bulkhead::metadata {
namespace {

// Ours, or the proxy plugin that takes its place.
std::unique_ptr<ContentBackend> MakeContentBackend(
    const config::Config& config) {
  for (const auto& [name, plugin] : config.proxy_plugins) {
    if (plugin.type == "content") {
      return ConnectContentBackend(plugin.address, "");
    }
  }
  return ConnectContentBackend(config.Socket("content"),
                               config.DataSocket("content"));
}

// Where each snapshotter is served.
std::map<std::string, std::string> SnapshotterSockets(
    const config::Config& config) {
  std::map<std::string, std::string> sockets;
  for (const std::string& name : config.snapshotter.snapshotters) {
    sockets[name] = config.Socket("snapshotter");
  }
  for (const auto& [name, plugin] : config.proxy_plugins) {
    if (plugin.type == "snapshot") sockets[name] = plugin.address;
  }
  return sockets;
}

// Those that are not in `known`, which takes them up.
Snapshots::Backends MakeSnapshotBackends(
    const config::Config& config, std::map<std::string, std::string>* known) {
  Snapshots::Backends backends;
  for (const auto& [name, socket] : SnapshotterSockets(config)) {
    std::string& old = (*known)[name];
    if (old != socket) backends[name] = ConnectSnapshotBackend(socket, name);
    old = socket;
  }
  return backends;
}

absl::Status Body(service::Context& context) {
  const config::Config& config = context.config();
  const std::string root = config.RootDir("metadata");
  RETURN_IF_ERROR(os::MakeDirs(root, 0700));
  ASSIGN_OR_RETURN(std::unique_ptr<Db> db, Db::Open(root + "/db"));
  EventBus events;
  Store store(std::move(db), &events);
  RETURN_IF_ERROR(events.OpenLog(store.db(), config.metadata.events_kept_max));
  const std::unique_ptr<ContentBackend> blobs = MakeContentBackend(config);
  Content content(store, *blobs,
                  config.metadata.content_sharing_policy == "isolated");
  std::map<std::string, std::string> snapshotter_sockets;
  Snapshots snapshots(store,
                      MakeSnapshotBackends(config, &snapshotter_sockets));

  CollectorOptions options;
  options.startup_delay = config.metadata.gc_startup_delay;
  options.schedule_delay = config.metadata.gc_schedule_delay;
  options.mutation_threshold = config.metadata.gc_mutation_threshold;
  options.deletion_threshold = config.metadata.gc_deletion_threshold;
  options.pause_threshold = config.metadata.gc_pause_threshold;
  Collector collector(store, content, snapshots, options);
  RetentionOptions retention_options;
  retention_options.unused_max = config.metadata.retention_unused_max;
  retention_options.free_min_percent =
      config.metadata.retention_free_min_percent;
  retention_options.namespaces = config.metadata.retention_namespaces;
  Retention retention(
      store, retention_options,
      [path = config.root]() -> absl::StatusOr<double> {
        std::error_code error;
        const std::filesystem::space_info space =
            std::filesystem::space(path, error);
        if (error || space.capacity == 0) {
          return absl::InternalError(path + ": " + error.message());
        }
        return 100.0 * static_cast<double>(space.available) /
               static_cast<double>(space.capacity);
      },
      [&collector] { return collector.CollectNow().status(); });
  retention.Start();
  ObjectServices objects(
      store, [&collector] { return collector.CollectNow().status(); });
  ContentService content_service(content);
  const std::unique_ptr<grpc::Service> snapshot_service =
      MakeSnapshotService(snapshots);
  ASSIGN_OR_RETURN(os::UniqueFd data,
                   context.Listen("data", config.DataSocket("metadata"), 0600,
                                  SOCK_SEQPACKET));
  std::vector<grpc::Service*> services = objects.services();
  services.push_back(&content_service);
  services.push_back(snapshot_service.get());
  const std::unique_ptr<grpc::Service> admin =
      MakeAdminService(store, content, snapshots, collector);
  services.push_back(admin.get());
  DataServer data_server(std::move(data), content);
  RETURN_IF_ERROR(context.ListenGrpc(services));
  context.OnReload([&](const config::Config& fresh) {
    snapshots.ReplaceBackends(
        MakeSnapshotBackends(fresh, &snapshotter_sockets));
  });
  context.Run();
  return absl::OkStatus();
}

}  // namespace

int MetadataMain(int argc, char** argv) {
  // `bulkhead metadata repair --root ROOT`, `... restore DIR --root ROOT`.
  if (argc > 1 && IsOfflineCommand(argv[1])) return OfflineMain(argc, argv);
  service::Options options;
  options.name = "metadata";
  options.summary =
      "namespaces, images, containers, leases, events, content and snapshots "
      "as clients see them";
  options.no_network = true;
  return service::Main(argc, argv, options, Body);
}

}  // namespace bulkhead::metadata
