// The OCI runtime spec of a container, from what the image says and what the
// user asked for. As safe as Docker's default: fourteen capabilities, a
// filter of system calls, masked and read-only parts of /proc and /sys, a
// closed list of devices, and its own namespaces.
#ifndef BULKHEAD_CLI_SPEC_SPEC_H_
#define BULKHEAD_CLI_SPEC_SPEC_H_

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cli/spec/options.h"
#include "cli/spec/user.h"

namespace bulkhead::cli {

inline constexpr char kSpecTypeUrl[] =
    "types.containerd.io/opencontainers/runtime-spec/1/Spec";
inline constexpr char kProcessTypeUrl[] =
    "types.containerd.io/opencontainers/runtime-spec/1/Process";

// What decides the spec beside the image; every field has Docker's meaning.
struct SpecOptions {
  std::string ns;
  std::string id;
  std::vector<std::string> args;  // Never empty.
  std::vector<std::string> env;   // Complete.
  std::string cwd = "/";
  User user;
  std::string hostname;
  bool terminal = false;
  uint16_t rows = 0;  // 0: unknown.
  uint16_t columns = 0;

  bool host_network = false;
  // Empty: a new one; "host": the host's; else the path of one to join.
  std::string network_ns;  // With host_network the host's, too.
  std::string pid_ns;
  std::string ipc_ns;
  std::string uts_ns;
  // A user namespace of its own, if the size is not 0: the container's ids from
  // 0 are the host's from `user_ns_base`.
  uint32_t user_ns_base = 0;
  uint32_t user_ns_size = 0;
  std::map<std::string, std::string> sysctls;
  bool privileged = false;
  bool read_only = false;
  bool no_new_privileges = false;
  bool seccomp = true;
  std::vector<std::string> cap_add;
  std::vector<std::string> cap_drop;
  std::vector<MountSpec> mounts;
  std::vector<DeviceSpec> devices;
  std::vector<UlimitSpec> ulimits;
  int64_t shm_bytes = 64 << 20;
  int64_t memory_bytes = 0;       // 0: no limit.
  int64_t memory_swap_bytes = 0;  // With memory; 0: twice it, -1: no limit.
  std::string cpuset_cpus;
  bool oom_score_set = false;
  int64_t oom_score = 0;
  double cpus = 0;
  int64_t cpu_shares = 0;
  int64_t pids_max = 0;
  std::map<std::string, std::string> annotations;

  bool cgroup2 = false;  // Of the host.
};

// True if the host has one cgroup v2 tree.
bool HostHasCgroup2();

// Docker's fourteen.
const std::vector<std::string>& DefaultCapabilities();
// The effective list after --privileged, --cap-add and --cap-drop, in the
// order of AllCapabilities(). kInvalidArgument: an unknown name.
absl::StatusOr<std::vector<std::string>> Capabilities(
    bool privileged, const std::vector<std::string>& add,
    const std::vector<std::string>& drop);

// Errors: kInvalidArgument: an option is wrong. kNotFound: a device or bind
// source is missing.
absl::StatusOr<nlohmann::json> MakeSpec(const SpecOptions& options);

}  // namespace bulkhead::cli

#endif  // BULKHEAD_CLI_SPEC_SPEC_H_
