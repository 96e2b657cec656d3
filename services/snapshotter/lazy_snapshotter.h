// A snapshotter that costs nothing until somebody uses it: its database is
// opened by the first call that needs one.
#ifndef BULKHEAD_SERVICES_SNAPSHOTTER_LAZY_SNAPSHOTTER_H_
#define BULKHEAD_SERVICES_SNAPSHOTTER_LAZY_SNAPSHOTTER_H_

#include <memory>

#include "absl/status/statusor.h"
#include "services/snapshotter/tree_snapshotter.h"

namespace bulkhead::snapshotter {

// Opens at once what has been used before (its database is there); anything
// else at the first Prepare(), View() or Commit(). Until then there are no
// snapshots. Thread-safe.
// Errors: as OpenTreeSnapshotter(); what cannot be opened later fails the call.
absl::StatusOr<std::unique_ptr<Snapshotter>> OpenLazySnapshotter(
    const TreeSnapshotterOptions& options);

}  // namespace bulkhead::snapshotter

#endif  // BULKHEAD_SERVICES_SNAPSHOTTER_LAZY_SNAPSHOTTER_H_
