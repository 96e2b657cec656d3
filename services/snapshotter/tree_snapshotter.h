// The snapshotters: records, names and locking of all; a driver (driver.h) each
// for how trees are kept.
//
//   ROOT/db                   RocksDB, one record a snapshot
//   ROOT/snapshots/<n>/       the driver's, see there
//   ROOT/snapshots/<n>/fs     the tree (mode 0755, or its parent's owner)
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
  enum class Driver { kOverlay, kNative, kBtrfs, kErofs };
  Driver driver = Driver::kOverlay;
  std::string name;
  std::string root;  // Made if missing, mode 0700.
  // Overlay options added to every overlay mount.
  std::vector<std::string> overlay_mount_options;
  // Shows each snapshot's tree as label
  // containerd.io/snapshot/overlay.upperdir.
  bool upperdir_label = false;
};

// Opens the database and starts deleting what no record names.
// Errors: as RecordDb::Open(), and kFailedPrecondition: the root is on no file
// system for this driver.
absl::StatusOr<std::unique_ptr<Snapshotter>> OpenTreeSnapshotter(
    const TreeSnapshotterOptions& options);

}  // namespace bulkhead::snapshotter

#endif  // BULKHEAD_SERVICES_SNAPSHOTTER_TREE_SNAPSHOTTER_H_
