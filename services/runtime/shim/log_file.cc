#include "services/runtime/shim/log_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"

namespace bulkhead::shim {

absl::Status LogFile::Open() {
  const size_t slash = options_.path.rfind('/');
  if (slash > 0 && slash != std::string::npos) {
    RETURN_IF_ERROR(os::MakeDirs(options_.path.substr(0, slash), 0755));
  }
  ASSIGN_OR_RETURN(
      file_, os::Open(options_.path, O_WRONLY | O_APPEND | O_CREAT, 0640));
  struct stat info {};
  if (::fstat(file_.get(), &info) != 0) {
    return os::ErrnoStatus(errno, options_.path);
  }
  size_bytes_ = info.st_size;
  device_ = info.st_dev;
  inode_ = info.st_ino;
  return absl::OkStatus();
}

absl::Status LogFile::Follow() {
  struct stat info {};
  if (::stat(options_.path.c_str(), &info) == 0 && info.st_dev == device_ &&
      info.st_ino == inode_) {
    size_bytes_ = info.st_size;  // It may have been truncated.
    return absl::OkStatus();
  }
  return Open();
}

absl::Status LogFile::Rotate() {
  // path.(n-1) -> path.n from the oldest on; with one file it starts anew.
  for (int i = options_.files_max - 1; i >= 1; --i) {
    const std::string from =
        i == 1 ? options_.path : absl::StrCat(options_.path, ".", i - 1);
    (void)::rename(from.c_str(), absl::StrCat(options_.path, ".", i).c_str());
  }
  if (options_.files_max <= 1 && ::truncate(options_.path.c_str(), 0) != 0) {
    return os::ErrnoStatus(errno, options_.path);
  }
  return Open();
}

absl::Status LogFile::Append(std::string_view entry) {
  const int64_t entry_bytes = static_cast<int64_t>(entry.size());
  if (options_.size_bytes_max > 0 && size_bytes_ > 0 &&
      size_bytes_ + entry_bytes > options_.size_bytes_max) {
    RETURN_IF_ERROR(Rotate());
  }
  const absl::Status written =
      os::WriteFull(file_.get(), entry.data(), entry.size());
  if (!written.ok()) {
    // Half an entry would spoil the next one.
    if (::ftruncate(file_.get(), size_bytes_) != 0) return written;
    return written;
  }
  size_bytes_ += entry_bytes;
  return absl::OkStatus();
}

}  // namespace bulkhead::shim
