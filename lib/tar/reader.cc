#include "lib/tar/reader.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "lib/base/status_macros.h"

namespace bulkhead::tar {
namespace {

constexpr char kXattrPrefix[] = "SCHILY.xattr.";
constexpr int64_t kInt64Max = std::numeric_limits<int64_t>::max();
constexpr int64_t kSizeBytesMax = int64_t{1} << 60;

absl::Status Malformed(const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat("invalid tar: ", what));
}

absl::Status Truncated() { return Malformed("unexpected end of the archive"); }

// A field up to its first NUL.
std::string Text(const char* field, size_t size) {
  return std::string(field, strnlen(field, size));
}

// Octal digits between blanks, or GNU's base-256 form.
std::optional<int64_t> Number(const char* field, size_t size) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(field);
  if (bytes[0] & 0x80) {
    const bool negative = bytes[0] & 0x40;
    uint64_t value = negative ? ~uint64_t{0} : 0;
    for (size_t i = 0; i < size; ++i) {
      unsigned char byte = bytes[i];
      if (i == 0) byte = negative ? (byte | 0x80) : (byte & 0x7f);
      const uint64_t top = value >> 55;  // Must stay pure sign.
      if (i > 0 && top != 0 && top != 0x1ff) return std::nullopt;
      value = (value << 8) | byte;
    }
    return static_cast<int64_t>(value);
  }
  size_t i = 0;
  while (i < size && (field[i] == ' ' || field[i] == '\0')) ++i;
  int64_t value = 0;
  for (; i < size && field[i] != ' ' && field[i] != '\0'; ++i) {
    if (field[i] < '0' || field[i] > '7') return std::nullopt;
    if (value > (kInt64Max >> 3)) return std::nullopt;
    value = value * 8 + (field[i] - '0');
  }
  return value;
}

std::optional<int64_t> Decimal(const std::string& text) {
  int64_t value = 0;
  if (!absl::SimpleAtoi(text, &value)) return std::nullopt;
  return value;
}

int64_t ClampSeconds(int64_t seconds) {
  if (seconds <= 0) return 0;
  if (seconds > kInt64Max / 1000000000) return kInt64Max;
  return seconds * 1000000000;
}

// "1234.5678" to nanoseconds, clamped.
std::optional<int64_t> PaxTime(const std::string& text) {
  const size_t dot = text.find('.');
  const std::optional<int64_t> seconds = Decimal(text.substr(0, dot));
  if (!seconds) return std::nullopt;
  int64_t ns = 0;
  if (dot != std::string::npos) {
    int64_t scale = 100000000;
    for (size_t i = dot + 1; i < text.size(); ++i, scale /= 10) {
      if (text[i] < '0' || text[i] > '9') return std::nullopt;
      ns += (text[i] - '0') * scale;
    }
  }
  if (*seconds < 0 || text[0] == '-') return 0;
  const int64_t base = ClampSeconds(*seconds);
  return base > kInt64Max - ns ? kInt64Max : base + ns;
}

constexpr size_t kChecksumAt = 148;
constexpr size_t kChecksumBytes = 8;

bool ChecksumMatches(const char* block) {
  const std::optional<int64_t> stored =
      Number(block + kChecksumAt, kChecksumBytes);
  if (!stored) return false;
  uint32_t plain = 0;
  uint32_t negative = 0;  // Bytes that are so where char has a sign.
  for (size_t i = 0; i < kTarBlockBytes; ++i) {
    const uint8_t byte = static_cast<uint8_t>(block[i]);
    plain += byte;
    negative += byte >> 7;
  }
  for (size_t i = kChecksumAt; i < kChecksumAt + kChecksumBytes; ++i) {
    const uint8_t byte = static_cast<uint8_t>(block[i]);
    plain += ' ' - byte;  // It counts as blanks.
    negative -= byte >> 7;
  }
  const int64_t with_sign = int64_t{plain} - int64_t{256} * negative;
  return *stored == plain || *stored == with_sign;
}

bool AllZero(const char* block) {
  return std::all_of(block, block + kTarBlockBytes,
                     [](char c) { return c == 0; });
}

int64_t PaddingOf(int64_t size) {
  return (kTarBlockBytes - size % kTarBlockBytes) % kTarBlockBytes;
}

absl::Status CheckName(const std::string& name, const char* what) {
  if (name.size() > kTarNameBytesMax) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "tar ", what, " of ", name.size(), " bytes is over the limit of ",
        kTarNameBytesMax, ": ", name.substr(0, 64), "..."));
  }
  if (name.find('\0') != std::string::npos) {
    return Malformed(absl::StrCat(what, " with a NUL byte"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<bool> TarReader::ReadBlock() {
  size_t have = 0;
  while (have < kTarBlockBytes) {
    ASSIGN_OR_RETURN(const absl::string_view data, stream_.Fill());
    if (data.empty()) {
      if (have == 0) return false;
      return Truncated();
    }
    const size_t n = std::min(data.size(), kTarBlockBytes - have);
    std::memcpy(block_ + have, data.data(), n);
    stream_.Consume(n);
    have += n;
  }
  return true;
}

absl::Status TarReader::Take(
    int64_t size_bytes,
    absl::FunctionRef<absl::Status(absl::string_view)> sink) {
  while (size_bytes > 0) {
    ASSIGN_OR_RETURN(absl::string_view data, stream_.Fill());
    if (data.empty()) return Truncated();
    if (static_cast<int64_t>(data.size()) > size_bytes) {
      data = data.substr(0, size_bytes);
    }
    RETURN_IF_ERROR(sink(data));
    size_bytes -= data.size();
    stream_.Consume(data.size());
  }
  return absl::OkStatus();
}

absl::Status TarReader::Skip(int64_t size_bytes) {
  return Take(size_bytes, [](absl::string_view) { return absl::OkStatus(); });
}

absl::StatusOr<std::string> TarReader::ReadSpecial(int64_t size_bytes) {
  if (size_bytes > static_cast<int64_t>(kTarPaxBytesMax)) {
    return absl::ResourceExhaustedError(
        absl::StrCat("tar extended header of ", size_bytes,
                     " bytes is over the limit of ", kTarPaxBytesMax));
  }
  std::string out;
  RETURN_IF_ERROR(Take(size_bytes, [&](absl::string_view data) {
    out.append(data.data(), data.size());
    return absl::OkStatus();
  }));
  RETURN_IF_ERROR(Skip(PaddingOf(size_bytes)));
  return out;
}

absl::Status TarReader::ParsePax(const std::string& data) {
  pax_.clear();
  pax_sparse_map_.clear();
  size_t at = 0;
  while (at < data.size()) {
    const size_t space = data.find(' ', at);
    if (space == std::string::npos) return Malformed("PAX record");
    const std::optional<int64_t> size = Decimal(data.substr(at, space - at));
    if (!size || *size <= 0 || *size > static_cast<int64_t>(data.size() - at) ||
        at + *size < space + 2 || data[at + *size - 1] != '\n') {
      return Malformed("PAX record");
    }
    const std::string record =
        data.substr(space + 1, at + *size - 1 - (space + 1));
    const size_t equals = record.find('=');
    if (equals == std::string::npos || equals == 0) {
      return Malformed("PAX record without a key");
    }
    std::string key = record.substr(0, equals);
    std::string value = record.substr(equals + 1);
    at += *size;
    if (key == "GNU.sparse.offset" || key == "GNU.sparse.numbytes") {
      absl::StrAppend(&pax_sparse_map_, pax_sparse_map_.empty() ? "" : ",",
                      value);
      continue;
    }
    pax_[std::move(key)] = std::move(value);
  }
  return absl::OkStatus();
}

absl::Status TarReader::Merge(TarEntry* entry) {
  for (const auto& [key, value] : pax_) {
    if (absl::StartsWith(key, kXattrPrefix)) {
      entry->xattrs.emplace_back(key.substr(sizeof(kXattrPrefix) - 1), value);
      continue;
    }
    if (value.empty()) continue;  // Falls back to the plain header.
    std::optional<int64_t> number = 0;
    if (key == "path") {
      entry->name = value;
    } else if (key == "linkpath") {
      entry->link_name = value;
    } else if (key == "size") {
      number = Decimal(value);
      if (number) entry->size_bytes = *number;
    } else if (key == "uid") {
      number = Decimal(value);
      if (number) entry->uid = *number;
    } else if (key == "gid") {
      number = Decimal(value);
      if (number) entry->gid = *number;
    } else if (key == "mtime") {
      number = PaxTime(value);
      if (number) entry->mtime_ns = *number;
    } else if (key == "atime") {
      number = PaxTime(value);
      if (number) entry->atime_ns = *number;
    }
    if (!number) return Malformed(absl::StrCat("PAX record ", key));
  }
  return absl::OkStatus();
}

absl::Status TarReader::ParseSparseList(const std::string& list,
                                        TarEntry* entry) {
  std::vector<int64_t> numbers;
  if (!list.empty()) {
    for (absl::string_view part : absl::StrSplit(list, ',')) {
      const std::optional<int64_t> n =
          Decimal(std::string(part.data(), part.size()));
      if (!n) return Malformed("sparse map");
      numbers.push_back(*n);
      if (numbers.size() > 2 * kTarSparseRangesMax) {
        return absl::ResourceExhaustedError("tar sparse map is too long");
      }
    }
  }
  if (numbers.size() % 2 != 0) return Malformed("sparse map");
  for (size_t i = 0; i < numbers.size(); i += 2) {
    entry->ranges.push_back({numbers[i], numbers[i + 1]});
  }
  return absl::OkStatus();
}

// Format 1.0: decimal lines before the data, padded to whole blocks.
absl::Status TarReader::ReadSparseMap(TarEntry* entry) {
  std::string text;
  size_t at = 0;
  auto next = [&]() -> absl::StatusOr<int64_t> {
    size_t end;
    while ((end = text.find('\n', at)) == std::string::npos) {
      if (data_left_ < static_cast<int64_t>(kTarBlockBytes) ||
          text.size() - at > 32) {
        return Malformed("sparse map");
      }
      text.erase(0, at);
      at = 0;
      ASSIGN_OR_RETURN(const bool more, ReadBlock());
      if (!more) return Truncated();
      text.append(block_, kTarBlockBytes);
      data_left_ -= kTarBlockBytes;
    }
    const std::optional<int64_t> n = Decimal(text.substr(at, end - at));
    at = end + 1;
    if (!n || *n < 0) return Malformed("sparse map");
    return *n;
  };
  ASSIGN_OR_RETURN(const int64_t count, next());
  if (count > static_cast<int64_t>(kTarSparseRangesMax)) {
    return absl::ResourceExhaustedError(
        absl::StrCat("tar sparse map of ", count,
                     " ranges is over the limit of ", kTarSparseRangesMax));
  }
  for (int64_t i = 0; i < count; ++i) {
    ASSIGN_OR_RETURN(const int64_t offset, next());
    ASSIGN_OR_RETURN(const int64_t size, next());
    entry->ranges.push_back({offset, size});
  }
  return absl::OkStatus();
}

absl::Status TarReader::ReadOldSparseMap(TarEntry* entry) {
  constexpr size_t kInHeader = 4;
  constexpr size_t kInBlock = 21;
  const char* at = block_ + 386;
  size_t count = kInHeader;
  for (;;) {
    for (size_t i = 0; i < count; ++i, at += 24) {
      if (at[0] == 0 && at[12] == 0) continue;  // Unused.
      const std::optional<int64_t> offset = Number(at, 12);
      const std::optional<int64_t> size = Number(at + 12, 12);
      if (!offset || !size || *offset < 0 || *size < 0) {
        return Malformed("sparse map");
      }
      // A range of nothing at the end says only how long the file is.
      if (*size > 0) entry->ranges.push_back({*offset, *size});
    }
    if (entry->ranges.size() > kTarSparseRangesMax) {
      return absl::ResourceExhaustedError(
          absl::StrCat("tar sparse map is over the limit of ",
                       kTarSparseRangesMax, " ranges"));
    }
    if (at[0] == 0) return absl::OkStatus();  // No block of more follows.
    ASSIGN_OR_RETURN(const bool more, ReadBlock());
    if (!more) return Truncated();
    at = block_;
    count = kInBlock;
  }
}

absl::Status TarReader::UseRanges(int64_t real_size_bytes, TarEntry* entry) {
  int64_t end = 0;
  int64_t total = 0;
  for (const TarRange& range : entry->ranges) {
    if (range.offset_bytes < end || range.size_bytes < 0 ||
        range.size_bytes > real_size_bytes ||
        range.offset_bytes > real_size_bytes - range.size_bytes) {
      return Malformed("sparse map");
    }
    end = range.offset_bytes + range.size_bytes;
    total += range.size_bytes;
  }
  if (total != data_left_) return Malformed("sparse map");
  entry->size_bytes = real_size_bytes;
  entry->sparse = true;
  sparse_ = true;
  ranges_ = entry->ranges;
  return absl::OkStatus();
}

absl::StatusOr<bool> TarReader::Next(TarEntry* entry) {
  RETURN_IF_ERROR(Skip(data_left_));
  RETURN_IF_ERROR(Skip(padding_));
  data_left_ = padding_ = 0;
  pax_.clear();
  pax_sparse_map_.clear();
  sparse_ = false;
  ranges_.clear();
  std::optional<std::string> long_name;
  std::optional<std::string> long_link;

  for (;;) {
    ASSIGN_OR_RETURN(const bool more, ReadBlock());
    if (!more) {
      if (!pax_.empty() || long_name || long_link) return Truncated();
      return false;
    }
    if (AllZero(block_)) {
      ASSIGN_OR_RETURN(const bool second, ReadBlock());
      if (second && !AllZero(block_)) {
        return Malformed("a lone zero block between headers");
      }
      return false;
    }
    if (!ChecksumMatches(block_)) return Malformed("header checksum");
    const std::optional<int64_t> size = Number(block_ + 124, 12);
    if (!size || *size < 0 || *size > kSizeBytesMax) {
      return Malformed("size field");
    }
    char type = block_[156];
    if (type == 'g') {  // Global PAX headers are read over.
      RETURN_IF_ERROR(ReadSpecial(*size).status());
      continue;
    }
    if (type == 'x') {
      ASSIGN_OR_RETURN(const std::string data, ReadSpecial(*size));
      RETURN_IF_ERROR(ParsePax(data));
      continue;
    }
    if (type == 'L' || type == 'K') {
      ASSIGN_OR_RETURN(const std::string data, ReadSpecial(*size));
      (type == 'L' ? long_name : long_link) = Text(data.data(), data.size());
      continue;
    }

    *entry = TarEntry{};
    const bool ustar = std::memcmp(block_ + 257, "ustar\0", 6) == 0;
    const bool gnu = std::memcmp(block_ + 257, "ustar  \0", 8) == 0;
    const bool star = ustar && std::memcmp(block_ + 508, "tar\0", 4) == 0;
    entry->name = Text(block_, 100);
    entry->link_name = Text(block_ + 157, 100);
    if (ustar) {
      const std::string prefix = Text(block_ + 345, star ? 131 : 155);
      if (!prefix.empty()) {
        entry->name = absl::StrCat(prefix, "/", entry->name);
      }
    }
    const std::optional<int64_t> mode = Number(block_ + 100, 8);
    const std::optional<int64_t> uid = Number(block_ + 108, 8);
    const std::optional<int64_t> gid = Number(block_ + 116, 8);
    const std::optional<int64_t> mtime = Number(block_ + 136, 12);
    if (!mode || !uid || !gid || !mtime) return Malformed("number field");
    entry->mode = static_cast<uint32_t>(*mode) & 07777;
    entry->uid = *uid;
    entry->gid = *gid;
    entry->size_bytes = *size;
    entry->mtime_ns = ClampSeconds(*mtime);
    if (gnu && block_[345] != 0) {
      const std::optional<int64_t> atime = Number(block_ + 345, 12);
      if (!atime) return Malformed("number field");
      entry->atime_ns = ClampSeconds(*atime);
    }
    if (long_name) entry->name = *long_name;
    if (long_link) entry->link_name = *long_link;
    RETURN_IF_ERROR(Merge(entry));
    if (entry->size_bytes < 0 || entry->size_bytes > kSizeBytesMax) {
      return Malformed("size");
    }
    if (type == '\0' || type == '7') type = '0';
    if (type == '0' && absl::EndsWith(entry->name, "/")) type = '5';
    const bool old_sparse = type == 'S' && gnu;
    if (old_sparse) type = '0';
    if (type < '0' || type > '6') {
      return Malformed(absl::StrCat("entry type '", std::string(1, type),
                                    "' of ", entry->name.substr(0, 256),
                                    " is not supported"));
    }
    entry->type = static_cast<TarType>(type);
    if (entry->type == TarType::kCharDevice ||
        entry->type == TarType::kBlockDevice) {
      const std::optional<int64_t> major = Number(block_ + 329, 8);
      const std::optional<int64_t> minor = Number(block_ + 337, 8);
      if (!major || !minor) return Malformed("device number");
      entry->device_major = *major;
      entry->device_minor = *minor;
    }

    if (entry->type == TarType::kFile) {
      data_left_ = entry->size_bytes;
      padding_ = PaddingOf(data_left_);
      auto field = [&](const char* key) -> std::string {
        const auto it = pax_.find(key);
        return it == pax_.end() ? "" : it->second;
      };
      const std::string major = field("GNU.sparse.major");
      const std::string map = field("GNU.sparse.map");
      const bool old_form =
          major.empty() && (!map.empty() || !pax_sparse_map_.empty());
      if (old_sparse) {
        const std::optional<int64_t> real_size = Number(block_ + 483, 12);
        if (!real_size || *real_size < 0 || *real_size > kSizeBytesMax) {
          return Malformed("sparse file size");
        }
        RETURN_IF_ERROR(ReadOldSparseMap(entry));
        RETURN_IF_ERROR(UseRanges(*real_size, entry));
      } else if (major == "1" || major == "0" || old_form) {
        const std::string name = field("GNU.sparse.name");
        if (!name.empty()) entry->name = name;
        std::string real = field("GNU.sparse.realsize");
        if (real.empty()) real = field("GNU.sparse.size");
        const std::optional<int64_t> real_size = Decimal(real);
        if (!real_size || *real_size < 0 || *real_size > kSizeBytesMax) {
          return Malformed("sparse file size");
        }
        if (major == "1") {
          RETURN_IF_ERROR(ReadSparseMap(entry));
        } else {
          RETURN_IF_ERROR(
              ParseSparseList(map.empty() ? pax_sparse_map_ : map, entry));
        }
        RETURN_IF_ERROR(UseRanges(*real_size, entry));
      }
    } else {
      entry->size_bytes = 0;
    }
    RETURN_IF_ERROR(CheckName(entry->name, "name"));
    RETURN_IF_ERROR(CheckName(entry->link_name, "link target"));
    return true;
  }
}

absl::Status TarReader::ReadData(
    absl::FunctionRef<absl::Status(int64_t, absl::string_view)> sink) {
  auto take = [&](int64_t offset, int64_t size) {
    return Take(size, [&](absl::string_view data) {
      data_left_ -= data.size();
      const int64_t at = offset;
      offset += data.size();
      return sink(at, data);
    });
  };
  if (!sparse_) return take(0, data_left_);
  for (const TarRange& range : ranges_) {
    RETURN_IF_ERROR(take(range.offset_bytes, range.size_bytes));
  }
  return absl::OkStatus();
}

}  // namespace bulkhead::tar
