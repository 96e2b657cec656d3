// The mark of garbage collection: what is reachable, and by which path.
#ifndef BULKHEAD_SERVICES_METADATA_MARKER_H_
#define BULKHEAD_SERVICES_METADATA_MARKER_H_

#include <set>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/containerd/services/containers/v1/containers.pb.h"
#include "services/metadata/references.h"
#include "services/metadata/store.h"
#include "services/metadata/util.h"

namespace bulkhead::metadata {

// One mark. Objects go by their database keys. Not thread-safe.
class Marker {
 public:
  struct Step {
    std::string key;
    // What leads here from the step before; why the first one is a root.
    std::string by;
  };

  // `explain`: remember paths, for PathTo().
  explicit Marker(Store& store, bool explain = false)
      : store_(store), explain_(explain) {}

  // Marks everything reachable in `view`.
  absl::Status MarkAll(const Db::View* view);
  // Marks what was written since, and what that refers to now.
  absl::Status MarkNoted(const std::vector<std::string>& keys);

  bool IsLive(const std::string& key) const {
    return marked_.contains(key) || flat_.contains(key) ||
           (!spared_.empty() && spared_.contains(Split(key)[0]));
  }
  // From a root to `key`; empty if nothing keeps it.
  std::vector<Step> PathTo(const std::string& key) const;

 private:
  struct Condition {
    std::string holder;    // Image or blob.
    std::string snapshot;  // What it depends on.
    std::string conditions;
  };

  // As Store::Get(), but a damaged record is as good as none.
  template <typename Record>
  absl::StatusOr<std::optional<Record>> Read(const std::string& key);
  template <typename Record>
  absl::Status ScanLabels(char kind, bool roots_by_label, const char* why);
  void GatherBackReferences(const std::string& ns, const std::string& key,
                            const LabelMap& labels);
  absl::Status LookAgain(const std::string& snapshot);
  void NoteUse(const std::string& snapshot, const LabelMap& labels);
  // Makes the holder depend on the snapshot if the condition holds.
  void Apply(const Condition& condition, absl::Time now);
  absl::Status MarkLeases(absl::Time now);
  absl::Status MarkFlat(std::string key, std::string from, std::string by);
  void Push(std::string key, const std::string& from, const std::string& by);
  absl::Status Drain();
  void FollowLabels(const std::string& key, const LabelMap& labels);
  void FollowContainer(
      const std::string& key,
      const containerd::services::containers::v1::Container& container);
  // Queues what the object refers to.
  absl::Status Follow(const std::string& key);
  void Root(const std::string& key, const std::string& why) {
    Push(key, "", why);
  }

  Store& store_;
  const bool explain_;
  const Db::View* view_ = nullptr;
  std::vector<std::string> queue_;
  std::unordered_set<std::string> marked_;
  std::unordered_set<std::string> flat_;
  // Namespaces with damaged records: what those refer to is unknown.
  std::set<std::string> spared_;
  // Back references: from what is pointed at to those that point.
  std::unordered_map<std::string, std::vector<std::string>> back_;
  std::vector<Condition> conditions_;
  // When snapshots were last used, by their labels.
  std::unordered_map<std::string, absl::Time> used_at_;
  // With explain_: who came here first, and how.
  std::unordered_map<std::string, Step> from_;
};

}  // namespace bulkhead::metadata

#endif  // BULKHEAD_SERVICES_METADATA_MARKER_H_
