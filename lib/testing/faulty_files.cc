#include "lib/testing/faulty_files.h"

namespace bulkhead::testing {

absl::Status FaultyFiles::Next(const char* call, size_t* size_bytes) {
  const int number = calls_++;
  if (!armed_ || fault_.fail_at < 0) return absl::OkStatus();
  if (number == fault_.fail_at ||
      (fault_.for_ever && number > fault_.fail_at)) {
    if (fault_.short_only) {
      if (size_bytes == nullptr || *size_bytes < 2) return absl::OkStatus();
      fired_ = true;
      *size_bytes /= 2;
      return absl::OkStatus();
    }
    fired_ = true;
    return os::ErrnoStatus(fault_.error, std::string("fault in ") + call);
  }
  return absl::OkStatus();
}

absl::StatusOr<os::UniqueFd> FaultyFiles::Open(int dir_fd,
                                               const std::string& path,
                                               int flags, mode_t mode) {
  const absl::Status fault = Next("open");
  if (!fault.ok()) return fault;
  return real_.Open(dir_fd, path, flags, mode);
}

absl::StatusOr<size_t> FaultyFiles::PRead(int fd, void* data, size_t size_bytes,
                                          int64_t offset_bytes) {
  const absl::Status fault = Next("pread", &size_bytes);
  if (!fault.ok()) return fault;
  return real_.PRead(fd, data, size_bytes, offset_bytes);
}

absl::StatusOr<size_t> FaultyFiles::PWrite(int fd, const void* data,
                                           size_t size_bytes,
                                           int64_t offset_bytes) {
  absl::Status fault = Next("pwrite", &size_bytes);
  if (fault.ok() && write_error_ != 0) {
    fault = os::ErrnoStatus(write_error_, "fault in pwrite");
  }
  if (!fault.ok()) {
    (void)real_.PWrite(fd, data, size_bytes / 2,
                       offset_bytes);  // A torn write.
    return fault;
  }
  return real_.PWrite(fd, data, size_bytes, offset_bytes);
}

absl::Status FaultyFiles::Truncate(int fd, int64_t size_bytes) {
  const absl::Status fault = Next("ftruncate");
  return fault.ok() ? real_.Truncate(fd, size_bytes) : fault;
}

absl::Status FaultyFiles::Sync(int fd) {
  const absl::Status fault = Next("fsync");
  return fault.ok() && fault_.pass_syncs ? real_.Sync(fd) : fault;
}

void FaultyFiles::StartWriteback(int fd, int64_t offset_bytes,
                                 int64_t size_bytes) {
  real_.StartWriteback(fd, offset_bytes, size_bytes);
}

absl::Status FaultyFiles::WaitWritten(int fd, int64_t offset_bytes,
                                      int64_t size_bytes) {
  const absl::Status fault = Next("sync_file_range");
  return fault.ok() ? real_.WaitWritten(fd, offset_bytes, size_bytes) : fault;
}

absl::Status FaultyFiles::Lock(int fd) {
  const absl::Status fault = Next("flock");
  return fault.ok() ? real_.Lock(fd) : fault;
}

absl::Status FaultyFiles::Chmod(int fd, mode_t mode) {
  const absl::Status fault = Next("fchmod");
  return fault.ok() ? real_.Chmod(fd, mode) : fault;
}

absl::StatusOr<files::FileStat> FaultyFiles::Stat(int dir_fd,
                                                  const std::string& path) {
  const absl::Status fault = Next("stat");
  if (!fault.ok()) return fault;
  return real_.Stat(dir_fd, path);
}

absl::Status FaultyFiles::MakeDir(int dir_fd, const std::string& path,
                                  mode_t mode) {
  const absl::Status fault = Next("mkdir");
  return fault.ok() ? real_.MakeDir(dir_fd, path, mode) : fault;
}

absl::Status FaultyFiles::RenameNoReplace(int from_dir_fd,
                                          const std::string& from,
                                          int to_dir_fd,
                                          const std::string& to) {
  const absl::Status fault = Next("rename");
  return fault.ok() ? real_.RenameNoReplace(from_dir_fd, from, to_dir_fd, to)
                    : fault;
}

absl::Status FaultyFiles::Unlink(int dir_fd, const std::string& path) {
  const absl::Status fault = Next("unlink");
  return fault.ok() ? real_.Unlink(dir_fd, path) : fault;
}

absl::Status FaultyFiles::RemoveDir(int dir_fd, const std::string& path) {
  const absl::Status fault = Next("rmdir");
  return fault.ok() ? real_.RemoveDir(dir_fd, path) : fault;
}

absl::StatusOr<std::vector<std::string>> FaultyFiles::List(
    int dir_fd, const std::string& path) {
  const absl::Status fault = Next("readdir");
  if (!fault.ok()) return fault;
  return real_.List(dir_fd, path);
}

}  // namespace bulkhead::testing
