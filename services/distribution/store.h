// What a transfer needs of the rest of the suite, within one namespace and
// under one lease: content, snapshots, image records, unpacking. No gRPC here.
#ifndef BULKHEAD_SERVICES_DISTRIBUTION_STORE_H_
#define BULKHEAD_SERVICES_DISTRIBUTION_STORE_H_

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lib/dataplane/dataplane.h"
#include "lib/oci/image.h"

namespace bulkhead::distribution {

using Labels = std::map<std::string, std::string>;

struct ImageRecord {
  std::string name;
  Labels labels;
  oci::Descriptor target;
};

// Thread-safe; every call blocks on another process. Calls that are safe to
// repeat ride out a restart of that process for some seconds.
class Store {
 public:
  virtual ~Store() = default;

  // Errors: kAlreadyExists: the blob is there, and is now under the lease.
  //   kUnavailable with "ref ...": somebody else writes this ref.
  virtual absl::StatusOr<std::unique_ptr<dataplane::Ingest>> OpenIngest(
      const std::string& ref, int64_t total_bytes,
      const std::string& expected) = 0;
  virtual absl::StatusOr<dataplane::OpenedBlob> Open(
      const std::string& digest) = 0;
  virtual absl::StatusOr<Labels> BlobLabels(const std::string& digest) = 0;
  // For each of `values` that some blob has in its label `key`: such a blob.
  virtual absl::StatusOr<std::map<std::string, Digest>> FindByLabel(
      const std::string& key, const std::vector<std::string>& values) = 0;
  // Sets these labels, leaves others.
  virtual absl::Status SetBlobLabels(const std::string& digest,
                                     const Labels& labels) = 0;

  virtual absl::Status StatSnapshot(const std::string& snapshotter,
                                    const std::string& name) = 0;
  virtual absl::StatusOr<std::vector<dataplane::Mount>> Prepare(
      const std::string& snapshotter, const std::string& key,
      const std::string& parent, const Labels& labels) = 0;
  virtual absl::Status Commit(const std::string& snapshotter,
                              const std::string& name, const std::string& key,
                              const std::string& parent,
                              const Labels& labels) = 0;
  virtual absl::Status RemoveSnapshot(const std::string& snapshotter,
                                      const std::string& key) = 0;

  // kUnavailable: no data socket there; use Apply.
  virtual absl::StatusOr<std::unique_ptr<dataplane::ApplySession>> StartApply(
      const dataplane::ApplyRequest& request, int layer_fd) = 0;
  // Diff.Apply of a committed blob.
  virtual absl::StatusOr<dataplane::Applied> Apply(
      const oci::Descriptor& layer,
      const std::vector<dataplane::Mount>& mounts) = 0;

  virtual absl::StatusOr<ImageRecord> GetImage(const std::string& name) = 0;
  // Those whose name is `prefix`, or starts with it and "/", ":" or "@";
  // sorted. Empty: all.
  virtual absl::StatusOr<std::vector<ImageRecord>> ListImages(
      const std::string& prefix) = 0;
  // Creates it, or replaces labels and target.
  virtual absl::Status PutImage(const ImageRecord& image) = 0;
};

// True if `name` is `prefix`, or goes on after it with "/", ":" or "@".
bool HasNamePrefix(const std::string& name, const std::string& prefix);

// A manifest, index or config out of the store, its digest verified.
// Errors: kNotFound: not there. kDataLoss: other bytes than the descriptor
//   says. kResourceExhausted: over oci::kDocumentBytesMax.
absl::StatusOr<std::string> ReadStoredDocument(
    Store& store, const oci::Descriptor& descriptor);

}  // namespace bulkhead::distribution

#endif  // BULKHEAD_SERVICES_DISTRIBUTION_STORE_H_
