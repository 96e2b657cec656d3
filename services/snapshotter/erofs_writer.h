// Writes one EROFS image front to back while its contents arrive: file data is
// appended as it comes, inodes go into blocks between, directories follow at
// the end. Nothing is created, synced or removed per file.
//
//   block 0   superblock, at byte 1024
//   block 1   the root's inode
//   then      runs of file data, and groups of blocks with inodes and the last,
//             partial block of their files
//   last      directories
//
// An inode's number is its place (offset / 32), so that only names, and where
// directories are, stay in memory: about 60 bytes a file besides its name.
#ifndef BULKHEAD_SERVICES_SNAPSHOTTER_EROFS_WRITER_H_
#define BULKHEAD_SERVICES_SNAPSHOTTER_EROFS_WRITER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "services/snapshotter/erofs_format.h"

namespace bulkhead::snapshotter {

struct ErofsAttributes {
  uint32_t mode = 0;  // With the file type (S_IFREG and so on).
  uint32_t uid = 0;
  uint32_t gid = 0;
  int64_t mtime_ns = 0;  // >= 0.
  uint64_t device = 0;   // Of devices, as makedev() makes it.
  std::vector<std::pair<std::string, std::string>> xattrs;
};

// The xattrs in the image's form; empty for none. Names EROFS has no prefix
// for, or longer than it takes, go to `left_out`.
// Errors: kResourceExhausted: a value or all together are too long.
absl::StatusOr<std::string> EncodeErofsXattrs(
    const std::vector<std::pair<std::string, std::string>>& xattrs,
    std::vector<std::string>* left_out = nullptr);

// Not thread-safe. After an error it is of no more use.
class ErofsWriter {
 public:
  using Nid = uint64_t;
  constexpr static Nid kRootNid = erofs::kBlockBytes / erofs::kSlotBytes;
  // What directories may need in memory until Finish().
  static constexpr int64_t kNamesBytesMax = 256 << 20;
  // Room that a directory with `slack` has for attributes given it later.
  static constexpr size_t kSlackBytes = 1024 - sizeof(erofs::Inode);

  // Borrows `fd`: an empty file, open for reading and writing.
  explicit ErofsWriter(int fd);

  // One file at a time: its data in order, exactly `size_bytes`.
  absl::Status BeginFile(const ErofsAttributes& attributes, int64_t size_bytes);
  absl::Status Append(absl::string_view data);
  absl::StatusOr<Nid> EndFile();

  // A file with holes: what is not written stays one. Data in any order, below
  // `size_bytes`. Holes are kept in chunks: of 4 KiB up to 4 GiB, larger
  // beyond.
  absl::Status BeginSparse(const ErofsAttributes& attributes,
                           int64_t size_bytes);
  absl::Status WriteAt(int64_t offset_bytes, absl::string_view data);
  absl::StatusOr<Nid> EndSparse();

  // A symlink (`target`), device or fifo.
  absl::StatusOr<Nid> AddNode(const ErofsAttributes& attributes,
                              absl::string_view target = "");

  // Changes the owner, mode and time of a file that was written, and sets
  // `xattrs` besides those it has. The number changes if they need more room.
  absl::StatusOr<Nid> Change(Nid nid, const ErofsAttributes& attributes);
  // The names a file has got; written by Finish(). One unless told.
  void SetLinks(Nid nid, uint32_t links) { links_[nid] = links; }

  // A directory, to be written by Finish().
  struct Entry {
    std::string name;
    erofs::FileType type;
    uint64_t ref;  // A nid, or of directories the index in `dirs`.
  };
  struct Dir {
    ErofsAttributes attributes;
    size_t parent = 0;  // Index; of the root its own.
    bool slack = false;
    std::vector<Entry> entries;  // Any order; taken by Finish().
    Nid nid = 0;                 // Set by Finish().
  };
  // `dirs[0]` is the root. Writes what is left; not synced.
  // Errors: kResourceExhausted: the image is over 16 TiB.
  absl::Status Finish(std::vector<Dir>* dirs);

  int64_t size_bytes() const {
    return static_cast<int64_t>(next_block_) << erofs::kBlockBits;
  }

 private:
  // Blocks being filled with inodes; written when the next group begins.
  static constexpr size_t kGroupBlocks = 64;
  static constexpr size_t kDataBufferBytes = 256 << 10;

  absl::StatusOr<uint32_t> Blocks(int64_t count);
  absl::Status FlushData();
  absl::Status WriteData(absl::string_view data);
  absl::Status FlushGroup();
  absl::StatusOr<Nid> Place(absl::string_view bytes);
  absl::StatusOr<Nid> PutInode(erofs::Inode inode, const std::string& xattrs,
                               absl::string_view tail);
  absl::Status ReadBack(int64_t at, size_t size_bytes, std::string* out);
  absl::Status Patch(int64_t at, absl::string_view data);
  absl::Status LayOut(Dir& dir, int64_t* cursor);
  absl::Status WriteDir(std::vector<Dir>& dirs, size_t index);
  absl::Status WriteSuper();
  void StartWriteback(int64_t up_to);

  const int fd_;
  uint32_t next_block_ = 2;
  uint64_t inodes_ = 0;
  bool chunked_ = false;

  // The file being written.
  erofs::Inode inode_;
  std::string xattrs_;
  int64_t left_bytes_ = 0;       // Of the file.
  int64_t full_left_bytes_ = 0;  // Of its whole blocks.
  bool inline_ = false;
  std::string tail_;
  std::vector<uint32_t> chunks_;
  int chunk_bits_ = 0;

  std::string data_;  // Not written yet, of data_at_ on.
  int64_t data_at_ = 0;
  int64_t synced_ = 0;  // Writeback has been asked for below this.

  std::string group_;  // kGroupBlocks blocks, or empty.
  int64_t group_at_ = 0;
  std::vector<uint16_t> group_used_;  // Bytes, by block.
  size_t group_first_ = 0;            // Blocks before are full.

  absl::flat_hash_map<Nid, uint32_t> links_;
  struct DirPlace {
    int64_t full_at = 0;  // Where its whole blocks are.
    int64_t size = 0;
    bool inline_tail = false;
  };
  std::vector<DirPlace> layouts_;
};

// Gives the directory at `nid` other attributes, in an image that is not
// mounted; the trusted.* it has stay. For directories written with `slack`
// only. Errors: kResourceExhausted: the xattrs need more than kSlackBytes.
absl::Status PatchErofsDir(int fd, ErofsWriter::Nid nid,
                           const ErofsAttributes& attributes);

// The inodes an image says it has. kDataLoss: no image of ours.
absl::StatusOr<int64_t> CountErofsInodes(int fd);

}  // namespace bulkhead::snapshotter

#endif  // BULKHEAD_SERVICES_SNAPSHOTTER_EROFS_WRITER_H_
