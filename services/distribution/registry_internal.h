// What the parts of Registry share.
#ifndef BULKHEAD_SERVICES_DISTRIBUTION_REGISTRY_INTERNAL_H_
#define BULKHEAD_SERVICES_DISTRIBUTION_REGISTRY_INTERNAL_H_

#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "lib/oci/image.h"

namespace bulkhead::distribution {

constexpr absl::Duration kBackOffStart = absl::Milliseconds(200);

// No host of that name, or nobody who listens there: waiting will not help.
bool NobodyThere(const absl::Status& status);

// UNAVAILABLE means that one of our services is down; a registry is not.
absl::Status Final(const absl::Status& status);

// Has its place under manifests/, not blobs/.
inline bool IsDocument(const oci::Descriptor& descriptor) {
  return oci::IsManifestType(descriptor.media_type) ||
         oci::IsIndexType(descriptor.media_type);
}

}  // namespace bulkhead::distribution

#endif  // BULKHEAD_SERVICES_DISTRIBUTION_REGISTRY_INTERNAL_H_
