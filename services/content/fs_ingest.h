// Inside of FsStore and FsWriter.
#ifndef BULKHEAD_SERVICES_CONTENT_FS_INGEST_H_
#define BULKHEAD_SERVICES_CONTENT_FS_INGEST_H_

#include <mutex>
#include <optional>
#include <string>

#include "services/content/fs_store.h"

namespace bulkhead::content {

// An open ingest, shared by its writer and by an Abort() from elsewhere.
struct FsWriter::Ingest {
  std::string ref;
  std::string name;  // Of its folder.
  int64_t total_bytes = 0;
  absl::Time started_at;

  std::mutex mutex;
  // All below under `mutex`.
  os::UniqueFd data;
  int64_t offset_bytes = 0;     // End of what was appended or advanced to.
  int64_t writeback_bytes = 0;  // Below it, writeback has been started.
  Hasher hasher;                // Over the first hasher.size_bytes() bytes.
  int64_t kept_bytes = 0;       // Of which the hash on disk is; 0: none.
  std::optional<Hasher> next;   // To be kept when its bytes are written back.
  bool gone = false;            // Committed or aborted.
  bool suspect = false;         // An fsync failed: see FsWriter::Rewrite().
};

absl::Status NoReference(const std::string& ref);
absl::Status BlobExists(const Digest& digest);
// Trouble with an ingest: a full disk stays kResourceExhausted, all else is
// kInternal; the message names the ref.
absl::Status IngestError(const std::string& ref, const absl::Status& status);

}  // namespace bulkhead::content

#endif  // BULKHEAD_SERVICES_CONTENT_FS_INGEST_H_
