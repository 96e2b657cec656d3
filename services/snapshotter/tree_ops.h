// Whole directory trees: measuring and copying.
#ifndef BULKHEAD_SERVICES_SNAPSHOTTER_TREE_OPS_H_
#define BULKHEAD_SERVICES_SNAPSHOTTER_TREE_OPS_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "services/snapshotter/snapshotter.h"

namespace bulkhead::snapshotter {

// Blocks and unique inodes of `path` and all below it. What vanishes meanwhile
// is left out. Follows no symlink.
// Errors: kResourceExhausted: deeper than kTreeDepthMax directories.
absl::StatusOr<DiskUsage> UsageOfTree(const std::string& path);

// The same without what `base` (an earlier snapshot of `path` on a file system
// that keeps inode numbers across snapshots) has unchanged at the same place,
// and without `path` itself.
absl::StatusOr<DiskUsage> UsageSince(const std::string& path,
                                     const std::string& base);

// Copies all below `from` into the directory `to`, and `from`'s own attributes
// onto it: contents (holes kept, reflinked where the file system can), hard
// links, devices, owners, modes, xattrs, times. Not synced.
absl::Status CopyTree(const std::string& from, const std::string& to);

}  // namespace bulkhead::snapshotter

#endif  // BULKHEAD_SERVICES_SNAPSHOTTER_TREE_OPS_H_
