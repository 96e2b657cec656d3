// Images to and from registries and archives, through the Transfer service.
#ifndef BULKHEAD_CLI_PULL_H_
#define BULKHEAD_CLI_PULL_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cli/client.h"
#include "cli/credentials.h"

namespace bulkhead::cli {

// How to reach a registry.
struct RegistryOptions {
  bool plain_http = false;
  std::string user;       // "user:password" or ""; then ~/.docker/config.json.
  std::string hosts_dir;  // A tree of hosts.toml files.
  // Each request to a registry is told on stderr: to which host, with which
  // login, what came of it, what is tried next.
  bool explain = false;
};

struct PullOptions : RegistryOptions {
  std::string reference;  // As typed.
  std::string snapshotter = "overlayfs";
  std::string platform;  // "linux/arm64"; empty: this machine's.
  bool quiet = false;    // No progress.
  bool unpack = true;
  // Manifests and configs of all platforms, and what refers to the image.
  bool all_metadata = false;
};

// Pulls and unpacks; shows progress on stderr. The result is the image's full
// name. Errors: kInvalidArgument: bad reference. kUnimplemented: the server
// has no Transfer service. Others are the registry's or the store's.
absl::StatusOr<std::string> PullImage(Client& client,
                                      const PullOptions& options);

struct PushOptions : RegistryOptions {
  std::string image;      // Full name of the image in the store.
  std::string reference;  // Where to; as typed.
  std::string platform;   // Only this one; empty: what is there.
  bool quiet = false;
};
absl::Status PushImage(Client& client, const PushOptions& options);

struct SaveOptions {
  std::vector<std::string> images;  // Full names.
  std::string platform;             // Empty: this machine's.
  bool all_platforms = false;
};
// Writes an archive (OCI layout and docker-archive in one) to `fd`.
absl::Status SaveImages(Client& client, const SaveOptions& options, int fd);

struct LoadOptions {
  std::string snapshotter = "overlayfs";
  std::string platform;              // To unpack; empty: this machine's.
  std::string base_name = "import";  // For images without a full name.
  bool unpack = true;
  bool compress = false;  // Plain layers of docker's archives.
  bool quiet = false;
};
// Reads an archive from `fd`. The result is the names of its images.
absl::StatusOr<std::vector<std::string>> LoadImages(Client& client,
                                                    const LoadOptions& options,
                                                    int fd);

// Brings the manifest or index that `options.reference` stands for into the
// content store, under the lease that `client` holds, but no image; its digest.
// Errors: the registry's.
absl::StatusOr<std::string> FetchManifest(Client& client,
                                          const PullOptions& options);

// Asks the registry for an image that is not there. OK: it let us look.
// kUnauthenticated, kPermissionDenied: it did not.
absl::Status TryCredentials(Client& client, const std::string& host,
                            const RegistryOptions& options,
                            const Credentials& credentials);

}  // namespace bulkhead::cli

#endif  // BULKHEAD_CLI_PULL_H_
