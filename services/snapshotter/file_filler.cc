#include "services/snapshotter/file_filler.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/log/log.h"

namespace bulkhead::snapshotter {
namespace {

// The kernel is told to write back large files in steps of this size, so that
// the sync at the end finds less to wait for. Smaller ones are left to that
// sync: to begin writing one may wait for the file system's journal.
constexpr int64_t kWritebackStepBytes = 4 << 20;

// A wake-up costs as much as a small file: a few jobs are worth one, or a
// nap's time.
constexpr size_t kJobsWorthWaking = 32;
constexpr size_t kBytesWorthWaking = 256 << 10;
constexpr std::chrono::milliseconds kNap{1};

// What a file adds to written_bytes() besides its own: inode and last block.
constexpr int64_t kFileWorthBytes = 8 << 10;

constexpr size_t kShownNameBytesMax = 256;

bool XattrIsOptional(const std::string& key, TarType type, int error) {
  if (error == ENOTSUP) return true;
  return error == EPERM && absl::StartsWith(key, "user.") &&
         type != TarType::kFile && type != TarType::kDirectory;
}

}  // namespace

absl::Status SetXattrs(
    const TarEntry& entry,
    absl::FunctionRef<int(const std::string& key, const std::string& value)>
        set) {
  for (const auto& [key, value] : entry.xattrs) {
    if (absl::StartsWith(key, "trusted.")) {
      log::Warn("layer's trusted xattr left out", {{"xattr", key}});
      continue;
    }
    if (set(key, value) == 0) continue;
    const int error = errno;
    if (XattrIsOptional(key, entry.type, error)) {
      log::Warn("layer's xattr not supported here", {{"xattr", key}});
      continue;
    }
    return os::ErrnoStatus(error, absl::StrCat("setxattr ", key));
  }
  return absl::OkStatus();
}

absl::Status SetOpenAttributes(int fd, const FileFinish& finish) {
  static const int64_t own_uid = ::geteuid();
  static const int64_t own_gid = ::getegid();
  const bool final_mode = finish.made_mode != kPrivateMode;
  if (!(final_mode && finish.uid == own_uid && finish.gid == own_gid) &&
      ::fchown(fd, finish.uid, finish.gid) != 0) {
    return os::ErrnoStatus(errno, "chown");
  }
  if (finish.xattrs_of != nullptr) {
    RETURN_IF_ERROR(SetXattrs(
        *finish.xattrs_of,
        [fd](const std::string& key, const std::string& value) {
          return ::fsetxattr(fd, key.c_str(), value.data(), value.size(), 0);
        }));
  }
  if (!final_mode && ::fchmod(fd, finish.mode) != 0) {
    return os::ErrnoStatus(errno, "chmod");
  }
  return absl::OkStatus();
}

absl::Status FileFiller::Do(FileJob& job) {
  if (job.fd.valid()) {
    fd_ = std::move(job.fd);
    written_bytes_ = writeback_from_bytes_ = 0;
  }
  const absl::Status status = DoOpen(job);
  if (!status.ok() || job.finish) fd_.Reset();
  return status;
}

absl::Status FileFiller::DoOpen(FileJob& job) {
  const int fd = fd_.get();
  if (!job.data.empty()) {
    RETURN_IF_ERROR(
        os::PWriteFull(fd, job.data.data(), job.data.size(), job.offset_bytes));
    written_bytes_ = job.offset_bytes + static_cast<int64_t>(job.data.size());
    if (written_bytes_ - writeback_from_bytes_ >= kWritebackStepBytes) {
      // Only a hint.
      (void)::sync_file_range(fd, writeback_from_bytes_,
                              written_bytes_ - writeback_from_bytes_,
                              SYNC_FILE_RANGE_WRITE);
      writeback_from_bytes_ = written_bytes_;
    }
  }
  if (!job.finish) return absl::OkStatus();
  RETURN_IF_ERROR(SetOpenAttributes(fd, *job.finish));
  if (::futimens(fd, job.finish->times) != 0) {
    return os::ErrnoStatus(errno, "utimes");
  }
  struct stat st;
  if (::fstat(fd, &st) != 0) return os::ErrnoStatus(errno, "stat");
  blocks_ += st.st_blocks;
  if (written_bytes_ >= kWritebackStepBytes &&
      written_bytes_ > writeback_from_bytes_) {
    (void)::sync_file_range(fd, writeback_from_bytes_, 0,
                            SYNC_FILE_RANGE_WRITE);
  }
  return absl::OkStatus();
}

bool FileWriter::Urgent() const {
  return queue_.size() >= kJobsWorthWaking ||
         queued_bytes_ >= kBytesWorthWaking || draining_ || ended_;
}

void FileWriter::Push(FileJob job) {
  std::unique_lock lock(mutex_);
  room_.wait(lock, [this] { return queue_.size() < kFileJobsMax; });
  queued_bytes_ += job.data.size();
  queue_.push_back(std::move(job));
  if (asleep_ || Urgent()) work_.notify_one();
}

absl::Status FileWriter::Drain() {
  std::unique_lock lock(mutex_);
  draining_ = true;
  work_.notify_one();
  idle_.wait(lock, [this] { return queue_.empty() && !busy_; });
  draining_ = false;
  return status_;
}

void FileWriter::End() {
  std::lock_guard lock(mutex_);
  ended_ = true;
  work_.notify_one();
}

void FileWriter::Run(absl::Status status) {
  std::vector<FileJob> jobs;
  std::string name;
  std::unique_lock lock(mutex_);
  status_ = status;
  failed_ = !status.ok();
  for (;;) {
    if (!work_.wait_for(lock, kNap, [this] { return Urgent(); }) &&
        queue_.empty()) {
      asleep_ = true;
      work_.wait(lock, [this] { return !queue_.empty() || ended_; });
      asleep_ = false;
    }
    if (queue_.empty()) {
      if (ended_) return;
      continue;
    }
    jobs.swap(queue_);
    queued_bytes_ = 0;
    busy_ = true;
    room_.notify_one();
    lock.unlock();
    int64_t done_bytes = 0;
    for (FileJob& job : jobs) {
      done_bytes += static_cast<int64_t>(job.data.size());
      if (job.finish) done_bytes += kFileWorthBytes;
      if (job.fd.valid()) name = std::move(job.name);
      if (status.ok()) status = filler_.Do(job);
      if (!status.ok() && !failed()) {
        status = Annotate(
            status,
            absl::StrCat("entry \"", name.substr(0, kShownNameBytesMax), "\""));
        failed_.store(true, std::memory_order_relaxed);
      }
      job = FileJob{};  // Its buffer goes back at once.
    }
    jobs.clear();
    written_bytes_.fetch_add(done_bytes, std::memory_order_relaxed);
    lock.lock();
    status_ = status;
    busy_ = false;
    if (!queue_.empty()) continue;
    draining_ = false;
    idle_.notify_one();
  }
}

}  // namespace bulkhead::snapshotter
