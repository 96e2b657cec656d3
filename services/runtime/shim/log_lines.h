// The formats of container logs that the shim writes: Docker's json-file and
// Kubernetes' CRI.
#ifndef BULKHEAD_SERVICES_RUNTIME_SHIM_LOG_LINES_H_
#define BULKHEAD_SERVICES_RUNTIME_SHIM_LOG_LINES_H_

#include <time.h>

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "services/runtime/shim/log_file.h"

namespace bulkhead::shim {

// Longer lines are cut: Docker's limit, and the CRI's when none is given.
constexpr size_t kLogLineSizeBytesMax = 16 << 10;
// What a CRI line may be allowed to be: the shim holds one in memory.
constexpr size_t kCriLineSizeBytesMaxMax = 1 << 20;

// What SCHEME:///abs/path[?tee=..][&max-size=..][&max-file=..][&max-line=..]
// says.
struct LogUri {
  LogFileOptions file;
  std::string tee;  // Empty: none.
  size_t line_size_bytes_max = kLogLineSizeBytesMax;
};
// Errors: kInvalidArgument: the scheme is not `scheme`, or the path is not
//   absolute, or a number is none.
absl::StatusOr<LogUri> ParseLogUri(std::string_view scheme,
                                   std::string_view uri);

// Resolves %XX; other bytes stay.
std::string PercentDecode(std::string_view text);

// Cuts one stream into entries of a log file, which must outlive it.
class LogLines {
 public:
  virtual ~LogLines() = default;
  // An entry that cannot be written is lost; the others are written.
  virtual absl::Status Write(std::string_view bytes, timespec at) = 0;
  virtual absl::Status Flush(timespec at) = 0;  // At the end of the stream.
};

// {"log":"text\n","stream":"stdout","time":"..Z"}; a line that is cut or not
// ended has no newline.
class JsonLines : public LogLines {
 public:
  JsonLines(LogFile* log, std::string stream)
      : log_(log), stream_(std::move(stream)) {}
  absl::Status Write(std::string_view bytes, timespec at) override;
  absl::Status Flush(timespec at) override;

 private:
  absl::Status Append(std::string_view text, timespec at);

  LogFile* log_;
  std::string stream_;
  std::string partial_;  // Below kLogLineSizeBytesMax.
};

// "TIME stdout F text": F ends a line, P is a piece of one that is longer than
// `line_size_bytes_max` (every P is exactly that long) or was not ended. A "\r"
// before the newline is dropped. Times are local.
class CriLines : public LogLines {
 public:
  // A maximum of 0 stands for the greatest one.
  CriLines(LogFile* log, std::string stream, size_t line_size_bytes_max);
  absl::Status Write(std::string_view bytes, timespec at) override;
  absl::Status Flush(timespec at) override;

 private:
  absl::Status Append(char tag, std::string_view text, timespec at);
  // All pieces of a line but the last; what is left of it.
  std::string_view AppendPieces(std::string_view line, timespec at,
                                absl::Status* result);

  LogFile* log_;
  std::string stream_;
  size_t max_;
  std::string partial_;  // At most max_ + 1 bytes, between calls.
};

// "2024-01-02T03:04:05.000000006Z", trailing zeros of the fraction cut. Local
// times have the zone's offset, or Z where that is zero.
std::string FormatRfc3339Nano(timespec at, bool local = false);

}  // namespace bulkhead::shim

#endif  // BULKHEAD_SERVICES_RUNTIME_SHIM_LOG_LINES_H_
