// Reads a tar stream: V7, ustar, star, GNU (sparse files too) and PAX headers.
// Everything in it is hostile until checked; memory stays within the limits
// below.
#ifndef BULKHEAD_LIB_TAR_READER_H_
#define BULKHEAD_LIB_TAR_READER_H_

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "lib/tar/byte_stream.h"

namespace bulkhead::tar {

constexpr size_t kTarBlockBytes = 512;
constexpr size_t kTarNameBytesMax = 4095;       // Of a name or link target.
constexpr size_t kTarPaxBytesMax = 1 << 20;     // Of one PAX or GNU header.
constexpr size_t kTarSparseRangesMax = 100000;  // Of one file.

// The type flags an Entry can have; anything else is an error.
enum class TarType : char {
  kFile = '0',
  kHardLink = '1',
  kSymlink = '2',
  kCharDevice = '3',
  kBlockDevice = '4',
  kDirectory = '5',
  kFifo = '6',
};

struct TarRange {
  int64_t offset_bytes = 0;
  int64_t size_bytes = 0;
};

struct TarEntry {
  TarType type = TarType::kFile;
  std::string name;       // As written; not cleaned.
  std::string link_name;  // Of links.
  uint32_t mode = 0;      // Permission and set-id bits only.
  int64_t uid = 0;
  int64_t gid = 0;
  int64_t size_bytes = 0;  // Of the file as it is to appear.
  int64_t mtime_ns = 0;    // Clamped to [0, 2^63 - 1].
  int64_t atime_ns = 0;    // 0: not given.
  int64_t device_major = 0;
  int64_t device_minor = 0;
  std::vector<std::pair<std::string, std::string>> xattrs;
  // Where data goes if `sparse`; the rest of the file is holes.
  bool sparse = false;
  std::vector<TarRange> ranges;
};

// Not thread-safe. After any error the reader is of no more use.
class TarReader {
 public:
  // Borrows `stream`.
  explicit TarReader(ByteStream& stream) : stream_(stream) {}

  // Moves to the next entry, over data that was not read. False at the end of
  // the archive (two zero blocks, or the end of the stream at a header).
  // Errors: kInvalidArgument: malformed or truncated. kResourceExhausted: a
  //   limit, named in the message. The stream's own errors pass through.
  absl::StatusOr<bool> Next(TarEntry* entry);

  // Hands the current file's data to `sink` in pieces, with their offsets in
  // the file. The errors of Next() and those of `sink`.
  absl::Status ReadData(absl::FunctionRef<absl::Status(int64_t offset_bytes,
                                                       absl::string_view data)>
                            sink);

 private:
  using PaxRecords = std::map<std::string, std::string>;

  // Fills block_; false at the end of the stream.
  absl::StatusOr<bool> ReadBlock();
  absl::StatusOr<std::string> ReadSpecial(int64_t size_bytes);
  absl::Status Skip(int64_t size_bytes);
  absl::Status Take(int64_t size_bytes,
                    absl::FunctionRef<absl::Status(absl::string_view)> sink);
  absl::Status ParsePax(const std::string& data);
  absl::Status Merge(TarEntry* entry);
  absl::Status ReadSparseMap(TarEntry* entry);
  absl::Status ParseSparseList(const std::string& list, TarEntry* entry);
  // GNU's own form, of type 'S': the map is in the header and blocks after it.
  absl::Status ReadOldSparseMap(TarEntry* entry);
  // Checks the ranges against the size and takes them for ReadData().
  absl::Status UseRanges(int64_t real_size_bytes, TarEntry* entry);

  ByteStream& stream_;
  char block_[kTarBlockBytes];
  int64_t data_left_ = 0;  // Of the current entry, in the stream.
  int64_t padding_ = 0;
  PaxRecords pax_;
  std::string pax_sparse_map_;  // Format 0.0, gathered as format 0.1.
  bool sparse_map_in_data_ = false;
  std::vector<TarRange> ranges_;
  bool sparse_ = false;
};

}  // namespace bulkhead::tar

#endif  // BULKHEAD_LIB_TAR_READER_H_
