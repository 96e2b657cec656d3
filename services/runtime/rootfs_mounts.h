// Root file systems that take more than mount(2): file-backed ones and those
// whose types have prefixes (facts/core.md, section 17). The Mounts service
// makes them, under the container's id, and what is left is the shim's.
#ifndef BULKHEAD_SERVICES_RUNTIME_ROOTFS_MOUNTS_H_
#define BULKHEAD_SERVICES_RUNTIME_ROOTFS_MOUNTS_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/containerd/types/mount.pb.h"

namespace bulkhead::runtime {

// Whether the Mounts service is to be asked about these at all.
bool NeedActivation(const std::vector<containerd::types::Mount>& mounts);

// Thread-safe. Calls block on mounts.
class RootfsMounts {
 public:
  virtual ~RootfsMounts() = default;

  // Activates the mounts under `id`, held by the container of that id, and
  // replaces them by what is left to mount. Nothing was needed: they stay as
  // they are. Errors: kAlreadyExists: somebody else's activation has the name.
  // Others: the service's.
  virtual absl::Status Activate(
      const std::string& ns, const std::string& id,
      std::vector<containerd::types::Mount>* mounts) = 0;
  // OK when there are none.
  virtual absl::Status Deactivate(const std::string& ns,
                                  const std::string& id) = 0;
};

}  // namespace bulkhead::runtime

#endif  // BULKHEAD_SERVICES_RUNTIME_ROOTFS_MOUNTS_H_
