#include "lib/os/fd.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <memory>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"

namespace bulkhead::os {
namespace {

constexpr int kOpenAttemptsMax = 16;
constexpr int kRemoveDepthMax = 4096;

// The folder part of `path`: "/a/b" -> "/a", "b" -> ".".
std::string DirName(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

struct DirCloser {
  void operator()(DIR* dir) const { ::closedir(dir); }
};

// Removes everything in the folder `dir` (taken); mounts are left alone.
absl::Status EmptyDir(UniqueFd dir, dev_t device, int depth,
                      const std::string& name) {
  if (depth > kRemoveDepthMax) {
    return absl::ResourceExhaustedError(
        absl::StrCat("remove '", name, "': deeper than ", kRemoveDepthMax));
  }
  const int fd = dir.get();
  std::unique_ptr<DIR, DirCloser> stream(::fdopendir(dir.Release()));
  if (stream == nullptr) return ErrnoStatus(errno, "fdopendir " + name);
  for (;;) {
    errno = 0;
    const dirent* entry = ::readdir(stream.get());
    if (entry == nullptr) {
      if (errno != 0) return ErrnoStatus(errno, "readdir " + name);
      return absl::OkStatus();
    }
    if (std::strcmp(entry->d_name, ".") == 0 ||
        std::strcmp(entry->d_name, "..") == 0) {
      continue;
    }
    if (entry->d_type != DT_DIR && ::unlinkat(fd, entry->d_name, 0) == 0) {
      continue;
    }
    if (entry->d_type != DT_DIR && errno != EISDIR && errno != EPERM) {
      if (errno == ENOENT) continue;
      return ErrnoStatus(errno, absl::StrCat("unlink ", entry->d_name));
    }
    absl::StatusOr<UniqueFd> child =
        OpenAt(fd, entry->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
    if (!child.ok()) return child.status();
    struct stat info;
    if (::fstat(child->get(), &info) != 0) return ErrnoStatus(errno, "fstat");
    if (info.st_dev != device) {
      return absl::FailedPreconditionError(
          absl::StrCat("remove '", entry->d_name, "': is a mount point"));
    }
    RETURN_IF_ERROR(
        EmptyDir(std::move(*child), device, depth + 1, entry->d_name));
    if (::unlinkat(fd, entry->d_name, AT_REMOVEDIR) != 0 && errno != ENOENT) {
      return ErrnoStatus(errno, absl::StrCat("rmdir ", entry->d_name));
    }
  }
}

}  // namespace

void UniqueFd::Reset(int fd) noexcept {
  const int saved_errno = errno;
  if (fd_ >= 0) ::close(fd_);
  fd_ = fd;
  errno = saved_errno;
}

absl::Status ErrnoStatus(int error, const std::string& context) {
  return absl::ErrnoToStatus(error, context);
}

absl::StatusOr<UniqueFd> Open(const std::string& path, int flags, mode_t mode) {
  return OpenAt(AT_FDCWD, path, flags, mode);
}

absl::StatusOr<UniqueFd> OpenAt(int dir_fd, const std::string& path, int flags,
                                mode_t mode) {
  for (;;) {
    const int fd = ::openat(dir_fd, path.c_str(), flags | O_CLOEXEC, mode);
    if (fd >= 0) return UniqueFd(fd);
    if (errno != EINTR) {
      return ErrnoStatus(errno, absl::StrCat("open '", path, "'"));
    }
  }
}

absl::StatusOr<UniqueFd> OpenInRoot(int root_fd, const std::string& path,
                                    int flags, mode_t mode) {
  open_how how{};
  how.flags = static_cast<unsigned>(flags | O_CLOEXEC);
  how.mode = mode;
  how.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS;
  int error = 0;
  for (int attempt = 0; attempt < kOpenAttemptsMax; ++attempt) {
    const long fd =
        ::syscall(SYS_openat2, root_fd, path.c_str(), &how, sizeof(how));
    if (fd >= 0) return UniqueFd(static_cast<int>(fd));
    error = errno;
    if (error != EINTR && error != EAGAIN) break;
  }
  return ErrnoStatus(error, absl::StrCat("openat2 '", path, "'"));
}

absl::StatusOr<UniqueFd> Dup(int fd) {
  const int copy = ::fcntl(fd, F_DUPFD_CLOEXEC, 0);
  if (copy < 0) return ErrnoStatus(errno, "dup");
  return UniqueFd(copy);
}

absl::Status WriteFull(int fd, const void* data, size_t size_bytes) {
  const char* at = static_cast<const char*>(data);
  while (size_bytes > 0) {
    const ssize_t n = ::write(fd, at, size_bytes);
    if (n < 0) {
      if (errno == EINTR) continue;
      return ErrnoStatus(errno, "write");
    }
    at += n;
    size_bytes -= static_cast<size_t>(n);
  }
  return absl::OkStatus();
}

absl::Status PWriteFull(int fd, const void* data, size_t size_bytes,
                        int64_t offset_bytes) {
  const char* at = static_cast<const char*>(data);
  while (size_bytes > 0) {
    const ssize_t n = ::pwrite(fd, at, size_bytes, offset_bytes);
    if (n < 0) {
      if (errno == EINTR) continue;
      return ErrnoStatus(errno, "pwrite");
    }
    at += n;
    offset_bytes += n;
    size_bytes -= static_cast<size_t>(n);
  }
  return absl::OkStatus();
}

absl::StatusOr<size_t> ReadFull(int fd, void* data, size_t size_bytes) {
  char* at = static_cast<char*>(data);
  size_t done = 0;
  while (done < size_bytes) {
    const ssize_t n = ::read(fd, at + done, size_bytes - done);
    if (n < 0) {
      if (errno == EINTR) continue;
      return ErrnoStatus(errno, "read");
    }
    if (n == 0) break;
    done += static_cast<size_t>(n);
  }
  return done;
}

absl::StatusOr<size_t> PReadFull(int fd, void* data, size_t size_bytes,
                                 int64_t offset_bytes) {
  char* at = static_cast<char*>(data);
  size_t done = 0;
  while (done < size_bytes) {
    const ssize_t n = ::pread(fd, at + done, size_bytes - done,
                              offset_bytes + static_cast<int64_t>(done));
    if (n < 0) {
      if (errno == EINTR) continue;
      return ErrnoStatus(errno, "pread");
    }
    if (n == 0) break;
    done += static_cast<size_t>(n);
  }
  return done;
}

absl::StatusOr<std::string> ReadFile(const std::string& path,
                                     size_t size_bytes_max) {
  ASSIGN_OR_RETURN(UniqueFd fd, Open(path, O_RDONLY));
  std::string out;
  char buffer[16384];
  for (;;) {
    absl::StatusOr<size_t> n = ReadFull(fd.get(), buffer, sizeof(buffer));
    if (!n.ok()) return Annotate(n.status(), absl::StrCat("'", path, "'"));
    if (out.size() + *n > size_bytes_max) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "'", path, "' is longer than ", size_bytes_max, " bytes"));
    }
    out.append(buffer, *n);
    if (*n < sizeof(buffer)) return out;
  }
}

absl::Status WriteFileAtomic(const std::string& path, const std::string& data,
                             mode_t mode) {
  const std::string temporary =
      absl::StrCat(path, ".tmp-", ::getpid(), "-", ::gettid());
  absl::Status status = [&]() -> absl::Status {
    ASSIGN_OR_RETURN(
        UniqueFd fd,
        Open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW, mode));
    RETURN_IF_ERROR(WriteFull(fd.get(), data.data(), data.size()));
    if (::fchmod(fd.get(), mode) != 0) return ErrnoStatus(errno, "fchmod");
    if (::fsync(fd.get()) != 0) return ErrnoStatus(errno, "fsync");
    if (::rename(temporary.c_str(), path.c_str()) != 0) {
      return ErrnoStatus(errno, "rename");
    }
    return SyncDir(DirName(path));
  }();
  if (!status.ok()) ::unlink(temporary.c_str());
  return Annotate(status, absl::StrCat("write '", path, "'"));
}

absl::Status MakeDirs(const std::string& path, mode_t mode) {
  size_t at = 0;
  while (at != std::string::npos) {
    at = path.find('/', at + 1);
    const std::string part = path.substr(0, at);
    if (part.empty()) continue;
    if (::mkdir(part.c_str(), mode) == 0) {
      if (::chmod(part.c_str(), mode) != 0) {
        return ErrnoStatus(errno, absl::StrCat("chmod '", part, "'"));
      }
      continue;
    }
    const int error = errno;
    struct stat info;
    if (error == EEXIST && ::stat(part.c_str(), &info) == 0 &&
        S_ISDIR(info.st_mode)) {
      continue;
    }
    return ErrnoStatus(error, absl::StrCat("mkdir '", part, "'"));
  }
  return absl::OkStatus();
}

absl::Status RemoveAll(const std::string& path) {
  if (::unlink(path.c_str()) == 0 || errno == ENOENT || errno == ENOTDIR) {
    return absl::OkStatus();
  }
  absl::StatusOr<UniqueFd> dir =
      Open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
  if (!dir.ok()) {
    return absl::IsNotFound(dir.status()) ? absl::OkStatus() : dir.status();
  }
  struct stat info;
  if (::fstat(dir->get(), &info) != 0) return ErrnoStatus(errno, "fstat");
  RETURN_IF_ERROR(EmptyDir(std::move(*dir), info.st_dev, 0, path));
  if (::rmdir(path.c_str()) != 0 && errno != ENOENT) {
    return ErrnoStatus(errno, absl::StrCat("rmdir '", path, "'"));
  }
  return absl::OkStatus();
}

absl::Status SyncDir(const std::string& path) {
  ASSIGN_OR_RETURN(UniqueFd dir, Open(path, O_RDONLY | O_DIRECTORY));
  if (::fsync(dir.get()) != 0) {
    return ErrnoStatus(errno, absl::StrCat("fsync '", path, "'"));
  }
  return absl::OkStatus();
}

}  // namespace bulkhead::os
