// EROFS on disk, the part our writer uses: uncompressed, extended inodes, 4 KiB
// blocks, little-endian. Numbers and names as in the kernel's documentation
// (Documentation/filesystems/erofs.rst).
#ifndef BULKHEAD_SERVICES_SNAPSHOTTER_EROFS_FORMAT_H_
#define BULKHEAD_SERVICES_SNAPSHOTTER_EROFS_FORMAT_H_

#include <cstddef>
#include <cstdint>

namespace bulkhead::snapshotter::erofs {

constexpr int kBlockBits = 12;
constexpr size_t kBlockBytes = size_t{1} << kBlockBits;
constexpr int kSlotBits = 5;  // An inode's number is its offset / 32.
constexpr size_t kSlotBytes = size_t{1} << kSlotBits;
constexpr int64_t kSuperOffsetBytes = 1024;
constexpr uint32_t kMagic = 0xe0f5e1e2;
constexpr uint32_t kCompatChecksum = 1;
constexpr uint32_t kCompatMtime = 2;
constexpr uint32_t kIncompatChunked = 4;
constexpr uint32_t kNoBlock = 0xffffffff;  // A hole.
constexpr uint32_t kBlocksMax = 0xfffffff0;

struct Super {
  uint32_t magic = kMagic;
  uint32_t checksum = 0;  // CRC-32C of the rest of block 0, itself as zero.
  uint32_t compat = 0;
  uint8_t block_bits = kBlockBits;
  uint8_t extra_slots = 0;
  uint16_t root_nid = 0;
  uint64_t inodes = 0;
  uint64_t build_time = 0;
  uint32_t build_time_ns = 0;
  uint32_t blocks = 0;
  uint32_t meta_block = 0;
  uint32_t xattr_block = 0;
  uint8_t uuid[16] = {};
  uint8_t volume[16] = {};
  uint32_t incompat = 0;
  uint8_t reserved[44] = {};
};
static_assert(sizeof(Super) == 128);

// Bits 1 to 3 of Inode::format; bit 0 says that the inode is 64 bytes.
enum Layout : uint16_t { kPlain = 0, kInline = 2, kChunks = 4 };

struct Inode {
  uint16_t format = 0;
  uint16_t xattr_words = 0;  // (bytes - 12) / 4 + 1, or 0: none.
  uint16_t mode = 0;
  uint16_t reserved = 0;
  uint64_t size = 0;
  uint32_t data = 0;  // First block, device number or chunk format.
  uint32_t number = 0;
  uint32_t uid = 0;
  uint32_t gid = 0;
  uint64_t mtime = 0;
  uint32_t mtime_ns = 0;
  uint32_t links = 0;
  uint8_t reserved2[16] = {};
};
static_assert(sizeof(Inode) == 64);

constexpr size_t kXattrHeaderBytes = 12;
struct XattrEntry {
  uint8_t name_bytes = 0;
  uint8_t prefix = 0;
  uint16_t value_bytes = 0;
};
static_assert(sizeof(XattrEntry) == 4);
struct XattrPrefix {
  uint8_t index;
  const char* prefix;
  bool whole;  // Nothing may follow.
};
constexpr XattrPrefix kXattrPrefixes[] = {
    {1, "user.", false},
    {2, "system.posix_acl_access", true},
    {3, "system.posix_acl_default", true},
    {4, "trusted.", false},
    {6, "security.", false},
};

constexpr size_t kDirentBytes = 12;  // nid (8), name offset (2), type, 0.
enum FileType : uint8_t {
  kTypeFile = 1,
  kTypeDir = 2,
  kTypeChar = 3,
  kTypeBlock = 4,
  kTypeFifo = 5,
  kTypeSymlink = 7,
};

}  // namespace bulkhead::snapshotter::erofs

#endif  // BULKHEAD_SERVICES_SNAPSHOTTER_EROFS_FORMAT_H_
