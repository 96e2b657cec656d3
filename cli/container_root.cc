#include "cli/container_root.h"

#include <fcntl.h>

#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "cli/rootfs_view.h"
#include "lib/base/status_macros.h"
#include "lib/os/fd.h"
#include "proto/containerd/services/snapshots/v1/snapshots.pb.h"

namespace bulkhead::cli {

namespace snapshots = containerd::services::snapshots::v1;

std::vector<os::MountSpec> SpecsOf(const Mounts& mounts) {
  std::vector<os::MountSpec> specs;
  for (const containerd::types::Mount& mount : mounts) {
    specs.push_back({mount.type(),
                     mount.source(),
                     mount.target(),
                     {mount.options().begin(), mount.options().end()}});
  }
  return specs;
}

absl::StatusOr<Mounts> MountsOf(Client& client, const ContainerRecord& record) {
  if (record.snapshot_key().empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("container ", NameOf(record), " has no snapshot"));
  }
  snapshots::MountsRequest request;
  request.set_snapshotter(record.snapshotter());
  request.set_key(record.snapshot_key());
  snapshots::MountsResponse response;
  RETURN_IF_ERROR(
      client.Call(std::string(kSnapshots) + "Mounts", request, &response));
  return response.mounts();
}

absl::Status WithRoot(Client& client, const ContainerRecord& record,
                      bool writable,
                      const std::function<absl::Status(int root)>& use) {
  ASSIGN_OR_RETURN(const std::optional<TaskRecord> task,
                   GetTask(client, record.id()));
  if (task.has_value() && IsAlive(*task) && task->pid() > 0) {
    ASSIGN_OR_RETURN(const os::UniqueFd root,
                     os::Open(absl::StrCat("/proc/", task->pid(), "/root"),
                              O_PATH | O_DIRECTORY));
    return use(root.get());
  }
  ASSIGN_OR_RETURN(const Mounts mounts, MountsOf(client, record));
  return WithMounted(SpecsOf(mounts), writable, use);
}

}  // namespace bulkhead::cli
