#include "services/snapshotter/main.h"

#include <linux/capability.h>
#include <malloc.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/rpc/removal.h"
#include "lib/service/service.h"
#include "services/snapshotter/applier.h"
#include "services/snapshotter/data_server.h"
#include "services/snapshotter/diff_service.h"
#include "services/snapshotter/holder_client.h"
#include "services/snapshotter/lazy_snapshotter.h"
#include "services/snapshotter/mount_holders.h"
#include "services/snapshotter/mount_manager.h"
#include "services/snapshotter/mounts_service.h"
#include "services/snapshotter/snapshots_service.h"
#include "services/snapshotter/tree_snapshotter.h"

namespace bulkhead {
namespace {

constexpr int kMappedBytesMin = 128 << 10;
// Between two questions whether what holds an activation is still there.
constexpr absl::Duration kHoldersLook = absl::Seconds(2);

using snapshotter::TreeSnapshotterOptions;

absl::StatusOr<std::vector<std::unique_ptr<snapshotter::Snapshotter>>>
OpenSnapshotters(const config::Config& config) {
  std::vector<std::unique_ptr<snapshotter::Snapshotter>> out;
  for (const std::string& name : config.snapshotter.snapshotters) {
    TreeSnapshotterOptions options;
    if (name == "overlayfs") {
      options.driver = TreeSnapshotterOptions::Driver::kOverlay;
    } else if (name == "native") {
      options.driver = TreeSnapshotterOptions::Driver::kNative;
    } else if (name == "btrfs") {
      options.driver = TreeSnapshotterOptions::Driver::kBtrfs;
    } else if (name == "erofs") {
      options.driver = TreeSnapshotterOptions::Driver::kErofs;
    } else {
      return absl::InvalidArgumentError(
          absl::StrCat("snapshotter.snapshotters: \"", name,
                       "\" is none of overlayfs, native, btrfs, erofs"));
    }
    options.name = name;
    options.root = absl::StrCat(config.RootDir("snapshotter"), "/", name);
    options.overlay_mount_options = config.snapshotter.overlay_mount_options;
    options.upperdir_label =
        name == "overlayfs" && config.snapshotter.upperdir_label;
    ASSIGN_OR_RETURN(std::unique_ptr<snapshotter::Snapshotter> opened,
                     snapshotter::OpenLazySnapshotter(options));
    out.push_back(std::move(opened));
  }
  return out;
}

// Temporary mounts that a killed process left.
absl::Status ClearTempMounts(const std::string& temp_dir) {
  RETURN_IF_ERROR(os::UnmountTree(temp_dir));
  return os::RemoveAll(temp_dir);
}

}  // namespace

int SnapshotterMain(int argc, char** argv) {
  service::Options options;
  options.name = "snapshotter";
  options.summary = "Keeps snapshots, unpacks and packs layers.";
  options.capabilities = {CAP_CHOWN,    CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH,
                          CAP_FOWNER,   CAP_FSETID,       CAP_MKNOD,
                          CAP_SETFCAP,  CAP_SETGID,       CAP_SETUID,
                          CAP_SYS_ADMIN};  // SETGID, SETUID: id-mapped mounts.
  options.no_network = true;
  return service::Main(
      argc, argv, options, [](service::Context& context) -> absl::Status {
        const config::Config& config = context.config();
        ::umask(0);  // Layers say what modes are.
        // An unpack's buffers and windows go back when it ends.
        ::mallopt(M_MMAP_THRESHOLD, kMappedBytesMin);
        rlimit files{};
        if (::getrlimit(RLIMIT_NOFILE, &files) == 0) {
          files.rlim_cur = files.rlim_max;
          ::setrlimit(RLIMIT_NOFILE, &files);  // Only more room for caches.
        }
        const std::string temp_dir =
            absl::StrCat(config.ServiceDir("snapshotter"), "/tmp");
        RETURN_IF_ERROR(ClearTempMounts(temp_dir));
        ASSIGN_OR_RETURN(const auto snapshotters, OpenSnapshotters(config));
        std::vector<snapshotter::Snapshotter*> borrowed;
        for (const auto& one : snapshotters) borrowed.push_back(one.get());

        std::vector<snapshotter::StreamProcessor> processors;
        for (const auto& [id, p] : config.stream_processors) {
          processors.push_back(
              {id, p.accepts, p.returns, p.path, p.args, p.env});
        }
        snapshotter::Applier applier(
            borrowed,
            {.layer_bytes_max = config.snapshotter.layer_bytes_max,
             .layer_entries_max = config.snapshotter.layer_entries_max,
             .temp_dir = temp_dir},
            std::move(processors));
        snapshotter::SnapshotsService snapshots(borrowed);
        rpc::RemovalService removal(
            [&snapshots](const std::string& name,
                         const std::vector<std::string>& keys)
                -> absl::StatusOr<rpc::Removed> {
              ASSIGN_OR_RETURN(snapshotter::Snapshotter* const named,
                               snapshots.Named(name));
              return named->RemoveMany(keys);
            });
        snapshotter::DiffService diff(
            applier, {.content_data_socket = config.DataSocket("content"),
                      .content_socket = config.Socket("content"),
                      .metadata_data_socket = config.DataSocket("metadata")});
        ASSIGN_OR_RETURN(
            const auto mount_manager,
            snapshotter::MountManager::Open(
                absl::StrCat(config.ServiceDir("snapshotter"), "/mounts"),
                {config.RootDir("snapshotter")}));
        snapshotter::MountHolders holders(
            *mount_manager, snapshotter::AskMetadata(config.Socket("metadata")),
            kHoldersLook);
        snapshotter::MountsService mounts(*mount_manager,
                                          [&holders] { holders.Wake(); });
        ASSIGN_OR_RETURN(
            os::UniqueFd listener,
            context.Listen("data", config.DataSocket("snapshotter"), 0600,
                           SOCK_SEQPACKET));
        snapshotter::DataServer data(std::move(listener), applier);
        RETURN_IF_ERROR(
            context.ListenGrpc({&snapshots, &removal, &diff, &mounts}));
        context.Run();
        return absl::OkStatus();
      });
}

}  // namespace bulkhead
