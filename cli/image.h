// Images as the command line sees them: found by what people type, read from
// the content store, unpacked if need be.
#ifndef BULKHEAD_CLI_IMAGE_H_
#define BULKHEAD_CLI_IMAGE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cli/client.h"
#include "lib/oci/image.h"
#include "proto/containerd/services/images/v1/images.pb.h"

namespace bulkhead::cli {

using ImageRecord = containerd::services::images::v1::Image;

struct ImageInfo {
  ImageRecord record;
  oci::Manifest manifest;
  oci::ImageConfig config;
  std::string config_json;
  std::vector<std::string> chain_ids;  // One a layer.
  int64_t compressed_bytes = 0;        // Sum of the layers' sizes.

  // What a container's snapshot is made on; empty for an image of no layers.
  std::string chain_id() const {
    return chain_ids.empty() ? "" : chain_ids.back();
  }
};

// Finds an image by its full name, by the short form ("debian"), or by the
// start of its digest (at least 4 digits). kNotFound says how to get it;
// kInvalidArgument: the digits fit several images.
absl::StatusOr<ImageRecord> FindImage(Client& client, const std::string& text);

// All images of the namespace, sorted by name.
absl::StatusOr<std::vector<ImageRecord>> ListImages(Client& client);

// A blob of at most oci::kDocumentBytesMax.
absl::StatusOr<std::string> ReadBlob(Client& client, const std::string& digest);

// Manifest and config for `platform`. kNotFound: the image is not for this
// platform, or parts of it are missing.
absl::StatusOr<ImageInfo> LoadImage(Client& client, const ImageRecord& record,
                                    const oci::Platform& platform);

// Makes sure that the image's layers are snapshots; unpacks those that are
// not. Call it under a lease.
absl::Status EnsureUnpacked(Client& client, const ImageInfo& image,
                            const std::string& snapshotter);

// Disk use of the image's snapshots; -1 if it is not unpacked.
int64_t UnpackedBytes(Client& client, const ImageInfo& image,
                      const std::string& snapshotter);

// A lease that ends with the object; its header goes with every call of
// `client` in between. The server drops it after a day should we die.
class ScopedLease {
 public:
  static absl::StatusOr<std::unique_ptr<ScopedLease>> Create(Client& client);
  explicit ScopedLease(Client& client, std::string id);
  ~ScopedLease();

 private:
  Client& client_;
  std::string id_;
};

}  // namespace bulkhead::cli

#endif  // BULKHEAD_CLI_IMAGE_H_
