#include "lib/os/idmap.h"

#include <fcntl.h>
#include <linux/mount.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "lib/base/status_macros.h"

namespace bulkhead::os {
namespace {

// Lives until it is killed; makes system calls only, as other threads may have
// held locks when it was cloned.
pid_t CloneIdleChild() {
  // No SIGCHLD: whoever waits for any child must not see this one.
  const long pid =
      ::syscall(SYS_clone, CLONE_NEWUSER, nullptr, nullptr, nullptr, nullptr);
  if (pid != 0) return static_cast<pid_t>(pid);
  for (;;) ::syscall(SYS_ppoll, nullptr, 0, nullptr, nullptr, 0);
}

// The child dies with this object.
class IdleChild {
 public:
  IdleChild() : pid_(CloneIdleChild()) {}
  IdleChild(const IdleChild&) = delete;
  ~IdleChild() {
    if (pid_ <= 0) return;
    const int saved_errno = errno;
    ::kill(pid_, SIGKILL);
    while (::waitpid(pid_, nullptr, __WCLONE) < 0 && errno == EINTR) {
    }
    errno = saved_errno;
  }
  pid_t pid() const { return pid_; }

 private:
  const pid_t pid_;
};

absl::Status WriteMap(pid_t pid, const char* file, const std::string& map) {
  std::string text = map;
  std::replace(text.begin(), text.end(), ':', ' ');
  std::replace(text.begin(), text.end(), ',', '\n');
  ASSIGN_OR_RETURN(UniqueFd fd,
                   Open(absl::StrCat("/proc/", pid, "/", file), O_WRONLY));
  if (::write(fd.get(), text.data(), text.size()) !=
      static_cast<ssize_t>(text.size())) {
    return ErrnoStatus(errno, absl::StrCat("write ", file, " ", map));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckIdMap(const std::string& map) {
  int ranges = 0;
  for (absl::string_view range : absl::StrSplit(map, ',')) {
    const std::vector<std::string> fields = absl::StrSplit(range, ':');
    uint32_t inside = 0;
    uint32_t outside = 0;
    uint32_t size = 0;
    if (fields.size() != 3 || !absl::SimpleAtoi(fields[0], &inside) ||
        !absl::SimpleAtoi(fields[1], &outside) ||
        !absl::SimpleAtoi(fields[2], &size) || size == 0 ||
        ++ranges > kIdMapRangesMax) {
      return absl::InvalidArgumentError(
          absl::StrCat("invalid id map \"", map.substr(0, 256),
                       "\": it must be inside:outside:size[,...]"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<UniqueFd> OpenIdMapNamespace(const std::string& uid_map,
                                            const std::string& gid_map) {
  RETURN_IF_ERROR(CheckIdMap(uid_map));
  RETURN_IF_ERROR(CheckIdMap(gid_map));
  const IdleChild child;
  if (child.pid() < 0) return ErrnoStatus(errno, "clone of a user namespace");
  RETURN_IF_ERROR(WriteMap(child.pid(), "uid_map", uid_map));
  RETURN_IF_ERROR(WriteMap(child.pid(), "gid_map", gid_map));
  return Open(absl::StrCat("/proc/", child.pid(), "/ns/user"), O_RDONLY);
}

absl::StatusOr<UniqueFd> CloneIdMapped(const std::string& path, int user_ns,
                                       unsigned attributes, bool recursive) {
  const unsigned deep = recursive ? AT_RECURSIVE : 0;
  UniqueFd tree(
      static_cast<int>(::syscall(SYS_open_tree, AT_FDCWD, path.c_str(),
                                 OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | deep)));
  if (!tree.valid())
    return ErrnoStatus(errno, absl::StrCat("open_tree ", path));
  mount_attr attr{};
  attr.attr_set = MOUNT_ATTR_IDMAP | attributes;
  attr.userns_fd = static_cast<uint64_t>(user_ns);
  if (::syscall(SYS_mount_setattr, tree.get(), "", AT_EMPTY_PATH | deep, &attr,
                sizeof(attr)) != 0) {
    return ErrnoStatus(errno, absl::StrCat("mount_setattr ", path));
  }
  return tree;
}

}  // namespace bulkhead::os
