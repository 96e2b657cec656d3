// containerd-style mounts turned into mount(2) and the new mount API.
#ifndef BULKHEAD_LIB_OS_MOUNT_H_
#define BULKHEAD_LIB_OS_MOUNT_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace bulkhead::os {

// As containerd.types.Mount. `target` is a path below the root given to
// MountAll, "" for the root itself.
struct MountSpec {
  std::string type;
  std::string source;
  std::string target;
  std::vector<std::string> options;
};

// What a list of fstab-style options means to mount(2).
struct MountFlags {
  unsigned long flags = 0;        // MS_* (MS_BIND, MS_RDONLY, ...).
  unsigned long propagation = 0;  // MS_PRIVATE, MS_SHARED, ... with MS_REC.
  std::vector<std::string> data;  // Options for the file system, in order.
  // "inside:outside:size[,...]" each, both or none: the mount shows the
  // owner `inside` of a file as `outside`. Of an overlay, in its lower folders.
  std::string uid_map;
  std::string gid_map;
};

// "defaults" and options starting with "X-containerd." are dropped.
// Errors: kUnimplemented: loop. kInvalidArgument: a map that is none, or only
// one of uidmap= and gidmap=.
absl::StatusOr<MountFlags> ParseMountOptions(
    const std::vector<std::string>& options);

// Mounts one spec on `root`/`spec.target`, resolved as if `root` were "/"; the
// target must exist. Bind mounts with other flags are remounted with them.
// Overlay options of any length work. Thread-safe; never changes the caller's
// working directory. Id maps are for binds and overlays; they need a child
// process for a moment, CAP_SETUID and CAP_SETGID.
// Errors: as above, and kUnimplemented for an id map on another type; otherwise
// the failed call's.
absl::Status Mount(const MountSpec& spec, const std::string& root);

// Mounts all in order. On error what was mounted is unmounted again.
absl::Status MountAll(const std::vector<MountSpec>& specs,
                      const std::string& root);

// Unmounts everything mounted on `path` or below it, stacked mounts too, the
// deepest first; falls back to a lazy unmount for what is busy. Follows no
// symlink at the end of `path`. OK when nothing is mounted or `path` is gone.
absl::Status UnmountTree(const std::string& path);

}  // namespace bulkhead::os

#endif  // BULKHEAD_LIB_OS_MOUNT_H_
