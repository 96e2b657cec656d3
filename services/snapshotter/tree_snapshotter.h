// The snapshotters that keep each snapshot as a directory tree: "overlayfs"
// stacks them, "native" copies the parent.
//
//   ROOT/db                   RocksDB, one record a snapshot
//   ROOT/snapshots/<n>/fs     the tree (mode 0755, or its parent's owner)
//   ROOT/snapshots/<n>/work   overlayfs' work folder, active snapshots only
//   ROOT/snapshots/<n>/implicit  directories the layer left to its parent
//   ROOT/snapshots/rm-<n>     removed, being deleted
#ifndef BULKHEAD_SERVICES_SNAPSHOTTER_TREE_SNAPSHOTTER_H_
#define BULKHEAD_SERVICES_SNAPSHOTTER_TREE_SNAPSHOTTER_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "services/snapshotter/snapshotter.h"

namespace bulkhead::snapshotter {

struct TreeSnapshotterOptions {
  enum class Driver { kOverlay, kNative };
  Driver driver = Driver::kOverlay;
  std::string name;
  std::string root;  // Made if missing, mode 0700.
  // Overlay options added to every overlay mount.
  std::vector<std::string> overlay_mount_options;
};

// Opens the database and starts deleting what no record names.
// Errors: as RecordDb::Open().
absl::StatusOr<std::unique_ptr<Snapshotter>> OpenTreeSnapshotter(
    const TreeSnapshotterOptions& options);

}  // namespace bulkhead::snapshotter

#endif  // BULKHEAD_SERVICES_SNAPSHOTTER_TREE_SNAPSHOTTER_H_
