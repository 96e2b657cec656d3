// Reading a container's log file: Docker's json-file lines (or raw text),
// across rotated files, following what is still being written.
#ifndef BULKHEAD_CLI_LOGS_H_
#define BULKHEAD_CLI_LOGS_H_

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "lib/os/fd.h"

namespace bulkhead::cli {

// A longer line is handed on in pieces.
constexpr size_t kLogLineBytesMax = 1 << 20;
// Rotated files looked for: <path>.1 (the newest) to <path>.<this>.
constexpr int kRotatedFilesMax = 100;

struct LogEntry {
  std::string text;                        // With its newline, if it has one.
  std::string stream;                      // "stdout" or "stderr".
  absl::Time time = absl::InfinitePast();  // Raw files do not say.
};

// One line of a json-file log. kInvalidArgument: it is not one.
absl::StatusOr<LogEntry> ParseLogLine(const std::string& line);

// Not thread-safe.
class LogSource {
 public:
  using Sink = std::function<void(const LogEntry&)>;

  LogSource(std::string path, bool json);

  // Hands over every complete entry up to the present end, oldest first; a
  // later call goes on from there. A log that does not exist yet is empty.
  absl::Status ReadAvailable(const Sink& sink);
  // Skips what is there now.
  absl::Status SkipToEnd();
  // Hands over an unfinished last line.
  void Flush(const Sink& sink);

  // Blocks until the log may have grown, or `stop_fd` is readable (-1: none).
  absl::Status WaitForMore(int stop_fd);

 private:
  absl::StatusOr<bool> OpenNext();
  void Feed(const char* data, size_t size_bytes, const Sink& sink);
  void Emit(const std::string& line, const Sink& sink);

  std::string path_;
  bool json_;
  os::UniqueFd file_;
  os::UniqueFd notify_;
  std::string partial_;
};

struct LogOptions {
  bool follow = false;
  bool timestamps = false;
  int64_t tail = -1;  // -1: all.
  absl::Time since = absl::InfinitePast();
  absl::Time until = absl::InfiniteFuture();
  bool from_end = false;  // Nothing that is there already.
  // Called once by PrintLog's thread when what is there already has been read
  // or skipped: what is logged from then on is followed. Not after an error.
  std::function<void()> placed;
};

// Prints the log to stdout and stderr; with `follow` until `stop_fd` becomes
// readable and the rest has been printed.
absl::Status PrintLog(const std::string& path, bool json,
                      const LogOptions& options, int stop_fd);

// The log URI of our shim for `path`; `options` as "max-size=N&max-file=N" or
// "", `tee` a FIFO or "".
std::string JsonLogUri(const std::string& path, const std::string& options,
                       const std::string& tee);

}  // namespace bulkhead::cli

#endif  // BULKHEAD_CLI_LOGS_H_
