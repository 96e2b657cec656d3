#include "services/snapshotter/inflate.h"

#include <isa-l/igzip_lib.h>
#include <zstd.h>

#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"

namespace bulkhead::snapshotter {
namespace {

constexpr size_t kInputBytes = 128 << 10;

absl::Status Corrupt(const std::string& what) {
  return absl::InvalidArgumentError(
      absl::StrCat("corrupt compressed layer: ", what));
}

// A window on the compressed bytes.
class Input {
 public:
  explicit Input(LayerSource& source) : source_(source), buffer_(kInputBytes) {}

  // Makes at least `size_bytes` available unless the source ends first.
  absl::Status Want(size_t size_bytes) {
    while (size_ < size_bytes && !ended_) {
      if (at_ > 0) {
        std::memmove(buffer_.data(), buffer_.data() + at_, size_);
        at_ = 0;
      }
      ASSIGN_OR_RETURN(const size_t n, source_.Read(buffer_.data() + size_,
                                                    buffer_.size() - size_));
      if (n == 0) ended_ = true;
      size_ += n;
    }
    return absl::OkStatus();
  }
  const char* data() const { return buffer_.data() + at_; }
  size_t size() const { return size_; }
  void Consume(size_t n) {
    at_ += n;
    size_ -= n;
  }

 private:
  LayerSource& source_;
  std::vector<char> buffer_;
  size_t at_ = 0;
  size_t size_ = 0;
  bool ended_ = false;
};

bool IsGzip(const Input& in) {
  return in.size() >= 3 && std::memcmp(in.data(), "\x1f\x8b\x08", 3) == 0;
}

bool IsZstd(const Input& in) {
  if (in.size() < 4) return false;
  const auto* b = reinterpret_cast<const unsigned char*>(in.data());
  const uint32_t magic = b[0] | b[1] << 8 | b[2] << 16 | uint32_t{b[3]} << 24;
  return magic == 0xfd2fb528u || (magic & 0xfffffff0u) == 0x184d2a50u;
}

class InflaterImpl : public Inflater {
 public:
  InflaterImpl(LayerSource& source, bool sniff) : in_(source), sniff_(sniff) {}
  ~InflaterImpl() override { ZSTD_freeDStream(zstd_); }

  absl::StatusOr<size_t> Read(char* out, size_t size_bytes) override {
    if (kind_ == Kind::kUnknown) RETURN_IF_ERROR(Start());
    switch (kind_) {
      case Kind::kGzip:
        return ReadGzip(out, size_bytes);
      case Kind::kZstd:
        return ReadZstd(out, size_bytes);
      default:
        return ReadPlain(out, size_bytes);
    }
  }
  bool is_stargz() const override { return is_stargz_; }

 private:
  enum class Kind { kUnknown, kPlain, kGzip, kZstd };

  absl::Status Start() {
    RETURN_IF_ERROR(in_.Want(4));
    kind_ = Kind::kPlain;
    if (!sniff_) return absl::OkStatus();
    if (IsGzip(in_)) {
      kind_ = Kind::kGzip;
      gzip_ = std::make_unique<inflate_state>();
      RETURN_IF_ERROR(StartMember());
    } else if (IsZstd(in_)) {
      kind_ = Kind::kZstd;
      zstd_ = ZSTD_createDStream();
      if (zstd_ == nullptr) return absl::ResourceExhaustedError("zstd memory");
      ZSTD_initDStream(zstd_);
      ZSTD_DCtx_setParameter(zstd_, ZSTD_d_windowLogMax, kZstdWindowLogMax);
    }
    return absl::OkStatus();
  }

  absl::Status StartMember() {
    RETURN_IF_ERROR(NoteFooter());
    isal_inflate_init(gzip_.get());
    gzip_->crc_flag = ISAL_GZIP;
    in_member_ = true;
    return absl::OkStatus();
  }

  // eStargz ends with an empty member whose extra field is where its table of
  // contents begins: sixteen hex digits and "STARGZ", since 2021 in a subfield
  // "SG".
  absl::Status NoteFooter() {
    constexpr size_t kFixedBytes = 12;
    constexpr size_t kSubfieldBytes = 4;
    constexpr size_t kFooterBytes = 22;
    is_stargz_ = false;
    RETURN_IF_ERROR(in_.Want(kFixedBytes + kSubfieldBytes + kFooterBytes));
    const char* extra = in_.data() + kFixedBytes;
    if (in_.size() < kFixedBytes + kFooterBytes || (in_.data()[3] & 4) == 0) {
      return absl::OkStatus();
    }
    const size_t extra_bytes = static_cast<unsigned char>(in_.data()[10]) |
                               static_cast<unsigned char>(in_.data()[11]) << 8;
    if (extra_bytes == kSubfieldBytes + kFooterBytes &&
        std::memcmp(extra, "SG\x16\0", kSubfieldBytes) == 0) {
      extra += kSubfieldBytes;
    } else if (extra_bytes != kFooterBytes) {
      return absl::OkStatus();
    }
    is_stargz_ = std::memcmp(extra + 16, "STARGZ", 6) == 0;
    return absl::OkStatus();
  }

  absl::StatusOr<size_t> ReadPlain(char* out, size_t size_bytes) {
    RETURN_IF_ERROR(in_.Want(1));
    const size_t n = std::min(size_bytes, in_.size());
    std::memcpy(out, in_.data(), n);
    in_.Consume(n);
    return n;
  }

  // After a member: another one, the end, or zeros up to the end.
  absl::StatusOr<bool> NextMember() {
    RETURN_IF_ERROR(in_.Want(3));
    if (in_.size() == 0) return false;
    if (IsGzip(in_)) {
      RETURN_IF_ERROR(StartMember());
      return true;
    }
    while (in_.size() > 0) {
      for (size_t i = 0; i < in_.size(); ++i) {
        if (in_.data()[i] != 0) return Corrupt("gzip: data after the end");
      }
      in_.Consume(in_.size());
      RETURN_IF_ERROR(in_.Want(1));
    }
    return false;
  }

  absl::StatusOr<size_t> ReadGzip(char* out, size_t size_bytes) {
    for (;;) {
      if (!in_member_) {
        ASSIGN_OR_RETURN(const bool more, NextMember());
        if (!more) return 0;
      }
      RETURN_IF_ERROR(in_.Want(1));
      const size_t had = in_.size();
      gzip_->next_in =
          reinterpret_cast<uint8_t*>(const_cast<char*>(in_.data()));
      gzip_->avail_in = had;
      gzip_->next_out = reinterpret_cast<uint8_t*>(out);
      gzip_->avail_out = size_bytes;
      const int code = isal_inflate(gzip_.get());
      if (code < 0) return Corrupt(absl::StrCat("gzip: error ", code));
      const size_t used = had - gzip_->avail_in;
      in_.Consume(used);
      const size_t made = size_bytes - gzip_->avail_out;
      if (gzip_->block_state == ISAL_BLOCK_FINISH) {
        in_member_ = false;
      } else if (made == 0 && used == 0) {
        return had == 0 ? Corrupt("gzip: unexpected end")
                        : Corrupt("gzip: no progress");
      }
      if (made > 0) return made;
    }
  }

  absl::StatusOr<size_t> ReadZstd(char* out, size_t size_bytes) {
    for (;;) {
      RETURN_IF_ERROR(in_.Want(1));
      const bool at_end = in_.size() == 0;
      if (at_end && frame_done_) return 0;
      ZSTD_inBuffer input{in_.data(), in_.size(), 0};
      ZSTD_outBuffer output{out, size_bytes, 0};
      const size_t code = ZSTD_decompressStream(zstd_, &output, &input);
      if (ZSTD_isError(code)) {
        return Corrupt(absl::StrCat("zstd: ", ZSTD_getErrorName(code)));
      }
      in_.Consume(input.pos);
      frame_done_ = code == 0;
      if (output.pos > 0) return output.pos;
      if (at_end && !frame_done_) return Corrupt("zstd: unexpected end");
    }
  }

  Input in_;
  const bool sniff_;
  Kind kind_ = Kind::kUnknown;
  std::unique_ptr<inflate_state> gzip_;
  bool in_member_ = false;
  bool is_stargz_ = false;
  ZSTD_DStream* zstd_ = nullptr;
  bool frame_done_ = false;
};

}  // namespace

absl::StatusOr<LayerEncoding> EncodingOf(const std::string& type) {
  static constexpr const char* kSniffed[] = {
      "application/vnd.docker.image.rootfs.diff.tar",
      "application/vnd.docker.image.rootfs.diff.tar.gzip",
      "application/vnd.docker.image.rootfs.diff.tar.zstd",
      "application/vnd.docker.image.rootfs.foreign.diff.tar",
      "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
      "application/vnd.docker.image.rootfs.foreign.diff.tar.zstd",
      "application/vnd.oci.image.layer.v1.tar+gzip",
      "application/vnd.oci.image.layer.v1.tar+zstd",
      "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
      "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
  };
  for (const char* known : kSniffed) {
    if (type == known) return LayerEncoding{.sniff = true};
  }
  if (type == "application/vnd.oci.image.layer.v1.tar" ||
      type == "application/vnd.oci.image.layer.nondistributable.v1.tar") {
    return LayerEncoding{.sniff = false};
  }
  return absl::UnimplementedError(
      absl::StrCat("no processor for media type \"", type, "\""));
}

std::unique_ptr<Inflater> NewInflater(LayerSource& source, bool sniff) {
  return std::make_unique<InflaterImpl>(source, sniff);
}

}  // namespace bulkhead::snapshotter
