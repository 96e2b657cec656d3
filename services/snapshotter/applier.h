// What Diff.Apply and the data socket's "apply" share: limits, the note to the
// snapshotters, counters, and how many run at once.
#ifndef BULKHEAD_SERVICES_SNAPSHOTTER_APPLIER_H_
#define BULKHEAD_SERVICES_SNAPSHOTTER_APPLIER_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "services/snapshotter/apply.h"
#include "services/snapshotter/snapshotter.h"

namespace bulkhead::snapshotter {

// Thread-safe.
class Applier {
 public:
  // Borrows the snapshotters.
  Applier(std::vector<Snapshotter*> snapshotters, ApplyLimits limits)
      : snapshotters_(std::move(snapshotters)), limits_(std::move(limits)) {}

  // As ApplyLayer(), and tells the snapshotter whose tree it was.
  absl::StatusOr<Unpacked> Apply(const std::vector<os::MountSpec>& mounts,
                                 LayerSource& source,
                                 const std::string& media_type, bool parallel);

  const ApplyLimits& limits() const { return limits_; }

 private:
  const std::vector<Snapshotter*> snapshotters_;
  const ApplyLimits limits_;
};

}  // namespace bulkhead::snapshotter

#endif  // BULKHEAD_SERVICES_SNAPSHOTTER_APPLIER_H_
