// OpenSSL's low-level SHA-2: the same assembler as behind EVP, but a plain
// struct as state, and no provider to load (which costs a small static process
// memory and start-up time).
#define OPENSSL_SUPPRESS_DEPRECATED
#include "lib/digest/digest.h"

#include <cstring>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace bulkhead {
namespace {

constexpr struct {
  DigestAlgorithm algorithm;
  const char* name;
  size_t hex_digits;
} kAlgorithms[] = {
    {DigestAlgorithm::kSha256, "sha256", 64},
    {DigestAlgorithm::kSha384, "sha384", 96},
    {DigestAlgorithm::kSha512, "sha512", 128},
};

bool IsLowerAlnum(char c) {
  return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
}

// [a-z0-9]+(?:[.+_-][a-z0-9]+)*
bool IsAlgorithmSyntax(absl::string_view name) {
  bool after_separator = true;
  for (char c : name) {
    if (IsLowerAlnum(c)) {
      after_separator = false;
    } else if (!after_separator &&
               (c == '.' || c == '+' || c == '_' || c == '-')) {
      after_separator = true;
    } else {
      return false;
    }
  }
  return !after_separator;
}

// [a-zA-Z0-9=_-]+
bool IsEncodedSyntax(absl::string_view encoded) {
  for (char c : encoded) {
    if (!IsLowerAlnum(c) && !(c >= 'A' && c <= 'Z') && c != '=' && c != '_' &&
        c != '-') {
      return false;
    }
  }
  return !encoded.empty();
}

bool IsLowerHex(absl::string_view encoded) {
  for (char c : encoded) {
    if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'))) return false;
  }
  return true;
}

// State(): version, algorithm, length, chaining words, the bytes of the block
// that is not full yet. Numbers are little-endian.
constexpr char kStateVersion = 1;
constexpr size_t kStateHeaderBytes = 2 + sizeof(uint64_t);
constexpr size_t kStateWords = 8;

template <typename Word>
void PutWord(Word word, std::string* out) {
  for (size_t i = 0; i < sizeof(Word); ++i) {
    out->push_back(static_cast<char>(word >> (8 * i)));
  }
}

template <typename Word>
Word GetWord(absl::string_view bytes, size_t at) {
  Word word = 0;
  for (size_t i = 0; i < sizeof(Word); ++i) {
    word |= static_cast<Word>(static_cast<unsigned char>(bytes[at + i]))
            << (8 * i);
  }
  return word;
}

template <typename Word, typename Context>
void PutState(const Context& context, const void* block, std::string* out) {
  for (const auto word : context.h) PutWord(static_cast<Word>(word), out);
  out->append(static_cast<const char*>(block), context.num);
}

// `state` without its header. False: of the wrong length.
template <typename Word, typename Context>
bool GetState(absl::string_view state, uint64_t size_bytes, void* block,
              size_t block_bytes, Context* context) {
  const size_t rest = size_bytes % block_bytes;
  if (state.size() != kStateWords * sizeof(Word) + rest) return false;
  for (size_t i = 0; i < kStateWords; ++i) {
    context->h[i] = GetWord<Word>(state, i * sizeof(Word));
  }
  context->num = static_cast<unsigned>(rest);
  std::memcpy(block, state.data() + kStateWords * sizeof(Word), rest);
  return true;
}

absl::Status FormatError() {
  return absl::InvalidArgumentError("invalid checksum digest format");
}

}  // namespace

const char* AlgorithmName(DigestAlgorithm algorithm) {
  return kAlgorithms[static_cast<int>(algorithm)].name;
}

absl::StatusOr<Digest> Digest::Parse(absl::string_view text) {
  const size_t colon = text.find(':');
  if (colon == absl::string_view::npos || colon == 0 ||
      colon + 1 == text.size()) {
    return FormatError();
  }
  const absl::string_view name = text.substr(0, colon);
  const absl::string_view encoded = text.substr(colon + 1);
  for (const auto& known : kAlgorithms) {
    if (name != known.name) continue;
    if (encoded.size() != known.hex_digits) {
      return absl::InvalidArgumentError("invalid checksum digest length");
    }
    if (!IsLowerHex(encoded)) return FormatError();
    return Digest(known.algorithm, std::string(text));
  }
  if (!IsAlgorithmSyntax(name) || !IsEncodedSyntax(encoded)) {
    return FormatError();
  }
  return absl::InvalidArgumentError("unsupported digest algorithm");
}

Digest Digest::Of(absl::string_view bytes, DigestAlgorithm algorithm) {
  Hasher hasher(algorithm);
  hasher.Update(bytes);
  return hasher.Finish();
}

std::string Digest::hex() const {
  const size_t colon = text_.find(':');
  return colon == std::string::npos ? "" : text_.substr(colon + 1);
}

Hasher::Hasher(DigestAlgorithm algorithm) : algorithm_(algorithm) {
  switch (algorithm_) {
    case DigestAlgorithm::kSha256:
      SHA256_Init(&sha256_);
      break;
    case DigestAlgorithm::kSha384:
      SHA384_Init(&sha512_);
      break;
    case DigestAlgorithm::kSha512:
      SHA512_Init(&sha512_);
      break;
  }
}

void Hasher::Update(const void* data, size_t size_bytes) {
  size_bytes_ += static_cast<int64_t>(size_bytes);
  if (algorithm_ == DigestAlgorithm::kSha256) {
    SHA256_Update(&sha256_, data, size_bytes);
  } else {
    SHA512_Update(&sha512_, data, size_bytes);  // The state knows its length.
  }
}

std::string Hasher::State() const {
  std::string state = {kStateVersion, static_cast<char>(algorithm_)};
  PutWord(static_cast<uint64_t>(size_bytes_), &state);
  if (algorithm_ == DigestAlgorithm::kSha256) {
    PutState<uint32_t>(sha256_, sha256_.data, &state);
  } else {
    PutState<uint64_t>(sha512_, sha512_.u.p, &state);
  }
  return state;
}

std::optional<Hasher> Hasher::FromState(absl::string_view state) {
  if (state.size() < kStateHeaderBytes || state[0] != kStateVersion ||
      static_cast<unsigned char>(state[1]) >
          static_cast<unsigned char>(DigestAlgorithm::kSha512)) {
    return std::nullopt;
  }
  Hasher hasher(static_cast<DigestAlgorithm>(state[1]));
  const uint64_t size_bytes = GetWord<uint64_t>(state, 2);
  if (size_bytes > uint64_t{1} << 60) return std::nullopt;  // Bits must fit.
  hasher.size_bytes_ = static_cast<int64_t>(size_bytes);
  const uint64_t bits = size_bytes * 8;
  state.remove_prefix(kStateHeaderBytes);
  if (hasher.algorithm_ == DigestAlgorithm::kSha256) {
    SHA256_CTX& context = hasher.sha256_;
    context.Nl = static_cast<SHA_LONG>(bits);
    context.Nh = static_cast<SHA_LONG>(bits >> 32);
    if (!GetState<uint32_t>(state, size_bytes, context.data, SHA256_CBLOCK,
                            &context)) {
      return std::nullopt;
    }
  } else {
    SHA512_CTX& context = hasher.sha512_;
    context.Nl = bits;
    context.Nh = 0;
    if (!GetState<uint64_t>(state, size_bytes, context.u.p, SHA512_CBLOCK,
                            &context)) {
      return std::nullopt;
    }
  }
  return hasher;
}

Digest Hasher::Finish() {
  unsigned char sum[SHA512_DIGEST_LENGTH];
  size_t length = 0;
  switch (algorithm_) {
    case DigestAlgorithm::kSha256:
      SHA256_Final(sum, &sha256_);
      length = SHA256_DIGEST_LENGTH;
      break;
    case DigestAlgorithm::kSha384:
      SHA384_Final(sum, &sha512_);
      length = SHA384_DIGEST_LENGTH;
      break;
    case DigestAlgorithm::kSha512:
      SHA512_Final(sum, &sha512_);
      length = SHA512_DIGEST_LENGTH;
      break;
  }
  return Digest(algorithm_,
                absl::StrCat(AlgorithmName(algorithm_), ":",
                             absl::BytesToHexString(absl::string_view(
                                 reinterpret_cast<char*>(sum), length))));
}

}  // namespace bulkhead
