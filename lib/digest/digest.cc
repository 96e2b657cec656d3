// OpenSSL's low-level SHA-2: the same assembler as behind EVP, but a plain
// struct as state, and no provider to load (which costs a small static process
// memory and start-up time).
#define OPENSSL_SUPPRESS_DEPRECATED
#include "lib/digest/digest.h"

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
