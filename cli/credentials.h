// Who we are to a registry: Docker's config.json and its credential helpers.
#ifndef BULKHEAD_CLI_CREDENTIALS_H_
#define BULKHEAD_CLI_CREDENTIALS_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace bulkhead::cli {

// `user` of credentials whose secret is a refresh token.
inline constexpr char kTokenUser[] = "<token>";

struct Credentials {
  std::string user;
  std::string secret;
  std::string source;  // Where they were found, for people; may be empty.

  bool empty() const { return secret.empty(); }
};

// $DOCKER_CONFIG/config.json, else ~/.docker/config.json; "" without a home.
std::string DockerConfigPath();

// The host as keys are made of it: Docker Hub has several names.
std::string RegistryHost(const std::string& text);

// What the text of a config.json itself says for `host` ("auths", no helpers).
Credentials CredentialsFrom(const std::string& config_json,
                            const std::string& host);

// "docker-credential-<this>" keeps the credentials of `host`; "" if none does.
std::string HelperFor(const std::string& config_json, const std::string& host);

// True if the file could have credentials for anybody.
bool MayHaveCredentials(const std::string& config_path);

// From the helper, else the file. Empty: there are none. Errors:
// kFailedPrecondition: the helper cannot be run, or answered nonsense.
absl::StatusOr<Credentials> FindCredentials(const std::string& config_path,
                                            const std::string& host);

// Keeps them with the helper, else in the file (mode 0600, other fields kept,
// replaced atomically). The result says where.
absl::StatusOr<std::string> SaveCredentials(const std::string& config_path,
                                            const std::string& host,
                                            const Credentials& credentials);

// False: there were none.
absl::StatusOr<bool> EraseCredentials(const std::string& config_path,
                                      const std::string& host);

}  // namespace bulkhead::cli

#endif  // BULKHEAD_CLI_CREDENTIALS_H_
