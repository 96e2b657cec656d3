// The cgroup of a task: its figures, its processes, its OOM kills.
#ifndef BULKHEAD_SERVICES_RUNTIME_SHIM_CGROUP_H_
#define BULKHEAD_SERVICES_RUNTIME_SHIM_CGROUP_H_

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "services/runtime/shim/loop.h"

namespace bulkhead::shim {

constexpr char kCgroupRoot[] = "/sys/fs/cgroup";

// Where one process is in the hierarchies below a root. A hybrid machine
// counts as v1, as containerd has it.
class Cgroup {
 public:
  // `text` is /proc/<pid>/cgroup. Does not look at the file system.
  static Cgroup Parse(const std::string& root, bool unified,
                      const std::string& text);
  // Of a live process, on this machine.
  // Errors: kNotFound: no such process.
  static absl::StatusOr<Cgroup> OfPid(pid_t pid);

  bool unified() const { return unified_; }
  // The folder of a v1 controller, or of the v2 group for any name; empty when
  // there is none.
  std::string Folder(const std::string& controller) const;

  // An encoded google.protobuf.Any of io.containerd.cgroups.v1.Metrics or
  // v2.Metrics. Files that are missing leave their figures out.
  // Errors: kNotFound: the group is gone or the process has none of its own.
  absl::StatusOr<std::string> Metrics() const;

  // Every process in the group and below it.
  absl::StatusOr<std::vector<pid_t>> Pids() const;

  // v2: lets every controller that the root has reach the siblings of this
  // group, so that its figures and limits exist whoever made it. Best effort:
  // a delegated tree may refuse some. Nothing on v1.
  void EnableControllers() const;

  // How often the kernel killed here for lack of memory (v2).
  uint64_t OomKills() const;

 private:
  std::string root_;
  bool unified_ = false;
  std::map<std::string, std::string> paths_;  // Controller; "" for v2.
};

// Moves a process into the group `path` of the hierarchies below `root`: on v1
// into each that has it.
// Errors: kNotFound: no hierarchy has the group.
absl::Status JoinCgroup(const std::string& root, bool unified,
                        const std::string& path, pid_t pid);
// Whether /sys/fs/cgroup is v2 throughout.
bool IsUnified();

// Calls back for every OOM kill in a group, for as long as it lives.
class OomWatcher {
 public:
  // No memory controller, no callbacks.
  OomWatcher(Loop* loop, Cgroup cgroup, std::function<void()> on_oom);
  ~OomWatcher();
  // Looks again: for the last kill before an exit is told.
  void Check();

 private:
  Loop* loop_;
  Cgroup cgroup_;
  std::function<void()> on_oom_;
  os::UniqueFd fd_;
  uint64_t kills_ = 0;
};

}  // namespace bulkhead::shim

#endif  // BULKHEAD_SERVICES_RUNTIME_SHIM_CGROUP_H_
