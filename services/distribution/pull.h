// Pull: a registry's image into the image store, unpacked if asked.
#ifndef BULKHEAD_SERVICES_DISTRIBUTION_PULL_H_
#define BULKHEAD_SERVICES_DISTRIBUTION_PULL_H_

#include <functional>
#include <string>
#include <vector>

#include "services/distribution/layers.h"

namespace bulkhead::distribution {

constexpr int kIndexDepthMax = 4;       // Indexes in indexes.
constexpr size_t kManifestsMax = 1024;  // Fetched in one pull.
// On a manifest, for each artifact about it; followed by 12 hexadecimal digits.
inline constexpr char kReferrerLabel[] =
    "containerd.io/gc.ref.content.referrer.sha256.";

struct UnpackRequest {
  oci::Platform platform;   // Empty: any.
  std::string snapshotter;  // Not empty.
  bool rebase = false;
  bool remote = false;  // See UnpackPlan.
};

struct ExtraReference {
  std::string name;
  bool is_prefix = false;
  bool allow_overwrite = false;
  bool add_digest = false;
  bool skip_named_digest = false;
};

struct ImageDestination {
  std::string name;
  Labels labels;
  std::vector<oci::Platform> platforms;  // Empty: all.
  // Manifests and configs of all platforms, and what refers to the image.
  bool all_metadata = false;
  uint32_t manifest_limit = 0;
  std::vector<ExtraReference> extra_references;
  std::vector<UnpackRequest> unpacks;
};

struct PullLimits {
  int downloads_max = 6;
  int unpacks_max = 2;
};

// Fills the store and writes the image record last. On an error nothing under
// the image's name has changed; what was fetched goes with the lease.
// Errors: as Registry's and Store's; kNotFound "no match for platform ...";
//   kInvalidArgument: broken documents; kFailedPrecondition: wrong diff id;
//   what `context.approve` answers.
absl::Status Pull(const FetchContext& context, const oci::Reference& reference,
                  const ImageDestination& image, const PullLimits& limits);

// Everything below `target` that `image` wants: into the store, labelled and
// unpacked. Without a registry in `context`, what the store does not have is
// an error, but for manifests of indexes below `target`.
// Errors: as Pull's.
absl::Status FollowImage(const FetchContext& context,
                         const oci::Descriptor& target,
                         const ImageDestination& image,
                         const PullLimits& limits);

// The names of the records that SaveImage writes.
std::vector<std::string> RecordNames(const ImageDestination& image,
                                     const std::string& name,
                                     const oci::Descriptor& target);

// Writes the image record, then those of the extra references.
absl::Status SaveImage(const FetchContext& context,
                       const ImageDestination& image, const std::string& name,
                       const oci::Descriptor& target);

}  // namespace bulkhead::distribution

#endif  // BULKHEAD_SERVICES_DISTRIBUTION_PULL_H_
