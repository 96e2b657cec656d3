// Has the kernel ready when an OCI runtime puts a process into its cgroups.
#ifndef BULKHEAD_SERVICES_RUNTIME_CGROUP_WARMER_H_
#define BULKHEAD_SERVICES_RUNTIME_CGROUP_WARMER_H_

#include <sys/types.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>
#include <thread>

namespace bulkhead::runtime {

// Moving a process between cgroups takes a lock that all CPUs have to know of
// before it may be taken: the first move waits for that (10-30 ms, on a machine
// with nothing else to do), and those within some milliseconds after another do
// not. So when a container or an exec is on its way, a thread of this object
// "moves" this process to where it is, again and again for a while: the waiting
// is over before the OCI runtime's move. With `favordynmods` the kernel does
// the like by itself, for good.
//
// Thread-safe. Without cgroups, or without the right to, nothing happens.
class CgroupWarmer {
 public:
  CgroupWarmer();
  ~CgroupWarmer();

  // Returns at once.
  void Warm();

  // How many moves there have been.
  int64_t moves() const;

 private:
  void Run();

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::chrono::steady_clock::time_point until_;
  int64_t moves_ = 0;
  bool stopping_ = false;
  std::thread thread_;  // Last: it uses everything above.
};

// The cgroup.procs of a cgroup that this process is in, or "" if there is none
// to be found. Blocks on /proc and /sys.
std::string OwnCgroupProcs();

// Whether the limit on processes of the cgroup that `pid` is in leaves room for
// the threads of an OCI runtime. runc moves itself in while it starts them:
// with less room, being quick about it makes its exec fail. Unknown: true.
bool HasRoomForRuntime(pid_t pid);

}  // namespace bulkhead::runtime

#endif  // BULKHEAD_SERVICES_RUNTIME_CGROUP_WARMER_H_
