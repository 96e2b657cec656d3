// Makes keys, certificates and signatures, for tests.
#ifndef BULKHEAD_SERVICES_DISTRIBUTION_SIGNING_FOR_TESTS_H_
#define BULKHEAD_SERVICES_DISTRIBUTION_SIGNING_FOR_TESTS_H_

#include <openssl/bio.h>
#include <openssl/ec.h>
#include <openssl/ecdsa.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rsa.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace bulkhead::distribution {

using Key = std::shared_ptr<EVP_PKEY>;
using Certificate = std::shared_ptr<X509>;

inline Key RsaKey(unsigned bits = 2048) {
  return Key(EVP_RSA_gen(bits), EVP_PKEY_free);
}
inline Key EcKey(const char* curve = "P-256") {
  return Key(EVP_EC_gen(curve), EVP_PKEY_free);
}
inline Key Ed25519Key() {
  return Key(EVP_PKEY_Q_keygen(nullptr, nullptr, "ED25519"), EVP_PKEY_free);
}

inline std::string TextOf(BIO* bio) {
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio, &data);
  std::string out(data, static_cast<size_t>(size));
  BIO_free(bio);
  return out;
}

inline std::string PublicPem(const Key& key) {
  BIO* const bio = BIO_new(BIO_s_mem());
  PEM_write_bio_PUBKEY(bio, key.get());
  return TextOf(bio);
}

inline std::string CertificatePem(const Certificate& certificate) {
  BIO* const bio = BIO_new(BIO_s_mem());
  PEM_write_bio_X509(bio, certificate.get());
  return TextOf(bio);
}

inline std::string Der(const Certificate& certificate) {
  unsigned char* der = nullptr;
  const int size = i2d_X509(certificate.get(), &der);
  std::string out(reinterpret_cast<char*>(der), static_cast<size_t>(size));
  OPENSSL_free(der);
  return out;
}

inline std::string Sign(const Key& key, const std::string& data,
                        const EVP_MD* hash, int rsa_padding = 0) {
  EVP_MD_CTX* const context = EVP_MD_CTX_new();
  EVP_PKEY_CTX* options = nullptr;
  EVP_DigestSignInit(context, &options, hash, nullptr, key.get());
  if (rsa_padding != 0) {
    EVP_PKEY_CTX_set_rsa_padding(options, rsa_padding);
    if (rsa_padding == RSA_PKCS1_PSS_PADDING) {
      EVP_PKEY_CTX_set_rsa_pss_saltlen(options, RSA_PSS_SALTLEN_DIGEST);
    }
  }
  const auto* const bytes = reinterpret_cast<const unsigned char*>(data.data());
  size_t size = 0;
  EVP_DigestSign(context, nullptr, &size, bytes, data.size());
  std::string out(size, '\0');
  EVP_DigestSign(context, reinterpret_cast<unsigned char*>(out.data()), &size,
                 bytes, data.size());
  out.resize(size);
  EVP_MD_CTX_free(context);
  return out;
}

struct CertificateWish {
  std::string name;
  bool ca = false;
  long from_seconds = -3600;
  long to_seconds = 3600;
  const char* key_usage = "critical,digitalSignature";  // nullptr: none.
  const char* extended_key_usage = "codeSigning";       // nullptr: none.
};

// `issuer` none: self-signed.
inline Certificate MakeCertificate(const Key& key, const CertificateWish& wish,
                                   const Key& issuer_key,
                                   const Certificate& issuer) {
  static long serial = 1;
  X509* const out = X509_new();
  X509_set_version(out, 2);
  ASN1_INTEGER_set(X509_get_serialNumber(out), ++serial);
  X509_gmtime_adj(X509_getm_notBefore(out), wish.from_seconds);
  X509_gmtime_adj(X509_getm_notAfter(out), wish.to_seconds);
  X509_NAME* const name = X509_get_subject_name(out);
  const auto add = [&](const char* field, const std::string& text) {
    X509_NAME_add_entry_by_txt(
        name, field, MBSTRING_UTF8,
        reinterpret_cast<const unsigned char*>(text.c_str()), -1, -1, 0);
  };
  add("O", "Example, Inc");
  add("CN", wish.name);
  X509_set_issuer_name(
      out, issuer == nullptr ? name : X509_get_subject_name(issuer.get()));
  X509_set_pubkey(out, key.get());
  X509V3_CTX context;
  X509V3_set_ctx(&context, issuer == nullptr ? out : issuer.get(), out, nullptr,
                 nullptr, 0);
  const auto extend = [&](int id, const char* value) {
    X509_EXTENSION* const extension =
        X509V3_EXT_conf_nid(nullptr, &context, id, value);
    X509_add_ext(out, extension, -1);
    X509_EXTENSION_free(extension);
  };
  extend(NID_basic_constraints, wish.ca ? "critical,CA:TRUE" : "CA:FALSE");
  if (wish.ca) {
    extend(NID_key_usage, "critical,keyCertSign");
  } else {
    if (wish.key_usage != nullptr) extend(NID_key_usage, wish.key_usage);
    if (wish.extended_key_usage != nullptr) {
      extend(NID_ext_key_usage, wish.extended_key_usage);
    }
  }
  X509_sign(out, issuer_key.get(), EVP_sha256());
  return Certificate(out, X509_free);
}

inline std::string SimpleSigningPayload(
    const std::string& reference, const std::string& digest,
    const std::string& type = "cosign container image signature") {
  return nlohmann::json{{"critical",
                         {{"identity", {{"docker-reference", reference}}},
                          {"image", {{"docker-manifest-digest", digest}}},
                          {"type", type}}},
                        {"optional", nullptr}}
      .dump();
}

inline std::string Base64UrlOf(const std::string& text) {
  std::string out = absl::WebSafeBase64Escape(text);
  while (!out.empty() && out.back() == '=') out.pop_back();
  return out;
}

// r and s side by side.
inline std::string RawEcdsa(const std::string& der, int half) {
  const auto* at = reinterpret_cast<const unsigned char*>(der.data());
  ECDSA_SIG* const signature =
      d2i_ECDSA_SIG(nullptr, &at, static_cast<long>(der.size()));
  std::string out(static_cast<size_t>(2 * half), '\0');
  auto* const bytes = reinterpret_cast<unsigned char*>(out.data());
  BN_bn2binpad(ECDSA_SIG_get0_r(signature), bytes, half);
  BN_bn2binpad(ECDSA_SIG_get0_s(signature), bytes + half, half);
  ECDSA_SIG_free(signature);
  return out;
}

struct EnvelopeWish {
  std::string algorithm = "ES256";
  std::string digest;
  std::string media_type = "application/vnd.oci.image.manifest.v1+json";
  int64_t size_bytes = 1;
  nlohmann::json extra = nlohmann::json::object();  // Into the header.
  std::vector<std::string> critical = {"io.cncf.notary.signingScheme"};
};

// A JWS envelope as notation writes it.
inline std::string NotationEnvelope(const Key& key,
                                    const std::vector<Certificate>& chain,
                                    const EnvelopeWish& wish) {
  nlohmann::json header = {
      {"alg", wish.algorithm},
      {"cty", "application/vnd.cncf.notary.payload.v1+json"},
      {"crit", wish.critical},
      {"io.cncf.notary.signingScheme", "notary.x509"},
      {"io.cncf.notary.signingTime", "2026-01-01T00:00:00Z"}};
  header.update(wish.extra);
  const nlohmann::json payload = {{"targetArtifact",
                                   {{"mediaType", wish.media_type},
                                    {"digest", wish.digest},
                                    {"size", wish.size_bytes}}}};
  const std::string protected64 = Base64UrlOf(header.dump());
  const std::string payload64 = Base64UrlOf(payload.dump());
  const std::string text = absl::StrCat(protected64, ".", payload64);
  std::string signature;
  if (wish.algorithm == "PS256") {
    signature = Sign(key, text, EVP_sha256(), RSA_PKCS1_PSS_PADDING);
  } else if (wish.algorithm == "ES384") {
    signature = RawEcdsa(Sign(key, text, EVP_sha384()), 48);
  } else {
    signature = RawEcdsa(Sign(key, text, EVP_sha256()), 32);
  }
  nlohmann::json x5c = nlohmann::json::array();
  for (const Certificate& each : chain) {
    x5c.push_back(absl::Base64Escape(Der(each)));
  }
  return nlohmann::json{{"payload", payload64},
                        {"protected", protected64},
                        {"header", {{"x5c", x5c}}},
                        {"signature", Base64UrlOf(signature)}}
      .dump();
}

}  // namespace bulkhead::distribution

#endif  // BULKHEAD_SERVICES_DISTRIBUTION_SIGNING_FOR_TESTS_H_
