// Which images may come in: pins, policies with signatures, programs that
// judge. Everything here fails closed: an error is a refusal.
#ifndef BULKHEAD_SERVICES_DISTRIBUTION_TRUST_H_
#define BULKHEAD_SERVICES_DISTRIBUTION_TRUST_H_

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "lib/config/config.h"
#include "lib/oci/image.h"
#include "services/distribution/notation.h"

namespace bulkhead::distribution {

constexpr int kSignaturesMax = 64;              // Looked at for one image.
constexpr size_t kTrustFileBytesMax = 4 << 20;  // Of keys or certificates.

// Where an image's signatures are found: beside it. Calls block.
class SignatureSource {
 public:
  virtual ~SignatureSource() = default;
  // The manifest a tag of the image's repository stands for; none if there is
  // no such tag. Errors: the registry's.
  virtual absl::StatusOr<std::optional<oci::Manifest>> Tagged(
      const std::string& tag) = 0;
  // What names `image` as its subject (OCI 1.1); empty if nothing does.
  virtual absl::StatusOr<std::vector<oci::Descriptor>> Referrers(
      const Digest& image) = 0;
  // A manifest or blob, its digest verified, of at most `bytes_max`.
  virtual absl::StatusOr<std::string> Read(const oci::Descriptor& descriptor,
                                           size_t bytes_max) = 0;
};

// Immutable; thread-safe.
class Trust {
 public:
  using Config = decltype(config::Config::distribution);

  // Takes the [distribution] table. Errors: kInvalidArgument: a pin, subject or
  // identity that cannot be read.
  static absl::StatusOr<std::unique_ptr<Trust>> Create(const Config& config);

  struct Question {
    // Under which the image would be known: the reference that is pulled, the
    // names of the records. What matches any of them must be satisfied.
    std::vector<std::string> names;
    oci::Descriptor image;
    // None: the image comes from an archive, which brings no signatures;
    // programs are not asked then, as in containerd.
    SignatureSource* signatures = nullptr;
    // A line for each step, without its end; may be empty.
    std::function<void(const std::string&)> explain;
    std::function<bool()> cancelled;  // May be empty.
    absl::Time now;
  };
  // OK: `image`, by its digest, may be recorded under each name.
  // Errors, naming image, policy and reason: kPermissionDenied: refused.
  //   kFailedPrecondition: a file or program that trust needs is not usable.
  //   kCancelled. kUnknown: the registry failed while signatures were asked
  //   for.
  absl::Status Check(const Question& question) const;

  // True if Check could refuse anything.
  bool active() const;

 private:
  struct Policy {
    config::VerifyPolicy config;
    std::vector<Subject> subjects;
  };

  explicit Trust(const Config& config) : config_(config) {}

  const Policy* PolicyFor(const std::string& name) const;
  absl::Status CheckName(const Question& question,
                         const std::string& name) const;
  absl::Status CheckPin(const Question& question,
                        const std::string& name) const;
  absl::Status Require(const Question& question, const std::string& name,
                       const Policy& policy) const;

  const Config config_;
  std::vector<Policy> policies_;
  std::map<std::string, Digest> pins_;  // By comparable name with its tag.
};

// A name as policies compare it: the host in lower case, without a trailing
// dot or the port 443, Docker Hub's other names as docker.io. What is no
// reference is left as it is.
std::string ComparableName(const std::string& name);

// `*` stands for any run of characters.
bool MatchesPattern(const std::string& pattern, const std::string& text);

}  // namespace bulkhead::distribution

#endif  // BULKHEAD_SERVICES_DISTRIBUTION_TRUST_H_
