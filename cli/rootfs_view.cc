#include "cli/rootfs_view.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/os/fd.h"

namespace bulkhead::cli {
namespace {

using Files = std::map<std::string, std::string>;

absl::StatusOr<Files> ReadBelow(int root_fd,
                                const std::vector<std::string>& paths,
                                size_t size_bytes_max) {
  Files files;
  for (const std::string& path : paths) {
    // Not blocked by a FIFO that somebody put there.
    absl::StatusOr<os::UniqueFd> file =
        os::OpenInRoot(root_fd, path, O_RDONLY | O_NONBLOCK | O_NOCTTY);
    if (!file.ok()) continue;
    struct stat info {};
    if (::fstat(file->get(), &info) != 0 || !S_ISREG(info.st_mode)) continue;
    if (static_cast<size_t>(info.st_size) > size_bytes_max) {
      return absl::ResourceExhaustedError(
          absl::StrCat("the image's /", path, " is too large"));
    }
    std::string data(static_cast<size_t>(info.st_size), '\0');
    ASSIGN_OR_RETURN(const size_t got,
                     os::ReadFull(file->get(), data.data(), data.size()));
    data.resize(got);
    files[path] = std::move(data);
  }
  return files;
}

// In a thread of its own: the mounts are that thread's and end with it.
absl::Status MountAndUse(const std::vector<os::MountSpec>& mounts,
                         const std::string& folder,
                         const std::function<absl::Status(int root)>& use) {
  if (::unshare(CLONE_FS | CLONE_NEWNS) != 0) {
    return os::ErrnoStatus(errno, "unshare");
  }
  if (::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) {
    return os::ErrnoStatus(errno, "making mounts private");
  }
  RETURN_IF_ERROR(os::MountAll(mounts, folder));
  ASSIGN_OR_RETURN(const os::UniqueFd root,
                   os::Open(folder, O_PATH | O_DIRECTORY));
  return use(root.get());
}

}  // namespace

os::MountSpec ReadOnly(const os::MountSpec& mount) {
  os::MountSpec read_only = mount;
  read_only.options.clear();
  std::string upper;
  for (const std::string& option : mount.options) {
    if (absl::StartsWith(option, "upperdir=")) upper = option.substr(9);
  }
  for (const std::string& option : mount.options) {
    if (option == "rw" || absl::StartsWith(option, "upperdir=") ||
        absl::StartsWith(option, "workdir=")) {
      continue;
    }
    if (!upper.empty() && absl::StartsWith(option, "lowerdir=")) {
      read_only.options.push_back("lowerdir=" + upper + ":" + option.substr(9));
      continue;
    }
    read_only.options.push_back(option);
  }
  if (mount.type != "overlay") read_only.options.push_back("ro");
  return read_only;
}

absl::StatusOr<Files> ReadFilesOf(const std::vector<os::MountSpec>& mounts,
                                  const std::vector<std::string>& paths,
                                  size_t size_bytes_max) {
  if (mounts.size() == 1 && mounts[0].target.empty() &&
      (mounts[0].type == "bind" || mounts[0].type.empty())) {
    ASSIGN_OR_RETURN(const os::UniqueFd root,
                     os::Open(mounts[0].source, O_PATH | O_DIRECTORY));
    return ReadBelow(root.get(), paths, size_bytes_max);
  }
  absl::StatusOr<Files> files = absl::InternalError("not read");
  RETURN_IF_ERROR(WithMounted(mounts, false, [&](int root) {
    files = ReadBelow(root, paths, size_bytes_max);
    return files.status();
  }));
  return files;
}

absl::Status WithMounted(const std::vector<os::MountSpec>& mounts,
                         bool writable,
                         const std::function<absl::Status(int root)>& use) {
  std::vector<os::MountSpec> wanted;
  for (const os::MountSpec& mount : mounts) {
    wanted.push_back(writable ? mount : ReadOnly(mount));
  }
  char folder[] = "/tmp/bulkhead-view-XXXXXX";
  if (::mkdtemp(folder) == nullptr) return os::ErrnoStatus(errno, "mkdtemp");
  absl::Status status;
  std::thread user([&] { status = MountAndUse(wanted, folder, use); });
  user.join();
  ::rmdir(folder);
  return status;
}

}  // namespace bulkhead::cli
