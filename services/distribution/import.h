// Image archives into the image store and out of it: OCI layouts and what
// `docker save` writes.
#ifndef BULKHEAD_SERVICES_DISTRIBUTION_IMPORT_H_
#define BULKHEAD_SERVICES_DISTRIBUTION_IMPORT_H_

#include <string>
#include <vector>

#include "services/distribution/archive.h"
#include "services/distribution/pull.h"

namespace bulkhead::distribution {

constexpr size_t kArchiveImagesMax = 1024;

struct ImportRequest {
  ImageDestination image;
  bool force_compress = false;
};

// Reads an archive (gzip, zstd or plain, told from its bytes) to its end and
// writes one image record for each image it names; unnamed ones are kept under
// their digest if `image` asks for that, else not at all.
// Names: `image.name` stands for the archive's whole index; for each manifest
// its annotations, matched with the prefixes of `image.extra_references` (all
// full names are taken if there are neither).
// The layers of docker's archives, which are plain, become those of the store
// that hold the same in gzip or zstd, if there are any, and else are compressed
// if `force_compress` says so.
// Errors: kInvalidArgument: malformed. kNotFound: it names a blob it does not
//   hold. kDataLoss: a blob has another digest than its name says.
//   kResourceExhausted: a limit. On an error no image record was written.
absl::Status Import(const FetchContext& context, const ByteSource& archive,
                    const ImportRequest& request, const PullLimits& limits);

struct ExportRequest {
  std::vector<std::string> names;
  std::vector<std::string> prefixes;     // Of names; see Store::ListImages.
  std::vector<oci::Platform> platforms;  // Empty: this machine's.
  bool all_platforms = false;
  bool skip_docker_manifest = false;
  bool skip_non_distributable = false;
};

// Layers that the store lacks are brought first (BringLayer). Writes an OCI
// layout, with a manifest.json for `docker load` unless skipped; entries sorted
// by name: equal images give equal bytes. Errors: kNotFound: an image, a blob,
// or no manifest for the platforms.
absl::Status Export(const FetchContext& context, const ExportRequest& request,
                    const ByteSink& archive);

}  // namespace bulkhead::distribution

#endif  // BULKHEAD_SERVICES_DISTRIBUTION_IMPORT_H_
