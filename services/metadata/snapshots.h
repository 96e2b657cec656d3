// Snapshots as clients see them: per namespace, labelled, leased, over backends
// that hold wrapped keys, <namespace>/<number>/<key> (facts/core.md section
// 11). A record is written after the backend has the snapshot, under the lock
// of its backend key, which the sweep takes too; a removal takes the record
// away and leaves the backend to the sweep. A commit changes the backend before
// the record, so it is written down first: one that was cut short by a crash is
// finished, or forgotten, by the next call that names the snapshotter.
#ifndef BULKHEAD_SERVICES_METADATA_SNAPSHOTS_H_
#define BULKHEAD_SERVICES_METADATA_SNAPSHOTS_H_

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "lib/filters/filters.h"
#include "services/metadata/records.pb.h"
#include "services/metadata/snapshot_backend.h"
#include "services/metadata/store.h"

namespace bulkhead::metadata {

// Adds the deletion of a snapshot's record and index entries.
void DeleteSnapshotRecord(const std::string& ns, const std::string& snapshotter,
                          const std::string& key, const SnapshotRecord& record,
                          const std::function<void(std::string)>& drop);

struct SnapshotCall {
  std::string ns;
  std::string lease;
  std::string snapshotter;
};

// Thread-safe; borrows the store. Errors carry containerd's texts; an empty or
// unknown snapshotter is kInvalidArgument.
class Snapshots {
 public:
  using Backends = std::map<std::string, std::unique_ptr<SnapshotBackend>>;

  Snapshots(Store& store, Backends backends);

  // Takes `fresh` in place of the backends of the same names, or besides those
  // there are; calls that run go on with the old ones. For a reload.
  void ReplaceBackends(Backends fresh);

  // Prepare, or View. Errors: kAlreadyExists: the key, or what its label
  //   snapshot.ref names, is there (and joined the lease). kNotFound: no such
  //   parent, or lease. kInvalidArgument: the parent is not committed.
  absl::StatusOr<Mounts> Prepare(const SnapshotCall& call, bool view,
                                 const std::string& key,
                                 const std::string& parent,
                                 const LabelMap& labels);
  absl::StatusOr<Mounts> MountsOf(const SnapshotCall& call,
                                  const std::string& key);
  absl::Status Commit(const SnapshotCall& call, const std::string& name,
                      const std::string& key, const std::string& parent,
                      const LabelMap& labels);
  absl::Status Remove(const SnapshotCall& call, const std::string& key);
  absl::StatusOr<snapshots_v1::Info> Stat(const SnapshotCall& call,
                                          const std::string& key);
  absl::StatusOr<snapshots_v1::Info> Update(
      const SnapshotCall& call, const snapshots_v1::Info& wanted,
      const std::vector<std::string>& mask);
  absl::Status List(const SnapshotCall& call, const filters::Filter& filter,
                    const std::function<bool(snapshots_v1::Info&)>& visitor);
  absl::StatusOr<snapshots_v1::UsageResponse> Usage(const SnapshotCall& call,
                                                    const std::string& key);

  std::vector<std::string> names() const;
  // For fsck. kInvalidArgument: no such snapshotter.
  absl::StatusOr<SnapshotBackend*> Find(const std::string& snapshotter) const {
    return Backend({"", "", snapshotter});
  }
  // Finds out what became of commits that ended without an answer. Cheap when
  // there are none. Errors: the backend's.
  absl::Status Settle(const std::string& snapshotter);
  // Removes what no record names from a backend, children first. Goes on past
  // failures; the first error, if any, at the end. `waited` is how much of the
  // time went by until what was removed was gone from the backend's disk.
  absl::Status SweepBackend(const std::string& snapshotter,
                            absl::Duration* waited = nullptr);

 private:
  // After Settle().
  absl::StatusOr<SnapshotBackend*> Ready(const SnapshotCall& call);
  absl::StatusOr<SnapshotBackend*> Backend(const SnapshotCall& call) const;
  // Turns the record of an active snapshot into that of the committed one.
  absl::Status FinishCommit(const std::string& snapshotter,
                            const CommitRecord& commit);
  absl::StatusOr<SnapshotRecord> Find(const SnapshotCall& call,
                                      const std::string& key) const;
  // What `ask` gets from the backend for the snapshot's record. When the
  // backend does not have it, a Commit of it may be between backend and record:
  // waits for that and looks again, so that no moment shows neither name.
  template <typename T>
  absl::StatusOr<T> Ask(
      const SnapshotCall& call, const std::string& key,
      absl::FunctionRef<absl::StatusOr<T>(const SnapshotRecord&)> ask);
  // If `name` exists: adds it to the lease and returns kAlreadyExists with
  // `what` in front of its name.
  absl::Status CheckAbsent(const SnapshotCall& call, const std::string& name,
                           const char* what);
  absl::Status AdoptRemote(const SnapshotCall& call, SnapshotBackend* backend,
                           const std::string& target, const std::string& parent,
                           const std::string& backend_parent,
                           const LabelMap& labels);
  // Writes the record of a new snapshot, its index entries and its lease
  // entry, in `txn`, which holds the locks of `key`, `parent` and the lease.
  absl::Status PutNew(Txn& txn, const SnapshotCall& call,
                      const std::string& key, const SnapshotRecord& record,
                      const std::string& backend_parent);

  Store& store_;
  mutable std::mutex backends_mutex_;
  Backends backends_;
  // Replaced ones: calls may still be in them.
  std::vector<std::unique_ptr<SnapshotBackend>> retired_;
  KeyedLocks backend_keys_;

  absl::Mutex settling_;  // Held while commits are settled.
  absl::Mutex unsettled_mutex_;
  // Snapshotters with commits that nobody waits for any more, and what those
  // make in the backend. Empty but for the time after a crash or an outage.
  std::map<std::string, std::set<std::string>> unsettled_;
};

}  // namespace bulkhead::metadata

#endif  // BULKHEAD_SERVICES_METADATA_SNAPSHOTS_H_
