// The content service as metadata uses it: blobs and ingests without
// namespaces. No gRPC here; grpc_content_backend.h has the real one.
#ifndef BULKHEAD_SERVICES_METADATA_CONTENT_BACKEND_H_
#define BULKHEAD_SERVICES_METADATA_CONTENT_BACKEND_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "lib/dataplane/dataplane.h"
#include "services/metadata/parallel.h"

namespace bulkhead::metadata {

struct BackendIngest {
  std::string ref;
  int64_t offset_bytes = 0;
  int64_t total_bytes = 0;
  absl::Time started_at;
  absl::Time updated_at;
};

class BackendBlob {
 public:
  virtual ~BackendBlob() = default;
  virtual int64_t size_bytes() const = 0;
  // Read-only, or -1 where the backend hands out no descriptors.
  virtual int fd() const = 0;
  // Calls `sink` with consecutive pieces of at most `piece_bytes_max` until
  // `size_bytes` are read or it returns false. It may take a piece and leave
  // another string, for the next to be read into.
  virtual absl::Status Read(
      int64_t offset_bytes, int64_t size_bytes, size_t piece_bytes_max,
      const std::function<bool(std::string& piece)>& sink) = 0;
};

// One open ingest, locked as long as this lives. Not thread-safe, but Advance()
// may be called beside a writer of fd().
class BackendWriter {
 public:
  virtual ~BackendWriter() = default;
  virtual const dataplane::IngestState& opened() const = 0;
  // Read-write, or -1 where the backend hands out no descriptors.
  virtual int fd() const = 0;
  // At the current end.
  virtual absl::Status Append(int64_t offset_bytes,
                              const std::string& data) = 0;
  // The caller wrote through fd() up to here.
  virtual absl::Status Advance(int64_t offset_bytes) = 0;
  virtual absl::Status Truncate(int64_t offset_bytes) = 0;
  // The sha256 of what is there, as the backend says; empty if it says none.
  // Of a resumed ingest it may have to read what was there.
  virtual absl::StatusOr<std::string> DigestSoFar() = 0;
  // Errors: kFailedPrecondition: size or digest do not match; the ingest
  //   survives. kAlreadyExists: the blob is there; the ingest is gone.
  virtual absl::StatusOr<dataplane::CommitResult> Commit(
      int64_t size_bytes, const std::string& expected) = 0;
  virtual absl::Status Abort() = 0;
};

// Where the backend takes only one in a call.
inline constexpr size_t kDeletionsAtOnce = 4;

// Thread-safe; calls block on the service. Errors: kNotFound: no such blob or
// ingest; kUnavailable: the service is down, or a ref is locked ("ref ...").
class ContentBackend {
 public:
  virtual ~ContentBackend() = default;
  // The size of a blob.
  virtual absl::StatusOr<int64_t> Size(const std::string& digest) = 0;
  virtual absl::StatusOr<std::unique_ptr<BackendBlob>> Open(
      const std::string& digest) = 0;
  virtual absl::Status ListBlobs(
      const std::function<void(const std::string& digest, int64_t size_bytes)>&
          visitor) = 0;
  virtual absl::Status Delete(const std::string& digest) = 0;
  // One result each, in the same order.
  virtual std::vector<absl::Status> DeleteMany(
      const std::vector<std::string>& digests) {
    std::vector<absl::Status> results(digests.size());
    InParallel(digests.size(), kDeletionsAtOnce,
               [&](size_t i) { results[i] = Delete(digests[i]); });
    return results;
  }
  virtual absl::StatusOr<BackendIngest> Status(const std::string& ref) = 0;
  virtual absl::StatusOr<std::vector<BackendIngest>> ListIngests() = 0;
  virtual absl::Status Abort(const std::string& ref) = 0;
  virtual absl::StatusOr<std::unique_ptr<BackendWriter>> OpenWriter(
      const std::string& ref, int64_t total_bytes) = 0;
};

}  // namespace bulkhead::metadata

#endif  // BULKHEAD_SERVICES_METADATA_CONTENT_BACKEND_H_
