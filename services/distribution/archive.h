// Image archives as streams of bytes: tar, plain or compressed. What comes in
// is hostile until checked; memory stays within the limits below.
#ifndef BULKHEAD_SERVICES_DISTRIBUTION_ARCHIVE_H_
#define BULKHEAD_SERVICES_DISTRIBUTION_ARCHIVE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace bulkhead::distribution {

constexpr size_t kArchiveNameBytesMax = 4095;
constexpr size_t kArchivePaxBytesMax = 1 << 20;
constexpr int kArchiveEntriesMax = 100000;

// Up to `size_bytes` (> 0) bytes into `out`; 0 at the end. May block.
using ByteSource = std::function<absl::StatusOr<size_t>(char* out, size_t)>;
// Takes all bytes or fails. May block.
using ByteSink = std::function<absl::Status(const char* data, size_t)>;

// `source` decompressed: gzip (several members), zstd (several frames) or
// neither, told from the first bytes. Errors: kInvalidArgument: corrupt or cut
// off; those of `source`.
ByteSource Decompressed(ByteSource source);

// `source` compressed with gzip; the same bytes give the same bytes.
ByteSource Gzipped(ByteSource source);

// All of `source` into `out`; kResourceExhausted past the limit.
absl::Status ReadAll(const ByteSource& source, size_t size_bytes_max,
                     std::string* out);

struct ArchiveEntry {
  char type = '0';        // As in the header: '0' file, '1', '2' links, ...
  std::string name;       // Cleaned: no leading "/", "./", no "..".
  std::string link_name;  // As written.
  int64_t size_bytes = 0;
};

// Reads the entries of a tar stream (ustar, GNU long names, PAX path, size and
// linkpath). Not thread-safe; of no more use after an error.
class ArchiveReader {
 public:
  explicit ArchiveReader(ByteSource source) : source_(std::move(source)) {}
  // Moves on; what was not read of the entry before is skipped. False at the
  // end. Errors: kInvalidArgument, kResourceExhausted, those of the source.
  absl::StatusOr<bool> Next(ArchiveEntry* entry);
  // Bytes of the current entry.
  absl::StatusOr<size_t> Read(char* out, size_t size_bytes);

 private:
  absl::StatusOr<bool> Block(char* block);
  absl::StatusOr<std::string> Text(int64_t size_bytes);
  absl::Status Skip();

  const ByteSource source_;
  int64_t left_ = 0;     // Of the current entry.
  int64_t padding_ = 0;  // Behind it.
  int entries_ = 0;
};

// Writes a tar stream. Times are 0 and owners root, so that equal images give
// equal archives.
class ArchiveWriter {
 public:
  explicit ArchiveWriter(ByteSink sink) : sink_(std::move(sink)) {}
  absl::Status Directory(const std::string& name);
  absl::Status File(const std::string& name, const std::string& bytes);
  // `size_bytes` bytes of `fd` from its start.
  absl::Status FileOf(const std::string& name, int fd, int64_t size_bytes);
  absl::Status Finish();

 private:
  absl::Status Header(const std::string& name, char type, int mode,
                      int64_t size_bytes);
  absl::Status Pad(int64_t size_bytes);
  const ByteSink sink_;
};

}  // namespace bulkhead::distribution

#endif  // BULKHEAD_SERVICES_DISTRIBUTION_ARCHIVE_H_
