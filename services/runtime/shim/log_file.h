// A container's log file that the shim writes by itself: whole entries,
// rotation, and going on under the same name when somebody moved the file.
#ifndef BULKHEAD_SERVICES_RUNTIME_SHIM_LOG_FILE_H_
#define BULKHEAD_SERVICES_RUNTIME_SHIM_LOG_FILE_H_

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "lib/os/fd.h"

namespace bulkhead::shim {

struct LogFileOptions {
  std::string path;            // Absolute; its folder is made (0755).
  int64_t size_bytes_max = 0;  // 0: never rotated.
  int files_max = 1;           // `path` and `path`.1 ... `path`.(files_max-1).
};

// Shared by both streams of a container. Not thread-safe; writing may block on
// the disk. An entry is one write(2): readers never see half of one, and one
// that does not fit on the disk leaves nothing of itself behind.
class LogFile {
 public:
  explicit LogFile(LogFileOptions options) : options_(std::move(options)) {}

  // Appends to the file `path`, made with mode 0640 if missing.
  absl::Status Open();
  // Opens `path` anew if it no longer names the open file: whoever rotates logs
  // from outside renames it.
  absl::Status Follow();
  absl::Status Append(std::string_view entry);

 private:
  absl::Status Rotate();

  LogFileOptions options_;
  os::UniqueFd file_;
  int64_t size_bytes_ = 0;
  dev_t device_ = 0;
  ino_t inode_ = 0;
};

}  // namespace bulkhead::shim

#endif  // BULKHEAD_SERVICES_RUNTIME_SHIM_LOG_FILE_H_
