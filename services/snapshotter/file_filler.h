// The second half of unpacking a regular file: what comes after its creation,
// all of it by descriptor, so that it can go on beside the work on names.
#ifndef BULKHEAD_SERVICES_SNAPSHOTTER_FILE_FILLER_H_
#define BULKHEAD_SERVICES_SNAPSHOTTER_FILE_FILLER_H_

#include <sys/types.h>
#include <time.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "lib/os/fd.h"
#include "services/snapshotter/tar_reader.h"

namespace bulkhead::snapshotter {

// What a file or directory is created with where its final mode must wait for
// its owner and attributes.
constexpr mode_t kPrivateMode = 0600;

// What makes a file complete once its bytes are there.
struct FileFinish {
  int64_t uid = 0;
  int64_t gid = 0;
  mode_t mode = 0;
  // kPrivateMode, or the final mode: then the file also has, as its owner, this
  // process.
  mode_t made_mode = kPrivateMode;
  timespec times[2] = {};
  // Borrowed; null: none. Only for a FileFiller that is called directly.
  const TarEntry* xattrs_of = nullptr;
};

// One step of filling a file. A file's jobs come one after another, those of
// another file not in between.
struct FileJob {
  // In the first job of a file alone; the last one closes it.
  os::UniqueFd fd;
  std::string name;  // With it, for errors.
  absl::string_view data;
  int64_t offset_bytes = 0;
  std::shared_ptr<void> hold;        // Keeps `data` where it is.
  std::optional<FileFinish> finish;  // In the last job of a file.
};

// Sets xattrs of an entry by `set`, which is as setxattr(2). trusted.* and what
// the file system does not support are left out, with a warning.
absl::Status SetXattrs(
    const TarEntry& entry,
    absl::FunctionRef<int(const std::string& key, const std::string& value)>
        set);

// Owner (which clears set-id bits), xattrs, mode; not the times.
absl::Status SetOpenAttributes(int fd, const FileFinish& finish);

// Does jobs where it is called. Not thread-safe.
class FileFiller {
 public:
  // After an error the file is let go of; the next job must bring another one.
  absl::Status Do(FileJob& job);

  // Of the complete files, in units of 512 bytes.
  int64_t blocks() const { return blocks_; }

 private:
  absl::Status DoOpen(FileJob& job);

  os::UniqueFd fd_;
  int64_t written_bytes_ = 0;  // To the current file.
  int64_t writeback_from_bytes_ = 0;
  int64_t blocks_ = 0;
};

// Hands jobs to a thread. Push(), Drain() and End() belong to one thread, Run()
// to another.
class FileWriter {
 public:
  // Does the jobs until End(); on the thread that fills. `status`: whether it
  // can do any.
  void Run(absl::Status status);
  // Nothing more comes. Run() returns when it has done what there is.
  void End();

  // Queues a job; waits while kFileJobsMax are queued. After an error jobs are
  // dropped.
  void Push(FileJob job);
  // Waits until all that was pushed is done. The first error, with the file's
  // name; for good.
  absl::Status Drain();
  // Whether Drain() is going to fail.
  bool failed() const { return failed_.load(std::memory_order_relaxed); }
  // What has been filled so far, roughly, files counted in; for any thread.
  int64_t written_bytes() const {
    return written_bytes_.load(std::memory_order_relaxed);
  }
  // See FileFiller; right after Drain().
  int64_t blocks() const { return filler_.blocks(); }

 private:
  bool Urgent() const;

  std::mutex mutex_;
  std::condition_variable work_, room_, idle_;
  // Guarded by mutex_:
  std::vector<FileJob> queue_;
  size_t queued_bytes_ = 0;
  bool asleep_ = false;
  bool busy_ = false;
  bool draining_ = false;
  bool ended_ = false;
  absl::Status status_;

  std::atomic<bool> failed_{false};
  std::atomic<int64_t> written_bytes_{0};
  FileFiller filler_;  // Of the thread in Run(), or anybody's while it is idle.
};

constexpr size_t kFileJobsMax = 96;

}  // namespace bulkhead::snapshotter

#endif  // BULKHEAD_SERVICES_SNAPSHOTTER_FILE_FILLER_H_
