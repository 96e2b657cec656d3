#include "services/distribution/notation.h"

#include <openssl/ecdsa.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/rsa.h>
#include <openssl/x509.h>
#include <openssl/x509_vfy.h>
#include <openssl/x509v3.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/oci/image.h"
#include "services/distribution/signature.h"

namespace bulkhead::distribution {
namespace {

using nlohmann::json;

constexpr size_t kCertificateBytesMax = 64 << 10;
constexpr int kAuthLevel = 2;  // 112 bits: RSA 2048, no SHA-1.
constexpr char kPayloadType[] = "application/vnd.cncf.notary.payload.v1+json";
constexpr char kScheme[] = "notary.x509";
constexpr char kSchemeHeader[] = "io.cncf.notary.signingScheme";
constexpr char kExpiryHeader[] = "io.cncf.notary.expiry";

template <typename T, void (*Free)(T*)>
struct Deleter {
  void operator()(T* object) const { Free(object); }
};
template <typename T, void (*Free)(T*)>
using Owned = std::unique_ptr<T, Deleter<T, Free>>;

absl::Status Malformed(const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat("the envelope's ", what));
}

absl::Status Untrusted(const std::string& why) {
  return absl::PermissionDeniedError(why);
}

absl::StatusOr<json> ParseObject(const std::string& text,
                                 const std::string& what) {
  if (oci::JsonTooDeep(text)) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the envelope's ", what, " is nested too deep"));
  }
  json out = json::parse(text, nullptr, false);
  if (!out.is_object()) return Malformed(what + " is no JSON object");
  return out;
}

absl::StatusOr<std::string> Text(const json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_string()) {
    return Malformed(absl::StrCat("'", key, "' is missing or no string"));
  }
  return found->get<std::string>();
}

absl::StatusOr<std::string> Base64Url(const std::string& text,
                                      const char* what) {
  std::string out;
  if (!absl::WebSafeBase64Unescape(text, &out)) {
    return Malformed(absl::StrCat(what, " is not base64url"));
  }
  return out;
}

struct Algorithm {
  const char* name;
  int key_type;
  int key_bits;  // Of an elliptic curve.
  const EVP_MD* (*hash)();
};
constexpr Algorithm kAlgorithms[] = {
    {"PS256", EVP_PKEY_RSA, 0, EVP_sha256},
    {"PS384", EVP_PKEY_RSA, 0, EVP_sha384},
    {"PS512", EVP_PKEY_RSA, 0, EVP_sha512},
    {"ES256", EVP_PKEY_EC, 256, EVP_sha256},
    {"ES384", EVP_PKEY_EC, 384, EVP_sha384},
    {"ES512", EVP_PKEY_EC, 521, EVP_sha512},
};

// r and s side by side -> DER, which OpenSSL reads. Empty: wrong size.
std::string DerSignature(const std::string& raw, int key_bits) {
  const size_t half = static_cast<size_t>((key_bits + 7) / 8);
  if (raw.size() != 2 * half) return "";
  const auto* const bytes = reinterpret_cast<const unsigned char*>(raw.data());
  const Owned<ECDSA_SIG, ECDSA_SIG_free> signature(ECDSA_SIG_new());
  BIGNUM* const r = BN_bin2bn(bytes, static_cast<int>(half), nullptr);
  BIGNUM* const s = BN_bin2bn(bytes + half, static_cast<int>(half), nullptr);
  if (signature == nullptr || r == nullptr || s == nullptr ||
      ECDSA_SIG_set0(signature.get(), r, s) != 1) {
    BN_free(r);
    BN_free(s);
    return "";
  }
  unsigned char* der = nullptr;
  const int size = i2d_ECDSA_SIG(signature.get(), &der);
  if (size <= 0) return "";
  std::string out(reinterpret_cast<char*>(der), static_cast<size_t>(size));
  OPENSSL_free(der);
  return out;
}

absl::Status VerifySignature(EVP_PKEY* key, const std::string& algorithm_name,
                             const std::string& signed_text,
                             std::string signature) {
  const auto* const algorithm = std::find_if(
      std::begin(kAlgorithms), std::end(kAlgorithms),
      [&](const Algorithm& each) { return algorithm_name == each.name; });
  if (algorithm == std::end(kAlgorithms)) {
    return Malformed(absl::StrCat("algorithm '", algorithm_name.substr(0, 32),
                                  "' is none of PS256/384/512, ES256/384/512"));
  }
  RETURN_IF_ERROR(CheckKeyStrength(key));
  if (EVP_PKEY_get_base_id(key) != algorithm->key_type ||
      (algorithm->key_bits > 0 &&
       EVP_PKEY_get_bits(key) != algorithm->key_bits)) {
    return Untrusted(absl::StrCat(
        "the signing certificate's key is not one for ", algorithm->name));
  }
  if (algorithm->key_type == EVP_PKEY_EC) {
    signature = DerSignature(signature, algorithm->key_bits);
  }
  const Owned<EVP_MD_CTX, EVP_MD_CTX_free> context(EVP_MD_CTX_new());
  EVP_PKEY_CTX* options = nullptr;  // Owned by `context`.
  bool good = !signature.empty() && context != nullptr &&
              EVP_DigestVerifyInit(context.get(), &options, algorithm->hash(),
                                   nullptr, key) == 1;
  if (good && algorithm->key_type == EVP_PKEY_RSA) {
    good =
        EVP_PKEY_CTX_set_rsa_padding(options, RSA_PKCS1_PSS_PADDING) == 1 &&
        EVP_PKEY_CTX_set_rsa_pss_saltlen(options, RSA_PSS_SALTLEN_DIGEST) == 1;
  }
  good = good && EVP_DigestVerify(
                     context.get(),
                     reinterpret_cast<const unsigned char*>(signature.data()),
                     signature.size(),
                     reinterpret_cast<const unsigned char*>(signed_text.data()),
                     signed_text.size()) == 1;
  ERR_clear_error();
  if (!good) return Untrusted("the signature does not match the payload");
  return absl::OkStatus();
}

// "x5c": the signing certificate first.
absl::StatusOr<TrustAnchors> ReadChain(const json& header) {
  const auto list = header.find("x5c");
  if (list == header.end() || !list->is_array() || list->empty()) {
    return Malformed("header has no certificates (x5c)");
  }
  if (list->size() > kChainMax) {
    return absl::ResourceExhaustedError(
        absl::StrCat("more than ", kChainMax, " certificates"));
  }
  TrustAnchors chain;
  for (const json& item : *list) {
    std::string der;
    if (!item.is_string() ||
        !absl::Base64Unescape(item.get_ref<const std::string&>(), &der) ||
        der.empty() || der.size() > kCertificateBytesMax) {
      return Malformed("x5c holds what is no certificate");
    }
    const auto* at = reinterpret_cast<const unsigned char*>(der.data());
    const unsigned char* const end = at + der.size();
    X509* const certificate =
        d2i_X509(nullptr, &at, static_cast<long>(der.size()));
    ERR_clear_error();
    if (certificate == nullptr) {
      return Malformed("x5c holds what is no certificate");
    }
    chain.emplace_back(certificate, X509_free);
    if (at != end) return Malformed("x5c holds more than a certificate");
  }
  return chain;
}

absl::Status VerifyChain(const TrustAnchors& chain, const TrustAnchors& anchors,
                         absl::Time now) {
  const Owned<X509_STORE, X509_STORE_free> store(X509_STORE_new());
  const Owned<X509_STORE_CTX, X509_STORE_CTX_free> context(
      X509_STORE_CTX_new());
  // Borrows its entries: only the list is freed.
  STACK_OF(X509)* const between = sk_X509_new_null();
  if (store == nullptr || context == nullptr || between == nullptr) {
    sk_X509_free(between);
    return absl::ResourceExhaustedError("out of memory");
  }
  for (const auto& anchor : anchors) {
    X509_STORE_add_cert(store.get(), anchor.get());
  }
  for (size_t i = 1; i < chain.size(); ++i) {
    sk_X509_push(between, chain[i].get());
  }
  X509* const leaf = chain[0].get();
  std::string problem;
  if (X509_STORE_CTX_init(context.get(), store.get(), leaf, between) != 1) {
    problem = "the certificates cannot be checked";
  } else {
    X509_VERIFY_PARAM* const rules = X509_STORE_CTX_get0_param(context.get());
    X509_VERIFY_PARAM_set_time(rules, absl::ToTimeT(now));
    X509_VERIFY_PARAM_set_depth(rules, static_cast<int>(kChainMax));
    X509_VERIFY_PARAM_set_auth_level(rules, kAuthLevel);
    X509_VERIFY_PARAM_set_flags(rules, X509_V_FLAG_PARTIAL_CHAIN);
    if (X509_verify_cert(context.get()) != 1) {
      char subject[256] = {};
      const X509* const at = X509_STORE_CTX_get_current_cert(context.get());
      if (at != nullptr) {
        X509_NAME_oneline(X509_get_subject_name(at), subject, sizeof(subject));
      }
      problem = absl::StrCat("certificate ", subject, ": ",
                             X509_verify_cert_error_string(
                                 X509_STORE_CTX_get_error(context.get())));
    }
  }
  sk_X509_free(between);
  ERR_clear_error();
  if (!problem.empty()) return Untrusted(problem);
  const uint32_t flags = X509_get_extension_flags(leaf);
  if ((flags & EXFLAG_CA) != 0 || (flags & EXFLAG_KUSAGE) == 0 ||
      (X509_get_key_usage(leaf) & KU_DIGITAL_SIGNATURE) == 0) {
    return Untrusted(
        "the signing certificate is not one for digital signatures");
  }
  if ((flags & EXFLAG_XKUSAGE) != 0 &&
      (X509_get_extended_key_usage(leaf) & XKU_CODE_SIGN) == 0) {
    return Untrusted("the signing certificate is not one for code signing");
  }
  return absl::OkStatus();
}

Subject SubjectOf(X509* certificate) {
  Subject out;
  const X509_NAME* const name = X509_get_subject_name(certificate);
  for (int i = 0; i < X509_NAME_entry_count(name); ++i) {
    const X509_NAME_ENTRY* const entry = X509_NAME_get_entry(name, i);
    const int id = OBJ_obj2nid(X509_NAME_ENTRY_get_object(entry));
    const char* const key = OBJ_nid2sn(id);
    unsigned char* text = nullptr;
    const int size =
        ASN1_STRING_to_UTF8(&text, X509_NAME_ENTRY_get_data(entry));
    if (size < 0) continue;
    if (id != NID_undef && key != nullptr) {
      out.emplace_back(key, std::string(reinterpret_cast<char*>(text),
                                        static_cast<size_t>(size)));
    }
    OPENSSL_free(text);
  }
  ERR_clear_error();
  return out;
}

// Headers that must be understood are; the scheme is ours; not expired.
absl::Status CheckProtected(const json& header, absl::Time now) {
  const auto critical = header.find("crit");
  bool names_scheme = false;
  if (critical != header.end()) {
    if (!critical->is_array()) return Malformed("'crit' is no list");
    for (const json& name : *critical) {
      if (!name.is_string()) return Malformed("'crit' holds no strings");
      const std::string& text = name.get_ref<const std::string&>();
      names_scheme |= text == kSchemeHeader;
      if (text != kSchemeHeader && text != kExpiryHeader) {
        return Malformed(absl::StrCat("critical header '", text.substr(0, 100),
                                      "' is not known here"));
      }
    }
  }
  ASSIGN_OR_RETURN(const std::string type, Text(header, "cty"));
  if (type != kPayloadType) return Malformed("payload is of another type");
  ASSIGN_OR_RETURN(const std::string scheme, Text(header, kSchemeHeader));
  if (scheme != kScheme || !names_scheme) {
    return Malformed(absl::StrCat("signing scheme '", scheme.substr(0, 64),
                                  "' is not ", kScheme));
  }
  if (!header.contains(kExpiryHeader)) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::string expiry, Text(header, kExpiryHeader));
  absl::Time when;
  if (!absl::ParseTime(absl::RFC3339_full, expiry, &when, nullptr)) {
    return Malformed("expiry is no time");
  }
  if (when <= now) {
    return Untrusted(absl::StrCat("the signature has expired at ", expiry));
  }
  return absl::OkStatus();
}

}  // namespace

bool NotationSignature::SignedBy(const Subject& wanted) const {
  return std::all_of(wanted.begin(), wanted.end(), [&](const auto& attribute) {
    return std::find(signer.begin(), signer.end(), attribute) != signer.end();
  });
}

absl::StatusOr<TrustAnchors> ParseCertificates(const std::string& pem) {
  ASSIGN_OR_RETURN(const std::vector<std::string> blocks,
                   PemBlocks(pem, "CERTIFICATE", kRootsMax));
  TrustAnchors out;
  for (const std::string& der : blocks) {
    const auto* at = reinterpret_cast<const unsigned char*>(der.data());
    X509* const one = d2i_X509(nullptr, &at, static_cast<long>(der.size()));
    ERR_clear_error();
    if (one == nullptr) {
      return absl::InvalidArgumentError("a malformed certificate");
    }
    out.emplace_back(one, X509_free);
  }
  return out;
}

absl::StatusOr<Subject> ParseSubject(const std::string& text) {
  Subject out;
  std::string key;
  std::string value;
  bool in_value = false;
  const auto finish = [&]() -> absl::Status {
    key = std::string(absl::StripAsciiWhitespace(key));
    value = std::string(absl::StripAsciiWhitespace(value));
    const int id = OBJ_sn2nid(key == "S" ? "ST" : key.c_str());
    if (!in_value || value.empty() || id == NID_undef) {
      return absl::InvalidArgumentError(absl::StrCat(
          "'", text, "' is no subject such as \"CN=release, O=Example\""));
    }
    out.emplace_back(OBJ_nid2sn(id), value);
    key.clear();
    value.clear();
    in_value = false;
    return absl::OkStatus();
  };
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == ',') {
      RETURN_IF_ERROR(finish());
    } else if (c == '=' && !in_value) {
      in_value = true;
    } else if (c == '\\' && i + 1 < text.size()) {
      (in_value ? value : key) += text[++i];
    } else {
      (in_value ? value : key) += c;
    }
  }
  RETURN_IF_ERROR(finish());
  return out;
}

absl::StatusOr<NotationSignature> VerifyNotationJws(const std::string& envelope,
                                                    const TrustAnchors& anchors,
                                                    absl::Time now) {
  if (envelope.size() > kEnvelopeBytesMax) {
    return absl::ResourceExhaustedError("a signature envelope too large");
  }
  ASSIGN_OR_RETURN(const json outer, ParseObject(envelope, "text"));
  ASSIGN_OR_RETURN(const std::string payload64, Text(outer, "payload"));
  ASSIGN_OR_RETURN(const std::string protected64, Text(outer, "protected"));
  ASSIGN_OR_RETURN(const std::string signature64, Text(outer, "signature"));
  const auto open_header = outer.find("header");
  if (open_header == outer.end() || !open_header->is_object()) {
    return Malformed("'header' is missing");
  }
  ASSIGN_OR_RETURN(const std::string protected_text,
                   Base64Url(protected64, "protected header"));
  ASSIGN_OR_RETURN(const std::string signature,
                   Base64Url(signature64, "signature"));
  ASSIGN_OR_RETURN(const json header,
                   ParseObject(protected_text, "protected header"));
  ASSIGN_OR_RETURN(const std::string algorithm, Text(header, "alg"));
  ASSIGN_OR_RETURN(const TrustAnchors chain, ReadChain(*open_header));
  EVP_PKEY* const key = X509_get0_pubkey(chain[0].get());
  if (key == nullptr) {
    ERR_clear_error();
    return Malformed("certificate has no usable key");
  }
  RETURN_IF_ERROR(VerifySignature(
      key, algorithm, absl::StrCat(protected64, ".", payload64), signature));
  RETURN_IF_ERROR(VerifyChain(chain, anchors, now));
  RETURN_IF_ERROR(CheckProtected(header, now));
  ASSIGN_OR_RETURN(const std::string payload_text,
                   Base64Url(payload64, "payload"));
  ASSIGN_OR_RETURN(const json payload, ParseObject(payload_text, "payload"));
  const auto target = payload.find("targetArtifact");
  if (target == payload.end() || !target->is_object()) {
    return Malformed("payload has no targetArtifact");
  }
  NotationSignature out;
  ASSIGN_OR_RETURN(const std::string digest, Text(*target, "digest"));
  ASSIGN_OR_RETURN(out.image, Digest::Parse(digest));
  ASSIGN_OR_RETURN(out.media_type, Text(*target, "mediaType"));
  const auto size = target->find("size");
  if (size == target->end() || !size->is_number_integer()) {
    return Malformed("targetArtifact has no size");
  }
  out.size_bytes = size->get<int64_t>();
  out.signer = SubjectOf(chain[0].get());
  return out;
}

}  // namespace bulkhead::distribution
