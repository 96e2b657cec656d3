// The process that keeps a pod's namespaces while containers come and go.
#ifndef BULKHEAD_SERVICES_RUNTIME_SHIM_POD_H_
#define BULKHEAD_SERVICES_RUNTIME_SHIM_POD_H_

#include <sys/types.h>

#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "services/runtime/shim/loop.h"

namespace bulkhead::shim {

// Which namespaces a pod has of its own; the others are the shim's.
struct PodConfig {
  std::string netns_path;  // Empty: the shim's own network.
  bool new_ipc = true;
  bool new_uts = true;
  bool new_pid = false;
  std::string hostname;       // Only with new_uts.
  std::string cgroup_parent;  // Empty: unknown.
  std::vector<std::pair<std::string, std::string>> sysctls;
};

// From the options of a CreateSandbox call: an encoded google.protobuf.Any of a
// CRI PodSandboxConfig, or anything else, which is left alone.
// Errors: kInvalidArgument: malformed. kUnimplemented: a user namespace.
absl::StatusOr<PodConfig> ParsePodConfig(std::string_view options_any);

// Whether a sysctl belongs to a namespace that this pod has of its own, so that
// setting it reaches nobody else.
bool SysctlIsOfPod(const PodConfig& config, const std::string& name);

// Starts the process; calls `done` later, once, with its number. It is a child
// of this one, dies with it, has no privileges, no files and an empty root.
// Errors: as the failed system call says; kInvalidArgument: a sysctl of others.
void StartPod(Loop* loop, const PodConfig& config,
              std::function<void(absl::StatusOr<pid_t>)> done);

// The helper that StartPod runs this program as ("pod").
absl::Status RunPod();

}  // namespace bulkhead::shim

#endif  // BULKHEAD_SERVICES_RUNTIME_SHIM_POD_H_
