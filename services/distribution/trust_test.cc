#include "services/distribution/trust.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>

#include "absl/time/clock.h"
#include "lib/config/config.h"
#include "lib/os/fd.h"
#include "lib/testing/temp_dir.h"
#include "services/distribution/signature.h"
#include "services/distribution/signing_for_tests.h"
#include "services/distribution/verifier_programs.h"

namespace bulkhead::distribution {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kName[] = "registry.example/team/app:1";
constexpr char kRepository[] = "registry.example/team/app";

std::string Message(const absl::Status& status) {
  return std::string(status.message());
}

// A registry in memory.
class FakeSource : public SignatureSource {
 public:
  absl::StatusOr<std::optional<oci::Manifest>> Tagged(
      const std::string& tag) override {
    ++asked;
    if (!fails.ok()) return fails;
    const auto found = tags.find(tag);
    if (found == tags.end()) return std::optional<oci::Manifest>();
    return std::optional<oci::Manifest>(found->second);
  }
  absl::StatusOr<std::vector<oci::Descriptor>> Referrers(
      const Digest& image) override {
    ++asked;
    if (!fails.ok()) return fails;
    return referrers[image.str()];
  }
  absl::StatusOr<std::string> Read(const oci::Descriptor& descriptor,
                                   size_t) override {
    const auto found = blobs.find(descriptor.digest.str());
    if (found == blobs.end()) return absl::NotFoundError("gone");
    return found->second;
  }

  oci::Descriptor Add(const std::string& text, const std::string& type) {
    oci::Descriptor out;
    out.digest = Digest::Of(text);
    out.size_bytes = static_cast<int64_t>(text.size());
    out.media_type = type;
    blobs[out.digest.str()] = text;
    return out;
  }

  // A cosign signature under the tag for `image`.
  void Cosign(const Key& key, const Digest& image, const std::string& payload) {
    oci::Descriptor layer = Add(payload, kSimpleSigningType);
    layer.annotations[kCosignSignatureAnnotation] =
        absl::Base64Escape(Sign(key, payload, EVP_sha256()));
    tags["sha256-" + image.hex() + ".sig"].layers.push_back(layer);
  }

  void Refer(const Digest& image, const std::string& artifact_type,
             const oci::Descriptor& layer) {
    oci::Manifest manifest;
    manifest.media_type = oci::kOciManifest;
    manifest.artifact_type = artifact_type;
    manifest.config = Add("{}", "application/vnd.oci.empty.v1+json");
    manifest.layers = {layer};
    oci::Descriptor entry =
        Add(oci::WriteManifest(manifest), oci::kOciManifest);
    entry.artifact_type = artifact_type;
    referrers[image.str()].push_back(entry);
  }

  std::map<std::string, oci::Manifest> tags;
  std::map<std::string, std::vector<oci::Descriptor>> referrers;
  std::map<std::string, std::string> blobs;
  absl::Status fails;
  int asked = 0;
};

class TrustTest : public ::testing::Test {
 protected:
  TrustTest() {
    image_.media_type = oci::kOciManifest;
    image_.digest = Digest::Of("the image");
    image_.size_bytes = 9;
    Write("team.pub", PublicPem(key_));
    Write("roots.pem", CertificatePem(root_));
  }

  std::string Path(const std::string& name) { return dir_.path() + "/" + name; }
  void Write(const std::string& name, const std::string& text,
             mode_t mode = 0600) {
    ASSERT_TRUE(os::WriteFileAtomic(Path(name), text, mode).ok());
  }

  // The text of [distribution]; @ stands for the test's folder.
  absl::Status Check(std::string toml, std::vector<std::string> names = {kName},
                     bool import = false) {
    for (size_t at; (at = toml.find('@')) != std::string::npos;) {
      toml.replace(at, 1, dir_.path());
    }
    const auto config = config::Parse("[distribution]\n" + toml, "test");
    if (!config.ok()) return config.status();
    const auto trust = Trust::Create(config->distribution);
    if (!trust.ok()) return trust.status();
    Trust::Question question;
    question.names = std::move(names);
    question.image = image_;
    question.signatures = import ? nullptr : &source_;
    question.now = absl::Now();
    question.explain = [this](const std::string& line) {
      explained_ += line + "\n";
    };
    return (*trust)->Check(question);
  }

  std::string Refused(const std::string& toml,
                      const std::vector<std::string>& names = {kName}) {
    const absl::Status status = Check(toml, names);
    EXPECT_TRUE(absl::IsPermissionDenied(status)) << status;
    return Message(status);
  }

  testing::TempDir dir_;
  FakeSource source_;
  oci::Descriptor image_;
  std::string explained_;
  const Key key_ = EcKey();
  const Key root_key_ = EcKey();
  const Certificate root_ =
      MakeCertificate(root_key_, {.name = "root", .ca = true}, root_key_, {});
};

const char kCosign[] =
    "[[distribution.verify]]\nname = 'team'\naction = 'require'\n"
    "match = ['registry.example/*']\ncosign_keys = ['@/team.pub']\n";
const char kNotation[] =
    "[[distribution.verify]]\nname = 'cert'\naction = 'require'\n"
    "match = ['*']\nnotation_roots = ['@/roots.pem']\n";

TEST_F(TrustTest, WithoutConfigurationEverythingIsAllowed) {
  EXPECT_TRUE(Check("").ok());
  EXPECT_EQ(0, source_.asked);
}

TEST_F(TrustTest, TheFirstMatchDecides) {
  const std::string policies =
      "verify_default = 'deny'\n"
      "[[distribution.verify]]\naction = 'allow'\n"
      "match = ['registry.example/team/*']\n"
      "[[distribution.verify]]\nname = 'no'\naction = 'deny'\n"
      "match = ['registry.example/*', '*:latest']\n";
  EXPECT_TRUE(Check(policies).ok());
  EXPECT_THAT(Refused(policies, {"registry.example/x:1"}),
              AllOf(HasSubstr("registry.example/x:1"), HasSubstr("'no'"),
                    HasSubstr(image_.digest.str())));
  EXPECT_THAT(Refused(policies, {"other.example/x:latest"}), HasSubstr("'no'"));
  EXPECT_THAT(Refused(policies, {"other.example/x:1"}),
              HasSubstr("verify_default is deny"));
  // Any of its names is enough to be refused.
  EXPECT_THAT(Refused(policies, {kName, "registry.example/x:1"}),
              HasSubstr("'no'"));
}

TEST_F(TrustTest, OtherSpellingsOfAHostDoNotHelp) {
  const char policies[] =
      "[[distribution.verify]]\nname = 'hub'\naction = 'deny'\n"
      "match = ['docker.io/library/*']\n";
  for (const char* name :
       {"docker.io/library/a:1", "index.docker.io/library/a:1",
        "registry-1.docker.io/library/a:1", "DOCKER.io/library/a:1",
        "docker.io:443/library/a:1",
        "docker.io/library/a@sha256:0123456789abcdef0123456789abcdef"
        "0123456789abcdef0123456789abcdef"}) {
    EXPECT_FALSE(Check(policies, {name}).ok()) << name;
  }
  EXPECT_TRUE(Check(policies, {"docker.io/other/a:1"}).ok());
}

TEST_F(TrustTest, CosignByTag) {
  EXPECT_THAT(Refused(kCosign),
              AllOf(HasSubstr("'team'"), HasSubstr(kName),
                    HasSubstr("no cosign signature was found")));
  source_.Cosign(EcKey(), image_.digest,
                 SimpleSigningPayload(kRepository, image_.digest.str()));
  EXPECT_THAT(Refused(kCosign), HasSubstr("by none of the policy's keys"));
  source_.Cosign(
      key_, image_.digest,
      SimpleSigningPayload(kRepository, Digest::Of("another").str()));
  EXPECT_THAT(Refused(kCosign), HasSubstr("of another image"));
  source_.Cosign(
      key_, image_.digest,
      SimpleSigningPayload("registry.example/evil/app", image_.digest.str()));
  EXPECT_THAT(Refused(kCosign),
              HasSubstr("for the name 'registry.example/evil/app'"));
  EXPECT_TRUE(Check(std::string(kCosign) + "identity = 'any'\n").ok());
  EXPECT_TRUE(
      Check(std::string(kCosign) + "identity = 'registry.example/evil/app'\n")
          .ok());
  source_.Cosign(key_, image_.digest,
                 SimpleSigningPayload(kRepository, image_.digest.str()));
  EXPECT_TRUE(Check(kCosign).ok());
  EXPECT_THAT(explained_, HasSubstr("is signed by the key in"));
}

TEST_F(TrustTest, ATagInTheIdentityCounts) {
  source_.Cosign(key_, image_.digest,
                 SimpleSigningPayload(std::string(kRepository) + ":2",
                                      image_.digest.str()));
  EXPECT_THAT(Refused(kCosign), HasSubstr("for the name"));
  source_.Cosign(key_, image_.digest,
                 SimpleSigningPayload(kName, image_.digest.str()));
  EXPECT_TRUE(Check(kCosign).ok());
}

TEST_F(TrustTest, CosignByReferrer) {
  const std::string payload =
      SimpleSigningPayload(kRepository, image_.digest.str());
  oci::Descriptor layer = source_.Add(payload, kSimpleSigningType);
  layer.annotations[kCosignSignatureAnnotation] =
      absl::Base64Escape(Sign(key_, payload, EVP_sha256()));
  source_.Refer(image_.digest,
                "application/vnd.dev.cosign.artifact.sig.v1+json", layer);
  EXPECT_TRUE(Check(kCosign).ok());
}

TEST_F(TrustTest, Notation) {
  EXPECT_THAT(Refused(kNotation), HasSubstr("no notation signature was found"));
  const Key key = EcKey();
  const Certificate leaf =
      MakeCertificate(key, {.name = "release"}, root_key_, root_);
  EnvelopeWish wish;
  wish.digest = Digest::Of("another").str();
  wish.size_bytes = image_.size_bytes;
  const auto refer = [&] {
    source_.Refer(image_.digest, kNotationArtifactType,
                  source_.Add(NotationEnvelope(key, {leaf}, wish), kJwsType));
  };
  refer();
  EXPECT_THAT(Refused(kNotation), HasSubstr("of another image"));
  wish.digest = image_.digest.str();
  wish.size_bytes = 10;
  refer();
  EXPECT_FALSE(Check(kNotation).ok());
  wish.size_bytes = image_.size_bytes;
  refer();
  EXPECT_TRUE(Check(kNotation).ok());
  EXPECT_TRUE(
      Check(std::string(kNotation) + "notation_subjects = ['CN=release']\n")
          .ok());
  EXPECT_THAT(Refused(std::string(kNotation) +
                      "notation_subjects = ['CN=boss', 'O=Other']\n"),
              HasSubstr("by O=Example, Inc, CN=release, none of"));
}

TEST_F(TrustTest, CoseIsRefusedByName) {
  source_.Refer(image_.digest, kNotationArtifactType,
                source_.Add("x", kCoseType));
  EXPECT_THAT(Refused(kNotation), HasSubstr("COSE"));
}

TEST_F(TrustTest, AnyErrorRefuses) {
  source_.fails = absl::UnavailableError("the registry is down");
  const absl::Status down = Check(kCosign);
  EXPECT_EQ(absl::StatusCode::kUnknown, down.code());
  EXPECT_THAT(Message(down),
              AllOf(HasSubstr("'team'"), HasSubstr("the registry is down")));
  source_.fails = absl::OkStatus();
  Write("team.pub", "no key");
  EXPECT_THAT(Message(Check(kCosign)),
              AllOf(HasSubstr("'team'"), HasSubstr("team.pub")));
  std::remove(Path("team.pub").c_str());
  EXPECT_TRUE(absl::IsFailedPrecondition(Check(kCosign)));
  source_.tags["sha256-" + image_.digest.hex() + ".sig"].layers.resize(1);
  EXPECT_FALSE(Check(kCosign).ok());
}

TEST_F(TrustTest, ManySignaturesAreNotReadForEver) {
  for (int i = 0; i < kSignaturesMax + 10; ++i) {
    source_.Cosign(EcKey(), image_.digest,
                   SimpleSigningPayload(kRepository, image_.digest.str()));
  }
  source_.Cosign(key_, image_.digest,
                 SimpleSigningPayload(kRepository, image_.digest.str()));
  EXPECT_THAT(Refused(kCosign), HasSubstr("only the first 64"));
}

TEST_F(TrustTest, Pins) {
  const std::string other = Digest::Of("other").str();
  EXPECT_THAT(Refused("[distribution.pins]\n'" + std::string(kName) + "' = '" +
                      other + "'\n"),
              AllOf(HasSubstr(kName), HasSubstr(other), HasSubstr("pins")));
  const std::string right = "[distribution.pins]\n'" + std::string(kName) +
                            "' = '" + image_.digest.str() + "'\n";
  EXPECT_TRUE(Check(right).ok());
  EXPECT_TRUE(Check("[distribution.pins]\n'registry.example/team/app:2' = '" +
                    other + "'\n")
                  .ok());
}

TEST_F(TrustTest, AnArchiveBringsNoSignature) {
  source_.Cosign(key_, image_.digest,
                 SimpleSigningPayload(kRepository, image_.digest.str()));
  const absl::Status status = Check(kCosign, {kName}, true);
  EXPECT_THAT(Message(status),
              AllOf(HasSubstr("'team'"), HasSubstr("archive")));
  EXPECT_TRUE(Check(kCosign, {"import:1"}, true).ok());
}

TEST_F(TrustTest, BadConfigurationIsNamed) {
  const auto why = [&](const std::string& toml) {
    const absl::Status status = Check(toml);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    return Message(status);
  };
  const std::string start = "[[distribution.verify]]\nname = 'p'\n";
  EXPECT_THAT(why(start + "match = ['*']\n"), HasSubstr("'p' has no 'action'"));
  EXPECT_THAT(why(start + "action = 'allow'\n"), HasSubstr("'match'"));
  EXPECT_THAT(why(start + "action = 'maybe'\nmatch = ['*']\n"),
              HasSubstr("allow, deny, require"));
  EXPECT_THAT(why(start + "action = 'require'\nmatch = ['*']\n"),
              HasSubstr("needs 'cosign_keys' or 'notation_roots'"));
  EXPECT_THAT(why(start + "action = 'deny'\nmatch = ['debian']\n"),
              HasSubstr("docker.io/library/debian"));
  EXPECT_THAT(why(start + "action = 'allow'\nmatch = ['*']\n"
                          "cosign_keys = ['/k']\n"),
              HasSubstr("not \"require\""));
  EXPECT_THAT(why(start + "action = 'require'\nmatch = ['*']\n"
                          "cosign_keys = ['k']\n"),
              HasSubstr("absolute"));
  EXPECT_THAT(why(start + "action = 'allow'\nmatch = ['*']\nkeys = []\n"),
              HasSubstr("unknown key 'distribution.verify[1].keys'"));
  EXPECT_THAT(why(start + "action = 'require'\nmatch = ['*']\n"
                          "notation_roots = ['/r']\n"
                          "notation_subjects = ['nobody']\n"),
              HasSubstr("'p'"));
  EXPECT_THAT(why(start + "action = 'require'\nmatch = ['*']\n"
                          "cosign_keys = ['/k']\nidentity = 'no way'\n"),
              HasSubstr("'p'"));
  EXPECT_THAT(why("[distribution.pins]\n'debian' = 'sha256:00'\n"),
              HasSubstr("debian"));
  EXPECT_THAT(why("[distribution.pins]\n'docker.io/a/b:1' = 'sha256:00'\n"),
              HasSubstr("digest"));
  EXPECT_THAT(why("verify_default = 'perhaps'\n"), HasSubstr("allow, deny"));
  EXPECT_THAT(why("[distribution.image_verifier]\nbin_dir = 'bin'\n"),
              HasSubstr("absolute"));
}

TEST(Patterns, Match) {
  EXPECT_TRUE(MatchesPattern("*", ""));
  EXPECT_TRUE(MatchesPattern("a*c", "abbbc"));
  EXPECT_TRUE(MatchesPattern("a*b*c", "aXbYbZc"));
  EXPECT_FALSE(MatchesPattern("a*c", "abbbcd"));
  EXPECT_FALSE(MatchesPattern("a", "ab"));
  EXPECT_FALSE(MatchesPattern("ab", "a"));
  EXPECT_TRUE(MatchesPattern("**a**", "bab"));
}

class Programs : public TrustTest {
 protected:
  Programs() {
    ::signal(SIGPIPE, SIG_IGN);  // As our services do.
    EXPECT_TRUE(os::MakeDirs(Path("bin"), 0700).ok());
    programs_.bin_dir = Path("bin");
    programs_.timeout = absl::Seconds(60);
  }
  void Script(const std::string& name, const std::string& body) {
    Write("bin/" + name, "#!/bin/sh\n" + body, 0700);
  }
  absl::Status Run() {
    return RunVerifierPrograms(programs_, kName, image_, cancelled_);
  }
  VerifierPrograms programs_;
  std::function<bool()> cancelled_;
};

TEST_F(Programs, GetWhatTheContractSays) {
  EXPECT_TRUE(Run().ok());  // An empty folder blocks nothing.
  Script("a", "echo \"$@\" > " + Path("args") + "; cat > " + Path("in") +
                  "; echo fine\n");
  ASSERT_TRUE(Run().ok());
  EXPECT_EQ("-name " + std::string(kName) + " -digest " + image_.digest.str() +
                " -stdin-media-type "
                "application/vnd.oci.descriptor.v1+json\n",
            os::ReadFile(Path("args")).value_or(""));
  EXPECT_EQ(
      "{\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\","
      "\"digest\":\"" +
          image_.digest.str() + "\",\"size\":9}",
      os::ReadFile(Path("in")).value_or(""));
}

TEST_F(Programs, AllMustAllowIt) {
  Script("a", "exit 0\n");
  Script("b", "echo 'not on my watch'; echo noise >&2; exit 3\n");
  const absl::Status refused = Run();
  EXPECT_TRUE(absl::IsPermissionDenied(refused));
  EXPECT_THAT(Message(refused), AllOf(HasSubstr("'b'"), HasSubstr("code 3"),
                                      HasSubstr("not on my watch")));
  programs_.programs_max = 1;  // Only "a" is asked.
  EXPECT_TRUE(Run().ok());
  programs_.programs_max = 0;
  EXPECT_TRUE(Run().ok());
  programs_.programs_max = -1;
  EXPECT_FALSE(Run().ok());
}

TEST_F(Programs, OneThatHangsIsKilledWithItsChildren) {
  // `sleep` keeps the pipes open; its end shows on a pipe of ours.
  Script("a", "sleep 1000 & echo $! > " + Path("child") + "; wait\n");
  programs_.timeout = absl::Milliseconds(1500);
  const absl::Status status = Run();
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  EXPECT_THAT(Message(status), HasSubstr("'a'"));
  const std::string child = os::ReadFile(Path("child")).value_or("");
  ASSERT_FALSE(child.empty());
  const pid_t pid = static_cast<pid_t>(std::atoi(child.c_str()));
  for (int i = 0; i < 500 && ::kill(pid, 0) == 0; ++i) {
    const std::string stat =
        os::ReadFile("/proc/" + std::to_string(pid) + "/stat").value_or("");
    if (stat.find(") Z") != std::string::npos) break;  // Dead, not reaped.
    absl::SleepFor(absl::Milliseconds(20));
  }
  const std::string stat =
      os::ReadFile("/proc/" + std::to_string(pid) + "/stat").value_or("gone");
  EXPECT_TRUE(stat == "gone" || stat.find(") Z") != std::string::npos) << stat;
}

TEST_F(Programs, AChildLeftBehindHoldsNobodyUp) {
  Script("a", "sleep 1000 &\nexit 0\n");
  const absl::Time began = absl::Now();
  EXPECT_TRUE(Run().ok());
  EXPECT_LT(absl::Now() - began, absl::Seconds(50));
}

TEST_F(Programs, CrashesAreRefusals) {
  Script("a", "kill -SEGV $$\n");
  EXPECT_THAT(Message(Run()), HasSubstr("exit code 139"));
}

TEST_F(Programs, MegabytesOfOutputAreCut) {
  Script("a",
         "head -c 5000000 /dev/zero | tr '\\0' x; "
         "head -c 5000000 /dev/zero | tr '\\0' y >&2; exit 1\n");
  const absl::Status status = Run();
  EXPECT_TRUE(absl::IsPermissionDenied(status)) << status;
  EXPECT_LT(status.message().size(), 1000u);
  Script("a", "head -c 5000000 /dev/zero | tr '\\0' x; exit 0\n");
  EXPECT_TRUE(Run().ok());
}

TEST_F(Programs, WhatCannotBeRunRefuses) {
  Write("bin/a", "#!/bin/sh\nexit 0\n", 0600);
  EXPECT_TRUE(absl::IsFailedPrecondition(Run()));
  EXPECT_THAT(Message(Run()), HasSubstr("'a'"));
  programs_.bin_dir = Path("nowhere");
  EXPECT_TRUE(absl::IsFailedPrecondition(Run()));
  EXPECT_THAT(Message(Run()), HasSubstr("nowhere"));
}

TEST_F(Programs, ControlCharactersDoNotReachTheReader) {
  Script("a", "printf 'bad\\033[2Jthing\\n'; exit 1\n");
  EXPECT_THAT(Message(Run()), Not(HasSubstr("\033")));
}

TEST_F(Programs, CancelEndsThem) {
  Script("a", "sleep 1000\n");
  cancelled_ = [] { return true; };
  EXPECT_TRUE(absl::IsCancelled(Run()));
}

TEST_F(Programs, AreAskedByTrust) {
  Script("a", "echo never; exit 1\n");
  const char config[] = "[distribution.image_verifier]\nbin_dir = '@/bin'\n";
  EXPECT_THAT(Refused(config),
              AllOf(HasSubstr(kName), HasSubstr("'a'"), HasSubstr("never")));
  EXPECT_TRUE(Check(config, {kName}, true).ok());  // Imports: not asked.
}

}  // namespace
}  // namespace bulkhead::distribution
