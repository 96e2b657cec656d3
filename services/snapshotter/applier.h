// What Diff.Apply and the data socket's "apply" share: limits, the note to the
// snapshotters, counters, and how many run at once.
#ifndef BULKHEAD_SERVICES_SNAPSHOTTER_APPLIER_H_
#define BULKHEAD_SERVICES_SNAPSHOTTER_APPLIER_H_

#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "services/snapshotter/apply.h"
#include "services/snapshotter/processors.h"
#include "services/snapshotter/snapshotter.h"

namespace bulkhead::snapshotter {

// Thread-safe.
class Applier {
 public:
  // Borrows the snapshotters.
  Applier(std::vector<Snapshotter*> snapshotters, ApplyLimits limits,
          std::vector<StreamProcessor> processors = {})
      : snapshotters_(std::move(snapshotters)),
        limits_(std::move(limits)),
        processors_(std::move(processors)) {}

  // As ApplyLayer(), by way of the stream processors for `media_type`, and
  // tells the snapshotter whose tree it was. `on_unpacked`, unless null, is
  // called when only the sync is left.
  absl::StatusOr<Unpacked> Apply(const std::vector<os::MountSpec>& mounts,
                                 LayerSource& source,
                                 const std::string& media_type, bool parallel,
                                 const Payloads& payloads = {},
                                 const std::function<void()>& on_unpacked = {});

  const ApplyLimits& limits() const { return limits_; }

 private:
  absl::StatusOr<Unpacked> ApplyProcessed(
      const std::vector<os::MountSpec>& mounts, LayerSource& source,
      const std::string& media_type, bool parallel, const Payloads& payloads,
      const std::function<void()>& on_unpacked);

  const std::vector<Snapshotter*> snapshotters_;
  const ApplyLimits limits_;
  const std::vector<StreamProcessor> processors_;
};

}  // namespace bulkhead::snapshotter

#endif  // BULKHEAD_SERVICES_SNAPSHOTTER_APPLIER_H_
