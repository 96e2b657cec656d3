#include "cli/tree_diff.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstdio>
#include <memory>
#include <set>

#include "absl/status/statusor.h"
#include "cli/format.h"
#include "lib/base/status_macros.h"
#include "lib/os/fd.h"

namespace bulkhead::cli {
namespace {

constexpr int kDiffDepthMax = 256;

absl::StatusOr<std::set<std::string>> NamesIn(int folder) {
  std::set<std::string> names;
  ASSIGN_OR_RETURN(os::UniqueFd listed,
                   os::OpenAt(folder, ".", O_RDONLY | O_DIRECTORY));
  std::unique_ptr<DIR, int (*)(DIR*)> dir(::fdopendir(listed.get()),
                                          ::closedir);
  if (dir == nullptr) return os::ErrnoStatus(errno, "opendir");
  (void)listed.Release();
  while (const dirent* entry = ::readdir(dir.get())) {
    const std::string name = entry->d_name;
    if (name != "." && name != "..") names.insert(name);
  }
  return names;
}

bool Differs(const struct stat& a, const struct stat& b) {
  if (a.st_mode != b.st_mode || a.st_uid != b.st_uid || a.st_gid != b.st_gid ||
      a.st_rdev != b.st_rdev) {
    return true;
  }
  if (S_ISDIR(a.st_mode)) return false;  // Its entries tell.
  return a.st_size != b.st_size || a.st_mtim.tv_sec != b.st_mtim.tv_sec ||
         a.st_mtim.tv_nsec != b.st_mtim.tv_nsec;
}

}  // namespace

absl::Status PrintChanges(int before, int now, const std::string& path,
                          int depth, bool* changed) {
  if (depth > kDiffDepthMax) {
    return absl::ResourceExhaustedError("folders nested too deeply");
  }
  std::set<std::string> old_names;
  if (before >= 0) {
    ASSIGN_OR_RETURN(old_names, NamesIn(before));
  }
  ASSIGN_OR_RETURN(const std::set<std::string> names, NamesIn(now));
  for (const std::string& name : old_names) {
    if (names.contains(name)) continue;
    std::printf("D %s\n", Printable(path + "/" + name).c_str());
    *changed = true;
  }
  for (const std::string& name : names) {
    const std::string full = path + "/" + name;
    struct stat info {};
    struct stat old {};
    if (::fstatat(now, name.c_str(), &info, AT_SYMLINK_NOFOLLOW) != 0) continue;
    const bool existed =
        old_names.contains(name) &&
        ::fstatat(before, name.c_str(), &old, AT_SYMLINK_NOFOLLOW) == 0;
    const bool is_folder = S_ISDIR(info.st_mode);
    if (!existed) {
      std::printf("A %s\n", Printable(full).c_str());
      *changed = true;
    } else if (!is_folder) {
      if (Differs(info, old)) {
        std::printf("C %s\n", Printable(full).c_str());
        *changed = true;
      }
    }
    if (!is_folder) continue;
    ASSIGN_OR_RETURN(
        const os::UniqueFd below,
        os::OpenAt(now, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW));
    os::UniqueFd old_below;
    if (existed && S_ISDIR(old.st_mode)) {
      ASSIGN_OR_RETURN(
          old_below,
          os::OpenAt(before, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW));
    }
    bool inside = false;
    RETURN_IF_ERROR(PrintChanges(old_below.valid() ? old_below.get() : -1,
                                 below.get(), full, depth + 1, &inside));
    if (existed && (inside || Differs(info, old))) {
      std::printf("C %s\n", Printable(full).c_str());
      *changed = true;
    }
  }
  return absl::OkStatus();
}

}  // namespace bulkhead::cli
