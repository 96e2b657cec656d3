// What a content store is: blobs named by their digest, and the ingests they
// grow from. No gRPC, no protobuf, no namespaces.
#ifndef BULKHEAD_SERVICES_CONTENT_STORE_H_
#define BULKHEAD_SERVICES_CONTENT_STORE_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "lib/digest/digest.h"

namespace bulkhead::content {

using Labels = std::map<std::string, std::string>;

struct BlobInfo {
  Digest digest;
  int64_t size_bytes = 0;
  absl::Time created_at;
  absl::Time updated_at;
  Labels labels;  // Empty where the store keeps none.
};

struct IngestInfo {
  std::string ref;
  int64_t offset_bytes = 0;  // How much is there.
  int64_t total_bytes = 0;   // As the writer announced it; 0: unknown.
  absl::Time started_at;
  absl::Time updated_at;
};

struct OpenOptions {
  std::string ref;
  int64_t total_bytes = 0;  // 0: unknown.
  Digest expected;          // Empty: unknown.
};

struct CommitOptions {
  int64_t size_bytes = 0;   // 0: whatever is there ...
  bool exact_size = false;  // ... unless this is set.
  Digest expected;          // Empty: sha256 of whatever is there.
  Labels labels;            // Ignored by stores that keep none.
};

// A committed blob, open for reading; stays readable after Delete().
// Thread-safe.
class BlobReader {
 public:
  virtual ~BlobReader() = default;
  virtual int64_t size_bytes() const = 0;
  // Replaces *data by up to `size_bytes` bytes from `offset_bytes`: fewer only
  // at the end of the blob. kOutOfRange: the offset is past the end.
  virtual absl::Status ReadAt(int64_t offset_bytes, int64_t size_bytes,
                              std::string* data) const = 0;
};

// One open ingest. Its ref is locked until Commit() succeeds or the object
// dies; the ingest itself lives on until committed or aborted. Not thread-safe.
// Every call may fail with:
//   kNotFound "reference R": the ingest was aborted meanwhile.
//   kResourceExhausted: the disk is full; nothing that was there is lost.
class Writer {
 public:
  virtual ~Writer() = default;

  virtual absl::StatusOr<IngestInfo> Info() = 0;
  // The sha256 of what is there (of the whole blob, as `expected` spells it,
  // after Commit).
  virtual absl::StatusOr<Digest> DigestSoFar() = 0;
  // Adds `data` at the end. On error the ingest is as before.
  virtual absl::Status Append(absl::string_view data) = 0;
  // Cuts the ingest to `size_bytes`, which must not be beyond its end.
  virtual absl::Status Truncate(int64_t size_bytes) = 0;

  // Verifies and publishes. On OK the blob is on stable storage under its
  // digest and the ref is gone. On error the ingest survives for resuming,
  // except after kAlreadyExists.
  // Errors: kFailedPrecondition "\"R\" failed size validation: A != B";
  //   kFailedPrecondition "unexpected commit digest A, expected B";
  //   kAlreadyExists "content D".
  virtual absl::StatusOr<BlobInfo> Commit(const CommitOptions& options) = 0;
};

// Nothing of an ingest is readable before Commit(), nothing changes after.
// Thread-safe. Every call may block on disk. Unexpected trouble is kInternal.
class Store {
 public:
  virtual ~Store() = default;

  // Errors: kNotFound "content digest D": no committed blob has it.
  virtual absl::StatusOr<BlobInfo> Info(const Digest& digest) = 0;
  // Calls `visit` for every committed blob, in no order, until it fails; blobs
  // that come or go meanwhile may or may not be seen.
  virtual absl::Status List(
      const std::function<absl::Status(const BlobInfo&)>& visit) = 0;
  // Open readers go on reading. Errors: kNotFound, as Info().
  virtual absl::Status Delete(const Digest& digest) = 0;
  // Errors: kNotFound, as Info().
  virtual absl::StatusOr<std::unique_ptr<BlobReader>> OpenBlob(
      const Digest& digest) = 0;

  // Creates the ingest `ref` or resumes it. One whose announced total differs
  // from `total_bytes` (both known) starts anew.
  // Errors: kInvalidArgument: no ref, or longer than the store takes.
  //   kAlreadyExists "content D": `expected` is committed.
  //   kUnavailable "ref R locked for T (since W)": it is open.
  //   kResourceExhausted: too many are open, or the disk is full.
  virtual absl::StatusOr<std::unique_ptr<Writer>> OpenWriter(
      const OpenOptions& options) = 0;

  // Errors: kNotFound "reference R".
  virtual absl::StatusOr<IngestInfo> Status(const std::string& ref) = 0;
  virtual absl::StatusOr<std::vector<IngestInfo>> ListStatuses() = 0;
  // Forgets the ingest, even an open one. Errors: kNotFound "reference R".
  virtual absl::Status Abort(const std::string& ref) = 0;
};

}  // namespace bulkhead::content

#endif  // BULKHEAD_SERVICES_CONTENT_STORE_H_
