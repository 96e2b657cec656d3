#include "services/snapshotter/erofs_writer.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/os/fd.h"

namespace bulkhead::snapshotter {
namespace {

using erofs::Inode;
using erofs::kBlockBits;
using erofs::kBlockBytes;
using erofs::kNoBlock;
using erofs::kSlotBytes;
using erofs::Layout;
using Nid = ErofsWriter::Nid;
using XattrList = std::vector<std::pair<std::string, std::string>>;

constexpr int64_t kNs = 1000000000;
constexpr int64_t kChunksMax = 1 << 20;  // Of one sparse file.
constexpr int64_t kWritebackBytes = 8 << 20;
constexpr size_t kXattrWordsMax = UINT16_MAX;
constexpr size_t kCopyBytes = 64 << 10;
// What is at hand in pieces this large is not gathered first.
constexpr size_t kDirectWriteBytes = 64 << 10;

int64_t AlignUp(int64_t value, int64_t to) {
  return (value + to - 1) / to * to;
}
int64_t BlocksOf(int64_t bytes) {
  return AlignUp(bytes, kBlockBytes) >> kBlockBits;
}

template <typename T>
absl::string_view Raw(const T& value) {
  return {reinterpret_cast<const char*>(&value), sizeof(value)};
}

Inode MakeInode(const ErofsAttributes& attributes, uint64_t size) {
  Inode inode;
  inode.mode = static_cast<uint16_t>(attributes.mode);
  inode.size = size;
  inode.data = kNoBlock;
  inode.uid = attributes.uid;
  inode.gid = attributes.gid;
  inode.mtime = static_cast<uint64_t>(attributes.mtime_ns / kNs);
  inode.mtime_ns = static_cast<uint32_t>(attributes.mtime_ns % kNs);
  inode.links = 1;
  return inode;
}

void SetLayout(Layout layout, size_t xattr_bytes, Inode* inode) {
  inode->format = static_cast<uint16_t>(1 | (layout << 1));
  inode->xattr_words =
      xattr_bytes == 0 ? 0
                       : static_cast<uint16_t>(
                             (xattr_bytes - erofs::kXattrHeaderBytes) / 4 + 1);
}

Layout LayoutOf(const Inode& inode) {
  return static_cast<Layout>((inode.format >> 1) & 7);
}

size_t XattrBytes(const Inode& inode) {
  return inode.xattr_words == 0
             ? 0
             : erofs::kXattrHeaderBytes + 4 * (inode.xattr_words - 1);
}

XattrList DecodeXattrs(absl::string_view bytes) {
  XattrList out;
  size_t at = erofs::kXattrHeaderBytes;
  while (at + sizeof(erofs::XattrEntry) <= bytes.size()) {
    erofs::XattrEntry entry;
    std::memcpy(&entry, bytes.data() + at, sizeof(entry));
    at += sizeof(entry);
    const size_t end = at + entry.name_bytes + entry.value_bytes;
    if (end > bytes.size()) break;
    for (const erofs::XattrPrefix& known : erofs::kXattrPrefixes) {
      if (known.index != entry.prefix) continue;
      out.emplace_back(
          absl::StrCat(known.prefix, bytes.substr(at, entry.name_bytes)),
          std::string(bytes.substr(at + entry.name_bytes, entry.value_bytes)));
    }
    at = AlignUp(end, 4);
  }
  return out;
}

// Adds the trusted.* of the inode at `at`: what the layer itself says of the
// directory (that it is opaque), and not those below.
absl::Status AddTrusted(int fd, int64_t at, const Inode& inode, XattrList* to) {
  std::string old(XattrBytes(inode), '\0');
  ASSIGN_OR_RETURN(const size_t n,
                   os::PReadFull(fd, old.data(), old.size(),
                                 at + static_cast<int64_t>(sizeof(Inode))));
  if (n != old.size()) return absl::DataLossError("an image ends early");
  for (auto& xattr : DecodeXattrs(old)) {
    if (absl::StartsWith(xattr.first, "trusted.")) to->push_back(xattr);
  }
  return absl::OkStatus();
}

// As the kernel computes it: no final inversion.
uint32_t Crc32c(absl::string_view bytes) {
  uint32_t crc = ~uint32_t{0};
  for (const char c : bytes) {
    crc ^= static_cast<uint8_t>(c);
    for (int bit = 0; bit < 8; ++bit) {
      crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82f63b78u : 0);
    }
  }
  return crc;
}

uint32_t EncodeDevice(uint64_t device) {
  const uint32_t major_number = major(device);
  const uint32_t minor_number = minor(device);
  return (minor_number & 0xff) | (major_number << 8) |
         ((minor_number & ~0xffu) << 12);
}

// Bytes that the sorted `entries` take.
int64_t DirBytes(const std::vector<ErofsWriter::Entry>& entries) {
  int64_t full = 0;
  size_t used = 0;
  for (const ErofsWriter::Entry& entry : entries) {
    const size_t need = erofs::kDirentBytes + entry.name.size();
    if (used + need > kBlockBytes) {
      full += kBlockBytes;
      used = 0;
    }
    used += need;
  }
  return full + static_cast<int64_t>(used);
}

}  // namespace

absl::StatusOr<std::string> EncodeErofsXattrs(
    const XattrList& xattrs, std::vector<std::string>* left_out) {
  std::string out;
  for (const auto& [name, value] : xattrs) {
    const erofs::XattrPrefix* found = nullptr;
    for (const erofs::XattrPrefix& known : erofs::kXattrPrefixes) {
      if (known.whole ? name == known.prefix
                      : absl::StartsWith(name, known.prefix)) {
        found = &known;
      }
    }
    const size_t skip = found == nullptr ? 0 : std::strlen(found->prefix);
    if (found == nullptr || name.size() - skip > UINT8_MAX ||
        (!found->whole && name.size() == skip)) {
      if (left_out != nullptr) left_out->push_back(name);
      continue;
    }
    if (value.size() > UINT16_MAX) {
      return absl::ResourceExhaustedError(
          absl::StrCat("xattr ", name, " of ", value.size(),
                       " bytes is over the limit of ", UINT16_MAX));
    }
    if (out.empty()) out.resize(erofs::kXattrHeaderBytes);
    erofs::XattrEntry entry;
    entry.name_bytes = static_cast<uint8_t>(name.size() - skip);
    entry.prefix = found->index;
    entry.value_bytes = static_cast<uint16_t>(value.size());
    absl::string_view raw = Raw(entry);
    out.append(raw.data(), raw.size());
    out.append(name, skip);
    out.append(value);
    out.resize(AlignUp(out.size(), 4));
  }
  if (out.size() / 4 > kXattrWordsMax - 3) {
    return absl::ResourceExhaustedError("the xattrs of one file are too many");
  }
  return out;
}

ErofsWriter::ErofsWriter(int fd) : fd_(fd) { data_.reserve(kDataBufferBytes); }

absl::StatusOr<uint32_t> ErofsWriter::Blocks(int64_t count) {
  if (count > int64_t{erofs::kBlocksMax} - next_block_) {
    return absl::ResourceExhaustedError("the image would be over 16 TiB");
  }
  const uint32_t first = next_block_;
  next_block_ += static_cast<uint32_t>(count);
  return first;
}

void ErofsWriter::StartWriteback(int64_t up_to) {
  if (up_to - synced_ < kWritebackBytes) return;
  // Only a hint, so that the sync at the end finds less to wait for.
  (void)::sync_file_range(fd_, synced_, up_to - synced_, SYNC_FILE_RANGE_WRITE);
  synced_ = up_to;
}

absl::Status ErofsWriter::FlushData() {
  if (data_.empty()) return absl::OkStatus();
  RETURN_IF_ERROR(os::PWriteFull(fd_, data_.data(), data_.size(), data_at_));
  data_at_ += static_cast<int64_t>(data_.size());
  data_.clear();
  StartWriteback(data_at_);
  return absl::OkStatus();
}

// At data_at_, right after what is gathered.
absl::Status ErofsWriter::WriteData(absl::string_view data) {
  if (data_.size() + data.size() > kDataBufferBytes) {
    RETURN_IF_ERROR(FlushData());
  }
  if (data_.empty() && data.size() >= kDirectWriteBytes) {
    RETURN_IF_ERROR(os::PWriteFull(fd_, data.data(), data.size(), data_at_));
    data_at_ += static_cast<int64_t>(data.size());
    StartWriteback(data_at_);
    return absl::OkStatus();
  }
  data_.append(data.data(), data.size());
  return absl::OkStatus();
}

absl::Status ErofsWriter::BeginFile(const ErofsAttributes& attributes,
                                    int64_t size_bytes) {
  inode_ = MakeInode(attributes, static_cast<uint64_t>(size_bytes));
  ASSIGN_OR_RETURN(xattrs_, EncodeErofsXattrs(attributes.xattrs));
  const size_t tail = size_bytes % kBlockBytes;
  inline_ = tail > 0 && sizeof(Inode) + xattrs_.size() + tail <= kBlockBytes;
  left_bytes_ = size_bytes;
  full_left_bytes_ = inline_ ? size_bytes - tail : size_bytes;
  tail_.clear();
  if (full_left_bytes_ > 0) {
    ASSIGN_OR_RETURN(inode_.data, Blocks(BlocksOf(full_left_bytes_)));
    const int64_t at = int64_t{inode_.data} << kBlockBits;
    const int64_t end = data_at_ + static_cast<int64_t>(data_.size());
    if (at >= end && at - end < static_cast<int64_t>(kBlockBytes)) {
      data_.append(at - end, '\0');  // The rest of the last file's block.
    } else {
      RETURN_IF_ERROR(FlushData());
      data_at_ = at;
    }
  }
  SetLayout(inline_ ? erofs::kInline : erofs::kPlain, xattrs_.size(), &inode_);
  return absl::OkStatus();
}

absl::Status ErofsWriter::Append(absl::string_view data) {
  if (static_cast<int64_t>(data.size()) > left_bytes_) {
    return absl::InternalError("more data than the file has");
  }
  left_bytes_ -= static_cast<int64_t>(data.size());
  const size_t full = std::min<int64_t>(full_left_bytes_, data.size());
  if (full > 0) RETURN_IF_ERROR(WriteData(data.substr(0, full)));
  full_left_bytes_ -= static_cast<int64_t>(full);
  tail_.append(data.data() + full, data.size() - full);
  return absl::OkStatus();
}

absl::StatusOr<Nid> ErofsWriter::EndFile() {
  if (left_bytes_ != 0) return absl::InternalError("the file lacks data");
  return PutInode(inode_, xattrs_, tail_);
}

absl::Status ErofsWriter::BeginSparse(const ErofsAttributes& attributes,
                                      int64_t size_bytes) {
  inode_ = MakeInode(attributes, static_cast<uint64_t>(size_bytes));
  ASSIGN_OR_RETURN(xattrs_, EncodeErofsXattrs(attributes.xattrs));
  chunk_bits_ = kBlockBits;
  while ((size_bytes >> chunk_bits_) >= kChunksMax) ++chunk_bits_;
  chunks_.assign(AlignUp(size_bytes, int64_t{1} << chunk_bits_) >> chunk_bits_,
                 kNoBlock);
  inode_.data = static_cast<uint32_t>(chunk_bits_ - kBlockBits);
  SetLayout(erofs::kChunks, xattrs_.size(), &inode_);
  chunked_ = true;
  return absl::OkStatus();
}

absl::Status ErofsWriter::WriteAt(int64_t offset_bytes,
                                  absl::string_view data) {
  const int64_t chunk_bytes = int64_t{1} << chunk_bits_;
  while (!data.empty()) {
    const int64_t index = offset_bytes >> chunk_bits_;
    if (index >= static_cast<int64_t>(chunks_.size())) {
      return absl::InternalError("data beyond the file's end");
    }
    const int64_t inside = offset_bytes & (chunk_bytes - 1);
    const absl::string_view part = data.substr(0, chunk_bytes - inside);
    if (chunks_[index] == kNoBlock) {
      ASSIGN_OR_RETURN(chunks_[index], Blocks(chunk_bytes >> kBlockBits));
    }
    const int64_t at = (int64_t{chunks_[index]} << kBlockBits) + inside;
    if (at != data_at_ + static_cast<int64_t>(data_.size())) {
      RETURN_IF_ERROR(FlushData());
      data_at_ = at;
    }
    RETURN_IF_ERROR(WriteData(part));
    offset_bytes += static_cast<int64_t>(part.size());
    data.remove_prefix(part.size());
  }
  return absl::OkStatus();
}

absl::StatusOr<Nid> ErofsWriter::EndSparse() {
  // What comes next begins a new run: padding must not reach into chunks.
  RETURN_IF_ERROR(FlushData());
  data_at_ = -static_cast<int64_t>(kBlockBytes) * 2;
  const absl::string_view table(reinterpret_cast<const char*>(chunks_.data()),
                                chunks_.size() * sizeof(chunks_[0]));
  const absl::StatusOr<Nid> nid = PutInode(inode_, xattrs_, table);
  chunks_ = {};
  return nid;
}

absl::StatusOr<Nid> ErofsWriter::AddNode(const ErofsAttributes& attributes,
                                         absl::string_view target) {
  if (!target.empty()) {
    RETURN_IF_ERROR(BeginFile(attributes, target.size()));
    RETURN_IF_ERROR(Append(target));
    return EndFile();
  }
  Inode inode = MakeInode(attributes, 0);
  if (S_ISCHR(attributes.mode) || S_ISBLK(attributes.mode)) {
    inode.data = EncodeDevice(attributes.device);
  }
  ASSIGN_OR_RETURN(const std::string xattrs,
                   EncodeErofsXattrs(attributes.xattrs));
  SetLayout(erofs::kPlain, xattrs.size(), &inode);
  return PutInode(inode, xattrs, "");
}

absl::StatusOr<Nid> ErofsWriter::PutInode(Inode inode,
                                          const std::string& xattrs,
                                          absl::string_view tail) {
  inode.number = static_cast<uint32_t>(++inodes_);
  std::string bytes(Raw(inode));
  bytes.reserve(bytes.size() + xattrs.size() + tail.size());
  bytes.append(xattrs);
  bytes.append(tail.data(), tail.size());
  return Place(bytes);
}

absl::StatusOr<Nid> ErofsWriter::Place(absl::string_view bytes) {
  if (bytes.size() > kBlockBytes) {
    ASSIGN_OR_RETURN(const uint32_t first, Blocks(BlocksOf(bytes.size())));
    const int64_t at = int64_t{first} << kBlockBits;
    RETURN_IF_ERROR(os::PWriteFull(fd_, bytes.data(), bytes.size(), at));
    return at / kSlotBytes;
  }
  for (bool fresh = group_.empty();; fresh = true) {
    if (fresh) {
      RETURN_IF_ERROR(FlushGroup());
      ASSIGN_OR_RETURN(const uint32_t first, Blocks(kGroupBlocks));
      group_at_ = int64_t{first} << kBlockBits;
      group_.assign(kGroupBlocks * kBlockBytes, '\0');
      group_used_.assign(kGroupBlocks, 0);
      group_first_ = 0;
    }
    for (size_t i = group_first_; i < kGroupBlocks; ++i) {
      const size_t used = AlignUp(group_used_[i], kSlotBytes);
      if (used + sizeof(Inode) > kBlockBytes && i == group_first_) {
        ++group_first_;
      }
      if (used + bytes.size() > kBlockBytes) continue;
      const size_t at = i * kBlockBytes + used;
      std::memcpy(group_.data() + at, bytes.data(), bytes.size());
      group_used_[i] = static_cast<uint16_t>(used + bytes.size());
      return (group_at_ + static_cast<int64_t>(at)) / kSlotBytes;
    }
  }
}

absl::Status ErofsWriter::FlushGroup() {
  if (group_.empty()) return absl::OkStatus();
  size_t used = kGroupBlocks;
  while (used > 0 && group_used_[used - 1] == 0) --used;
  RETURN_IF_ERROR(
      os::PWriteFull(fd_, group_.data(), used * kBlockBytes, group_at_));
  const uint32_t first = static_cast<uint32_t>(group_at_ >> kBlockBits);
  if (next_block_ == first + kGroupBlocks) {
    next_block_ = first + static_cast<uint32_t>(used);
  }
  group_.clear();
  return absl::OkStatus();
}

absl::Status ErofsWriter::ReadBack(int64_t at, size_t size_bytes,
                                   std::string* out) {
  if (!group_.empty() && at >= group_at_ &&
      at + size_bytes <= group_at_ + group_.size()) {
    *out = group_.substr(at - group_at_, size_bytes);
    return absl::OkStatus();
  }
  out->assign(size_bytes, '\0');  // Beyond the end of the file so far: zeros.
  return os::PReadFull(fd_, out->data(), size_bytes, at).status();
}

absl::Status ErofsWriter::Patch(int64_t at, absl::string_view data) {
  if (!group_.empty() && at >= group_at_ &&
      at + data.size() <= group_at_ + group_.size()) {
    std::memcpy(group_.data() + (at - group_at_), data.data(), data.size());
    return absl::OkStatus();
  }
  return os::PWriteFull(fd_, data.data(), data.size(), at);
}

absl::StatusOr<Nid> ErofsWriter::Change(Nid nid,
                                        const ErofsAttributes& attributes) {
  const int64_t at = static_cast<int64_t>(nid * kSlotBytes);
  std::string bytes;
  RETURN_IF_ERROR(ReadBack(at, sizeof(Inode), &bytes));
  Inode inode;
  std::memcpy(&inode, bytes.data(), sizeof(inode));
  const Inode wanted = MakeInode(attributes, 0);
  inode.mode =
      static_cast<uint16_t>((inode.mode & S_IFMT) | (wanted.mode & 07777));
  if (S_ISLNK(inode.mode)) inode.mode |= 0777;
  inode.uid = wanted.uid;
  inode.gid = wanted.gid;
  inode.mtime = wanted.mtime;
  inode.mtime_ns = wanted.mtime_ns;
  std::string old_xattrs;
  RETURN_IF_ERROR(ReadBack(at + sizeof(Inode), XattrBytes(inode), &old_xattrs));
  XattrList list = DecodeXattrs(old_xattrs);
  for (const auto& [name, value] : attributes.xattrs) {
    const auto same = [&name = name](const auto& one) {
      return one.first == name;
    };
    const auto it = std::find_if(list.begin(), list.end(), same);
    if (it == list.end()) {
      list.emplace_back(name, value);
    } else {
      it->second = value;
    }
  }
  ASSIGN_OR_RETURN(const std::string xattrs, EncodeErofsXattrs(list));
  if (xattrs.size() == old_xattrs.size()) {
    RETURN_IF_ERROR(Patch(at, absl::StrCat(std::string(Raw(inode)), xattrs)));
    return nid;
  }
  // Moved to where there is room, with what follows the inode.
  const int64_t after = at + sizeof(Inode) + old_xattrs.size();
  const erofs::Layout layout = LayoutOf(inode);
  std::string tail;
  const int64_t size = static_cast<int64_t>(inode.size);
  if (layout == erofs::kInline) {
    RETURN_IF_ERROR(ReadBack(after, size % kBlockBytes, &tail));
    if (sizeof(Inode) + xattrs.size() + tail.size() > kBlockBytes) {
      // No room beside the inode any more: a copy in whole blocks.
      RETURN_IF_ERROR(FlushData());
      const int64_t from = int64_t{inode.data} << kBlockBits;
      ASSIGN_OR_RETURN(inode.data, Blocks(BlocksOf(size)));
      const int64_t to = int64_t{inode.data} << kBlockBits;
      const int64_t full = size - static_cast<int64_t>(tail.size());
      std::string piece;
      for (int64_t done = 0; done < full; done += piece.size()) {
        RETURN_IF_ERROR(ReadBack(
            from + done, std::min<int64_t>(kCopyBytes, full - done), &piece));
        RETURN_IF_ERROR(
            os::PWriteFull(fd_, piece.data(), piece.size(), to + done));
      }
      RETURN_IF_ERROR(os::PWriteFull(fd_, tail.data(), tail.size(), to + full));
      tail.clear();
      SetLayout(erofs::kPlain, xattrs.size(), &inode);
    } else {
      SetLayout(erofs::kInline, xattrs.size(), &inode);
    }
  } else if (layout == erofs::kChunks) {
    const int bits = kBlockBits + static_cast<int>(inode.data);
    const int64_t chunks = AlignUp(size, int64_t{1} << bits) >> bits;
    RETURN_IF_ERROR(ReadBack(after, chunks * sizeof(uint32_t), &tail));
    SetLayout(layout, xattrs.size(), &inode);
  } else {
    SetLayout(layout, xattrs.size(), &inode);
  }
  --inodes_;  // PutInode() counts it again.
  return PutInode(inode, xattrs, tail);
}

// Finds the place of `dir` (its entries sorted) at or after *cursor.
absl::Status ErofsWriter::LayOut(Dir& dir, int64_t* cursor) {
  ErofsWriter::DirPlace layout;
  layout.size = DirBytes(dir.entries);
  ASSIGN_OR_RETURN(const std::string xattrs,
                   EncodeErofsXattrs(dir.attributes.xattrs));
  const int64_t tail = layout.size % kBlockBytes;
  const int64_t head = sizeof(Inode) + xattrs.size();
  layout.inline_tail = tail > 0 && !dir.slack &&
                       head + tail <= static_cast<int64_t>(kBlockBytes);
  const int64_t full = layout.inline_tail ? layout.size - tail
                                          : AlignUp(layout.size, kBlockBytes);
  if (full > 0) {
    *cursor = AlignUp(*cursor, kBlockBytes);
    layout.full_at = *cursor;
    *cursor += full;
  }
  int64_t need = head + (layout.inline_tail ? tail : 0);
  if (dir.slack) need = std::max<int64_t>(need, sizeof(Inode) + kSlackBytes);
  if (layouts_.empty()) {  // The root.
    if (need > static_cast<int64_t>(kBlockBytes)) {
      return absl::ResourceExhaustedError("the root has too many xattrs");
    }
    dir.nid = kRootNid;
  } else {
    *cursor = AlignUp(*cursor, kSlotBytes);
    const int64_t room = kBlockBytes - *cursor % kBlockBytes;
    if (need > room) *cursor = AlignUp(*cursor, kBlockBytes);
    dir.nid = static_cast<Nid>(*cursor) / kSlotBytes;
    *cursor += need;
  }
  layouts_.push_back(layout);
  return absl::OkStatus();
}

absl::Status ErofsWriter::WriteDir(std::vector<Dir>& dirs, size_t index) {
  Dir& dir = dirs[index];
  const ErofsWriter::DirPlace layout = layouts_[index];
  std::string content;
  content.reserve(layout.size);
  uint32_t links = 2;
  for (size_t first = 0; first < dir.entries.size();) {
    size_t last = first;
    size_t used = 0;
    while (last < dir.entries.size() &&
           used + erofs::kDirentBytes + dir.entries[last].name.size() <=
               kBlockBytes) {
      used += erofs::kDirentBytes + dir.entries[last++].name.size();
    }
    content.resize(AlignUp(content.size(), kBlockBytes));
    size_t name_at = (last - first) * erofs::kDirentBytes;
    for (size_t i = first; i < last; ++i) {
      const Entry& entry = dir.entries[i];
      uint64_t nid = entry.ref;
      if (entry.type == erofs::kTypeDir) {
        nid = dirs[entry.ref].nid;
        if (entry.name != "." && entry.name != "..") ++links;
      }
      const uint16_t name_offset = static_cast<uint16_t>(name_at);
      absl::string_view raw = Raw(nid);
      content.append(raw.data(), raw.size());
      raw = Raw(name_offset);
      content.append(raw.data(), raw.size());
      content.push_back(static_cast<char>(entry.type));
      content.push_back('\0');
      name_at += entry.name.size();
    }
    for (size_t i = first; i < last; ++i) content += dir.entries[i].name;
    first = last;
  }
  dir.entries = {};
  ASSIGN_OR_RETURN(const std::string xattrs,
                   EncodeErofsXattrs(dir.attributes.xattrs));
  Inode inode = MakeInode(dir.attributes, content.size());
  inode.number = static_cast<uint32_t>(++inodes_);
  inode.links = links;
  SetLayout(layout.inline_tail ? erofs::kInline : erofs::kPlain, xattrs.size(),
            &inode);
  const int64_t tail = layout.inline_tail ? layout.size % kBlockBytes : 0;
  const int64_t full = layout.size - tail;
  auto write = [this](int64_t at, absl::string_view bytes) -> absl::Status {
    const int64_t end = data_at_ + static_cast<int64_t>(data_.size());
    if (at >= end && at - end <= static_cast<int64_t>(kBlockBytes)) {
      data_.append(at - end, '\0');  // Nothing else lies between.
    } else {
      RETURN_IF_ERROR(FlushData());
      data_at_ = at;
    }
    return WriteData(bytes);
  };
  if (full > 0) {
    inode.data = static_cast<uint32_t>(layout.full_at >> kBlockBits);
    RETURN_IF_ERROR(write(layout.full_at, content.substr(0, full)));
  }
  std::string head(Raw(inode));
  head.append(xattrs).append(content, full);
  if (index == 0) {
    return os::PWriteFull(fd_, head.data(), head.size(), kBlockBytes);
  }
  return write(static_cast<int64_t>(dir.nid * kSlotBytes), head);
}

absl::Status ErofsWriter::Finish(std::vector<Dir>* dirs) {
  RETURN_IF_ERROR(FlushData());
  for (const auto& [nid, links] : links_) {
    const int64_t at = static_cast<int64_t>(nid * kSlotBytes);
    RETURN_IF_ERROR(Patch(at + offsetof(Inode, links), Raw(links)));
  }
  RETURN_IF_ERROR(FlushGroup());
  int64_t cursor = size_bytes();
  for (size_t i = 0; i < dirs->size(); ++i) {
    Dir& dir = (*dirs)[i];
    dir.entries.push_back({".", erofs::kTypeDir, i});
    dir.entries.push_back({"..", erofs::kTypeDir, dir.parent});
    std::sort(dir.entries.begin(), dir.entries.end(),
              [](const Entry& a, const Entry& b) { return a.name < b.name; });
    RETURN_IF_ERROR(LayOut(dir, &cursor));
  }
  if (BlocksOf(cursor) > int64_t{erofs::kBlocksMax}) {
    return absl::ResourceExhaustedError("the image would be over 16 TiB");
  }
  next_block_ = static_cast<uint32_t>(BlocksOf(cursor));
  data_at_ = int64_t{INT64_MAX} / 2;  // A new run.
  for (size_t i = 0; i < dirs->size(); ++i) RETURN_IF_ERROR(WriteDir(*dirs, i));
  RETURN_IF_ERROR(FlushData());
  RETURN_IF_ERROR(WriteSuper());
  if (::ftruncate(fd_, size_bytes()) != 0) {
    return os::ErrnoStatus(errno, "truncate the image");
  }
  return absl::OkStatus();
}

absl::Status ErofsWriter::WriteSuper() {
  erofs::Super super;
  super.compat = erofs::kCompatChecksum | erofs::kCompatMtime;
  super.root_nid = static_cast<uint16_t>(kRootNid);
  super.inodes = inodes_;
  super.blocks = next_block_;
  super.incompat = chunked_ ? erofs::kIncompatChunked : 0;
  std::string block(kBlockBytes, '\0');
  auto put = [&] {
    std::memcpy(block.data() + erofs::kSuperOffsetBytes, &super, sizeof(super));
  };
  put();
  super.checksum =
      Crc32c(absl::string_view(block).substr(erofs::kSuperOffsetBytes));
  put();
  return os::PWriteFull(fd_, block.data(), block.size(), 0);
}

absl::Status PatchErofsDir(int fd, Nid nid, const ErofsAttributes& attributes) {
  const int64_t at = static_cast<int64_t>(nid * kSlotBytes);
  Inode inode;
  ASSIGN_OR_RETURN(const size_t n,
                   os::PReadFull(fd, &inode, sizeof(inode), at));
  if (n != sizeof(inode) || !S_ISDIR(inode.mode) ||
      LayoutOf(inode) != erofs::kPlain) {
    return absl::DataLossError("no directory of an image of ours");
  }
  XattrList all = attributes.xattrs;
  RETURN_IF_ERROR(AddTrusted(fd, at, inode, &all));
  ASSIGN_OR_RETURN(std::string xattrs, EncodeErofsXattrs(all));
  if (xattrs.size() > ErofsWriter::kSlackBytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat("a directory's xattrs of ", xattrs.size(),
                     " bytes are over the limit of ", ErofsWriter::kSlackBytes,
                     " for one that its layer does not list"));
  }
  const Inode wanted = MakeInode(attributes, 0);
  inode.mode = static_cast<uint16_t>(S_IFDIR | (wanted.mode & 07777));
  inode.uid = wanted.uid;
  inode.gid = wanted.gid;
  inode.mtime = wanted.mtime;
  inode.mtime_ns = wanted.mtime_ns;
  SetLayout(erofs::kPlain, xattrs.size(), &inode);
  const std::string bytes = absl::StrCat(std::string(Raw(inode)), xattrs);
  return os::PWriteFull(fd, bytes.data(), bytes.size(), at);
}

absl::StatusOr<int64_t> CountErofsInodes(int fd) {
  erofs::Super super;
  ASSIGN_OR_RETURN(const size_t n, os::PReadFull(fd, &super, sizeof(super),
                                                 erofs::kSuperOffsetBytes));
  if (n != sizeof(super) || super.magic != erofs::kMagic) {
    return absl::DataLossError("not an EROFS image");
  }
  return static_cast<int64_t>(super.inodes);
}

}  // namespace bulkhead::snapshotter
