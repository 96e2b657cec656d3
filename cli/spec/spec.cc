#include "cli/spec/spec.h"

#include <dirent.h>
#include <linux/magic.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "cli/spec/seccomp.h"
#include "lib/base/status_macros.h"
#include "lib/os/fd.h"

namespace bulkhead::cli {
namespace {

using ::nlohmann::json;

constexpr int64_t kCpuPeriodMicros = 100'000;
constexpr int kHostDevicesMax = 4096;

json Mount(const std::string& type, const std::string& source,
           const std::string& target, const std::vector<std::string>& options) {
  return {{"destination", target},
          {"type", type},
          {"source", source},
          {"options", options}};
}

json Mounts(const SpecOptions& options) {
  const std::string sys_mode = options.privileged ? "rw" : "ro";
  json mounts = json::array();
  mounts.push_back(
      Mount("proc", "proc", "/proc", {"nosuid", "noexec", "nodev"}));
  mounts.push_back(Mount("tmpfs", "tmpfs", "/dev",
                         {"nosuid", "strictatime", "mode=755", "size=65536k"}));
  mounts.push_back(Mount("devpts", "devpts", "/dev/pts",
                         {"nosuid", "noexec", "newinstance", "ptmxmode=0666",
                          "mode=0620", "gid=5"}));
  mounts.push_back(
      Mount("sysfs", "sysfs", "/sys", {"nosuid", "noexec", "nodev", sys_mode}));
  mounts.push_back(Mount("cgroup", "cgroup", "/sys/fs/cgroup",
                         {"nosuid", "noexec", "nodev", "relatime", sys_mode}));
  mounts.push_back(
      Mount("mqueue", "mqueue", "/dev/mqueue", {"nosuid", "noexec", "nodev"}));
  mounts.push_back(Mount("tmpfs", "shm", "/dev/shm",
                         {"nosuid", "noexec", "nodev", "mode=1777",
                          absl::StrCat("size=", options.shm_bytes)}));
  for (const MountSpec& mount : options.mounts) {
    // The user's mount replaces ours at the same place.
    for (size_t i = 0; i < mounts.size(); ++i) {
      if (mounts[i]["destination"] == mount.target) {
        mounts.erase(i);
        break;
      }
    }
    mounts.push_back(
        Mount(mount.type, mount.source, mount.target, mount.options));
  }
  return mounts;
}

absl::StatusOr<json> DeviceAt(const std::string& host_path,
                              const std::string& container_path) {
  struct stat info {};
  if (::stat(host_path.c_str(), &info) != 0) {
    return absl::NotFoundError(absl::StrCat("no device ", host_path));
  }
  if (!S_ISCHR(info.st_mode) && !S_ISBLK(info.st_mode)) {
    return absl::InvalidArgumentError(
        absl::StrCat(host_path, " is not a device"));
  }
  return json{{"path", container_path},
              {"type", S_ISCHR(info.st_mode) ? "c" : "b"},
              {"major", major(info.st_rdev)},
              {"minor", minor(info.st_rdev)},
              {"fileMode", info.st_mode & 0777},
              {"uid", info.st_uid},
              {"gid", info.st_gid}};
}

// Everything in the host's /dev that is a device, for --privileged.
void AddHostDevices(const std::string& folder, json* devices) {
  DIR* dir = ::opendir(folder.c_str());
  if (dir == nullptr) return;
  while (const dirent* entry = ::readdir(dir)) {
    const std::string name = entry->d_name;
    if (name == "." || name == "..") continue;
    const std::string path = folder + "/" + name;
    if (entry->d_type == DT_DIR) {
      if (folder != "/dev" || (name != "pts" && name != "shm" &&
                               name != "mqueue" && name != "fd")) {
        AddHostDevices(path, devices);
      }
      continue;
    }
    if (entry->d_type != DT_CHR && entry->d_type != DT_BLK) continue;
    if (path == "/dev/console" || devices->size() >= kHostDevicesMax) continue;
    if (absl::StatusOr<json> device = DeviceAt(path, path); device.ok()) {
      devices->push_back(*device);
    }
  }
  ::closedir(dir);
}

json DeviceRule(bool allow, const std::string& type, const std::string& access,
                int64_t major_number = -1, int64_t minor_number = -1) {
  json rule = {{"allow", allow}, {"access", access}};
  if (!type.empty()) rule["type"] = type;
  if (major_number >= 0) rule["major"] = major_number;
  if (minor_number >= 0) rule["minor"] = minor_number;
  return rule;
}

json DefaultDeviceRules() {
  json rules = json::array();
  rules.push_back(DeviceRule(false, "", "rwm"));
  // Nodes may be made, not opened.
  rules.push_back(DeviceRule(true, "c", "m"));
  rules.push_back(DeviceRule(true, "b", "m"));
  const std::pair<int, int> kOpen[] = {
      {1, 3}, {1, 5}, {1, 7}, {1, 8},
      {1, 9},                             // null zero full random urandom
      {5, 0}, {5, 1}, {5, 2}, {136, -1},  // tty console ptmx pts
  };
  for (const auto& [major_number, minor_number] : kOpen) {
    rules.push_back(DeviceRule(true, "c", "rwm", major_number, minor_number));
  }
  return rules;
}

json Resources(const SpecOptions& options, json rules) {
  json resources = {{"devices", std::move(rules)}};
  if (options.memory_bytes > 0) {
    // Swap as much again, as Docker does.
    resources["memory"] = {
        {"limit", options.memory_bytes},
        {"swap", options.memory_swap_bytes != 0 ? options.memory_swap_bytes
                                                : options.memory_bytes * 2}};
  }
  if (!options.cpuset_cpus.empty()) {
    resources["cpu"]["cpus"] = options.cpuset_cpus;
  }
  if (options.cpus > 0) {
    resources["cpu"]["quota"] = static_cast<int64_t>(
        options.cpus * static_cast<double>(kCpuPeriodMicros));
    resources["cpu"]["period"] = kCpuPeriodMicros;
  }
  if (options.cpu_shares > 0) resources["cpu"]["shares"] = options.cpu_shares;
  if (options.pids_max != 0) resources["pids"] = {{"limit", options.pids_max}};
  return resources;
}

json Process(const SpecOptions& options,
             const std::vector<std::string>& capabilities) {
  json user = {{"uid", options.user.uid}, {"gid", options.user.gid}};
  if (!options.user.additional_gids.empty()) {
    user["additionalGids"] = options.user.additional_gids;
  }
  // What execve would leave to an unprivileged user: only the bounding set.
  const std::vector<std::string> held =
      options.user.uid == 0 ? capabilities : std::vector<std::string>();
  json process = {{"terminal", options.terminal},
                  {"user", user},
                  {"args", options.args},
                  {"env", options.env},
                  {"cwd", options.cwd},
                  {"noNewPrivileges", options.no_new_privileges},
                  {"capabilities",
                   {{"bounding", capabilities},
                    {"effective", held},
                    {"permitted", held},
                    {"inheritable", json::array()},
                    {"ambient", json::array()}}}};
  if (options.oom_score_set) process["oomScoreAdj"] = options.oom_score;
  if (options.terminal && options.rows > 0) {
    process["consoleSize"] = {{"height", options.rows},
                              {"width", options.columns}};
  }
  for (const UlimitSpec& limit : options.ulimits) {
    process["rlimits"].push_back(
        {{"type", limit.type}, {"soft", limit.soft}, {"hard", limit.hard}});
  }
  return process;
}

void AddNamespace(const char* type, const std::string& choice,
                  json* namespaces) {
  if (choice == "host") return;
  json entry = {{"type", type}};
  if (!choice.empty()) entry["path"] = choice;
  namespaces->push_back(std::move(entry));
}

bool InBoundingSet(size_t number) {
  return ::prctl(PR_CAPBSET_READ, number, 0, 0, 0) == 1;
}

}  // namespace

bool HostHasCgroup2() {
  struct statfs info {};
  return ::statfs("/sys/fs/cgroup", &info) == 0 &&
         info.f_type == CGROUP2_SUPER_MAGIC;
}

const std::vector<std::string>& DefaultCapabilities() {
  static const auto* kept = new std::vector<std::string>{
      "CAP_CHOWN",       "CAP_DAC_OVERRIDE", "CAP_FOWNER",
      "CAP_FSETID",      "CAP_KILL",         "CAP_SETGID",
      "CAP_SETUID",      "CAP_SETPCAP",      "CAP_NET_BIND_SERVICE",
      "CAP_NET_RAW",     "CAP_SYS_CHROOT",   "CAP_MKNOD",
      "CAP_AUDIT_WRITE", "CAP_SETFCAP"};
  return *kept;
}

absl::StatusOr<std::vector<std::string>> Capabilities(
    bool privileged, const std::vector<std::string>& add,
    const std::vector<std::string>& drop) {
  std::set<std::string> chosen(DefaultCapabilities().begin(),
                               DefaultCapabilities().end());
  // "All" means all that this machine can give.
  std::set<std::string> all;
  for (size_t i = 0; i < AllCapabilities().size(); ++i) {
    if (InBoundingSet(i)) all.insert(AllCapabilities()[i]);
  }
  if (privileged) chosen = all;
  std::set<std::string> added;
  for (const std::string& text : add) {
    ASSIGN_OR_RETURN(const std::string name, ParseCapability(text));
    if (name == "ALL") {
      chosen.insert(all.begin(), all.end());
    } else {
      added.insert(name);
    }
  }
  for (const std::string& text : drop) {
    ASSIGN_OR_RETURN(const std::string name, ParseCapability(text));
    if (name == "ALL") {
      chosen.clear();
    } else {
      chosen.erase(name);
    }
  }
  chosen.insert(added.begin(), added.end());
  std::vector<std::string> ordered;
  for (const std::string& name : AllCapabilities()) {
    if (chosen.contains(name)) ordered.push_back(name);
  }
  return ordered;
}

absl::StatusOr<json> MakeSpec(const SpecOptions& options) {
  ASSIGN_OR_RETURN(
      const std::vector<std::string> capabilities,
      Capabilities(options.privileged, options.cap_add, options.cap_drop));
  json spec = {{"ociVersion", "1.0.2"},
               {"process", Process(options, capabilities)},
               {"root", {{"path", "rootfs"}, {"readonly", options.read_only}}},
               {"hostname", options.hostname},
               {"mounts", Mounts(options)}};
  if (!options.annotations.empty()) spec["annotations"] = options.annotations;

  json namespaces = json::array({{{"type", "mount"}}});
  AddNamespace("pid", options.pid_ns, &namespaces);
  AddNamespace("ipc", options.ipc_ns, &namespaces);
  AddNamespace("uts", options.uts_ns, &namespaces);
  AddNamespace("network", options.host_network ? "host" : options.network_ns,
               &namespaces);
  // Nobody may rename the host.
  if (options.uts_ns == "host") spec.erase("hostname");
  if (options.user_ns_size > 0) namespaces.push_back({{"type", "user"}});
  if (options.cgroup2 && !options.privileged) {
    namespaces.push_back({{"type", "cgroup"}});
  }

  json devices = json::array();
  json rules = DefaultDeviceRules();
  if (options.privileged) {
    rules = json::array({DeviceRule(true, "", "rwm")});
    AddHostDevices("/dev", &devices);
  }
  for (const DeviceSpec& wanted : options.devices) {
    ASSIGN_OR_RETURN(json device,
                     DeviceAt(wanted.host_path, wanted.container_path));
    rules.push_back(DeviceRule(true, device["type"], wanted.access,
                               device["major"], device["minor"]));
    devices.push_back(std::move(device));
  }

  json linux_part = {{"cgroupsPath", "/" + options.ns + "/" + options.id},
                     {"namespaces", namespaces},
                     {"resources", Resources(options, std::move(rules))}};
  if (options.user_ns_size > 0) {
    const json map = {{"containerID", 0},
                      {"hostID", options.user_ns_base},
                      {"size", options.user_ns_size}};
    linux_part["uidMappings"] = json::array({map});
    linux_part["gidMappings"] = json::array({map});
  }
  if (!devices.empty()) linux_part["devices"] = devices;
  if (!options.sysctls.empty()) linux_part["sysctl"] = options.sysctls;
  if (!options.privileged) {
    linux_part["maskedPaths"] = {"/proc/acpi",
                                 "/proc/asound",
                                 "/proc/interrupts",
                                 "/proc/kcore",
                                 "/proc/keys",
                                 "/proc/latency_stats",
                                 "/proc/sched_debug",
                                 "/proc/scsi",
                                 "/proc/timer_list",
                                 "/proc/timer_stats",
                                 "/sys/devices/virtual/powercap",
                                 "/sys/firmware"};
    linux_part["readonlyPaths"] = {"/proc/bus", "/proc/fs", "/proc/irq",
                                   "/proc/sys", "/proc/sysrq-trigger"};
    if (options.seccomp) {
      linux_part["seccomp"] = DefaultSeccomp(
          std::set<std::string>(capabilities.begin(), capabilities.end()));
    }
  }
  spec["linux"] = std::move(linux_part);
  return spec;
}

}  // namespace bulkhead::cli
