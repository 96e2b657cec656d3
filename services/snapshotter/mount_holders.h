// Undoes activations (mount_manager.h) whose holders are gone: the lease of the
// call that made them, and what their labels containerd.io/gc.bref.* name. One
// holder that is there keeps an activation; one that never had any stays until
// it is deactivated.
#ifndef BULKHEAD_SERVICES_SNAPSHOTTER_MOUNT_HOLDERS_H_
#define BULKHEAD_SERVICES_SNAPSHOTTER_MOUNT_HOLDERS_H_

#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "services/snapshotter/mount_manager.h"

namespace bulkhead::snapshotter {

struct Holder {
  enum class Kind { kLease, kContainer, kImage, kContent, kSnapshot };
  Kind kind = Kind::kLease;
  std::string snapshotter;  // Of kSnapshot.
  std::string id;
};

// What an activation is held by, in no order.
std::vector<Holder> HoldersOf(const Activation& activation);

class MountHolders {
 public:
  // Whether a holder exists in a namespace; an error: nobody can tell just now,
  // and it is taken to. May block.
  using Asker = std::function<absl::StatusOr<bool>(const std::string& ns,
                                                   const Holder& holder)>;

  // Looks at once, and again every `between` while something is held.
  // `manager`, whose names are "<namespace>/<name>", must outlive it.
  MountHolders(MountManager& manager, Asker asker, absl::Duration between);
  ~MountHolders();

  // There may be a new activation. Thread-safe.
  void Wake();

 private:
  void Run();
  // Whether something that is held is left.
  bool Look();

  MountManager& manager_;
  const Asker asker_;
  const absl::Duration between_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool woken_ = true;      // Guarded by mutex_.
  bool stopping_ = false;  // Guarded by mutex_.
  std::thread thread_;
};

}  // namespace bulkhead::snapshotter

#endif  // BULKHEAD_SERVICES_SNAPSHOTTER_MOUNT_HOLDERS_H_
