#include "services/snapshotter/tree_ops.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <functional>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/os/fd.h"
#include "services/snapshotter/tree_root.h"

namespace bulkhead::snapshotter {
namespace {

constexpr int kDirFlags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
using InodeKey = std::pair<dev_t, ino_t>;

// Calls `visit` for each name in the open directory.
absl::Status ForEachName(
    int dir_fd, const std::function<absl::Status(const std::string&)>& visit) {
  const int copy = ::openat(dir_fd, ".", kDirFlags);
  DIR* stream = copy < 0 ? nullptr : ::fdopendir(copy);
  if (stream == nullptr) return os::ErrnoStatus(errno, "opendir");
  absl::Status status;
  while (dirent* entry = status.ok() ? ::readdir(stream) : nullptr) {
    const std::string name = entry->d_name;
    if (name != "." && name != "..") status = visit(name);
  }
  ::closedir(stream);
  return status;
}

absl::Status TooDeep() {
  return absl::ResourceExhaustedError(
      absl::StrCat("the tree is deeper than ", kTreeDepthMax, " directories"));
}

void Count(const struct stat& st, std::set<InodeKey>* seen, DiskUsage* usage) {
  if (!S_ISDIR(st.st_mode) && st.st_nlink > 1 &&
      !seen->insert({st.st_dev, st.st_ino}).second) {
    return;
  }
  usage->size_bytes += static_cast<int64_t>(st.st_blocks) * 512;
  ++usage->inodes;
}

bool Unchanged(const struct stat& st, int base_fd, const std::string& name) {
  struct stat old;
  return base_fd >= 0 &&
         ::fstatat(base_fd, name.c_str(), &old, AT_SYMLINK_NOFOLLOW) == 0 &&
         old.st_ino == st.st_ino && old.st_ctim.tv_sec == st.st_ctim.tv_sec &&
         old.st_ctim.tv_nsec == st.st_ctim.tv_nsec;
}

// `base_fd`: the directory at the same place in an earlier snapshot, or -1.
absl::Status Measure(int dir_fd, int base_fd, int depth,
                     std::set<InodeKey>* seen, DiskUsage* usage) {
  if (depth > kTreeDepthMax) return TooDeep();
  return ForEachName(dir_fd, [&](const std::string& name) -> absl::Status {
    struct stat st;
    if (::fstatat(dir_fd, name.c_str(), &st, AT_SYMLINK_NOFOLLOW) != 0) {
      return errno == ENOENT ? absl::OkStatus()
                             : os::ErrnoStatus(errno, "stat");
    }
    if (!Unchanged(st, base_fd, name)) Count(st, seen, usage);
    if (!S_ISDIR(st.st_mode)) return absl::OkStatus();
    os::UniqueFd base;
    if (base_fd >= 0) base.Reset(::openat(base_fd, name.c_str(), kDirFlags));
    os::UniqueFd child(::openat(dir_fd, name.c_str(), kDirFlags));
    if (!child.valid()) {
      return errno == ENOENT || errno == ENOTDIR
                 ? absl::OkStatus()
                 : os::ErrnoStatus(errno, "open");
    }
    return Measure(child.get(), base.get(), depth + 1, seen, usage);
  });
}

class Copier {
 public:
  explicit Copier(int to_root) : to_root_(to_root) {}

  absl::Status CopyDir(int from, int to, const std::string& path, int depth) {
    if (depth > kTreeDepthMax) return TooDeep();
    RETURN_IF_ERROR(ForEachName(from, [&](const std::string& name) {
      return CopyOne(from, to, name,
                     path.empty() ? name : absl::StrCat(path, "/", name),
                     depth);
    }));
    return CopyOpenAttributes(from, to);
  }

 private:
  static absl::Status CopyOpenAttributes(int from, int to) {
    struct stat st;
    if (::fstat(from, &st) != 0) return os::ErrnoStatus(errno, "fstat");
    if (::fchown(to, st.st_uid, st.st_gid) != 0) {
      return os::ErrnoStatus(errno, "fchown");
    }
    ASSIGN_OR_RETURN(const Xattrs xattrs, ReadXattrs(from));
    for (const auto& [key, value] : xattrs) {
      if (::fsetxattr(to, key.c_str(), value.data(), value.size(), 0) != 0 &&
          errno != ENOTSUP) {
        return os::ErrnoStatus(errno, absl::StrCat("setxattr ", key));
      }
    }
    if (::fchmod(to, st.st_mode & 07777) != 0) {
      return os::ErrnoStatus(errno, "fchmod");
    }
    const timespec times[2] = {st.st_atim, st.st_mtim};
    if (::futimens(to, times) != 0) return os::ErrnoStatus(errno, "utimes");
    return absl::OkStatus();
  }

  static absl::Status CopyData(int from, int to, int64_t size) {
    if (::ioctl(to, FICLONE, from) == 0) return absl::OkStatus();
    if (::ftruncate(to, size) != 0) return os::ErrnoStatus(errno, "truncate");
    off_t at = 0;
    while (at < size) {
      const off_t data = ::lseek(from, at, SEEK_DATA);
      if (data < 0 && errno == ENXIO) break;  // Only a hole is left.
      if (data >= 0) at = data;
      off_t end = data < 0 ? size : ::lseek(from, at, SEEK_HOLE);
      if (end < 0) end = size;
      while (at < end) {
        off_t in = at;
        off_t out = at;
        const ssize_t n = ::copy_file_range(from, &in, to, &out, end - at, 0);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return os::ErrnoStatus(errno, "copy_file_range");
        if (n == 0) return absl::OkStatus();  // Shortened meanwhile.
        at += n;
      }
    }
    return absl::OkStatus();
  }

  absl::Status CopyOne(int from, int to, const std::string& name,
                       const std::string& path, int depth) {
    struct stat st;
    if (::fstatat(from, name.c_str(), &st, AT_SYMLINK_NOFOLLOW) != 0) {
      return os::ErrnoStatus(errno, absl::StrCat("stat ", path));
    }
    if (S_ISSOCK(st.st_mode)) return absl::OkStatus();
    if (!S_ISDIR(st.st_mode) && st.st_nlink > 1) {
      const auto [it, fresh] = links_.try_emplace({st.st_dev, st.st_ino}, path);
      if (!fresh) {
        const auto [dir, base] = SplitName(it->second);
        ASSIGN_OR_RETURN(os::UniqueFd first,
                         os::OpenInRoot(to_root_, dir.empty() ? "." : dir,
                                        O_PATH | O_DIRECTORY));
        if (::linkat(first.get(), base.c_str(), to, name.c_str(), 0) != 0) {
          return os::ErrnoStatus(errno, absl::StrCat("link ", path));
        }
        return absl::OkStatus();
      }
    }
    if (S_ISDIR(st.st_mode)) {
      os::UniqueFd in(::openat(from, name.c_str(), kDirFlags));
      if (!in.valid()) return os::ErrnoStatus(errno, path);
      if (::mkdirat(to, name.c_str(), 0700) != 0) {
        return os::ErrnoStatus(errno, absl::StrCat("mkdir ", path));
      }
      os::UniqueFd out(::openat(to, name.c_str(), kDirFlags));
      if (!out.valid()) return os::ErrnoStatus(errno, path);
      return CopyDir(in.get(), out.get(), path, depth + 1);
    }
    if (S_ISREG(st.st_mode)) {
      os::UniqueFd in(
          ::openat(from, name.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC));
      os::UniqueFd out(::openat(to, name.c_str(),
                                O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
      if (!in.valid() || !out.valid()) return os::ErrnoStatus(errno, path);
      RETURN_IF_ERROR(
          Annotate(CopyData(in.get(), out.get(), st.st_size), path));
      return Annotate(CopyOpenAttributes(in.get(), out.get()), path);
    }
    if (S_ISLNK(st.st_mode)) {
      char target[PATH_MAX];
      const ssize_t n =
          ::readlinkat(from, name.c_str(), target, sizeof(target) - 1);
      if (n < 0) return os::ErrnoStatus(errno, path);
      target[n] = '\0';
      if (::symlinkat(target, to, name.c_str()) != 0) {
        return os::ErrnoStatus(errno, absl::StrCat("symlink ", path));
      }
    } else if (::mknodat(to, name.c_str(), st.st_mode, st.st_rdev) != 0) {
      return os::ErrnoStatus(errno, absl::StrCat("mknod ", path));
    }
    if (::fchownat(to, name.c_str(), st.st_uid, st.st_gid,
                   AT_SYMLINK_NOFOLLOW) != 0) {
      return os::ErrnoStatus(errno, absl::StrCat("chown ", path));
    }
    const std::string place = absl::StrCat("/proc/self/fd/", to, "/", name);
    ASSIGN_OR_RETURN(const Xattrs xattrs, ReadXattrsAt(from, name));
    for (const auto& [key, value] : xattrs) {
      if (::lsetxattr(place.c_str(), key.c_str(), value.data(), value.size(),
                      0) != 0 &&
          errno != ENOTSUP) {
        return os::ErrnoStatus(errno, absl::StrCat("setxattr ", key));
      }
    }
    if (!S_ISLNK(st.st_mode)) {
      // The tree is ours and private: `name` is the node just made.
      if (::fchmodat(to, name.c_str(), st.st_mode & 07777, 0) != 0) {
        return os::ErrnoStatus(errno, absl::StrCat("chmod ", path));
      }
    }
    const timespec times[2] = {st.st_atim, st.st_mtim};
    if (::utimensat(to, name.c_str(), times, AT_SYMLINK_NOFOLLOW) != 0) {
      return os::ErrnoStatus(errno, absl::StrCat("utimes ", path));
    }
    return absl::OkStatus();
  }

  const int to_root_;
  std::map<InodeKey, std::string> links_;
};

}  // namespace

absl::StatusOr<DiskUsage> UsageOfTree(const std::string& path) {
  return UsageSince(path, "");
}

absl::StatusOr<DiskUsage> UsageSince(const std::string& path,
                                     const std::string& base) {
  constexpr int kFlags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW;
  ASSIGN_OR_RETURN(os::UniqueFd fd, os::Open(path, kFlags));
  os::UniqueFd base_fd;
  if (!base.empty()) {
    ASSIGN_OR_RETURN(base_fd, os::Open(base, kFlags));
  }
  struct stat st;
  if (::fstat(fd.get(), &st) != 0) return os::ErrnoStatus(errno, path);
  DiskUsage usage;
  std::set<InodeKey> seen;
  if (base.empty()) Count(st, &seen, &usage);  // Else it is in the base.
  RETURN_IF_ERROR(Measure(fd.get(), base_fd.get(), 0, &seen, &usage));
  return usage;
}

absl::Status CopyTree(const std::string& from, const std::string& to) {
  ASSIGN_OR_RETURN(os::UniqueFd in, os::Open(from, O_RDONLY | O_DIRECTORY));
  ASSIGN_OR_RETURN(os::UniqueFd out, os::Open(to, O_RDONLY | O_DIRECTORY));
  return Copier(out.get()).CopyDir(in.get(), out.get(), "", 0);
}

}  // namespace bulkhead::snapshotter
