// The file system calls that a store stands on, as an interface, so that tests
// can make each of them fail in turn (lib/testing/faulty_files.h).
//
// A folder descriptor plus a relative path; "" means the descriptor itself.
// Every descriptor is close-on-exec. EINTR is retried. Errors carry the code
// of absl::ErrnoToStatusCode (ENOENT kNotFound, EEXIST kAlreadyExists, ENOSPC
// kResourceExhausted) and a message that names call and path. Thread-safe.
#ifndef BULKHEAD_LIB_FILES_FILES_H_
#define BULKHEAD_LIB_FILES_FILES_H_

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "lib/os/fd.h"

namespace bulkhead::files {

struct FileStat {
  int64_t size_bytes = 0;
  absl::Time modified_at;
  mode_t mode = 0;
  bool is_regular = false;
  bool is_directory = false;
};

class Files {
 public:
  virtual ~Files() = default;

  virtual absl::StatusOr<os::UniqueFd> Open(int dir_fd, const std::string& path,
                                            int flags, mode_t mode = 0) = 0;
  // One call each: both may be short.
  virtual absl::StatusOr<size_t> PRead(int fd, void* data, size_t size_bytes,
                                       int64_t offset_bytes) = 0;
  virtual absl::StatusOr<size_t> PWrite(int fd, const void* data,
                                        size_t size_bytes,
                                        int64_t offset_bytes) = 0;
  virtual absl::Status Truncate(int fd, int64_t size_bytes) = 0;
  // Where the first page begins that was never written; the file's size if
  // there is none, or if the file system cannot tell. Moves the file position.
  virtual int64_t FirstHole(int fd, int64_t size_bytes);
  // Waits until data and size (of a folder: its entries) are on stable storage.
  virtual absl::Status Sync(int fd) = 0;
  // Starts writing a range back without waiting: a hint, which cannot fail.
  virtual void StartWriteback(int fd, int64_t offset_bytes,
                              int64_t size_bytes) = 0;
  // Waits until what a range holds has been written back. Not Sync(): after a
  // power failure it may be gone. Fails if any write of the file failed since
  // that was last told, by Sync() or here.
  virtual absl::Status WaitWritten(int fd, int64_t offset_bytes,
                                   int64_t size_bytes) = 0;
  // Takes flock(2)'s exclusive lock until the descriptor is closed.
  // kFailedPrecondition if somebody else has it.
  virtual absl::Status Lock(int fd) = 0;
  virtual absl::Status Chmod(int fd, mode_t mode) = 0;
  virtual absl::StatusOr<FileStat> Stat(int dir_fd,
                                        const std::string& path) = 0;
  virtual absl::Status MakeDir(int dir_fd, const std::string& path,
                               mode_t mode) = 0;
  // Atomic; an existing target is kAlreadyExists and nothing changes.
  virtual absl::Status RenameNoReplace(int from_dir_fd, const std::string& from,
                                       int to_dir_fd,
                                       const std::string& to) = 0;
  virtual absl::Status Unlink(int dir_fd, const std::string& path) = 0;
  virtual absl::Status RemoveDir(int dir_fd, const std::string& path) = 0;
  // Names in a folder, without "." and "..", in no order.
  virtual absl::StatusOr<std::vector<std::string>> List(
      int dir_fd, const std::string& path) = 0;

  // Whole-buffer forms on top of the above. ReadFull returns fewer bytes than
  // asked only at end of file.
  absl::StatusOr<size_t> PReadFull(int fd, void* data, size_t size_bytes,
                                   int64_t offset_bytes);
  absl::Status PWriteFull(int fd, const void* data, size_t size_bytes,
                          int64_t offset_bytes);
  // A whole small file; kResourceExhausted past `size_bytes_max`.
  absl::StatusOr<std::string> ReadSmall(int dir_fd, const std::string& path,
                                        size_t size_bytes_max);
  // Creates `path` (kAlreadyExists if it is there) with `data`; no fsync.
  absl::Status WriteSmall(int dir_fd, const std::string& path,
                          const std::string& data, mode_t mode);
};

// The kernel's. Lives for ever.
Files& RealFiles();

}  // namespace bulkhead::files

#endif  // BULKHEAD_LIB_FILES_FILES_H_
