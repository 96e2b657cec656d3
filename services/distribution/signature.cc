#include "services/distribution/signature.h"

#include <openssl/bio.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rsa.h>
#include <openssl/x509.h>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "lib/base/status_macros.h"
#include "lib/oci/image.h"

namespace bulkhead::distribution {
namespace {

using nlohmann::json;

constexpr char kCosignType[] = "cosign container image signature";
constexpr size_t kPemBytesMax = 4 << 20;

bool VerifyWith(EVP_PKEY* key, const EVP_MD* hash, int rsa_padding,
                const std::string& data, const std::string& signature) {
  const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context(
      EVP_MD_CTX_new(), EVP_MD_CTX_free);
  EVP_PKEY_CTX* options = nullptr;  // Owned by `context`.
  bool good =
      context != nullptr &&
      EVP_DigestVerifyInit(context.get(), &options, hash, nullptr, key) == 1;
  if (good && rsa_padding != 0) {
    good = EVP_PKEY_CTX_set_rsa_padding(options, rsa_padding) == 1;
  }
  good = good && EVP_DigestVerify(
                     context.get(),
                     reinterpret_cast<const unsigned char*>(signature.data()),
                     signature.size(),
                     reinterpret_cast<const unsigned char*>(data.data()),
                     data.size()) == 1;
  ERR_clear_error();
  return good;
}

const json* Object(const json& parent, const char* key) {
  const auto found = parent.find(key);
  return found != parent.end() && found->is_object() ? &*found : nullptr;
}

std::string Text(const json& parent, const char* key) {
  const auto found = parent.find(key);
  return found != parent.end() && found->is_string() ? found->get<std::string>()
                                                     : std::string();
}

}  // namespace

absl::Status CheckKeyStrength(EVP_PKEY* key) {
  const int bits = EVP_PKEY_get_bits(key);
  switch (EVP_PKEY_get_base_id(key)) {
    case EVP_PKEY_RSA:
    case EVP_PKEY_RSA_PSS:
      if (bits >= kRsaBitsMin) return absl::OkStatus();
      return absl::InvalidArgumentError(
          absl::StrCat("an RSA key of ", bits, " bits; at least ", kRsaBitsMin,
                       " are needed"));
    case EVP_PKEY_EC: {
      char name[64] = {};
      size_t size = 0;
      if (EVP_PKEY_get_group_name(key, name, sizeof(name), &size) == 1) {
        for (const char* known : {"prime256v1", "secp384r1", "secp521r1"}) {
          if (std::string(name) == known) return absl::OkStatus();
        }
      }
      ERR_clear_error();
      return absl::InvalidArgumentError(
          absl::StrCat("an ECDSA key on the curve '", name,
                       "'; P-256, P-384 and P-521 are supported"));
    }
    case EVP_PKEY_ED25519:
      return absl::OkStatus();
    default:
      return absl::InvalidArgumentError(
          "a key that is neither RSA, ECDSA nor Ed25519");
  }
}

bool PublicKey::Verifies(const std::string& data,
                         const std::string& signature) const {
  if (signature.empty() || signature.size() > kSignatureBytesMax) return false;
  EVP_PKEY* const key = key_.get();
  switch (EVP_PKEY_get_base_id(key)) {
    case EVP_PKEY_RSA:
      return VerifyWith(key, EVP_sha256(), RSA_PKCS1_PADDING, data,
                        signature) ||
             VerifyWith(key, EVP_sha256(), RSA_PKCS1_PSS_PADDING, data,
                        signature);
    case EVP_PKEY_RSA_PSS:
      return VerifyWith(key, EVP_sha256(), 0, data, signature);
    case EVP_PKEY_EC: {
      if (VerifyWith(key, EVP_sha256(), 0, data, signature)) return true;
      const int bits = EVP_PKEY_get_bits(key);
      return bits > 256 &&
             VerifyWith(key, bits > 384 ? EVP_sha512() : EVP_sha384(), 0, data,
                        signature);
    }
    case EVP_PKEY_ED25519:
      return VerifyWith(key, nullptr, 0, data, signature);
    default:
      return false;
  }
}

absl::StatusOr<std::vector<std::string>> PemBlocks(const std::string& pem,
                                                   const std::string& type,
                                                   size_t count_max) {
  if (pem.size() > kPemBytesMax) {
    return absl::InvalidArgumentError("a PEM file that is too large");
  }
  const std::unique_ptr<BIO, decltype(&BIO_free)> in(
      BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())), BIO_free);
  std::vector<std::string> blocks;
  for (;;) {
    char* name = nullptr;
    char* header = nullptr;
    unsigned char* data = nullptr;
    long size = 0;
    if (in == nullptr ||
        PEM_read_bio(in.get(), &name, &header, &data, &size) != 1) {
      break;
    }
    if (type == name) {
      blocks.emplace_back(reinterpret_cast<char*>(data),
                          static_cast<size_t>(size));
    }
    OPENSSL_free(name);
    OPENSSL_free(header);
    OPENSSL_free(data);
    if (blocks.size() > count_max) {
      return absl::InvalidArgumentError(
          absl::StrCat("more than ", count_max, " blocks of ", type));
    }
  }
  // Only "no more blocks" ends a good file.
  const unsigned long error = ERR_peek_last_error();
  const bool over = ERR_GET_LIB(error) == ERR_LIB_PEM &&
                    ERR_GET_REASON(error) == PEM_R_NO_START_LINE;
  ERR_clear_error();
  if (!over) return absl::InvalidArgumentError("a malformed PEM block");
  if (blocks.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "nothing in PEM form that begins with -----BEGIN ", type, "-----"));
  }
  return blocks;
}

absl::StatusOr<std::vector<PublicKey>> ParsePublicKeys(const std::string& pem) {
  ASSIGN_OR_RETURN(const std::vector<std::string> blocks,
                   PemBlocks(pem, "PUBLIC KEY", kKeysMax));
  std::vector<PublicKey> keys;
  for (const std::string& der : blocks) {
    const auto* at = reinterpret_cast<const unsigned char*>(der.data());
    EVP_PKEY* const key =
        d2i_PUBKEY(nullptr, &at, static_cast<long>(der.size()));
    ERR_clear_error();
    if (key == nullptr) {
      return absl::InvalidArgumentError("a malformed public key");
    }
    keys.emplace_back(std::shared_ptr<EVP_PKEY>(key, EVP_PKEY_free));
    RETURN_IF_ERROR(CheckKeyStrength(key));
  }
  return keys;
}

absl::StatusOr<SimpleSigning> ParseSimpleSigning(const std::string& payload) {
  if (payload.size() > kPayloadBytesMax || oci::JsonTooDeep(payload)) {
    return absl::ResourceExhaustedError("a payload too large or too deep");
  }
  const json document = json::parse(payload, nullptr, false);
  if (!document.is_object()) {
    return absl::InvalidArgumentError("the payload is no JSON object");
  }
  const json* const critical = Object(document, "critical");
  const json* const image =
      critical == nullptr ? nullptr : Object(*critical, "image");
  if (image == nullptr) {
    return absl::InvalidArgumentError("the payload has no critical.image");
  }
  if (Text(*critical, "type") != kCosignType) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the payload's type is '", Text(*critical, "type").substr(0, 100),
        "', not '", kCosignType, "'"));
  }
  SimpleSigning out;
  absl::StatusOr<Digest> digest =
      Digest::Parse(Text(*image, "docker-manifest-digest"));
  if (!digest.ok()) {
    return Annotate(digest.status(), "the payload's docker-manifest-digest");
  }
  out.image = *std::move(digest);
  const json* const identity = Object(*critical, "identity");
  if (identity != nullptr) out.reference = Text(*identity, "docker-reference");
  return out;
}

}  // namespace bulkhead::distribution
