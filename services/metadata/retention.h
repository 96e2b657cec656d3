// Removes images that nobody runs, by age or when the disk gets full: what the
// kubelet and `docker image prune` do by hand. Off unless configured.
//
// An image is in use if a container of its namespace names it, or names another
// image with the same target, or runs on a snapshot that the image's blobs
// refer to; if a lease holds it; or if a container or a sandbox refers to it by
// a gc.ref.image label. One in use is never removed, nor one with the label
// kLabelPinned or CRI's kLabelCriPinned, nor one younger than
// kRetentionAgeMin. When an image was last in use is kept in the database; the
// clock starts when it is first seen here.
#ifndef BULKHEAD_SERVICES_METADATA_RETENTION_H_
#define BULKHEAD_SERVICES_METADATA_RETENTION_H_

#include <functional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "services/metadata/store.h"

namespace bulkhead::metadata {

// With any value.
inline constexpr char kLabelPinned[] = "bulkhead/pinned";
inline constexpr char kLabelCriPinned[] = "io.cri-containerd.pinned";

// Since its record was written: a pull is followed by a run.
constexpr absl::Duration kRetentionAgeMin = absl::Minutes(2);

struct RetentionOptions {
  // Removed once nobody has used it for longer; zero: however long.
  absl::Duration unused_max = absl::ZeroDuration();
  // With less of the disk free, what was unused for longest goes, one by one,
  // until this much is; zero: however full.
  int free_min_percent = 0;
  // Empty: all.
  std::vector<std::string> namespaces;
  // How long freed space may take to show before the next image goes.
  absl::Duration settle = absl::Seconds(10);

  bool enabled() const {
    return unused_max > absl::ZeroDuration() || free_min_percent > 0;
  }
};

struct RemovedImage {
  std::string ns;
  std::string name;
};

// Thread-safe.
class Retention {
 public:
  // `free_percent` measures the disk. `collect` waits for a whole collection.
  // Both are called from the thread of a pass. The store is borrowed.
  Retention(Store& store, RetentionOptions options,
            std::function<absl::StatusOr<double>()> free_percent,
            std::function<absl::Status()> collect)
      : store_(store),
        options_(std::move(options)),
        free_percent_(std::move(free_percent)),
        collect_(std::move(collect)) {}
  // Ends the thread, after the image it is at.
  ~Retention();

  // Passes now and then, in a thread; does nothing if not enabled.
  void Start();

  // One pass, as of `now`. Each removal is durable, logged, and published as
  // /images/delete. Errors: the database's; what was removed stays so.
  absl::StatusOr<std::vector<RemovedImage>> Pass(absl::Time now);

 private:
  struct Candidate {
    std::string ns;
    std::string name;
    absl::Time last_used;
  };

  // Notes what is in use now; the removable ones, unused for longest first.
  absl::StatusOr<std::vector<Candidate>> Survey(absl::Time now);
  absl::Status SurveyNamespace(const std::string& ns, absl::Time now,
                               std::vector<Candidate>* candidates);
  // False: it was changed, or taken into use, meanwhile.
  absl::StatusOr<bool> Remove(const Candidate& candidate,
                              const std::string& why);
  bool HasRoom(absl::Duration patience);
  bool Stopping();
  void Run();

  Store& store_;
  const RetentionOptions options_;
  const std::function<absl::StatusOr<double>()> free_percent_;
  const std::function<absl::Status()> collect_;

  absl::Mutex mutex_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace bulkhead::metadata

#endif  // BULKHEAD_SERVICES_METADATA_RETENTION_H_
