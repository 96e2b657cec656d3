// Signatures by plain keys, as cosign makes them: a "simple signing" payload
// that names an image's digest, and a signature of its bytes. No I/O. Values
// are immutable, functions pure and thread-safe.
#ifndef BULKHEAD_SERVICES_DISTRIBUTION_SIGNATURE_H_
#define BULKHEAD_SERVICES_DISTRIBUTION_SIGNATURE_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "lib/digest/digest.h"

struct evp_pkey_st;  // OpenSSL's EVP_PKEY.

namespace bulkhead::distribution {

constexpr size_t kPayloadBytesMax = 1 << 20;
constexpr size_t kSignatureBytesMax = 16 << 10;
constexpr size_t kKeysMax = 64;  // In one file.
constexpr int kRsaBitsMin = 2048;

inline constexpr char kSimpleSigningType[] =
    "application/vnd.dev.cosign.simplesigning.v1+json";
inline constexpr char kCosignSignatureAnnotation[] =
    "dev.cosignproject.cosign/signature";

// RSA (2048 bits or more), ECDSA on P-256, P-384 or P-521, or Ed25519.
class PublicKey {
 public:
  explicit PublicKey(std::shared_ptr<evp_pkey_st> key) : key_(std::move(key)) {}

  // True if `signature` (as OpenSSL writes it: DER for ECDSA) is this key's
  // over `data`: SHA-256, or the hash of the curve's size; RSA with PKCS #1
  // v1.5 or PSS padding; Ed25519 over the bytes themselves.
  bool Verifies(const std::string& data, const std::string& signature) const;

  evp_pkey_st* get() const { return key_.get(); }

 private:
  std::shared_ptr<evp_pkey_st> key_;
};

// All "PUBLIC KEY" blocks of a PEM file. Errors: kInvalidArgument: there is
// none, one is malformed, of another kind or too short.
absl::StatusOr<std::vector<PublicKey>> ParsePublicKeys(const std::string& pem);

// The bytes of the PEM blocks called `type`, others skipped. Errors:
// kInvalidArgument: a malformed block, or there are more than `count_max`.
absl::StatusOr<std::vector<std::string>> PemBlocks(const std::string& pem,
                                                   const std::string& type,
                                                   size_t count_max);

// OK if the key is of a kind we know and strong enough to be trusted.
absl::Status CheckKeyStrength(evp_pkey_st* key);

// What a payload claims. Trust it only after its signature was verified.
struct SimpleSigning {
  Digest image;           // critical.image.docker-manifest-digest
  std::string reference;  // critical.identity.docker-reference, as written.
};
// Errors: kInvalidArgument: not such a payload. kResourceExhausted: a limit.
absl::StatusOr<SimpleSigning> ParseSimpleSigning(const std::string& payload);

}  // namespace bulkhead::distribution

#endif  // BULKHEAD_SERVICES_DISTRIBUTION_SIGNATURE_H_
