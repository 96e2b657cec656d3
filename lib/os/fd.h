// Owned file descriptors, and opening paths that cannot leave their root.
// No exceptions; every descriptor is close-on-exec from birth.
#ifndef BULKHEAD_LIB_OS_FD_H_
#define BULKHEAD_LIB_OS_FD_H_

#include <sys/types.h>

#include <cerrno>
#include <cstdint>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace bulkhead::os {

// Owns one file descriptor and closes it exactly once. Not thread-safe.
class [[nodiscard]] UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) noexcept : fd_(fd) {}  // Negative means empty.
  UniqueFd(UniqueFd&& other) noexcept : fd_(other.Release()) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    Reset(other.Release());
    return *this;
  }
  ~UniqueFd() { Reset(); }

  int get() const noexcept { return fd_; }
  bool valid() const noexcept { return fd_ >= 0; }
  [[nodiscard]] int Release() noexcept { return std::exchange(fd_, -1); }

  // Preserves errno. Linux frees the number even on EINTR: never retries.
  void Reset(int fd = -1) noexcept;

 private:
  int fd_ = -1;
};

// A status for a failed system call, from `error` (an errno value). The code
// follows absl::ErrnoToStatusCode; callers decide whether it is the client's.
absl::Status ErrnoStatus(int error, const std::string& context);

// open(2) with O_CLOEXEC; retries EINTR.
absl::StatusOr<UniqueFd> Open(const std::string& path, int flags,
                              mode_t mode = 0);
// openat(2) likewise.
absl::StatusOr<UniqueFd> OpenAt(int dir_fd, const std::string& path, int flags,
                                mode_t mode = 0);
// Opens `path` as if `root` were "/": neither ".." nor a symlink leaves it.
absl::StatusOr<UniqueFd> OpenInRoot(int root_fd, const std::string& path,
                                    int flags, mode_t mode = 0);
// A duplicate with O_CLOEXEC.
absl::StatusOr<UniqueFd> Dup(int fd);

// Whole-buffer I/O; retries EINTR and short counts. ReadFull returns fewer
// bytes than asked only at end of file.
absl::Status WriteFull(int fd, const void* data, size_t size_bytes);
absl::Status PWriteFull(int fd, const void* data, size_t size_bytes,
                        int64_t offset_bytes);
absl::StatusOr<size_t> ReadFull(int fd, void* data, size_t size_bytes);
absl::StatusOr<size_t> PReadFull(int fd, void* data, size_t size_bytes,
                                 int64_t offset_bytes);

// Reads a whole file of at most `size_bytes_max`; kResourceExhausted past it.
absl::StatusOr<std::string> ReadFile(const std::string& path,
                                     size_t size_bytes_max = 16 << 20);
// Writes a file so that a crash leaves the old content or the new, never a
// mix: temporary file, fsync, rename, fsync of the folder.
absl::Status WriteFileAtomic(const std::string& path, const std::string& data,
                             mode_t mode);

// mkdir -p; folders made get `mode` whatever the umask.
absl::Status MakeDirs(const std::string& path, mode_t mode);
// rm -rf that follows no symlink and crosses into no mount. A missing path is
// OK.
absl::Status RemoveAll(const std::string& path);
// fsync of a folder.
absl::Status SyncDir(const std::string& path);

}  // namespace bulkhead::os

#endif  // BULKHEAD_LIB_OS_FD_H_
