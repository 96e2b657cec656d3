// Restart policies, as containerd's restart monitor reads them from labels
// (facts/runtime.md, section 6): containers whose containerd.io/restart.status
// says "running" and that do not run are started again.
#ifndef BULKHEAD_SERVICES_RUNTIME_RESTART_MONITOR_H_
#define BULKHEAD_SERVICES_RUNTIME_RESTART_MONITOR_H_

#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/containerd/types/event.pb.h"
#include "services/runtime/task_manager.h"
#include "services/runtime/workers.h"

namespace bulkhead::runtime {

constexpr char kRestartStatusLabel[] = "containerd.io/restart.status";
constexpr char kRestartPolicyLabel[] = "containerd.io/restart.policy";
constexpr char kRestartCountLabel[] = "containerd.io/restart.count";
constexpr char kRestartLogUriLabel[] = "containerd.io/restart.loguri";
constexpr char kRestartStoppedLabel[] =
    "containerd.io/restart.explicitly-stopped";

// Whether a container with these labels, which should run, is to be started
// after its process ended with `exit_status` (0 if it never ran). An unknown
// policy restarts nothing.
bool ShouldRestart(const std::map<std::string, std::string>& labels,
                   uint32_t exit_status);

// The pause before the next start, after `failures` short lives in a row.
absl::Duration RestartDelay(int failures);

struct RestartRecord {
  std::map<std::string, std::string> labels;
  absl::Time created_at;
  bool terminal = false;
  std::string snapshotter;
  std::string snapshot_key;
};

// Where containers and their file systems come from. Thread-safe, may block.
class RestartSource {
 public:
  using Key = std::pair<std::string, std::string>;  // Namespace, id.
  virtual ~RestartSource() = default;
  // All containers that have kRestartStatusLabel.
  virtual absl::StatusOr<std::vector<Key>> Restartable() = 0;
  // Errors: kNotFound.
  virtual absl::StatusOr<RestartRecord> Record(const Key& key) = 0;
  virtual absl::StatusOr<std::vector<containerd::types::Mount>> Mounts(
      const std::string& ns, const RestartRecord& record) = 0;
  virtual absl::Status SetLabel(const Key& key, const std::string& label,
                                const std::string& value) = 0;
};

// Thread-safe. Looks at a container when its process ends, and at all of them
// every kRestartScan, the first time at once. A container that cannot be
// started holds up no other.
class RestartMonitor {
 public:
  // Both must outlive the monitor.
  RestartMonitor(TaskManager& tasks, RestartSource& source);
  // Waits for a start that is under way.
  ~RestartMonitor();

  // Every event that metadata has; only exits of first processes matter.
  void OnEvent(const containerd::types::Envelope& envelope);

 private:
  using Key = RestartSource::Key;
  struct Entry {
    int failures = 0;
    absl::Time started_at = absl::InfinitePast();
    absl::Time due_at = absl::InfiniteFuture();  // Of the next look.
    bool ended = false;                          // The look is due to an exit.
    bool busy = false;
    bool again = false;  // Its process ended while it was looked at.
  };
  void Run();
  void Scan();
  void Look(const Key& key, bool ended);
  // OK: nothing more to do now, or started. Else the look is repeated.
  // `ended`: it did run until now.
  absl::Status Reconcile(const Key& key, bool ended);
  absl::Status StartAgain(const Key& key, const RestartRecord& record);

  TaskManager& tasks_;
  RestartSource& source_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<Key, Entry> entries_;
  bool stopping_ = false;
  Workers workers_;
  std::thread thread_;  // Last: it uses everything above.
};

}  // namespace bulkhead::runtime

#endif  // BULKHEAD_SERVICES_RUNTIME_RESTART_MONITOR_H_
