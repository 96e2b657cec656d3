#include "lib/files/files.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <memory>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"

namespace bulkhead::files {
namespace {

absl::Status Error(const char* call, const std::string& path) {
  const int error = errno;
  return os::ErrnoStatus(
      error, path.empty() ? std::string(call) : absl::StrCat(call, " ", path));
}

template <typename Call>
auto Retry(Call call) {
  decltype(call()) result;
  do {
    result = call();
  } while (result < 0 && errno == EINTR);
  return result;
}

class KernelFiles final : public Files {
 public:
  absl::StatusOr<os::UniqueFd> Open(int dir_fd, const std::string& path,
                                    int flags, mode_t mode) override {
    const int fd = Retry([&] {
      return ::openat(dir_fd, path.empty() ? "." : path.c_str(),
                      flags | O_CLOEXEC | O_NOFOLLOW, mode);
    });
    if (fd < 0) return Error("open", path);
    return os::UniqueFd(fd);
  }

  absl::StatusOr<size_t> PRead(int fd, void* data, size_t size_bytes,
                               int64_t offset_bytes) override {
    const ssize_t n =
        Retry([&] { return ::pread(fd, data, size_bytes, offset_bytes); });
    if (n < 0) return Error("pread", "");
    return static_cast<size_t>(n);
  }

  absl::StatusOr<size_t> PWrite(int fd, const void* data, size_t size_bytes,
                                int64_t offset_bytes) override {
    const ssize_t n =
        Retry([&] { return ::pwrite(fd, data, size_bytes, offset_bytes); });
    if (n < 0) return Error("pwrite", "");
    return static_cast<size_t>(n);
  }

  absl::Status Truncate(int fd, int64_t size_bytes) override {
    if (Retry([&] { return ::ftruncate(fd, size_bytes); }) < 0) {
      return Error("ftruncate", "");
    }
    return absl::OkStatus();
  }

  absl::Status Sync(int fd) override {
    if (Retry([&] { return ::fsync(fd); }) < 0) return Error("fsync", "");
    return absl::OkStatus();
  }

  void StartWriteback(int fd, int64_t offset_bytes,
                      int64_t size_bytes) override {
    // Not every file system can; commit's fsync does the work then.
    (void)::sync_file_range(fd, offset_bytes, size_bytes,
                            SYNC_FILE_RANGE_WRITE);
  }

  absl::Status WaitWritten(int fd, int64_t offset_bytes,
                           int64_t size_bytes) override {
    constexpr unsigned kAll = SYNC_FILE_RANGE_WAIT_BEFORE |
                              SYNC_FILE_RANGE_WRITE |
                              SYNC_FILE_RANGE_WAIT_AFTER;
    if (Retry([&] {
          return ::sync_file_range(fd, offset_bytes, size_bytes, kAll);
        }) < 0) {
      return os::ErrnoStatus(errno, "sync_file_range");
    }
    return absl::OkStatus();
  }

  absl::Status Lock(int fd) override {
    if (Retry([&] { return ::flock(fd, LOCK_EX | LOCK_NB); }) == 0) {
      return absl::OkStatus();
    }
    if (errno == EWOULDBLOCK) {
      return absl::FailedPreconditionError("locked by another process");
    }
    return Error("flock", "");
  }

  absl::Status Chmod(int fd, mode_t mode) override {
    if (::fchmod(fd, mode) < 0) return Error("fchmod", "");
    return absl::OkStatus();
  }

  absl::StatusOr<FileStat> Stat(int dir_fd, const std::string& path) override {
    struct stat st;
    if (::fstatat(dir_fd, path.c_str(), &st,
                  AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) < 0) {
      return Error("stat", path);
    }
    FileStat result;
    result.size_bytes = st.st_size;
    result.modified_at = absl::TimeFromTimespec(st.st_mtim);
    result.mode = st.st_mode & 07777;
    result.is_regular = S_ISREG(st.st_mode);
    result.is_directory = S_ISDIR(st.st_mode);
    return result;
  }

  absl::Status MakeDir(int dir_fd, const std::string& path,
                       mode_t mode) override {
    if (::mkdirat(dir_fd, path.c_str(), mode) < 0) return Error("mkdir", path);
    return absl::OkStatus();
  }

  absl::Status RenameNoReplace(int from_dir_fd, const std::string& from,
                               int to_dir_fd, const std::string& to) override {
    if (::renameat2(from_dir_fd, from.c_str(), to_dir_fd, to.c_str(),
                    RENAME_NOREPLACE) < 0) {
      return Error("rename", absl::StrCat(from, " to ", to));
    }
    return absl::OkStatus();
  }

  absl::Status Unlink(int dir_fd, const std::string& path) override {
    if (::unlinkat(dir_fd, path.c_str(), 0) < 0) return Error("unlink", path);
    return absl::OkStatus();
  }

  absl::Status RemoveDir(int dir_fd, const std::string& path) override {
    if (::unlinkat(dir_fd, path.c_str(), AT_REMOVEDIR) < 0) {
      return Error("rmdir", path);
    }
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<std::string>> List(
      int dir_fd, const std::string& path) override {
    ASSIGN_OR_RETURN(os::UniqueFd fd,
                     Open(dir_fd, path, O_RDONLY | O_DIRECTORY, 0));
    const std::unique_ptr<DIR, int (*)(DIR*)> dir(::fdopendir(fd.get()),
                                                  &::closedir);
    if (dir == nullptr) return Error("fdopendir", path);
    (void)fd.Release();  // Closed by closedir.
    std::vector<std::string> names;
    for (;;) {
      errno = 0;
      const dirent* entry = ::readdir(dir.get());
      if (entry == nullptr) break;
      const std::string name = entry->d_name;
      if (name != "." && name != "..") names.push_back(name);
    }
    if (errno != 0) return Error("readdir", path);
    return names;
  }
};

}  // namespace

int64_t Files::FirstHole(int fd, int64_t size_bytes) {
  if (size_bytes <= 0) return 0;
  const off_t hole = ::lseek(fd, 0, SEEK_HOLE);
  return hole < 0 || hole > size_bytes ? size_bytes : hole;
}

absl::StatusOr<size_t> Files::PReadFull(int fd, void* data, size_t size_bytes,
                                        int64_t offset_bytes) {
  size_t done = 0;
  while (done < size_bytes) {
    ASSIGN_OR_RETURN(
        const size_t n,
        PRead(fd, static_cast<char*>(data) + done, size_bytes - done,
              offset_bytes + static_cast<int64_t>(done)));
    if (n == 0) break;
    done += n;
  }
  return done;
}

absl::Status Files::PWriteFull(int fd, const void* data, size_t size_bytes,
                               int64_t offset_bytes) {
  size_t done = 0;
  while (done < size_bytes) {
    ASSIGN_OR_RETURN(
        const size_t n,
        PWrite(fd, static_cast<const char*>(data) + done, size_bytes - done,
               offset_bytes + static_cast<int64_t>(done)));
    done += n;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> Files::ReadSmall(int dir_fd,
                                             const std::string& path,
                                             size_t size_bytes_max) {
  ASSIGN_OR_RETURN(const os::UniqueFd fd, Open(dir_fd, path, O_RDONLY));
  std::string data(size_bytes_max + 1, '\0');
  ASSIGN_OR_RETURN(const size_t n,
                   PReadFull(fd.get(), data.data(), data.size(), 0));
  if (n > size_bytes_max) {
    return absl::ResourceExhaustedError(
        absl::StrCat(path, " is longer than ", size_bytes_max, " bytes"));
  }
  data.resize(n);
  return data;
}

absl::Status Files::WriteSmall(int dir_fd, const std::string& path,
                               const std::string& data, mode_t mode) {
  ASSIGN_OR_RETURN(const os::UniqueFd fd,
                   Open(dir_fd, path, O_WRONLY | O_CREAT | O_EXCL, mode));
  return PWriteFull(fd.get(), data.data(), data.size(), 0);
}

Files& RealFiles() {
  static KernelFiles* const files = new KernelFiles();
  return *files;
}

}  // namespace bulkhead::files
