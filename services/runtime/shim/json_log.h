// Docker's json-file log format, written with rotation.
#ifndef BULKHEAD_SERVICES_RUNTIME_SHIM_JSON_LOG_H_
#define BULKHEAD_SERVICES_RUNTIME_SHIM_JSON_LOG_H_

#include <time.h>

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lib/os/fd.h"

namespace bulkhead::shim {

// Longer lines are split into entries without a newline, as Docker does.
constexpr size_t kLogLineSizeBytesMax = 16 << 10;

struct JsonLogOptions {
  std::string path;            // Absolute; its folder is made.
  int64_t size_bytes_max = 0;  // 0: never rotated.
  int files_max = 1;           // `path` and `path`.1 ... `path`.(files_max-1).
};

// What json-file:///abs/path[?tee=..][&max-size=..][&max-file=..] says.
struct JsonLogUri {
  JsonLogOptions options;
  std::string tee;  // Empty: none.
};
absl::StatusOr<JsonLogUri> ParseJsonLogUri(std::string_view uri);

// Resolves %XX; other bytes stay.
std::string PercentDecode(std::string_view text);

// One log file for both streams of a container. Not thread-safe. An entry is
// one write(2): readers never see half of one, whatever happens to the writer.
class JsonLog {
 public:
  explicit JsonLog(JsonLogOptions options) : options_(std::move(options)) {}

  absl::Status Open();

  // One entry; `text` keeps its newline if it had one.
  absl::Status Append(std::string_view stream, std::string_view text,
                      timespec at);

 private:
  absl::Status Rotate();

  JsonLogOptions options_;
  os::UniqueFd file_;
  int64_t size_bytes_ = 0;
};

// Cuts one stream into entries of a JsonLog.
class LogLines {
 public:
  LogLines(JsonLog* log, std::string stream)
      : log_(log), stream_(std::move(stream)) {}

  absl::Status Write(std::string_view bytes, timespec at);
  absl::Status Flush(timespec at);  // The unfinished line, at end of stream.

 private:
  JsonLog* log_;
  std::string stream_;
  std::string partial_;  // Below kLogLineSizeBytesMax.
};

// "2024-01-02T03:04:05.000000006Z", trailing zeros of the fraction cut.
std::string FormatRfc3339Nano(timespec at);

}  // namespace bulkhead::shim

#endif  // BULKHEAD_SERVICES_RUNTIME_SHIM_JSON_LOG_H_
