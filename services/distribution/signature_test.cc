#include "services/distribution/signature.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/time/clock.h"
#include "services/distribution/notation.h"
#include "services/distribution/signing_for_tests.h"

namespace bulkhead::distribution {
namespace {

using ::testing::HasSubstr;

const char kDigest[] =
    "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

std::string Message(const absl::Status& status) {
  return std::string(status.message());
}

TEST(PublicKeys, EachKindVerifiesItsOwnOnly) {
  struct Case {
    Key key;
    const EVP_MD* hash;
    int padding;
  };
  const std::vector<Case> cases = {
      {EcKey("P-256"), EVP_sha256(), 0},
      {EcKey("P-384"), EVP_sha256(), 0},
      {EcKey("P-384"), EVP_sha384(), 0},
      {EcKey("P-521"), EVP_sha512(), 0},
      {RsaKey(), EVP_sha256(), RSA_PKCS1_PADDING},
      {RsaKey(), EVP_sha256(), RSA_PKCS1_PSS_PADDING},
      {Ed25519Key(), nullptr, 0},
  };
  std::string all;
  for (const Case& each : cases) all += PublicPem(each.key);
  const auto keys = ParsePublicKeys(all);
  ASSERT_TRUE(keys.ok()) << keys.status();
  ASSERT_EQ(cases.size(), keys->size());
  for (size_t i = 0; i < cases.size(); ++i) {
    const std::string good =
        Sign(cases[i].key, "payload", cases[i].hash, cases[i].padding);
    for (size_t j = 0; j < keys->size(); ++j) {
      EXPECT_EQ(i == j, (*keys)[j].Verifies("payload", good)) << i << " " << j;
    }
    EXPECT_FALSE((*keys)[i].Verifies("Payload", good)) << i;
    EXPECT_FALSE((*keys)[i].Verifies("payload", "")) << i;
    for (size_t at = 0; at < good.size(); at += 7) {
      std::string bad = good;
      bad[at] = static_cast<char>(bad[at] ^ 0x20);
      EXPECT_FALSE((*keys)[i].Verifies("payload", bad)) << i << " " << at;
    }
  }
}

TEST(PublicKeys, BadFilesAreNamedErrors) {
  EXPECT_THAT(Message(ParsePublicKeys("").status()),
              HasSubstr("BEGIN PUBLIC KEY"));
  EXPECT_THAT(Message(ParsePublicKeys("hello").status()),
              HasSubstr("BEGIN PUBLIC KEY"));
  std::string broken = PublicPem(EcKey());
  broken.replace(60, 4, "AAAA");
  EXPECT_THAT(Message(ParsePublicKeys(broken).status()),
              HasSubstr("malformed"));
  // A good one before it does not help.
  EXPECT_FALSE(ParsePublicKeys(PublicPem(EcKey()) + broken).ok());
  EXPECT_THAT(Message(ParsePublicKeys(PublicPem(RsaKey(1024))).status()),
              HasSubstr("1024 bits"));
  EXPECT_THAT(Message(ParsePublicKeys(PublicPem(EcKey("secp256k1"))).status()),
              HasSubstr("secp256k1"));
}

TEST(SimpleSigning, ReadsWhatCosignWrites) {
  const auto good =
      ParseSimpleSigning(SimpleSigningPayload("r.example/a/b", kDigest));
  ASSERT_TRUE(good.ok()) << good.status();
  EXPECT_EQ(kDigest, good->image.str());
  EXPECT_EQ("r.example/a/b", good->reference);
}

TEST(SimpleSigning, RefusesWhatIsNone) {
  for (const std::string& text :
       {std::string(), std::string("[]"), std::string("{}"),
        std::string(R"({"critical":{"image":7}})"),
        std::string(R"({"critical":{"type":"cosign container image signature",
                        "image":{"docker-manifest-digest":"sha256:00"}}})"),
        SimpleSigningPayload("r/a", kDigest, "atomic container signature"),
        SimpleSigningPayload("r/a", "")}) {
    EXPECT_FALSE(ParseSimpleSigning(text).ok()) << text;
  }
  EXPECT_TRUE(absl::IsResourceExhausted(
      ParseSimpleSigning(std::string(1000, '[')).status()));
}

class Notation : public ::testing::Test {
 protected:
  Notation() { envelope_.digest = kDigest; }

  absl::StatusOr<NotationSignature> Check(const Key& key,
                                          const std::vector<Certificate>& chain,
                                          const EnvelopeWish& wish) {
    return VerifyNotationJws(NotationEnvelope(key, chain, wish), {root_},
                             absl::Now());
  }
  Certificate Leaf(const CertificateWish& wish) {
    return MakeCertificate(leaf_key_, wish, root_key_, root_);
  }

  const Key root_key_ = EcKey();
  const Certificate root_ =
      MakeCertificate(root_key_, {.name = "root", .ca = true}, root_key_, {});
  const Key leaf_key_ = EcKey();
  const Certificate leaf_ =
      MakeCertificate(leaf_key_, {.name = "release"}, root_key_, root_);
  EnvelopeWish envelope_;
};

TEST_F(Notation, AGoodOneIsProven) {
  const auto good = Check(leaf_key_, {leaf_, root_}, envelope_);
  ASSERT_TRUE(good.ok()) << good.status();
  EXPECT_EQ(kDigest, good->image.str());
  EXPECT_EQ(1, good->size_bytes);
  const auto is = [&](const char* subject) {
    return good->SignedBy(ParseSubject(subject).value());
  };
  EXPECT_TRUE(is("CN=release"));
  EXPECT_TRUE(is("CN=release, O=Example\\, Inc"));
  EXPECT_FALSE(is("CN=release, O=Other"));
  EXPECT_FALSE(is("OU=release"));
  EXPECT_TRUE(Check(leaf_key_, {leaf_}, envelope_).ok());  // Root not sent.
}

TEST_F(Notation, ByWayOfAnIntermediateAndEachAlgorithm) {
  const Key middle_key = RsaKey();
  const Certificate middle = MakeCertificate(
      middle_key, {.name = "middle", .ca = true}, root_key_, root_);
  const Key rsa = RsaKey();
  const Certificate rsa_leaf =
      MakeCertificate(rsa, {.name = "r"}, middle_key, middle);
  envelope_.algorithm = "PS256";
  EXPECT_TRUE(Check(rsa, {rsa_leaf, middle}, envelope_).ok());
  EXPECT_FALSE(Check(rsa, {rsa_leaf}, envelope_).ok());  // The link is missing.
  const Key ec = EcKey("P-384");
  const Certificate ec_leaf =
      MakeCertificate(ec, {.name = "e"}, middle_key, middle);
  envelope_.algorithm = "ES384";
  EXPECT_TRUE(Check(ec, {ec_leaf, middle}, envelope_).ok());
}

TEST_F(Notation, WhatIsNotTrusted) {
  const auto why = [](const absl::StatusOr<NotationSignature>& result) {
    EXPECT_TRUE(absl::IsPermissionDenied(result.status())) << result.status();
    return Message(result.status());
  };
  const Key other_root_key = EcKey();
  const Certificate other_root = MakeCertificate(
      other_root_key, {.name = "root", .ca = true}, other_root_key, {});
  const Certificate other = MakeCertificate(leaf_key_, {.name = "release"},
                                            other_root_key, other_root);
  EXPECT_THAT(why(Check(leaf_key_, {other, other_root}, envelope_)),
              HasSubstr("certificate"));
  EXPECT_THAT(
      why(Check(
          leaf_key_,
          {Leaf({.name = "old", .from_seconds = -7200, .to_seconds = -3600})},
          envelope_)),
      HasSubstr("expired"));
  EXPECT_THAT(why(Check(leaf_key_, {Leaf({.name = "new", .from_seconds = 600})},
                        envelope_)),
              HasSubstr("not yet valid"));
  EXPECT_THAT(why(Check(leaf_key_,
                        {Leaf({.name = "x", .key_usage = "keyEncipherment"})},
                        envelope_)),
              HasSubstr("digital signatures"));
  EXPECT_THAT(why(Check(leaf_key_, {Leaf({.name = "x", .key_usage = nullptr})},
                        envelope_)),
              HasSubstr("digital signatures"));
  EXPECT_THAT(
      why(Check(leaf_key_,
                {Leaf({.name = "x", .extended_key_usage = "serverAuth"})},
                envelope_)),
      HasSubstr("code signing"));
  // A root's own key does not sign images, nor a leaf's other leaves.
  EXPECT_FALSE(Check(root_key_, {root_}, envelope_).ok());
  const Certificate below =
      MakeCertificate(leaf_key_, {.name = "below"}, leaf_key_, leaf_);
  EXPECT_FALSE(Check(leaf_key_, {below, leaf_}, envelope_).ok());
  // Signed by another key than the certificate's.
  EXPECT_THAT(why(Check(EcKey(), {leaf_}, envelope_)),
              HasSubstr("does not match"));
  envelope_.extra = {{"io.cncf.notary.expiry", "2020-01-01T00:00:00Z"}};
  EXPECT_THAT(why(Check(leaf_key_, {leaf_}, envelope_)),
              HasSubstr("expired at 2020"));
  envelope_.extra = {{"io.cncf.notary.expiry", "2200-01-01T00:00:00Z"}};
  EXPECT_TRUE(Check(leaf_key_, {leaf_}, envelope_).ok());
}

TEST_F(Notation, WhatIsNotKnownIsRefused) {
  const auto why = [&] {
    return Message(Check(leaf_key_, {leaf_}, envelope_).status());
  };
  envelope_.extra = {{"alg", "none"}};
  EXPECT_THAT(why(), HasSubstr("algorithm 'none'"));
  envelope_.extra = {{"alg", "HS256"}};
  EXPECT_THAT(why(), HasSubstr("algorithm 'HS256'"));
  envelope_.extra = {{"alg", "PS256"}};
  EXPECT_THAT(why(), HasSubstr("not one for PS256"));
  envelope_.extra = {{"cty", "text/plain"}};
  EXPECT_THAT(why(), HasSubstr("another type"));
  envelope_.extra = {
      {"io.cncf.notary.signingScheme", "notary.x509.signingAuthority"}};
  EXPECT_THAT(why(), HasSubstr("signing scheme"));
  envelope_.extra = nlohmann::json::object();
  envelope_.critical.push_back("io.cncf.notary.verificationPlugin");
  EXPECT_THAT(why(), HasSubstr("critical header"));
}

TEST_F(Notation, NoChangedByteIsTaken) {
  const std::string good = NotationEnvelope(leaf_key_, {leaf_}, envelope_);
  int refused = 0;
  for (size_t at = 0; at < good.size(); at += 3) {
    std::string bad = good;
    bad[at] = bad[at] == 'A' ? 'B' : 'A';
    const auto result = VerifyNotationJws(bad, {root_}, absl::Now());
    refused += result.ok() ? 0 : 1;
    // The last bits of base64 may mean nothing; the claim must stay.
    EXPECT_EQ(kDigest, result.ok() ? result->image.str() : kDigest) << at;
  }
  EXPECT_GT(refused, static_cast<int>(good.size() / 3 * 9 / 10));
  for (size_t size = 0; size < good.size(); size += 11) {
    EXPECT_FALSE(
        VerifyNotationJws(good.substr(0, size), {root_}, absl::Now()).ok());
  }
}

TEST(Certificates, BadFilesAreNamedErrors) {
  EXPECT_THAT(Message(ParseCertificates("").status()),
              HasSubstr("BEGIN CERTIFICATE"));
  EXPECT_THAT(Message(ParseCertificates(PublicPem(EcKey())).status()),
              HasSubstr("BEGIN CERTIFICATE"));
  const Key key = EcKey();
  std::string broken =
      CertificatePem(MakeCertificate(key, {.name = "a", .ca = true}, key, {}));
  broken.replace(80, 4, "AAAA");
  EXPECT_FALSE(ParseCertificates(broken).ok());
}

TEST(Subjects, Parse) {
  const auto subject = ParseSubject("C=DE, ST = Hamburg,CN=a\\,b");
  ASSERT_TRUE(subject.ok());
  EXPECT_EQ((Subject{{"C", "DE"}, {"ST", "Hamburg"}, {"CN", "a,b"}}), *subject);
  for (const char* bad : {"", "CN", "CN=", "=x", "CN=a,", "Nonsense=x"}) {
    EXPECT_FALSE(ParseSubject(bad).ok()) << bad;
  }
}

}  // namespace
}  // namespace bulkhead::distribution
