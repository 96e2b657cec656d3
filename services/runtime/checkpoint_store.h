// Checkpoint images in the content store: a tar archive of the files that CRIU
// wrote.
#ifndef BULKHEAD_SERVICES_RUNTIME_CHECKPOINT_STORE_H_
#define BULKHEAD_SERVICES_RUNTIME_CHECKPOINT_STORE_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lib/dataplane/dataplane.h"

namespace bulkhead::runtime {

struct StoredBlob {
  std::string digest;
  int64_t size_bytes = 0;
};

// The archive of `folder` at the start of `fd`: its regular files and those of
// folders below it, no deeper than kCheckpointDepthMax; links and devices are
// refused, as CRIU makes none. The result is the archive's size.
constexpr int kCheckpointDepthMax = 8;
absl::StatusOr<int64_t> PackFolder(const std::string& folder, int fd);
// The reverse, into an existing empty folder. Nothing is written outside of it.
// Errors: kInvalidArgument: not such an archive.
absl::Status UnpackFolder(int fd, int64_t size_bytes,
                          const std::string& folder);

// Thread-safe. Calls block on the content store.
class CheckpointStore {
 public:
  // `data_socket`: metadata's.
  explicit CheckpointStore(std::string data_socket)
      : content_(std::move(data_socket)) {}

  // The blob belongs to `lease`, if one is named; otherwise garbage collection
  // may take it once nothing refers to it.
  absl::StatusOr<StoredBlob> SaveFolder(const std::string& ns,
                                        const std::string& lease,
                                        const std::string& folder) const;
  absl::StatusOr<StoredBlob> SaveBytes(const std::string& ns,
                                       const std::string& lease,
                                       const std::string& bytes) const;
  // Makes `folder` and unpacks the archive there. Errors: kNotFound: no such
  // blob. kInvalidArgument: it is no archive.
  absl::Status Load(const std::string& ns, const std::string& digest,
                    const std::string& folder) const;

 private:
  const dataplane::Client content_;
};

}  // namespace bulkhead::runtime

#endif  // BULKHEAD_SERVICES_RUNTIME_CHECKPOINT_STORE_H_
