// Content as clients see it: per namespace, labelled, leased, over a backend
// that has one flat set of blobs and ingests (facts/core.md section 6).
//
// A blob's record is written after the backend says its bytes are durable, and
// under the digest's lock, which the sweep of the backend takes too: a blob
// that gets a record is never deleted under it.
#ifndef BULKHEAD_SERVICES_METADATA_CONTENT_H_
#define BULKHEAD_SERVICES_METADATA_CONTENT_H_

#include <functional>
#include <memory>
#include <string>
#include <unordered_set>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lib/filters/filters.h"
#include "proto/containerd/services/content/v1/content.pb.h"
#include "services/metadata/content_backend.h"
#include "services/metadata/records.pb.h"
#include "services/metadata/store.h"
#include "services/metadata/util.h"

namespace bulkhead::metadata {

namespace content_v1 = containerd::services::content::v1;

// Unleased ingests are collected this long after they were last opened.
constexpr absl::Duration kIngestExpiry = absl::Hours(24);

struct WriterRequest {
  std::string ns;
  std::string lease;
  std::string ref;
  int64_t total_bytes = 0;
  std::string expected;  // Empty or a valid digest.
};

class Content;

// One open ingest of a client. Not thread-safe. Its end unlocks the ref.
class ContentWriter {
 public:
  const WriterRequest& request() const { return request_; }
  const dataplane::IngestState& opened() const { return opened_; }
  // The bytes are in the backend already: the whole offset counts as written,
  // and digest() is what it must be. Truncate(0) makes an ordinary writer.
  bool is_virtual() const { return backend_ == nullptr; }
  const std::string& digest() const { return virtual_digest_; }

  int fd() const { return backend_ == nullptr ? -1 : backend_->fd(); }
  absl::Status Append(int64_t offset_bytes, const std::string& data);
  absl::Status Advance(int64_t offset_bytes);
  absl::Status Truncate(int64_t offset_bytes);
  // The sha256 of what is there (what is expected, if is_virtual()); empty if
  // the backend does not say.
  absl::StatusOr<std::string> DigestSoFar();
  // `size_bytes` < 0: whatever is there. On OK the blob, its labels and its
  // place in the lease are durable. Errors: kFailedPrecondition: size or
  // digest do not match; the ingest survives. kAlreadyExists: this namespace
  // has the blob; it joined the lease and the ingest is gone. kNotFound: the
  // lease is gone.
  absl::StatusOr<dataplane::CommitResult> Commit(int64_t size_bytes,
                                                 const std::string& expected,
                                                 const LabelMap& labels);
  // Removes the ingest.
  absl::Status Abort();

 private:
  friend class Content;
  explicit ContentWriter(Content& content) : content_(content) {}

  Content& content_;
  WriterRequest request_;
  dataplane::IngestState opened_;
  std::unique_ptr<BackendWriter> backend_;
  std::string virtual_digest_;
};

// Thread-safe; borrows the store and the backend. Errors carry containerd's
// texts.
class Content {
 public:
  // `isolated`: bytes are shared between namespaces only from those labelled
  // containerd.io/namespace.shareable=true.
  Content(Store& store, ContentBackend& backend, bool isolated)
      : store_(store), backend_(backend), isolated_(isolated) {}

  absl::StatusOr<content_v1::Info> Info(const std::string& ns,
                                        const std::string& digest) const;
  absl::StatusOr<content_v1::Info> Update(const std::string& ns,
                                          const content_v1::Info& wanted,
                                          const std::vector<std::string>& mask);
  absl::Status List(
      const std::string& ns, const filters::Filter& filter,
      const std::function<bool(content_v1::Info&)>& visitor) const;
  absl::Status Delete(const std::string& ns, const std::string& digest,
                      const std::string& lease);
  absl::StatusOr<std::unique_ptr<BackendBlob>> Open(
      const std::string& ns, const std::string& digest) const;
  // A blob whatever the namespace: for a virtual writer's bytes.
  absl::StatusOr<std::unique_ptr<BackendBlob>> OpenShared(
      const std::string& digest) const {
    return backend_.Open(digest);
  }

  absl::StatusOr<content_v1::Status> Status(const std::string& ns,
                                            const std::string& ref) const;
  absl::StatusOr<std::vector<content_v1::Status>> ListStatuses(
      const std::string& ns, const filters::Filter& filter) const;
  absl::Status Abort(const std::string& ns, const std::string& ref,
                     const std::string& lease);

  // Errors: kAlreadyExists: `expected` is in the namespace (and joined the
  // lease). kUnavailable "ref ... locked". kNotFound "lease does not exist".
  absl::StatusOr<std::unique_ptr<ContentWriter>> OpenWriter(
      const WriterRequest& request);

  // kAlreadyExists if this namespace has `digest`, after adding it to the
  // lease. A record whose bytes are missing or of the wrong length counts as
  // absent, and such bytes are removed: whoever comes to write them heals it.
  absl::Status CheckAbsent(const std::string& ns, const std::string& lease,
                           const std::string& digest);

  // --- for fsck ---
  ContentBackend& backend() { return backend_; }
  // What is wrong with a blob of `size_bytes`; empty: nothing. With `read`, its
  // bytes are hashed and counted in `bytes`.
  std::string FaultOf(const std::string& digest, int64_t size_bytes, bool read,
                      int64_t* bytes);
  // Removes a damaged blob and what names it, so that it is fetched again.
  absl::Status Forget(const std::string& digest,
                      const std::vector<std::string>& namespaces);
  // Writes the record that a blob of the backend lost, without labels.
  absl::Status Rebuild(const std::string& ns, const std::string& digest);

  // Deletes blobs that no namespace names and ingests without a record from
  // the backend. Goes on past failures; the first error, if any, at the end.
  absl::Status SweepBackend();

 private:
  friend class ContentWriter;

  // CheckAbsent() for a caller that holds the digest's lock.
  absl::Status CheckAbsentLocked(const std::string& ns,
                                 const std::string& lease,
                                 const std::string& digest);
  // Those among `digests` that records or ingests name.
  absl::StatusOr<std::unordered_set<std::string>> Referenced(
      const std::vector<std::string>& digests) const;
  // The size of `digest` in the backend if this namespace may use it unseen.
  absl::StatusOr<std::optional<int64_t>> Shareable(
      const std::string& digest) const;
  // Writes the ingest's record and lease entry. `backend_ref` empty: virtual.
  absl::StatusOr<IngestRecord> Register(const WriterRequest& request,
                                        bool is_virtual);
  absl::Status OpenBackend(ContentWriter* writer);
  // `heals`: a record that is there already had lost its bytes.
  absl::Status Record(const WriterRequest& request, const std::string& digest,
                      int64_t size_bytes, const LabelMap& labels, bool heals);

  Store& store_;
  ContentBackend& backend_;
  const bool isolated_;
  // Shared: a commit whose digest is not known beforehand. Exclusive: the
  // sweep, around one step of deletions.
  absl::Mutex blind_commits_;
};

}  // namespace bulkhead::metadata

#endif  // BULKHEAD_SERVICES_METADATA_CONTENT_H_
