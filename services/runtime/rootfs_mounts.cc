#include "services/runtime/rootfs_mounts.h"

#include <algorithm>

namespace bulkhead::runtime {

bool NeedActivation(const std::vector<containerd::types::Mount>& mounts) {
  return std::any_of(
      mounts.begin(), mounts.end(), [](const containerd::types::Mount& mount) {
        return mount.type().find('/') != std::string::npos ||
               mount.type() == "erofs" || mount.type() == "loop" ||
               std::find(mount.options().begin(), mount.options().end(),
                         "loop") != mount.options().end();
      });
}

}  // namespace bulkhead::runtime
