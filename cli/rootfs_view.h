// Reading files out of a snapshot without letting it reach anything else.
#ifndef BULKHEAD_CLI_ROOTFS_VIEW_H_
#define BULKHEAD_CLI_ROOTFS_VIEW_H_

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "lib/os/mount.h"

namespace bulkhead::cli {

// The contents of `paths` (relative to the root) in the file system that
// `mounts` describe; missing ones are left out. The mounts are made read-only
// in a mount namespace that nobody else sees and that ends with the call; no
// symlink leads out of it. Errors: kPermissionDenied: needs root.
// kResourceExhausted: a file is larger than `size_bytes_max`.
absl::StatusOr<std::map<std::string, std::string>> ReadFilesOf(
    const std::vector<os::MountSpec>& mounts,
    const std::vector<std::string>& paths, size_t size_bytes_max);

// Runs `use` with a descriptor of the root of `mounts`, mounted in a mount
// namespace of the thread that it runs in; they end with the call. Unless
// `writable` they are read-only.
absl::Status WithMounted(const std::vector<os::MountSpec>& mounts,
                         bool writable,
                         const std::function<absl::Status(int root)>& use);

// The same mount, read-only: an overlay loses its upper layer's writability by
// making it the topmost lower one.
os::MountSpec ReadOnly(const os::MountSpec& mount);

}  // namespace bulkhead::cli

#endif  // BULKHEAD_CLI_ROOTFS_VIEW_H_
