#include "services/runtime/cgroup_end.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <set>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "lib/os/fd.h"

namespace bulkhead::runtime {
namespace {

using Json = nlohmann::json;
constexpr size_t kProcsBytesMax = 4 << 20;
constexpr int kDepthMax = 32;
constexpr absl::Duration kPause = absl::Milliseconds(5);

std::vector<std::string> Subfolders(const std::string& path) {
  std::vector<std::string> out;
  std::unique_ptr<DIR, int (*)(DIR*)> dir(::opendir(path.c_str()), ::closedir);
  if (dir == nullptr) return out;
  while (const dirent* entry = ::readdir(dir.get())) {
    const std::string name = entry->d_name;
    struct stat info {};
    const std::string full = absl::StrCat(path, "/", name);
    if (name == "." || name == ".." || ::lstat(full.c_str(), &info) != 0 ||
        !S_ISDIR(info.st_mode)) {
      continue;
    }
    out.push_back(full);
  }
  return out;
}

void Pids(const std::string& folder, int depth, std::set<pid_t>* out) {
  const std::string text =
      os::ReadFile(folder + "/cgroup.procs", kProcsBytesMax).value_or("");
  for (const auto line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
    pid_t pid = 0;
    // 0 is a process of a pid namespace that we do not see.
    if (absl::SimpleAtoi(line, &pid) && pid > 0) out->insert(pid);
  }
  if (depth >= kDepthMax) return;
  for (const std::string& below : Subfolders(folder)) {
    Pids(below, depth + 1, out);
  }
}

bool Remove(const std::string& folder, int depth) {
  if (depth < kDepthMax) {
    for (const std::string& below : Subfolders(folder)) {
      (void)Remove(below, depth + 1);  // Ours then fails, which counts.
    }
  }
  return ::rmdir(folder.c_str()) == 0 || errno == ENOENT;
}

}  // namespace

std::string CgroupPathOf(const std::string& spec_json) {
  const Json spec = Json::parse(spec_json, nullptr, false);
  if (!spec.is_object() || !spec.contains("linux") ||
      !spec["linux"].is_object() || !spec["linux"].contains("cgroupsPath") ||
      !spec["linux"]["cgroupsPath"].is_string()) {
    return "";
  }
  const std::string path = spec["linux"]["cgroupsPath"].get<std::string>();
  if (path.empty() || path[0] != '/') return "";
  size_t parts = 0;
  for (const auto part : absl::StrSplit(path, '/', absl::SkipEmpty())) {
    if (part == "." || part == "..") return "";
    ++parts;
  }
  return parts > 0 ? path : "";
}

std::vector<std::string> CgroupFolders(const std::string& path,
                                       const std::string& mount) {
  std::vector<std::string> roots = {mount};  // Of version 2.
  for (const std::string& hierarchy : Subfolders(mount)) {
    roots.push_back(hierarchy);
  }
  std::vector<std::string> out;
  for (const std::string& root : roots) {
    const std::string folder = root + path;
    // Only a cgroup has this file.
    if (::access((folder + "/cgroup.procs").c_str(), F_OK) == 0) {
      out.push_back(folder);
    }
  }
  return out;
}

bool SignalCgroup(const std::string& path, int signal,
                  const std::string& mount) {
  if (path.empty()) return false;
  std::set<pid_t> pids;
  for (const std::string& folder : CgroupFolders(path, mount)) {
    Pids(folder, 0, &pids);
  }
  for (const pid_t pid : pids) ::kill(pid, signal);
  return !pids.empty();
}

bool EndCgroup(const std::string& path, absl::Duration timeout,
               const std::string& mount) {
  if (path.empty()) return true;
  const absl::Time until = absl::Now() + timeout;
  for (;;) {
    const bool some = SignalCgroup(path, SIGKILL, mount);
    bool left = false;
    for (const std::string& folder : CgroupFolders(path, mount)) {
      // A frozen process does not die before it is thawed; on version 2 it
      // does.
      if (::access((folder + "/freezer.state").c_str(), F_OK) == 0) {
        const auto state = os::Open(folder + "/freezer.state", O_WRONLY);
        if (state.ok()) (void)os::WriteFull(state->get(), "THAWED", 6);
      }
      if (!some) left |= !Remove(folder, 0);
    }
    if (!some && !left) return true;
    if (absl::Now() >= until) return false;
    absl::SleepFor(kPause);
  }
}

}  // namespace bulkhead::runtime
