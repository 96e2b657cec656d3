#include "services/distribution/archive.h"

#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "lib/base/status_macros.h"
#include "lib/os/fd.h"

namespace bulkhead::distribution {
namespace {

constexpr size_t kBlock = 512;
constexpr size_t kBufferBytes = 128 << 10;
constexpr int kZstdWindowLogMax = 27;  // 128 MiB, zstd's own default.

absl::Status Bad(const std::string& what) {
  return absl::InvalidArgumentError("the archive " + what);
}

// A source whose first bytes can be looked at, and a decompressor behind it.
class Inflater {
 public:
  explicit Inflater(ByteSource source)
      : source_(std::move(source)), buffer_(kBufferBytes) {}
  ~Inflater() {
    if (kind_ == Kind::kGzip) inflateEnd(&gzip_);
    ZSTD_freeDStream(zstd_);
  }

  absl::StatusOr<size_t> Read(char* out, size_t size) {
    if (kind_ == Kind::kUnknown) RETURN_IF_ERROR(Sniff());
    for (;;) {
      if (begin_ == end_ && !over_) RETURN_IF_ERROR(Fill());
      if (begin_ == end_ && over_) {
        if (kind_ != Kind::kPlain && inside_) return Bad("is cut off");
        return size_t{0};
      }
      size_t made = 0;
      if (kind_ == Kind::kPlain) {
        made = std::min(size, end_ - begin_);
        std::memcpy(out, buffer_.data() + begin_, made);
        begin_ += made;
      } else if (kind_ == Kind::kGzip) {
        ASSIGN_OR_RETURN(made, Gzip(out, size));
      } else {
        ASSIGN_OR_RETURN(made, Zstd(out, size));
      }
      if (made > 0) return made;
    }
  }

 private:
  enum class Kind { kUnknown, kPlain, kGzip, kZstd };

  absl::Status Fill() {
    begin_ = end_ = 0;
    ASSIGN_OR_RETURN(end_, source_(buffer_.data(), buffer_.size()));
    over_ = end_ == 0;
    return absl::OkStatus();
  }

  absl::Status Sniff() {
    while (end_ < 4 && !over_) {
      ASSIGN_OR_RETURN(const size_t got,
                       source_(buffer_.data() + end_, buffer_.size() - end_));
      end_ += got;
      over_ = got == 0;
    }
    const auto* b = reinterpret_cast<const unsigned char*>(buffer_.data());
    kind_ = Kind::kPlain;
    if (end_ >= 2 && b[0] == 0x1f && b[1] == 0x8b) {
      std::memset(&gzip_, 0, sizeof(gzip_));
      if (inflateInit2(&gzip_, 15 + 16) != Z_OK) {
        return absl::ResourceExhaustedError("zlib");
      }
      kind_ = Kind::kGzip;
    } else if (end_ >= 4 && b[0] == 0x28 && b[1] == 0xb5 && b[2] == 0x2f &&
               b[3] == 0xfd) {
      zstd_ = ZSTD_createDStream();
      if (zstd_ == nullptr) return absl::ResourceExhaustedError("zstd");
      ZSTD_DCtx_setParameter(zstd_, ZSTD_d_windowLogMax, kZstdWindowLogMax);
      kind_ = Kind::kZstd;
    }
    inside_ = true;
    return absl::OkStatus();
  }

  absl::StatusOr<size_t> Gzip(char* out, size_t size) {
    if (!inside_) {  // Another member, or padding behind the last one.
      if (buffer_[begin_] == '\0') {
        ++begin_;
        return size_t{0};
      }
      inflateReset(&gzip_);
      inside_ = true;
    }
    gzip_.next_in = reinterpret_cast<Bytef*>(buffer_.data() + begin_);
    gzip_.avail_in = static_cast<uInt>(end_ - begin_);
    gzip_.next_out = reinterpret_cast<Bytef*>(out);
    gzip_.avail_out = static_cast<uInt>(std::min<size_t>(size, 1 << 30));
    const uInt room = gzip_.avail_out;
    const int result = inflate(&gzip_, Z_NO_FLUSH);
    begin_ = end_ - gzip_.avail_in;
    if (result == Z_STREAM_END) {
      inside_ = false;
    } else if (result != Z_OK && result != Z_BUF_ERROR) {
      return Bad("is corrupt: gzip");
    }
    return static_cast<size_t>(room - gzip_.avail_out);
  }

  absl::StatusOr<size_t> Zstd(char* out, size_t size) {
    ZSTD_inBuffer in{buffer_.data(), end_, begin_};
    ZSTD_outBuffer made{out, size, 0};
    const size_t result = ZSTD_decompressStream(zstd_, &made, &in);
    if (ZSTD_isError(result)) {
      return Bad(absl::StrCat("is corrupt: zstd: ", ZSTD_getErrorName(result)));
    }
    begin_ = in.pos;
    inside_ = result != 0;
    return made.pos;
  }

  const ByteSource source_;
  std::vector<char> buffer_;
  size_t begin_ = 0;
  size_t end_ = 0;
  bool over_ = false;
  bool inside_ = false;  // A member or frame is not at its end.
  Kind kind_ = Kind::kUnknown;
  z_stream gzip_;
  ZSTD_DStream* zstd_ = nullptr;
};

class Deflater {
 public:
  explicit Deflater(ByteSource source)
      : source_(std::move(source)), buffer_(kBufferBytes) {
    std::memset(&gzip_, 0, sizeof(gzip_));
    // 16: with a gzip header, which has no time in it.
    ready_ = deflateInit2(&gzip_, Z_DEFAULT_COMPRESSION, Z_DEFLATED,
                          MAX_WBITS + 16, 8, Z_DEFAULT_STRATEGY) == Z_OK;
  }
  ~Deflater() {
    if (ready_) deflateEnd(&gzip_);
  }

  absl::StatusOr<size_t> Read(char* out, size_t size) {
    if (!ready_) return absl::ResourceExhaustedError("gzip");
    gzip_.next_out = reinterpret_cast<Bytef*>(out);
    gzip_.avail_out = static_cast<uInt>(std::min<size_t>(size, 1 << 30));
    const uInt room = gzip_.avail_out;
    while (gzip_.avail_out == room && !done_) {
      if (gzip_.avail_in == 0 && !over_) {
        ASSIGN_OR_RETURN(const size_t got,
                         source_(buffer_.data(), buffer_.size()));
        over_ = got == 0;
        gzip_.next_in = reinterpret_cast<Bytef*>(buffer_.data());
        gzip_.avail_in = static_cast<uInt>(got);
      }
      const int result = deflate(&gzip_, over_ ? Z_FINISH : Z_NO_FLUSH);
      if (result == Z_STREAM_END) done_ = true;
      if (result == Z_STREAM_ERROR) return absl::InternalError("gzip");
    }
    return static_cast<size_t>(room - gzip_.avail_out);
  }

 private:
  const ByteSource source_;
  std::vector<char> buffer_;
  z_stream gzip_;
  bool ready_ = false;
  bool over_ = false;
  bool done_ = false;
};

int64_t Number(const char* field, size_t size) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(field);
  if (bytes[0] & 0x80) {  // Base 256.
    if (bytes[0] != 0x80) return -1;
    int64_t value = 0;
    for (size_t i = 1; i < size; ++i) {
      if (value >> 54) return -1;
      value = value << 8 | bytes[i];
    }
    return value;
  }
  int64_t value = 0;
  size_t i = 0;
  while (i < size && field[i] == ' ') ++i;
  for (; i < size && field[i] >= '0' && field[i] <= '7'; ++i) {
    value = value << 3 | (field[i] - '0');
  }
  if (i < size && field[i] != ' ' && field[i] != '\0') return -1;
  return value;
}

std::string Field(const char* field, size_t size) {
  return std::string(field, strnlen(field, size));
}

unsigned Checksum(const char* block) {
  unsigned sum = 0;
  for (size_t i = 0; i < kBlock; ++i) {
    sum += i >= 148 && i < 156 ? ' ' : static_cast<unsigned char>(block[i]);
  }
  return sum;
}

// Without "/", "./" in front and doubled; "" for a name that leaves the root.
std::string Clean(const std::string& name) {
  std::vector<std::string> out;
  const std::vector<std::string> parts = absl::StrSplit(name, '/');
  for (const std::string& part : parts) {
    if (part.empty() || part == ".") continue;
    if (part == "..") {
      if (out.empty()) return "";
      out.pop_back();
    } else {
      out.push_back(part);
    }
  }
  std::string joined;
  for (const std::string& part : out) {
    if (!joined.empty()) joined += '/';
    joined += part;
  }
  return joined;
}

}  // namespace

ByteSource Decompressed(ByteSource source) {
  auto inflater = std::make_shared<Inflater>(std::move(source));
  return
      [inflater](char* out, size_t size) { return inflater->Read(out, size); };
}

ByteSource Gzipped(ByteSource source) {
  auto deflater = std::make_shared<Deflater>(std::move(source));
  return
      [deflater](char* out, size_t size) { return deflater->Read(out, size); };
}

absl::Status ReadAll(const ByteSource& source, size_t size_bytes_max,
                     std::string* out) {
  char piece[16384];
  for (;;) {
    ASSIGN_OR_RETURN(const size_t got, source(piece, sizeof(piece)));
    if (got == 0) return absl::OkStatus();
    if (out->size() + got > size_bytes_max) {
      return absl::ResourceExhaustedError(
          absl::StrCat("more than the limit of ", size_bytes_max, " bytes"));
    }
    out->append(piece, got);
  }
}

absl::StatusOr<bool> ArchiveReader::Block(char* block) {
  size_t have = 0;
  while (have < kBlock) {
    ASSIGN_OR_RETURN(const size_t got, source_(block + have, kBlock - have));
    if (got == 0) break;
    have += got;
  }
  if (have == 0) return false;
  if (have < kBlock) return Bad("is cut off");
  return true;
}

absl::StatusOr<size_t> ArchiveReader::Read(char* out, size_t size) {
  if (left_ == 0) return size_t{0};
  const size_t want =
      static_cast<size_t>(std::min<int64_t>(left_, static_cast<int64_t>(size)));
  ASSIGN_OR_RETURN(const size_t got, source_(out, want));
  if (got == 0) return Bad("is cut off");
  left_ -= static_cast<int64_t>(got);
  return got;
}

absl::Status ArchiveReader::Skip() {
  char drop[16384];
  left_ += padding_;
  padding_ = 0;
  while (left_ > 0) RETURN_IF_ERROR(Read(drop, sizeof(drop)).status());
  return absl::OkStatus();
}

absl::StatusOr<std::string> ArchiveReader::Text(int64_t size) {
  if (size > static_cast<int64_t>(kArchivePaxBytesMax)) {
    return absl::ResourceExhaustedError("an extended header over 1 MiB");
  }
  std::string out(static_cast<size_t>(size), '\0');
  size_t have = 0;
  while (have < out.size()) {
    ASSIGN_OR_RETURN(const size_t got, Read(&out[have], out.size() - have));
    have += got;
  }
  RETURN_IF_ERROR(Skip());
  return out;
}

absl::StatusOr<bool> ArchiveReader::Next(ArchiveEntry* entry) {
  RETURN_IF_ERROR(Skip());
  *entry = ArchiveEntry();
  std::string name;
  std::string link;
  int64_t pax_size = -1;
  for (;;) {
    char block[kBlock];
    ASSIGN_OR_RETURN(const bool more, Block(block));
    if (!more) return false;
    static constexpr char kZeros[kBlock] = {};
    if (std::memcmp(block, kZeros, kBlock) == 0) return false;
    if (Number(block + 148, 8) != static_cast<int64_t>(Checksum(block))) {
      return Bad("is no tar archive, or corrupt");
    }
    if (++entries_ > kArchiveEntriesMax) {
      return absl::ResourceExhaustedError(
          absl::StrCat("more than ", kArchiveEntriesMax, " archive entries"));
    }
    int64_t size = Number(block + 124, 12);
    if (size < 0) return Bad("has an entry of a wrong size");
    const char type = block[156] == '\0' ? '0' : block[156];
    if (pax_size >= 0 && type != 'x' && type != 'g') size = pax_size;
    left_ = size;
    padding_ = (kBlock - size % kBlock) % kBlock;
    if (type == 'L' || type == 'K') {
      ASSIGN_OR_RETURN(std::string text, Text(size));
      text.resize(strnlen(text.data(), text.size()));
      (type == 'L' ? name : link) = std::move(text);
      continue;
    }
    if (type == 'g') {
      RETURN_IF_ERROR(Skip());
      continue;
    }
    if (type == 'x') {
      ASSIGN_OR_RETURN(const std::string text, Text(size));
      for (size_t at = 0; at < text.size();) {
        const size_t space = text.find(' ', at);
        size_t length = 0;
        if (space == std::string::npos ||
            !absl::SimpleAtoi(text.substr(at, space - at), &length) ||
            length < space - at + 3 || length > text.size() - at) {
          return Bad("has a malformed PAX header");
        }
        const std::string record =
            text.substr(space + 1, length - (space - at) - 2);
        const size_t equals = record.find('=');
        if (equals == std::string::npos) return Bad("has a malformed header");
        const std::string key = record.substr(0, equals);
        const std::string value = record.substr(equals + 1);
        if (key == "path") name = value;
        if (key == "linkpath") link = value;
        if (key == "size" &&
            (!absl::SimpleAtoi(value, &pax_size) || pax_size < 0)) {
          return Bad("has an entry of a wrong size");
        }
        at += length;
      }
      continue;
    }
    if (name.empty()) {
      name = Field(block, 100);
      if (std::memcmp(block + 257, "ustar", 6) == 0 && block[345] != '\0') {
        name = Field(block + 345, 155) + "/" + name;
      }
    }
    if (link.empty()) link = Field(block + 157, 100);
    if (name.size() > kArchiveNameBytesMax ||
        link.size() > kArchiveNameBytesMax) {
      return absl::ResourceExhaustedError("a name of over 4095 bytes");
    }
    if (type == '1' || type == '2' || type == '5') {
      RETURN_IF_ERROR(Skip());
      size = 0;
    }
    *entry = {type, Clean(name), link, size};
    return true;
  }
}

absl::Status ArchiveWriter::Header(const std::string& name, char type, int mode,
                                   int64_t size) {
  if (name.size() > 100) {
    return absl::InternalError("an archive name over 100 bytes: " + name);
  }
  char block[kBlock] = {};
  std::memcpy(block, name.data(), name.size());
  absl::SNPrintF(block + 100, 8, "%07o", mode);
  absl::SNPrintF(block + 108, 8, "%07o", 0);
  absl::SNPrintF(block + 116, 8, "%07o", 0);
  if (size < (int64_t{1} << 33)) {
    absl::SNPrintF(block + 124, 12, "%011o", size);
  } else {
    block[124] = '\x80';
    for (int i = 0; i < 8; ++i) {
      block[135 - i] = static_cast<char>(size >> (8 * i));
    }
  }
  absl::SNPrintF(block + 136, 12, "%011o", 0);
  block[156] = type;
  std::memcpy(block + 257,
              "ustar\0"
              "00",
              8);
  absl::SNPrintF(block + 148, 8, "%06o", Checksum(block));
  block[155] = ' ';
  return sink_(block, kBlock);
}

absl::Status ArchiveWriter::Pad(int64_t size) {
  static constexpr char kZeros[kBlock] = {};
  const size_t rest = (kBlock - size % kBlock) % kBlock;
  return rest == 0 ? absl::OkStatus() : sink_(kZeros, rest);
}

absl::Status ArchiveWriter::Directory(const std::string& name) {
  return Header(name + "/", '5', 0755, 0);
}

absl::Status ArchiveWriter::File(const std::string& name,
                                 const std::string& bytes) {
  RETURN_IF_ERROR(Header(name, '0', 0644, static_cast<int64_t>(bytes.size())));
  if (!bytes.empty()) RETURN_IF_ERROR(sink_(bytes.data(), bytes.size()));
  return Pad(static_cast<int64_t>(bytes.size()));
}

absl::Status ArchiveWriter::FileOf(const std::string& name, int fd,
                                   int64_t size) {
  RETURN_IF_ERROR(Header(name, '0', 0644, size));
  std::vector<char> buffer(kBufferBytes);
  for (int64_t at = 0; at < size;) {
    const size_t want = static_cast<size_t>(
        std::min<int64_t>(size - at, static_cast<int64_t>(buffer.size())));
    ASSIGN_OR_RETURN(const size_t got,
                     os::PReadFull(fd, buffer.data(), want, at));
    if (got != want) {
      return absl::DataLossError(absl::StrCat(name, ": shorter than ", size));
    }
    RETURN_IF_ERROR(sink_(buffer.data(), got));
    at += static_cast<int64_t>(got);
  }
  return Pad(size);
}

absl::Status ArchiveWriter::Finish() {
  static constexpr char kZeros[2 * kBlock] = {};
  return sink_(kZeros, sizeof(kZeros));
}

}  // namespace bulkhead::distribution
