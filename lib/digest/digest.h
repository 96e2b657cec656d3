// Content digests: "sha256:<64 lowercase hex digits>", and what computes them.
#ifndef BULKHEAD_LIB_DIGEST_DIGEST_H_
#define BULKHEAD_LIB_DIGEST_DIGEST_H_

#include <openssl/sha.h>

#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace bulkhead {

enum class DigestAlgorithm : uint8_t { kSha256, kSha384, kSha512 };

// "sha256", "sha384", "sha512".
const char* AlgorithmName(DigestAlgorithm algorithm);

// A valid digest, or the empty one that the default constructor makes.
class Digest {
 public:
  Digest() = default;

  // Errors, all kInvalidArgument with go-digest's texts:
  //   "invalid checksum digest format": not <algorithm>:<lowercase hex>.
  //   "invalid checksum digest length": too few or too many digits.
  //   "unsupported digest algorithm": well formed, but none of the three.
  static absl::StatusOr<Digest> Parse(absl::string_view text);

  // The digest of `bytes`.
  static Digest Of(absl::string_view bytes,
                   DigestAlgorithm algorithm = DigestAlgorithm::kSha256);

  bool empty() const { return text_.empty(); }
  const std::string& str() const { return text_; }
  // Meaningless for the empty digest.
  DigestAlgorithm algorithm() const { return algorithm_; }
  // The part after the colon.
  std::string hex() const;

  friend bool operator==(const Digest& a, const Digest& b) {
    return a.text_ == b.text_;
  }
  friend std::strong_ordering operator<=>(const Digest& a, const Digest& b) {
    return a.text_.compare(b.text_) <=> 0;
  }
  template <typename H>
  friend H AbslHashValue(H h, const Digest& digest) {
    return H::combine(std::move(h), digest.text_);
  }

 private:
  friend class Hasher;
  Digest(DigestAlgorithm algorithm, std::string text)
      : algorithm_(algorithm), text_(std::move(text)) {}

  DigestAlgorithm algorithm_ = DigestAlgorithm::kSha256;
  std::string text_;
};

constexpr size_t kHasherStateBytesMax = 256;

// Digests bytes as they come. A plain value: a copy goes on independently, so
// the digest so far is `Hasher(running).Finish()`. Uses the processor's SHA
// instructions. Not thread-safe.
class Hasher {
 public:
  explicit Hasher(DigestAlgorithm algorithm = DigestAlgorithm::kSha256);

  DigestAlgorithm algorithm() const { return algorithm_; }
  void Update(const void* data, size_t size_bytes);
  void Update(absl::string_view data) { Update(data.data(), data.size()); }
  // Bytes seen so far.
  int64_t size_bytes() const { return size_bytes_; }

  // Ends the hash; only assignment makes the object usable again.
  Digest Finish();
  // The digest so far; the hash goes on.
  Digest Current() const { return Hasher(*this).Finish(); }

  // What has been seen so far as bytes (at most kHasherStateBytesMax), from
  // which FromState() makes a Hasher that goes on, in any process.
  std::string State() const;
  // nullopt: not what State() wrote. The bytes are not protected against
  // changes: whoever keeps them adds a checksum.
  static std::optional<Hasher> FromState(absl::string_view state);

 private:
  DigestAlgorithm algorithm_;
  int64_t size_bytes_ = 0;
  union {
    SHA256_CTX sha256_;
    SHA512_CTX sha512_;  // SHA-384 too.
  };
};

}  // namespace bulkhead

template <>
struct std::hash<bulkhead::Digest> {
  size_t operator()(const bulkhead::Digest& digest) const noexcept {
    return std::hash<std::string>()(digest.str());
  }
};

#endif  // BULKHEAD_LIB_DIGEST_DIGEST_H_
