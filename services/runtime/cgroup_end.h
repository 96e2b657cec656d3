// The cgroup of a container whose shim can no longer be asked.
#ifndef BULKHEAD_SERVICES_RUNTIME_CGROUP_END_H_
#define BULKHEAD_SERVICES_RUNTIME_CGROUP_END_H_

#include <string>
#include <vector>

#include "absl/time/time.h"

namespace bulkhead::runtime {

// `linux.cgroupsPath` of a spec; empty if it has none that is a plain path of
// its own below the root (systemd's form, "/", "..").
std::string CgroupPathOf(const std::string& spec_json);

// The folders of that cgroup in each hierarchy below `mount` that has it.
std::vector<std::string> CgroupFolders(const std::string& path,
                                       const std::string& mount);

// Sends `signal` to every process in the cgroup and below it. False: there is
// none.
bool SignalCgroup(const std::string& path, int signal,
                  const std::string& mount = "/sys/fs/cgroup");

// SIGKILL to all until none is left, then removes the folders. Blocks for at
// most `timeout`. False: something is left.
bool EndCgroup(const std::string& path, absl::Duration timeout,
               const std::string& mount = "/sys/fs/cgroup");

}  // namespace bulkhead::runtime

#endif  // BULKHEAD_SERVICES_RUNTIME_CGROUP_END_H_
