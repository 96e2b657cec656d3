// Pulling an image through the Transfer service.
#ifndef BULKHEAD_CLI_PULL_H_
#define BULKHEAD_CLI_PULL_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cli/client.h"

namespace bulkhead::cli {

struct PullOptions {
  std::string reference;  // As typed.
  std::string snapshotter = "overlayfs";
  std::string platform;  // "linux/arm64"; empty: this machine's.
  bool plain_http = false;
  bool quiet = false;     // No progress.
  std::string user;       // "user:password" or ""; then ~/.docker/config.json.
  std::string hosts_dir;  // A tree of hosts.toml files.
};

// Pulls and unpacks; shows progress on stderr. The result is the image's full
// name. Errors: kInvalidArgument: bad reference. kUnimplemented: the server
// has no Transfer service. Others are the registry's or the store's.
absl::StatusOr<std::string> PullImage(Client& client,
                                      const PullOptions& options);

struct Credentials {
  std::string user;
  std::string secret;
};
// What a Docker client would use for `host`, from the text of its config.json
// ("auths" only, no helpers). Empty if there is nothing.
Credentials CredentialsFrom(const std::string& config_json,
                            const std::string& host);

}  // namespace bulkhead::cli

#endif  // BULKHEAD_CLI_PULL_H_
