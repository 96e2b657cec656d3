// Signatures by certificates, as notation makes them: a JWS envelope whose
// payload names an image's digest, signed by a certificate that leads to a
// trusted root. No I/O; pure and thread-safe.
//
// Left out: COSE envelopes, time-stamp counter-signatures (a signature is good
// for as long as its certificates are), revocation lists, plugins.
#ifndef BULKHEAD_SERVICES_DISTRIBUTION_NOTATION_H_
#define BULKHEAD_SERVICES_DISTRIBUTION_NOTATION_H_

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "lib/digest/digest.h"

struct x509_st;  // OpenSSL's X509.

namespace bulkhead::distribution {

constexpr size_t kEnvelopeBytesMax = 1 << 20;
constexpr size_t kChainMax = 10;   // Certificates in one envelope.
constexpr size_t kRootsMax = 512;  // In one file.

inline constexpr char kNotationArtifactType[] =
    "application/vnd.cncf.notary.signature";
inline constexpr char kJwsType[] = "application/jose+json";
inline constexpr char kCoseType[] = "application/cose";

// Certificates an administrator trusts: roots, or any other as an anchor.
using TrustAnchors = std::vector<std::shared_ptr<x509_st>>;

// All "CERTIFICATE" blocks of a PEM file. Errors: kInvalidArgument: there is
// none, or one is malformed.
absl::StatusOr<TrustAnchors> ParseCertificates(const std::string& pem);

// "CN" -> "release", ...
using Subject = std::vector<std::pair<std::string, std::string>>;

// "CN=release, O=Example" (a comma in a value is written "\,").
// Errors: kInvalidArgument.
absl::StatusOr<Subject> ParseSubject(const std::string& text);

struct NotationSignature {
  Digest image;
  std::string media_type;  // Of the image, as signed.
  int64_t size_bytes = 0;
  Subject signer;  // Of the signing certificate.

  // True if every attribute of `wanted` is one of the signer's.
  bool SignedBy(const Subject& wanted) const;
};

// Checks the envelope's signature, its certificates up to one of `anchors` as
// of `now`, and its expiry. What comes back is proven.
// Errors, with the reason: kInvalidArgument: malformed, or what we do not
//   know. kPermissionDenied: not trusted: the signature is wrong, expired, or
//   its certificates lead to no anchor, are expired, or not made for signing.
//   kResourceExhausted: a limit.
absl::StatusOr<NotationSignature> VerifyNotationJws(const std::string& envelope,
                                                    const TrustAnchors& anchors,
                                                    absl::Time now);

}  // namespace bulkhead::distribution

#endif  // BULKHEAD_SERVICES_DISTRIBUTION_NOTATION_H_
