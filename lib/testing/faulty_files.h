// Files that fail on command.
#ifndef BULKHEAD_LIB_TESTING_FAULTY_FILES_H_
#define BULKHEAD_LIB_TESTING_FAULTY_FILES_H_

#include <atomic>
#include <string>
#include <vector>

#include "lib/files/files.h"

namespace bulkhead::testing {

struct Fault {
  int fail_at = -1;  // The call with this number fails; -1: none.
  int error = 0;     // With this errno value.
  // Every call from then on fails too, as if the process had died there.
  bool for_ever = false;
  // Instead of failing, a PRead or PWrite with that number does half of what it
  // was asked for and says so; every other call is as usual.
  bool short_only = false;
  // Sync() is handed on. Else it reaches no disk: with a real one no test can
  // tell, and each takes milliseconds.
  bool pass_syncs = false;
};

// Hands calls on to `real`, counting them, and fails as `fault` says. A PWrite
// that is to fail writes half of its bytes first. Thread-safe.
class FaultyFiles : public files::Files {
 public:
  FaultyFiles(files::Files& real, const Fault& fault)
      : real_(real), fault_(fault) {}

  // Whether the fault has been reached.
  bool fired() const { return fired_; }
  int calls() const { return calls_; }
  void Disarm() { armed_ = false; }
  // From now on, every PWrite fails with `error` (0: no longer).
  void FailWrites(int error) { write_error_ = error; }

  absl::StatusOr<os::UniqueFd> Open(int dir_fd, const std::string& path,
                                    int flags, mode_t mode) override;
  absl::StatusOr<size_t> PRead(int fd, void* data, size_t size_bytes,
                               int64_t offset_bytes) override;
  absl::StatusOr<size_t> PWrite(int fd, const void* data, size_t size_bytes,
                                int64_t offset_bytes) override;
  absl::Status Truncate(int fd, int64_t size_bytes) override;
  absl::Status Sync(int fd) override;
  void StartWriteback(int fd, int64_t offset_bytes,
                      int64_t size_bytes) override;
  absl::Status WaitWritten(int fd, int64_t offset_bytes,
                           int64_t size_bytes) override;
  absl::Status Lock(int fd) override;
  absl::Status Chmod(int fd, mode_t mode) override;
  absl::StatusOr<files::FileStat> Stat(int dir_fd,
                                       const std::string& path) override;
  absl::Status MakeDir(int dir_fd, const std::string& path,
                       mode_t mode) override;
  absl::Status RenameNoReplace(int from_dir_fd, const std::string& from,
                               int to_dir_fd, const std::string& to) override;
  absl::Status Unlink(int dir_fd, const std::string& path) override;
  absl::Status RemoveDir(int dir_fd, const std::string& path) override;
  absl::StatusOr<std::vector<std::string>> List(
      int dir_fd, const std::string& path) override;

 private:
  // The error of the call that is about to be made. `size_bytes`, unless null,
  // is halved instead where `short_only` says so.
  absl::Status Next(const char* call, size_t* size_bytes = nullptr);

  files::Files& real_;
  const Fault fault_;
  std::atomic<bool> armed_{true};
  std::atomic<bool> fired_{false};
  std::atomic<int> calls_{0};
  std::atomic<int> write_error_{0};
};

}  // namespace bulkhead::testing

#endif  // BULKHEAD_LIB_TESTING_FAULTY_FILES_H_
