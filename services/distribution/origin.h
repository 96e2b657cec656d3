// Where an image came from, for layers that were not fetched with it.
#ifndef BULKHEAD_SERVICES_DISTRIBUTION_ORIGIN_H_
#define BULKHEAD_SERVICES_DISTRIBUTION_ORIGIN_H_

#include <string>
#include <vector>

#include "services/distribution/layers.h"

namespace bulkhead::distribution {

constexpr size_t kOriginsMax = 8;  // Repositories asked for one layer.
inline constexpr char kSourceLabel[] = "containerd.io/distribution.source.";

// "localhost:5000" -> "localhost", as labels have it.
std::string HostWithoutPort(const std::string& host);

// The repositories that may have what belongs to an image: the one its name
// says, then those that the labels of its manifest name. The labels know no
// port: that of the name's host, if it is the same host, else none.
std::vector<oci::Reference> OriginsOf(const std::string& image_name,
                                      const Labels& manifest_labels);

// Brings a layer that the store lacks into it, since its files are here in
// another compression: from the first of OriginsOf() that has it, by way of
// `context.open_origin`. Blocks as BlobFetch does; thread-safe.
// Errors: kNotFound: no origin is known or none has it; else what the last one
//   said. The message says what to do.
absl::Status BringLayer(const FetchContext& context,
                        const std::string& image_name,
                        const Labels& manifest_labels,
                        const oci::Descriptor& layer);

}  // namespace bulkhead::distribution

#endif  // BULKHEAD_SERVICES_DISTRIBUTION_ORIGIN_H_
