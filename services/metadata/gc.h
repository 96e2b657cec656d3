// Garbage collection (facts/core.md section 10): marks from leases, images,
// containers, sandboxes, live ingests and gc.root labels, sweeps the records of
// what is left, then the backends.
//
// It runs beside writers. Marking reads one view of the database. From the
// moment the view is taken, every key that a writer puts is noted, and the
// sweep, which works in short steps with no transaction open, marks the noted
// keys and what they refer to before each step: whatever was created or
// referred to since the mark began survives this run. What lost its last
// reference meanwhile waits for the next.
#ifndef BULKHEAD_SERVICES_METADATA_GC_H_
#define BULKHEAD_SERVICES_METADATA_GC_H_

#include <cstdint>
#include <string>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "services/metadata/content.h"
#include "services/metadata/snapshots.h"
#include "services/metadata/store.h"

namespace bulkhead::metadata {

// Objects removed in one step, while writers wait.
constexpr size_t kSweepStepMax = 64;
// In which writers go on.
constexpr absl::Duration kBetweenSweepSteps = absl::Milliseconds(1);

struct CollectResult {
  int64_t leases = 0;
  int64_t images = 0;
  int64_t blobs = 0;
  int64_t ingests = 0;
  int64_t snapshots = 0;
};

// Removes the records of everything unreachable. One caller at a time. `pause`
// adds up how long writers waited. Events are published for snapshots and
// images. `after_mark` is for tests: called between mark and sweep.
absl::StatusOr<CollectResult> CollectRecords(
    Store& store, absl::Duration* pause = nullptr,
    const std::function<void()>& after_mark = nullptr);

// The database keys of what a collection begun now would remove.
absl::StatusOr<std::vector<std::string>> ListGarbage(Store& store);

// Unasked runs: at most this share of the time is spent in them, as long as
// that does not put the next one off for longer than kWorkIntervalMax. Waiting
// for a snapshotter to delete files, which is the same work whenever it is
// done, does not count.
constexpr double kWorkShareMax = 0.1;
// The same where nothing was removed: there is little to find.
constexpr double kIdleShareMax = 0.04;
constexpr absl::Duration kWorkIntervalMax = absl::Seconds(30);
// How long an unasked run lets changes come after the one that it is for: those
// who remove one thing after the other would otherwise wait for a disk that is
// busy deleting the first. (containerd waits for a second.)
constexpr absl::Duration kSettle = absl::Milliseconds(200);

struct CollectorOptions {
  absl::Duration startup_delay = absl::Milliseconds(100);
  absl::Duration schedule_delay = absl::ZeroDuration();
  int mutation_threshold = 100;
  int deletion_threshold = 0;
  double pause_threshold = 0.02;
};

// Collects in a thread of its own when the thresholds say so. Thread-safe.
class Collector {
 public:
  Collector(Store& store, Content& content, Snapshots& snapshots,
            const CollectorOptions& options);
  // Ends a run at its next step.
  ~Collector();

  // Waits for a whole run that begins after the call, backends included.
  // Errors: kCancelled: the collector is being destroyed. What a backend
  // refused to delete is logged and tried again later, and is no error.
  absl::StatusOr<CollectResult> CollectNow();

 private:
  void Run();
  bool Due() const;  // A threshold is reached.
  absl::StatusOr<CollectResult> Collect(bool backends, absl::Duration* waited);
  absl::Duration SweepBackends();

  Store& store_;
  Content& content_;
  Snapshots& snapshots_;
  const CollectorOptions options_;

  absl::Mutex mutex_;
  bool stopping_ = false;
  bool changed_ = true;    // Thresholds must be looked at.
  bool retry_ = false;     // A backend was not swept in full.
  uint64_t wanted_ = 0;    // Runs asked for.
  uint64_t finished_ = 0;  // The last request that a whole run answered.
  absl::StatusOr<CollectResult> last_ = CollectResult();
  absl::Duration pause_average_ = absl::Milliseconds(5);
  std::thread thread_;
};

}  // namespace bulkhead::metadata

#endif  // BULKHEAD_SERVICES_METADATA_GC_H_
