#include "services/distribution/trust.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "lib/base/status_macros.h"
#include "lib/log/log.h"
#include "lib/oci/reference.h"
#include "lib/os/fd.h"
#include "services/distribution/signature.h"
#include "services/distribution/verifier_programs.h"

namespace bulkhead::distribution {
namespace {

using config::VerifyPolicy;
using oci::Descriptor;

constexpr size_t kReasonsShownMax = 4;
constexpr char kCosignArtifactType[] =
    "application/vnd.dev.cosign.artifact.sig.v1+json";

absl::StatusOr<oci::Reference> ComparableReference(const std::string& name) {
  ASSIGN_OR_RETURN(oci::Reference reference, oci::ParseFull(name));
  std::string& host = reference.host;
  absl::AsciiStrToLower(&host);
  if (absl::EndsWith(host, ":443")) host.resize(host.size() - 4);
  while (host.size() > 1 && host.back() == '.') host.pop_back();
  if (host == "index.docker.io" || host == "registry-1.docker.io") {
    host = "docker.io";
  }
  return reference;
}

absl::StatusOr<std::string> ReadTrustFile(const std::string& path) {
  absl::StatusOr<std::string> text = os::ReadFile(path, kTrustFileBytesMax);
  if (!text.ok()) {
    return absl::FailedPreconditionError(MessageOf(text.status()));
  }
  return text;
}

absl::Status AtFile(const absl::Status& status, const std::string& path) {
  return absl::FailedPreconditionError(
      absl::StrCat(path, ": ", MessageOf(status)));
}

struct NamedKey {
  PublicKey key;
  std::string file;
};

// Looks for one good signature, remembers why others were none.
class Search {
 public:
  Search(const Trust::Question& question, const std::string& name,
         const VerifyPolicy& policy, const std::vector<Subject>& subjects)
      : question_(question), policy_(policy), subjects_(subjects) {
    const absl::StatusOr<oci::Reference> reference = ComparableReference(name);
    if (reference.ok()) {
      repository_ = reference->Locator();
      tag_ = reference->tag;
    }
  }

  // Errors: keys or roots that cannot be used.
  absl::Status Load() {
    for (const std::string& path : policy_.cosign_keys) {
      ASSIGN_OR_RETURN(const std::string pem, ReadTrustFile(path));
      absl::StatusOr<std::vector<PublicKey>> keys = ParsePublicKeys(pem);
      if (!keys.ok()) return AtFile(keys.status(), path);
      for (PublicKey& key : *keys) keys_.push_back({std::move(key), path});
    }
    for (const std::string& path : policy_.notation_roots) {
      ASSIGN_OR_RETURN(const std::string pem, ReadTrustFile(path));
      absl::StatusOr<TrustAnchors> anchors = ParseCertificates(pem);
      if (!anchors.ok()) return AtFile(anchors.status(), path);
      anchors_.insert(anchors_.end(), anchors->begin(), anchors->end());
    }
    return absl::OkStatus();
  }

  // Who signed; kPermissionDenied: nobody who counts.
  absl::StatusOr<std::string> Run() {
    SignatureSource& source = *question_.signatures;
    const Digest& image = question_.image.digest;
    if (!keys_.empty()) {
      const std::string tag = absl::StrCat(AlgorithmName(image.algorithm()),
                                           "-", image.hex(), ".sig");
      const absl::StatusOr<std::optional<oci::Manifest>> tagged =
          source.Tagged(tag);
      if (!tagged.ok()) {
        Failed(Annotate(tagged.status(), "tag " + tag));
      } else if (tagged->has_value()) {
        if (Cosign(**tagged)) return who_;
      }
    }
    const absl::StatusOr<std::vector<Descriptor>> referrers =
        source.Referrers(image);
    if (!referrers.ok()) {
      Failed(Annotate(referrers.status(), "the image's referrers"));
    } else {
      for (const Descriptor& each : *referrers) {
        if (Referrer(each)) return who_;
      }
    }
    return Refusal();
  }

 private:
  bool Cancelled() const {
    return question_.cancelled && question_.cancelled();
  }

  // Counts; false when it is enough.
  bool More() { return !Cancelled() && seen_++ < kSignaturesMax; }

  void Bad(const std::string& why) {
    if (std::find(reasons_.begin(), reasons_.end(), why) == reasons_.end()) {
      reasons_.push_back(why);
    }
    if (question_.explain) {
      question_.explain(absl::StrCat("trust: policy '", policy_.name,
                                     "': a signature does not count: ", why));
    }
  }

  void Failed(const absl::Status& status) {
    if (lookup_.ok()) lookup_ = status;
  }

  absl::StatusOr<std::string> Refusal() {
    if (Cancelled()) return absl::CancelledError("the transfer was cancelled");
    if (!lookup_.ok()) {
      return absl::UnknownError(absl::StrCat(
          "signatures could not be looked up: ", MessageOf(lookup_)));
    }
    if (reasons_.empty()) {
      std::string kinds = keys_.empty() ? "" : "cosign";
      if (!anchors_.empty()) {
        absl::StrAppend(&kinds, kinds.empty() ? "" : " or ", "notation");
      }
      return absl::PermissionDeniedError(
          absl::StrCat("no ", kinds, " signature was found beside it"));
    }
    const size_t count = reasons_.size();
    if (count > kReasonsShownMax) reasons_.resize(kReasonsShownMax);
    return absl::PermissionDeniedError(absl::StrCat(
        "none of its signatures counts: ", absl::StrJoin(reasons_, "; "),
        count > kReasonsShownMax ? "; ..." : "",
        seen_ > kSignaturesMax
            ? absl::StrCat(" (only the first ", kSignaturesMax, " were read)")
            : ""));
  }

  bool Referrer(const Descriptor& each) {
    const std::string& type = each.artifact_type;
    const bool cosign = type == kCosignArtifactType;
    const bool notation = type == kNotationArtifactType;
    // Fallback indexes of old clients do not say what they list.
    if (!cosign && !notation && !type.empty()) return false;
    if (cosign && keys_.empty()) return false;
    if (notation && anchors_.empty()) return false;
    if (!More()) return false;
    absl::StatusOr<std::string> text =
        question_.signatures->Read(each, oci::kDocumentBytesMax);
    if (!text.ok()) {
      Failed(text.status());
      return false;
    }
    const absl::StatusOr<oci::Manifest> manifest = oci::ParseManifest(*text);
    if (!manifest.ok()) {
      Bad(MessageOf(manifest.status()));
      return false;
    }
    const bool is_notation =
        manifest->artifact_type == kNotationArtifactType ||
        manifest->config.media_type == kNotationArtifactType;
    if (is_notation) return !anchors_.empty() && Notation(*manifest);
    return !keys_.empty() && Cosign(*manifest);
  }

  bool Cosign(const oci::Manifest& manifest) {
    for (const Descriptor& layer : manifest.layers) {
      if (layer.media_type != kSimpleSigningType) continue;
      const auto annotation =
          layer.annotations.find(kCosignSignatureAnnotation);
      if (annotation == layer.annotations.end()) continue;
      if (!More()) return false;
      const absl::StatusOr<std::string> payload =
          question_.signatures->Read(layer, kPayloadBytesMax);
      if (!payload.ok()) {
        Failed(payload.status());
        continue;
      }
      const absl::Status good = CosignPayload(*payload, annotation->second);
      if (good.ok()) return true;
      Bad(MessageOf(good));
    }
    return false;
  }

  absl::Status CosignPayload(const std::string& payload,
                             const std::string& signature64) {
    std::string signature;
    if (!absl::Base64Unescape(signature64, &signature)) {
      return absl::InvalidArgumentError("a signature that is not base64");
    }
    const auto key =
        std::find_if(keys_.begin(), keys_.end(), [&](const NamedKey& each) {
          return each.key.Verifies(payload, signature);
        });
    if (key == keys_.end()) {
      return absl::PermissionDeniedError(
          "a cosign signature by none of the policy's keys");
    }
    ASSIGN_OR_RETURN(const SimpleSigning claim, ParseSimpleSigning(payload));
    if (claim.image != question_.image.digest) {
      return absl::PermissionDeniedError(absl::StrCat(
          "a cosign signature of another image, ", claim.image.str()));
    }
    RETURN_IF_ERROR(Identity(claim.reference));
    who_ = absl::StrCat("the key in ", key->file);
    return absl::OkStatus();
  }

  absl::Status Identity(const std::string& claimed) const {
    if (policy_.identity == "any") return absl::OkStatus();
    const std::string shown = claimed.substr(0, 200);
    absl::StatusOr<oci::Reference> named = oci::ParseNormalized(claimed);
    if (named.ok()) named = ComparableReference(named->str());
    if (!named.ok()) {
      return absl::PermissionDeniedError(absl::StrCat(
          "a cosign signature for the name '", shown, "', which is none"));
    }
    std::string wanted = repository_;
    if (policy_.identity != "repository") {
      ASSIGN_OR_RETURN(const oci::Reference other,
                       ComparableReference(policy_.identity));
      wanted = other.Locator();
    }
    // ParseNormalized adds "latest" where no tag was written.
    const std::string last = claimed.substr(claimed.rfind('/') + 1);
    const bool tag_written = last.find_first_of(":@") != std::string::npos &&
                             !named->tag.empty() &&
                             policy_.identity == "repository";
    if (named->Locator() != wanted ||
        (tag_written && !tag_.empty() && named->tag != tag_)) {
      return absl::PermissionDeniedError(absl::StrCat(
          "a cosign signature for the name '", shown, "', not ", wanted));
    }
    return absl::OkStatus();
  }

  bool Notation(const oci::Manifest& manifest) {
    for (const Descriptor& layer : manifest.layers) {
      if (layer.media_type == kCoseType) {
        Bad("a notation signature in a COSE envelope; only JWS is supported");
        continue;
      }
      if (layer.media_type != kJwsType) continue;
      const absl::StatusOr<std::string> envelope =
          question_.signatures->Read(layer, kEnvelopeBytesMax);
      if (!envelope.ok()) {
        Failed(envelope.status());
        continue;
      }
      const absl::Status good = NotationEnvelope(*envelope);
      if (good.ok()) return true;
      Bad(absl::StrCat("notation: ", MessageOf(good)));
    }
    return false;
  }

  absl::Status NotationEnvelope(const std::string& envelope) {
    ASSIGN_OR_RETURN(const NotationSignature signature,
                     VerifyNotationJws(envelope, anchors_, question_.now));
    const std::string signer =
        absl::StrJoin(signature.signer, ", ", absl::PairFormatter("="));
    if (signature.image != question_.image.digest ||
        signature.size_bytes != question_.image.size_bytes ||
        signature.media_type != question_.image.media_type) {
      return absl::PermissionDeniedError(
          absl::StrCat("a signature of another image, ", signature.image.str(),
                       " (", signature.media_type.substr(0, 100), ", ",
                       signature.size_bytes, " bytes)"));
    }
    const bool known =
        subjects_.empty() || std::any_of(subjects_.begin(), subjects_.end(),
                                         [&](const Subject& each) {
                                           return signature.SignedBy(each);
                                         });
    if (!known) {
      return absl::PermissionDeniedError(absl::StrCat(
          "a signature by ", signer, ", none of notation_subjects"));
    }
    who_ = absl::StrCat("the certificate of ", signer);
    return absl::OkStatus();
  }

  const Trust::Question& question_;
  const VerifyPolicy& policy_;
  const std::vector<Subject>& subjects_;
  std::string repository_;
  std::string tag_;
  std::vector<NamedKey> keys_;
  TrustAnchors anchors_;
  int seen_ = 0;
  std::vector<std::string> reasons_;
  absl::Status lookup_;
  std::string who_;
};

}  // namespace

std::string ComparableName(const std::string& name) {
  const absl::StatusOr<oci::Reference> reference = ComparableReference(name);
  return reference.ok() ? reference->str() : name;
}

bool MatchesPattern(const std::string& pattern, const std::string& text) {
  size_t p = 0;
  size_t t = 0;
  size_t star = std::string::npos;
  size_t mark = 0;
  while (t < text.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      mark = t;
    } else if (p < pattern.size() && pattern[p] == text[t]) {
      ++p;
      ++t;
    } else if (star != std::string::npos) {
      p = star + 1;
      t = ++mark;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

absl::StatusOr<std::unique_ptr<Trust>> Trust::Create(const Config& config) {
  std::unique_ptr<Trust> trust(new Trust(config));
  for (const auto& [name, digest] : config.pins) {
    const std::string where = absl::StrCat("'distribution.pins': '", name, "'");
    absl::StatusOr<oci::Reference> reference = ComparableReference(name);
    if (!reference.ok()) return Annotate(reference.status(), where);
    if (reference->tag.empty() || !reference->digest.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, " must name a tag, such as ",
                       reference->Locator(), ":latest"));
    }
    absl::StatusOr<Digest> pinned = Digest::Parse(digest);
    if (!pinned.ok()) return Annotate(pinned.status(), where);
    trust->pins_[reference->str()] = *std::move(pinned);
  }
  for (const VerifyPolicy& policy : config.verify) {
    const std::string where =
        absl::StrCat("'distribution.verify' policy '", policy.name, "'");
    Policy out;
    out.config = policy;
    for (const std::string& text : policy.notation_subjects) {
      absl::StatusOr<Subject> subject = ParseSubject(text);
      if (!subject.ok()) return Annotate(subject.status(), where);
      out.subjects.push_back(*std::move(subject));
    }
    if (policy.identity != "any" && policy.identity != "repository") {
      const absl::Status named = ComparableReference(policy.identity).status();
      if (!named.ok()) return Annotate(named, where);
    }
    trust->policies_.push_back(std::move(out));
  }
  return trust;
}

bool Trust::active() const {
  return !pins_.empty() || !policies_.empty() ||
         !config_.verify_default_allow ||
         !config_.image_verifier.bin_dir.empty();
}

const Trust::Policy* Trust::PolicyFor(const std::string& name) const {
  std::vector<std::string> forms = {name};
  const absl::StatusOr<oci::Reference> reference = ComparableReference(name);
  if (reference.ok()) {
    forms = {reference->Locator()};
    if (!reference->tag.empty()) {
      forms.push_back(absl::StrCat(reference->Locator(), ":", reference->tag));
    }
  }
  for (const Policy& policy : policies_) {
    for (const std::string& pattern : policy.config.match) {
      for (const std::string& form : forms) {
        if (MatchesPattern(pattern, form)) return &policy;
      }
    }
  }
  return nullptr;
}

absl::Status Trust::CheckPin(const Question& question,
                             const std::string& name) const {
  absl::StatusOr<oci::Reference> reference = ComparableReference(name);
  if (!reference.ok()) return absl::OkStatus();  // No tag that could be pinned.
  reference->digest = Digest();
  const auto pin = pins_.find(reference->str());
  if (pin == pins_.end()) return absl::OkStatus();
  if (pin->second == question.image.digest) return absl::OkStatus();
  return absl::PermissionDeniedError(absl::StrCat(
      "image ", name, " is pinned to ", pin->second.str(),
      " (distribution.pins), but it is now ", question.image.digest.str(),
      " — if the new one is wanted, change the pin"));
}

absl::Status Trust::Require(const Question& question, const std::string& name,
                            const Policy& policy) const {
  if (question.signatures == nullptr) {
    return absl::PermissionDeniedError(
        "it requires a signature, and an archive brings none — pull the image "
        "from its registry, or load it under another name");
  }
  Search search(question, name, policy.config, policy.subjects);
  RETURN_IF_ERROR(search.Load());
  const absl::StatusOr<std::string> signer = search.Run();
  if (!signer.ok()) return signer.status();
  log::Info("signature verified", {{"image", name},
                                   {"digest", question.image.digest.str()},
                                   {"policy", policy.config.name},
                                   {"signer", *signer}});
  if (question.explain) {
    question.explain(absl::StrCat("trust: policy '", policy.config.name,
                                  "': ", name, " is signed by ", *signer));
  }
  return absl::OkStatus();
}

absl::Status Trust::CheckName(const Question& question,
                              const std::string& name) const {
  RETURN_IF_ERROR(CheckPin(question, name));
  const Policy* const policy = PolicyFor(name);
  const std::string who =
      absl::StrCat("image ", name, " (", question.image.digest.str(), ")");
  if (policy == nullptr) {
    if (config_.verify_default_allow) return absl::OkStatus();
    return absl::PermissionDeniedError(absl::StrCat(
        who,
        " is refused: no policy of distribution.verify matches it, and "
        "verify_default is deny"));
  }
  if (question.explain) {
    static constexpr const char* kActions[] = {"allows it", "denies it",
                                               "requires a signature"};
    question.explain(
        absl::StrCat("trust: policy '", policy->config.name, "' for ", name,
                     " ", kActions[static_cast<int>(policy->config.action)]));
  }
  switch (policy->config.action) {
    case VerifyPolicy::Action::kAllow:
      return absl::OkStatus();
    case VerifyPolicy::Action::kDeny:
      return absl::PermissionDeniedError(
          absl::StrCat(who, " is refused by policy '", policy->config.name,
                       "': it denies such images"));
    case VerifyPolicy::Action::kRequire:
      break;
  }
  return Annotate(
      Require(question, name, *policy),
      absl::StrCat(who, " is refused by policy '", policy->config.name, "'"));
}

absl::Status Trust::Check(const Question& question) const {
  std::set<std::string> done;
  for (const std::string& name : question.names) {
    if (!done.insert(ComparableName(name)).second) continue;
    RETURN_IF_ERROR(CheckName(question, name));
  }
  const auto& programs = config_.image_verifier;
  if (programs.bin_dir.empty() || question.signatures == nullptr ||
      question.names.empty()) {
    return absl::OkStatus();
  }
  if (question.explain) {
    question.explain(
        absl::StrCat("trust: asking the programs in ", programs.bin_dir));
  }
  return Annotate(RunVerifierPrograms({programs.bin_dir, programs.max_verifiers,
                                       programs.per_verifier_timeout},
                                      question.names[0], question.image,
                                      question.cancelled),
                  absl::StrCat("image ", question.names[0], " (",
                               question.image.digest.str(), ") is refused"));
}

}  // namespace bulkhead::distribution
