// Parts of making a container that look beyond its image: other containers,
// the host's init, volumes, restart policies.
#ifndef BULKHEAD_CLI_CREATE_MORE_H_
#define BULKHEAD_CLI_CREATE_MORE_H_

#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "cli/client.h"
#include "cli/run_options.h"
#include "cli/spec/spec.h"
#include "cli/volumes.h"

namespace bulkhead::cli {

// Namespaces (those of other containers by their process), sysctls, limits and
// the init of `options` into `spec`. `files_of` becomes the id of the container
// whose network, and so hosts and resolv.conf, is shared; else it stays empty.
// Errors: kInvalidArgument. kNotFound: no such container, or no init here.
//   kFailedPrecondition: the container does not run.
absl::Status AddRuntimeOptions(Client& client, const RunOptions& options,
                               SpecOptions* spec, std::string* files_of);

// "no", "always", "unless-stopped", "on-failure[:N]" into labels for whoever
// restarts it. kInvalidArgument.
absl::Status AddRestartLabels(const RunOptions& options,
                              const std::string& log_uri,
                              std::map<std::string, std::string>* labels);

// "max-size=10m", "max-file=3" as the shim's log URI has them.
// kInvalidArgument.
absl::StatusOr<std::string> ParseLogOptions(
    const std::vector<std::string>& options);

struct NewVolume {
  Volume volume;
  std::string target;
};

// Turns mounts of type "volume" into bind mounts, makes volumes that are not
// there, and adds anonymous ones for `image_volumes` that nothing is mounted
// on. `made` gets the new ones, `names` all of them.
absl::Status ResolveVolumes(Client& client,
                            const std::vector<std::string>& image_volumes,
                            std::vector<MountSpec>* mounts,
                            std::vector<NewVolume>* made,
                            std::vector<std::string>* names);

}  // namespace bulkhead::cli

#endif  // BULKHEAD_CLI_CREATE_MORE_H_
