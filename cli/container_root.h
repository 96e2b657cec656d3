// The files of a container.
#ifndef BULKHEAD_CLI_CONTAINER_ROOT_H_
#define BULKHEAD_CLI_CONTAINER_ROOT_H_

#include <google/protobuf/repeated_field.h>

#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cli/client.h"
#include "cli/container.h"
#include "lib/os/mount.h"
#include "proto/containerd/types/mount.pb.h"

namespace bulkhead::cli {

using Mounts = google::protobuf::RepeatedPtrField<containerd::types::Mount>;

std::vector<os::MountSpec> SpecsOf(const Mounts& mounts);

// Those of the container's own snapshot. kFailedPrecondition: it has none.
absl::StatusOr<Mounts> MountsOf(Client& client, const ContainerRecord& record);

// `use` with the root of the container: what its processes see if it runs,
// else its snapshot.
absl::Status WithRoot(Client& client, const ContainerRecord& record,
                      bool writable,
                      const std::function<absl::Status(int root)>& use);

}  // namespace bulkhead::cli

#endif  // BULKHEAD_CLI_CONTAINER_ROOT_H_
