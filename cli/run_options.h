// The flags of `run` and `create`, and what they become.
#ifndef BULKHEAD_CLI_RUN_OPTIONS_H_
#define BULKHEAD_CLI_RUN_OPTIONS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cli/client.h"
#include "cli/container.h"
#include "proto/containerd/types/mount.pb.h"

namespace bulkhead::cli {

struct RunOptions {
  bool detach = false;
  bool interactive = false;
  bool tty = false;
  bool remove = false;
  bool privileged = false;
  bool read_only = false;
  bool plain_http = false;
  std::string name;
  std::vector<std::string> env;
  std::vector<std::string> env_files;
  std::string workdir;
  std::string user;
  std::string entrypoint;
  bool entrypoint_set = false;
  std::vector<std::string> mounts;
  std::vector<std::string> volumes;
  std::vector<std::string> tmpfs;
  std::string memory;
  double cpus = 0;
  int64_t cpu_shares = 0;
  int64_t pids_max = 0;
  std::vector<std::string> cap_add;
  std::vector<std::string> cap_drop;
  std::string network = "none";
  std::string hostname;
  std::vector<std::string> labels;
  std::string snapshotter;
  std::string runtime;
  std::string pull = "missing";
  std::string platform;
  std::vector<std::string> ulimits;
  std::vector<std::string> security;
  std::string stop_signal;
  std::vector<std::string> devices;
  std::string shm_size;
  std::string detach_keys = "ctrl-p,ctrl-q";
  std::string cid_file;
  std::string restart;  // no, always, on-failure[:N], unless-stopped
  bool init = false;
  std::string pid;  // "", "host", "container:NAME"
  std::string ipc;  // "", "private", "host", "container:NAME"
  std::string uts;
  std::string userns;
  std::vector<std::string> sysctls;
  std::vector<std::string> log_options;
  std::string memory_swap;
  std::string cpuset_cpus;
  std::string oom_score;
  std::vector<std::string> groups;
  bool env_host = false;
  double stop_timeout = -1;  // Seconds; negative: the default.
  std::vector<std::string> dns;
  std::vector<std::string> dns_search;
  std::vector<std::string> rest;  // IMAGE [COMMAND [ARG...]]
};

using Mounts = google::protobuf::RepeatedPtrField<containerd::types::Mount>;

struct NewContainer {
  ContainerRecord record;
  Mounts mounts;  // Of its snapshot.
};

// Makes record and snapshot. Pulls the image if `pull` says so. On error
// nothing is left behind.
absl::StatusOr<NewContainer> CreateContainer(Client& client,
                                             const RunOptions& options);

// Creates the container's task and starts it, its output going to the log;
// with the auto-remove label also a process that removes it in the end. Asks
// for the snapshot's mounts if `mounts` is null.
absl::Status StartDetached(Client& client, const ContainerRecord& record,
                           const Mounts* mounts = nullptr);

// The shim's name and options for --runtime: "" for the default, "crun" or
// "/usr/bin/crun" for an OCI runtime under our shim, "io.containerd.x.v1".
struct RuntimeChoice {
  std::string name;
  std::string binary;  // Of the OCI runtime; empty: the shim's default.
};
RuntimeChoice ChooseRuntime(Client& client, const std::string& text);

// The namespace's default snapshotter, else "overlayfs".
std::string DefaultSnapshotter(Client& client, const std::string& text);

}  // namespace bulkhead::cli

#endif  // BULKHEAD_CLI_RUN_OPTIONS_H_
