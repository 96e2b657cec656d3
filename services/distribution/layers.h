// The layers of one manifest: fetched at once, and unpacked while they come.
#ifndef BULKHEAD_SERVICES_DISTRIBUTION_LAYERS_H_
#define BULKHEAD_SERVICES_DISTRIBUTION_LAYERS_H_

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "lib/os/fd.h"
#include "services/distribution/progress.h"
#include "services/distribution/ranges.h"
#include "services/distribution/registry.h"
#include "services/distribution/store.h"

namespace bulkhead::distribution {

// Set once anything of a transfer has failed or the client has gone: all its
// threads come home. Thread-safe.
struct StopFlag {
  std::function<bool()> client_gone;
  std::atomic<bool> failed{false};
  // A blob was cut off that another transfer can go on with.
  std::atomic<bool> resumable{false};
  bool Stopped() const { return failed || (client_gone && client_gone()); }
};

struct FetchContext {
  Registry* registry = nullptr;  // None: everything is in the store.
  Store* store = nullptr;
  Progress* progress = nullptr;
  StopFlag* stop = nullptr;
  std::string ns;        // Transfers in one namespace fetch each blob once.
  Labels source_labels;  // containerd.io/distribution.source.*
  // Streams that blobs may use beside their first; null: none.
  StreamSlots* slots = nullptr;
  int streams_per_blob_max = 1;
  // How to reach a registry that an image of the store came from; empty: what
  // is not here stays away. The options have no object but the repository.
  std::function<absl::StatusOr<RegistryOptions>(const oci::Reference&)>
      open_origin;
  // Asked once an image's digest is known, before anything of it is fetched
  // or recorded: may it be known under all of `names`? Empty: always.
  std::function<absl::Status(const std::vector<std::string>& names,
                             const oci::Descriptor& image)>
      approve;
};

// One blob on its way: the fetcher's thread writes, an unpacker reads behind.
class BlobFetch {
 public:
  BlobFetch(const FetchContext& context, oci::Descriptor descriptor,
            std::vector<std::string> parents)
      : context_(context),
        descriptor_(std::move(descriptor)),
        parents_(std::move(parents)),
        source_(descriptor_) {}

  const oci::Descriptor& descriptor() const { return descriptor_; }

  // Brings the blob into the content store, resuming what an earlier attempt
  // has left; at the end it is committed and verified, or nothing is there.
  void Run();
  // Uses another blob of the store that unpacks to the same, instead of
  // fetching. For WaitBytes() and `source()` only: the blob itself stays away.
  // Errors: kNotFound.
  absl::Status UseInstead(const oci::Descriptor& other);
  // Nobody will read it: it need not be fetched.
  void Skip();
  // What WaitBytes() gives the bytes of.
  const oci::Descriptor& source() const { return source_; }
  // True if Run() brings the blob, or has brought it, into the store.
  bool wanted() const { return wanted_; }

  // Takes `bytes`, already verified, instead of asking the registry.
  absl::Status Store(const std::string& bytes, const Labels& labels);

  struct State {
    int fd = -1;  // Borrowed; valid as long as the BlobFetch.
    int64_t available_bytes = 0;
    bool complete = false;   // All bytes are there, unverified.
    bool committed = false;  // Verified and durable.
    absl::Status failed;
  };
  // Waits until there is a descriptor and more than `beyond_bytes`, or the
  // bytes are complete, or it failed, or the transfer stops.
  State WaitBytes(int64_t beyond_bytes);
  // Waits until it is committed or failed.
  absl::Status WaitCommitted();

  // Marks it failed without running.
  void Fail(const absl::Status& status);

 private:
  absl::Status RunOnce(bool* again);
  absl::Status Adopt();
  absl::Status MergeSourceLabels();
  absl::Status TakeFd(int ingest_fd);

  const FetchContext& context_;
  const oci::Descriptor descriptor_;
  const std::vector<std::string> parents_;
  // Both change only while no other thread uses this blob.
  oci::Descriptor source_;
  bool wanted_ = true;
  std::mutex mutex_;
  std::condition_variable changed_;
  State state_;
  os::UniqueFd fd_;
  std::unique_ptr<dataplane::Ingest> ingest_;
};

struct UnpackPlan {
  std::string snapshotter;
  std::vector<Digest> diff_ids;
  // The snapshotter can set a snapshot's parent when it is committed: layers
  // are unpacked at the same time, else one after the other.
  bool rebase = false;
  // It may know snapshots that nobody has unpacked here: it is asked first, and
  // layers below the first that it lacks are not fetched.
  bool remote = false;
  int unpacks_max = 1;
};

// Fetches `layers` (at most `downloads_max` streams at once) and, if `plan` is
// given, unpacks each into a snapshot named by its chain id. With a plan, a
// layer is not fetched if the store has another blob that unpacks to the same.
// Returns the first error.
absl::Status FetchLayers(const FetchContext& context,
                         const std::vector<oci::Descriptor>& layers,
                         const std::vector<std::string>& parents,
                         int downloads_max, const UnpackPlan* plan);

}  // namespace bulkhead::distribution

#endif  // BULKHEAD_SERVICES_DISTRIBUTION_LAYERS_H_
