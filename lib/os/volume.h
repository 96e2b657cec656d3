// What file systems offer beyond trees: btrfs subvolumes, project quotas.
#ifndef BULKHEAD_LIB_OS_VOLUME_H_
#define BULKHEAD_LIB_OS_VOLUME_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace bulkhead::os {

// Whether `path` lies on btrfs.
absl::StatusOr<bool> IsBtrfs(const std::string& path);
// Whether `path` lies on XFS, which gives a file that grows more blocks than it
// needs and takes them back when it is closed.
absl::StatusOr<bool> IsXfs(const std::string& path);
// Makes an empty subvolume `name`, mode 0755, in the directory `parent`.
absl::Status CreateSubvolume(const std::string& parent,
                             const std::string& name);
// Makes `name` in `parent` a writable snapshot of the subvolume `source`.
absl::Status SnapshotSubvolume(const std::string& source,
                               const std::string& parent,
                               const std::string& name);
// Deletes a subvolume at once, however large; its blocks are freed later.
// Errors: kNotFound: none. kInvalidArgument: no subvolume. Needs CAP_SYS_ADMIN.
absl::Status DestroySubvolume(const std::string& parent,
                              const std::string& name);

// Puts the directory `path`, and what will be made below it, into a project of
// its own that may use `limit_bytes` (> 0) of disk blocks. Projects are
// numbered by the directory's inode, so that many users of one file system do
// not meet. Errors: kFailedPrecondition: the file system keeps no project
// quotas.
absl::Status SetTreeLimit(const std::string& path, int64_t limit_bytes);
// Takes the limit off again. OK where there is none.
absl::Status ClearTreeLimit(const std::string& path);

}  // namespace bulkhead::os

#endif  // BULKHEAD_LIB_OS_VOLUME_H_
