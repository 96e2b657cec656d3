// Push: an image of the store into a registry.
#ifndef BULKHEAD_SERVICES_DISTRIBUTION_PUSH_H_
#define BULKHEAD_SERVICES_DISTRIBUTION_PUSH_H_

#include <string>
#include <vector>

#include "services/distribution/layers.h"

namespace bulkhead::distribution {

constexpr size_t kMountSourcesMax = 8;  // Repositories to mount from.

struct PushRequest {
  std::string image_name;                // In the store.
  std::vector<oci::Platform> platforms;  // Empty: everything in the image.
  std::string source_label;              // containerd.io/distribution.source.X
  int uploads_max = 3;
};

// Sends what the registry lacks (and brings layers that neither side has; see
// BringLayer): blobs at once, then manifests, then indexes,
// the tag last. With `platforms` that choose a part of an index of which the
// rest is not here, the one manifest is pushed under the tag instead.
// `context.registry` is not used; `options` says where to.
// Errors: kNotFound: the image, or a blob of it (the message says what to do);
//   else as Registry's.
absl::Status Push(const FetchContext& context, RegistryOptions options,
                  const PushRequest& request);

}  // namespace bulkhead::distribution

#endif  // BULKHEAD_SERVICES_DISTRIBUTION_PUSH_H_
