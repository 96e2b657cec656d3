#include "cli/create_more.h"

#include <unistd.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "cli/spec/options.h"
#include "lib/base/status_macros.h"
#include "lib/os/fd.h"

namespace bulkhead::cli {
namespace {

constexpr char kInitTarget[] = "/sbin/docker-init";
constexpr const char* kInits[] = {"/usr/bin/docker-init",
                                  "/usr/libexec/docker/docker-init",
                                  "/usr/bin/tini-static", "/usr/bin/tini"};
constexpr char kOther[] = "container:";
// What --userns remap takes where /etc/subuid says nothing.
constexpr uint32_t kUserIdsBase = 165536;
constexpr uint32_t kUserIdsMin = 65536;
constexpr size_t kSubIdBytesMax = 1 << 20;

// The process whose namespaces are joined.
absl::StatusOr<uint32_t> PidOf(Client& client, const std::string& name,
                               std::string* id) {
  ASSIGN_OR_RETURN(const ContainerRecord record, FindContainer(client, name));
  ASSIGN_OR_RETURN(const std::optional<TaskRecord> task,
                   GetTask(client, record.id()));
  if (!task.has_value() || !IsAlive(*task)) {
    return absl::FailedPreconditionError(
        absl::StrCat("container ", name,
                     " is not running, so there is nothing to join — "
                     "`bulkhead start ",
                     name, "` first"));
  }
  *id = record.id();
  return task->pid();
}

// "", "private", "host" or "container:NAME" into the form SpecOptions has.
absl::Status Join(Client& client, const char* flag, const char* file,
                  const std::string& text, std::string* ns, uint32_t* pid,
                  std::string* id) {
  if (text.empty() || text == "private") return absl::OkStatus();
  if (text == "host") {
    *ns = "host";
    return absl::OkStatus();
  }
  if (!absl::StartsWith(text, kOther)) {
    return absl::InvalidArgumentError(
        absl::StrCat(flag, " '", text, "': private, host or container:NAME"));
  }
  ASSIGN_OR_RETURN(*pid, PidOf(client, text.substr(sizeof(kOther) - 1), id));
  *ns = absl::StrCat("/proc/", *pid, "/ns/", file);
  return absl::OkStatus();
}

// The first range of one of `users` in /etc/subuid, if it is in /etc/subgid
// too.
void FindSubordinateIds(uint32_t* base, uint32_t* size) {
  const std::string uids =
      os::ReadFile("/etc/subuid", kSubIdBytesMax).value_or("");
  const std::string gids =
      os::ReadFile("/etc/subgid", kSubIdBytesMax).value_or("");
  for (const char* user : {"bulkhead", "dockremap", "containers"}) {
    for (const std::string& line :
         std::vector<std::string>(absl::StrSplit(uids, '\n'))) {
      const std::vector<std::string> parts = absl::StrSplit(line, ':');
      uint32_t first = 0;
      uint32_t count = 0;
      if (parts.size() == 3 && parts[0] == user &&
          absl::SimpleAtoi(parts[1], &first) &&
          absl::SimpleAtoi(parts[2], &count) && count >= kUserIdsMin &&
          absl::StrContains(gids, line)) {
        *base = first;
        *size = count;
        return;
      }
    }
  }
}

absl::Status AddUserNamespace(const RunOptions& options, SpecOptions* spec) {
  const std::string& text = options.userns;
  if (text.empty() || text == "host") return absl::OkStatus();
  const std::vector<std::string> parts = absl::StrSplit(text, ':');
  spec->user_ns_base = kUserIdsBase;
  spec->user_ns_size = kUserIdsMin;
  if (parts.size() == 1) {
    FindSubordinateIds(&spec->user_ns_base, &spec->user_ns_size);
  }
  if (parts[0] != "remap" || parts.size() > 3 ||
      (parts.size() > 1 && (!absl::SimpleAtoi(parts[1], &spec->user_ns_base) ||
                            spec->user_ns_base == 0)) ||
      (parts.size() > 2 && (!absl::SimpleAtoi(parts[2], &spec->user_ns_size) ||
                            spec->user_ns_size == 0)) ||
      spec->user_ns_base > UINT32_MAX - spec->user_ns_size) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--userns '", text, "': host, remap or remap:FIRST-ID[:COUNT]"));
  }
  // Who owns the others' namespaces is another user namespace.
  if (spec->host_network || !spec->network_ns.empty() ||
      !spec->pid_ns.empty() || !spec->ipc_ns.empty() || options.privileged) {
    return absl::InvalidArgumentError(
        "--userns remap goes with namespaces of the container's own, and not "
        "with --privileged");
  }
  return absl::OkStatus();
}

absl::Status AddInit(SpecOptions* spec) {
  for (const char* path : kInits) {
    if (::access(path, X_OK) != 0) continue;
    spec->mounts.push_back(
        {"bind", path, kInitTarget, {"bind", "ro", "rprivate"}, false});
    spec->args.insert(spec->args.begin(), {kInitTarget, "--"});
    return absl::OkStatus();
  }
  return absl::NotFoundError(
      "--init: this machine has no docker-init and no tini — install tini");
}

absl::Status AddLimits(const RunOptions& options, SpecOptions* spec) {
  if (!options.memory_swap.empty()) {
    if (spec->memory_bytes == 0) {
      return absl::InvalidArgumentError("--memory-swap needs --memory");
    }
    if (options.memory_swap == "-1") {
      spec->memory_swap_bytes = -1;
    } else {
      ASSIGN_OR_RETURN(spec->memory_swap_bytes,
                       ParseBytes(options.memory_swap));
      if (spec->memory_swap_bytes < spec->memory_bytes) {
        return absl::InvalidArgumentError(
            "--memory-swap counts the memory, too: at least --memory");
      }
    }
  }
  if (options.cpuset_cpus.find_first_not_of("0123456789,-") !=
      std::string::npos) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--cpuset-cpus '", options.cpuset_cpus, "': a list such as 0-2,4"));
  }
  spec->cpuset_cpus = options.cpuset_cpus;
  if (!options.oom_score.empty()) {
    spec->oom_score_set = true;
    if (!absl::SimpleAtoi(options.oom_score, &spec->oom_score) ||
        spec->oom_score < -1000 || spec->oom_score > 1000) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--oom-score-adj '", options.oom_score, "': -1000 to 1000"));
    }
  }
  for (const std::string& text : options.sysctls) {
    const auto [key, value] = SplitPair(text);
    if (key.empty() || value.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("--sysctl '", text, "': KEY=VALUE"));
    }
    const bool is_net = absl::StartsWith(key, "net.");
    const bool is_ipc = absl::StartsWith(key, "kernel.shm") ||
                        absl::StartsWith(key, "kernel.msg") ||
                        key == "kernel.sem" ||
                        absl::StartsWith(key, "fs.mqueue.");
    const bool is_uts = key == "kernel.domainname" || key == "kernel.hostname";
    // What is not the container's own would be the host's.
    if (!(is_net && !spec->host_network && spec->network_ns.empty()) &&
        !(is_ipc && spec->ipc_ns.empty()) &&
        !(is_uts && spec->uts_ns.empty())) {
      return absl::InvalidArgumentError(
          absl::StrCat("--sysctl '", key,
                       "': not a parameter of the container's own namespaces"));
    }
    spec->sysctls[key] = value;
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status AddRuntimeOptions(Client& client, const RunOptions& options,
                               SpecOptions* spec, std::string* files_of) {
  uint32_t pid = 0;
  std::string id;
  if (absl::StartsWith(options.network, kOther)) {
    RETURN_IF_ERROR(Join(client, "--network", "net", options.network,
                         &spec->network_ns, &pid, files_of));
  }
  RETURN_IF_ERROR(
      Join(client, "--pid", "pid", options.pid, &spec->pid_ns, &pid, &id));
  RETURN_IF_ERROR(
      Join(client, "--ipc", "ipc", options.ipc, &spec->ipc_ns, &pid, &id));
  if (!spec->ipc_ns.empty()) {
    // POSIX shared memory and queues are files: share them, too.
    const std::string dev = spec->ipc_ns == "host"
                                ? "/dev"
                                : absl::StrCat("/proc/", pid, "/root/dev");
    for (const char* name : {"/shm", "/mqueue"}) {
      if (::access((dev + name).c_str(), F_OK) != 0) continue;
      spec->mounts.push_back({"bind",
                              dev + name,
                              absl::StrCat("/dev", name),
                              {"rbind", "rprivate", "rw"},
                              false});
    }
  }
  if (options.uts != "" && options.uts != "private" && options.uts != "host") {
    return absl::InvalidArgumentError(
        absl::StrCat("--uts '", options.uts, "': host"));
  }
  if (options.uts == "host") {
    if (!options.hostname.empty()) {
      return absl::InvalidArgumentError("--hostname would rename the host");
    }
    spec->uts_ns = "host";
  }
  RETURN_IF_ERROR(AddUserNamespace(options, spec));
  RETURN_IF_ERROR(AddLimits(options, spec));
  return options.init ? AddInit(spec) : absl::OkStatus();
}

absl::Status AddRestartLabels(const RunOptions& options,
                              const std::string& log_uri,
                              std::map<std::string, std::string>* labels) {
  const std::string& policy = options.restart;
  if (policy.empty() || policy == "no") return absl::OkStatus();
  int64_t most = 0;
  const bool counted = absl::StartsWith(policy, "on-failure:") &&
                       absl::SimpleAtoi(policy.substr(11), &most) && most > 0;
  if (policy != "always" && policy != "unless-stopped" &&
      policy != "on-failure" && !counted) {
    return absl::InvalidArgumentError(
        absl::StrCat("--restart '", policy,
                     "': no, always, unless-stopped or on-failure[:N]"));
  }
  if (options.remove) {
    return absl::InvalidArgumentError("--restart and --rm contradict");
  }
  (*labels)[kLabelRestartPolicy] = policy;
  (*labels)[kLabelRestartLog] = log_uri;
  return absl::OkStatus();
}

absl::StatusOr<std::string> ParseLogOptions(
    const std::vector<std::string>& options) {
  std::vector<std::string> parts;
  for (const std::string& text : options) {
    const auto [key, value] = SplitPair(text);
    int64_t number = 0;
    if (key == "max-size") {
      ASSIGN_OR_RETURN(number, ParseBytes(value));
    } else if (key != "max-file") {
      return absl::InvalidArgumentError(
          absl::StrCat("--log-opt '", text, "': max-size=N or max-file=N"));
    } else if (!absl::SimpleAtoi(value, &number)) {
      number = 0;
    }
    if (number <= 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("--log-opt '", text, "': a positive number"));
    }
    parts.push_back(absl::StrCat(key, "=", number));
  }
  return absl::StrJoin(parts, "&");
}

absl::Status ResolveVolumes(Client& client,
                            const std::vector<std::string>& image_volumes,
                            std::vector<MountSpec>* mounts,
                            std::vector<NewVolume>* made,
                            std::vector<std::string>* names) {
  for (const std::string& target : image_volumes) {
    if (target.size() < 2 || target[0] != '/') continue;
    const bool taken =
        std::any_of(mounts->begin(), mounts->end(),
                    [&](const MountSpec& m) { return m.target == target; });
    if (!taken) {
      mounts->push_back({"volume", "", target, {"rbind", "rw", "rprivate"}});
    }
  }
  std::optional<Volumes> volumes;
  for (MountSpec& mount : *mounts) {
    if (mount.type != "volume") continue;
    if (!volumes.has_value()) volumes.emplace(client);
    bool is_new = false;
    ASSIGN_OR_RETURN(const Volume volume,
                     volumes->Create(mount.source, {}, &is_new));
    if (is_new) made->push_back({volume, mount.target});
    names->push_back(volume.name);
    mount.type = "bind";
    mount.source = volume.path;
  }
  return absl::OkStatus();
}

}  // namespace bulkhead::cli
