#include "services/runtime/cgroup_warmer.h"

#include <fcntl.h>
#include <unistd.h>

#include <functional>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "lib/os/fd.h"

namespace bulkhead::runtime {
namespace {

using Clock = std::chrono::steady_clock;

// A container's processes are moved 15 to 25 ms after its Create has come.
constexpr std::chrono::milliseconds kWarm(40);
// Shorter than what the kernel stays ready for.
constexpr std::chrono::milliseconds kPause(6);
constexpr size_t kProcsBytesMax = 1 << 20;
constexpr int64_t kRuntimeThreads = 32;

// Whether a cgroup.procs names this process.
bool NamesUs(const std::string& path) {
  const std::string text = os::ReadFile(path, kProcsBytesMax).value_or("");
  const std::string us = absl::StrCat(::getpid());
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    if (line == us) return true;
  }
  return false;
}

// Calls `visit` with the controllers ("" is cgroup v2) and the folder of each
// cgroup of the process `pid`, without those that have but a name.
void ForEachCgroup(const std::string& pid,
                   const std::function<void(const std::string& controllers,
                                            const std::string& path)>& visit) {
  const std::string text =
      os::ReadFile(absl::StrCat("/proc/", pid, "/cgroup")).value_or("");
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    // hierarchy:controllers:path
    const std::vector<std::string> parts =
        absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (parts.size() != 3 || absl::StartsWith(parts[1], "name=")) continue;
    const std::string folder =
        parts[1].empty() ? "" : absl::StrCat("/", parts[1]);
    visit(parts[1], absl::StrCat("/sys/fs/cgroup", folder, parts[2]));
  }
}

}  // namespace

std::string OwnCgroupProcs() {
  std::string found;
  ForEachCgroup("self", [&found](const std::string&, const std::string& path) {
    const std::string procs = path + "/cgroup.procs";
    if (found.empty() && ::access(procs.c_str(), W_OK) == 0 && NamesUs(procs)) {
      found = procs;
    }
  });
  return found;
}

bool HasRoomForRuntime(pid_t pid) {
  bool room = true;
  ForEachCgroup(absl::StrCat(pid), [&room](const std::string& controllers,
                                           const std::string& path) {
    if (!controllers.empty() && controllers != "pids") return;
    int64_t most = 0;
    int64_t now = 0;
    if (absl::SimpleAtoi(os::ReadFile(path + "/pids.max").value_or(""),
                         &most) &&
        absl::SimpleAtoi(os::ReadFile(path + "/pids.current").value_or(""),
                         &now)) {
      room = room && most - now >= kRuntimeThreads;
    }
  });
  return room;
}

CgroupWarmer::CgroupWarmer() : thread_([this] { Run(); }) {}

CgroupWarmer::~CgroupWarmer() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void CgroupWarmer::Warm() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    until_ = Clock::now() + kWarm;
  }
  changed_.notify_all();
}

int64_t CgroupWarmer::moves() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return moves_;
}

void CgroupWarmer::Run() {
  const std::string us = absl::StrCat(::getpid());
  std::unique_lock<std::mutex> lock(mutex_);
  while (!stopping_) {
    if (Clock::now() >= until_) {
      changed_.wait(lock);
      continue;
    }
    lock.unlock();
    // Looked up each time: who moves this process elsewhere means it to stay.
    const absl::StatusOr<os::UniqueFd> procs =
        os::Open(OwnCgroupProcs(), O_WRONLY);
    lock.lock();
    while (!stopping_ && Clock::now() < until_) {
      lock.unlock();
      const bool moved =
          procs.ok() && os::WriteFull(procs->get(), us.data(), us.size()).ok();
      lock.lock();
      if (!moved) until_ = Clock::time_point();  // Not before the next call.
      if (moved) ++moves_;
      if (moved && !stopping_) changed_.wait_for(lock, kPause);
    }
  }
}

}  // namespace bulkhead::runtime
