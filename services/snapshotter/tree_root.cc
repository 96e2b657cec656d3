#include "services/snapshotter/tree_root.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"

namespace bulkhead::snapshotter {
namespace {

constexpr int kDirFlags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
constexpr size_t kXattrListBytes = 64 << 10;

absl::Status Fail(int error, const std::string& what) {
  return os::ErrnoStatus(error, what);
}

template <typename ListFn, typename GetFn>
absl::StatusOr<Xattrs> Gather(ListFn list, GetFn get) {
  Xattrs out;
  ssize_t size = list(nullptr, 0);
  if (size < 0) {
    if (errno == ENOTSUP) return out;
    return Fail(errno, "listxattr");
  }
  if (size == 0) return out;
  std::string names(std::min<size_t>(size + 256, kXattrListBytes), '\0');
  size = list(names.data(), names.size());
  if (size < 0) return Fail(errno, "listxattr");
  for (size_t at = 0; at < static_cast<size_t>(size);) {
    const std::string name = names.c_str() + at;
    at += name.size() + 1;
    std::string value(kXattrListBytes, '\0');
    const ssize_t n = get(name.c_str(), value.data(), value.size());
    if (n < 0) {
      if (errno == ENODATA || errno == ENOTSUP) continue;
      return Fail(errno, absl::StrCat("getxattr ", name));
    }
    value.resize(n);
    out.emplace_back(name, value);
  }
  return out;
}

}  // namespace

absl::StatusOr<std::string> CleanName(const std::string& name) {
  std::vector<std::string> parts;
  size_t at = 0;
  while (at <= name.size()) {
    size_t end = name.find('/', at);
    if (end == std::string::npos) end = name.size();
    const std::string part = name.substr(at, end - at);
    at = end + 1;
    if (part.empty() || part == ".") continue;
    if (part == "..") {
      if (parts.empty()) {
        return absl::InvalidArgumentError(absl::StrCat(
            "\"", name.substr(0, 256), "\" escapes the root of the layer"));
      }
      parts.pop_back();
      continue;
    }
    parts.push_back(part);
  }
  if (parts.size() > kTreeDepthMax) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "a name is deeper than the limit of ", kTreeDepthMax, " directories"));
  }
  std::string out;
  for (const std::string& part : parts) {
    if (!out.empty()) out += '/';
    out += part;
  }
  return out;
}

std::pair<std::string, std::string> SplitName(const std::string& clean) {
  const size_t slash = clean.rfind('/');
  if (slash == std::string::npos) return {"", clean};
  return {clean.substr(0, slash), clean.substr(slash + 1)};
}

absl::Status RemoveAt(int dir_fd, const std::string& name, int depth) {
  if (::unlinkat(dir_fd, name.c_str(), 0) == 0 || errno == ENOENT) {
    return absl::OkStatus();
  }
  if (errno != EISDIR && errno != EPERM) {
    return Fail(errno, absl::StrCat("unlink ", name));
  }
  if (depth >= kTreeDepthMax) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "a tree to delete is deeper than ", kTreeDepthMax, " directories"));
  }
  os::UniqueFd dir(::openat(dir_fd, name.c_str(), kDirFlags));
  if (!dir.valid()) {
    if (errno == ENOENT) return absl::OkStatus();
    return Fail(errno, absl::StrCat("open ", name));
  }
  const int copy = ::fcntl(dir.get(), F_DUPFD_CLOEXEC, 0);
  DIR* stream = copy < 0 ? nullptr : ::fdopendir(copy);
  if (stream == nullptr) return Fail(errno, absl::StrCat("read ", name));
  absl::Status status;
  while (dirent* entry = ::readdir(stream)) {
    const std::string child = entry->d_name;
    if (child == "." || child == "..") continue;
    status = RemoveAt(dir.get(), child, depth + 1);
    if (!status.ok()) break;
  }
  ::closedir(stream);
  RETURN_IF_ERROR(status);
  if (::unlinkat(dir_fd, name.c_str(), AT_REMOVEDIR) != 0 && errno != ENOENT) {
    return Fail(errno, absl::StrCat("rmdir ", name));
  }
  return absl::OkStatus();
}

absl::StatusOr<Xattrs> ReadXattrs(int fd) {
  return Gather([fd](char* b, size_t n) { return ::flistxattr(fd, b, n); },
                [fd](const char* k, char* b, size_t n) {
                  return ::fgetxattr(fd, k, b, n);
                });
}

absl::StatusOr<Xattrs> ReadXattrsAt(int dir_fd, const std::string& name) {
  const std::string path = absl::StrCat("/proc/self/fd/", dir_fd, "/", name);
  return Gather(
      [&](char* b, size_t n) { return ::llistxattr(path.c_str(), b, n); },
      [&](const char* k, char* b, size_t n) {
        return ::lgetxattr(path.c_str(), k, b, n);
      });
}

absl::Status CopyDirAttributes(int from_fd, int to_fd) {
  struct stat st;
  if (::fstat(from_fd, &st) != 0) return Fail(errno, "fstat");
  if (::fchown(to_fd, st.st_uid, st.st_gid) != 0) return Fail(errno, "fchown");
  ASSIGN_OR_RETURN(const Xattrs xattrs, ReadXattrs(from_fd));
  for (const auto& [key, value] : xattrs) {
    if (absl::StartsWith(key, "trusted.")) continue;
    if (::fsetxattr(to_fd, key.c_str(), value.data(), value.size(), 0) != 0 &&
        errno != ENOTSUP) {
      return Fail(errno, absl::StrCat("setxattr ", key));
    }
  }
  if (::fchmod(to_fd, st.st_mode & 07777) != 0) return Fail(errno, "fchmod");
  const timespec times[2] = {st.st_atim, st.st_mtim};
  if (::futimens(to_fd, times) != 0) return Fail(errno, "futimens");
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<TreeRoot>> TreeRoot::Open(
    const std::string& root) {
  ASSIGN_OR_RETURN(os::UniqueFd fd,
                   os::Open(root, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  return std::unique_ptr<TreeRoot>(new TreeRoot(std::move(fd)));
}

int TreeRoot::Cached(const std::string& clean) {
  const auto it = cache_.find(clean);
  if (it == cache_.end()) return -1;
  ages_.splice(ages_.begin(), ages_, it->second.age);
  return it->second.fd.get();
}

int TreeRoot::Remember(const std::string& clean, os::UniqueFd fd) {
  while (cache_.size() >= kCachedDirsMax) {
    cache_.erase(ages_.back());
    ages_.pop_back();
  }
  const int raw = fd.get();
  ages_.push_front(clean);
  cache_[clean] = Slot{std::move(fd), ages_.begin()};
  return raw;
}

void TreeRoot::Forget() {
  cache_.clear();
  ages_.clear();
}

absl::StatusOr<int> TreeRoot::ExistingDir(const std::string& clean) {
  if (clean.empty()) return root_.get();
  if (const int fd = Cached(clean); fd >= 0) return fd;
  const auto [parent, base] = SplitName(clean);
  // The quick way: a real directory right below a cached one.
  const int parent_fd = parent.empty() ? root_.get() : Cached(parent);
  if (parent_fd >= 0) {
    os::UniqueFd fd(::openat(parent_fd, base.c_str(), kDirFlags));
    if (fd.valid()) return Remember(clean, std::move(fd));
    if (errno == ENOENT) {
      return absl::NotFoundError(absl::StrCat("no directory ", clean));
    }
  }
  absl::StatusOr<os::UniqueFd> fd =
      os::OpenInRoot(root_.get(), clean, O_RDONLY | O_DIRECTORY);
  if (!fd.ok()) {
    if (absl::IsNotFound(fd.status())) {
      return absl::NotFoundError(absl::StrCat("no directory ", clean));
    }
    return absl::InvalidArgumentError(
        absl::StrCat("directory ", clean, ": ", MessageOf(fd.status())));
  }
  return Remember(clean, *std::move(fd));
}

absl::StatusOr<int> TreeRoot::Dir(
    const std::string& clean,
    absl::FunctionRef<absl::Status(const std::string&, int)> on_made,
    int links_followed) {
  absl::StatusOr<int> existing = ExistingDir(clean);
  if (existing.ok() || !absl::IsNotFound(existing.status())) return existing;
  const auto [parent, base] = SplitName(clean);
  ASSIGN_OR_RETURN(const int parent_fd, Dir(parent, on_made, links_followed));
  if (::mkdirat(parent_fd, base.c_str(), 0755) != 0) {
    if (errno != EEXIST) return Fail(errno, absl::StrCat("mkdir ", clean));
    // A symlink that leads nowhere yet: make what it names, in the root.
    // Not on the stack: this function calls itself.
    std::string to(PATH_MAX, '\0');
    const ssize_t n =
        ::readlinkat(parent_fd, base.c_str(), to.data(), to.size());
    if (n <= 0 || n == PATH_MAX || links_followed >= kDanglingLinksMax) {
      return absl::InvalidArgumentError(
          absl::StrCat(clean, " is not a directory"));
    }
    to.resize(n);
    ASSIGN_OR_RETURN(
        const std::string target,
        CleanName(to[0] == '/' ? to : absl::StrCat(parent, "/", to)));
    return Dir(target, on_made, links_followed + 1);
  }
  os::UniqueFd fd(::openat(parent_fd, base.c_str(), kDirFlags));
  if (!fd.valid()) return Fail(errno, absl::StrCat("open ", clean));
  if (::fchmod(fd.get(), 0755) != 0) {
    return Fail(errno, absl::StrCat("chmod ", clean));
  }
  RETURN_IF_ERROR(on_made(clean, fd.get()));
  return Remember(clean, std::move(fd));
}

}  // namespace bulkhead::snapshotter
