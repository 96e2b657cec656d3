#include "cli/logs.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <deque>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"

namespace bulkhead::cli {
namespace {

constexpr size_t kReadBytes = 64 << 10;
// Should a change ever go unnoticed, we look again after this.
constexpr int kLookAgainMs = 1000;

struct FileId {
  dev_t device = 0;
  ino_t inode = 0;
  friend bool operator==(const FileId&, const FileId&) = default;
};

}  // namespace

absl::StatusOr<LogEntry> ParseLogLine(const std::string& line) {
  const auto json = nlohmann::json::parse(line, nullptr, false);
  if (!json.is_object() || !json.contains("log") || !json["log"].is_string()) {
    return absl::InvalidArgumentError("not a json-file log line");
  }
  LogEntry entry;
  entry.text = json["log"].get<std::string>();
  entry.stream = json.contains("stream") && json["stream"] == "stderr"
                     ? "stderr"
                     : "stdout";
  if (json.contains("time") && json["time"].is_string()) {
    (void)absl::ParseTime(absl::RFC3339_full, json["time"].get<std::string>(),
                          &entry.time, nullptr);  // Stays "unknown".
  }
  return entry;
}

LogSource::LogSource(std::string path, bool json)
    : path_(std::move(path)), json_(json) {}

absl::StatusOr<bool> LogSource::OpenNext() {
  // Oldest first: <path>.N ... <path>.1, <path>. Renames between the look and
  // the open are caught by comparing what was opened with what was seen.
  std::vector<std::string> names;
  std::vector<FileId> ids;
  struct stat info {};
  for (int i = kRotatedFilesMax; i >= 0; --i) {
    const std::string name = i == 0 ? path_ : absl::StrCat(path_, ".", i);
    if (::stat(name.c_str(), &info) != 0) continue;
    names.push_back(name);
    ids.push_back({info.st_dev, info.st_ino});
  }
  size_t next = 0;
  if (file_.valid() && ::fstat(file_.get(), &info) == 0) {
    const FileId current{info.st_dev, info.st_ino};
    for (size_t i = 0; i < ids.size(); ++i) {
      if (ids[i] == current) next = i + 1;
    }
  }
  if (next >= names.size()) return false;
  absl::StatusOr<os::UniqueFd> file = os::Open(names[next], O_RDONLY);
  if (absl::IsNotFound(file.status())) return false;  // Renamed: next time.
  if (!file.ok()) return file.status();
  if (::fstat(file->get(), &info) != 0 ||
      !(FileId{info.st_dev, info.st_ino} == ids[next])) {
    return OpenNext();
  }
  file_ = *std::move(file);
  return true;
}

void LogSource::Emit(const std::string& line, const Sink& sink) {
  if (!json_) {
    sink({line, "stdout", absl::InfinitePast()});
    return;
  }
  absl::StatusOr<LogEntry> entry = ParseLogLine(line);
  if (entry.ok()) sink(*entry);  // A torn line after a crash is skipped.
}

void LogSource::Feed(const char* data, size_t size_bytes, const Sink& sink) {
  size_t start = 0;
  for (size_t i = 0; i < size_bytes; ++i) {
    if (data[i] != '\n') continue;
    partial_.append(data + start, i + 1 - start);
    Emit(partial_, sink);
    partial_.clear();
    start = i + 1;
  }
  partial_.append(data + start, size_bytes - start);
  if (partial_.size() > kLogLineBytesMax) {
    if (!json_) Emit(partial_, sink);
    partial_.clear();
  }
}

void LogSource::Flush(const Sink& sink) {
  if (!partial_.empty()) Emit(partial_, sink);
  partial_.clear();
}

absl::Status LogSource::ReadAvailable(const Sink& sink) {
  if (!file_.valid()) {
    ASSIGN_OR_RETURN(const bool opened, OpenNext());
    if (!opened) return absl::OkStatus();
  }
  std::string buffer(kReadBytes, '\0');
  for (;;) {
    ASSIGN_OR_RETURN(const size_t got,
                     os::ReadFull(file_.get(), buffer.data(), buffer.size()));
    Feed(buffer.data(), got, sink);
    if (got == buffer.size()) continue;
    // At the end; a newer file means that this one is finished.
    ASSIGN_OR_RETURN(const bool opened, OpenNext());
    if (!opened) return absl::OkStatus();
  }
}

absl::Status LogSource::SkipToEnd() {
  return ReadAvailable([](const LogEntry&) {});
}

absl::Status LogSource::WaitForMore(int stop_fd) {
  if (!notify_.valid()) {
    notify_ = os::UniqueFd(::inotify_init1(IN_CLOEXEC | IN_NONBLOCK));
    if (!notify_.valid()) return os::ErrnoStatus(errno, "inotify_init1");
    const std::string folder = path_.substr(0, path_.rfind('/'));
    // The folder: the file may be replaced.
    if (::inotify_add_watch(notify_.get(), folder.c_str(),
                            IN_MODIFY | IN_CREATE | IN_MOVED_TO) < 0) {
      return os::ErrnoStatus(errno, "watching " + folder);
    }
    return absl::OkStatus();  // It may have grown before the watch.
  }
  pollfd waits[2] = {{notify_.get(), POLLIN, 0}, {stop_fd, POLLIN, 0}};
  ::poll(waits, 2, kLookAgainMs);
  char events[4096];
  while (::read(notify_.get(), events, sizeof(events)) > 0) {
  }
  return absl::OkStatus();
}

absl::Status PrintLog(const std::string& path, bool json,
                      const LogOptions& options, int stop_fd) {
  LogSource source(path, json);
  const auto print = [&](const LogEntry& entry) {
    if (entry.time != absl::InfinitePast() &&
        (entry.time < options.since || entry.time > options.until)) {
      return;
    }
    std::FILE* out = entry.stream == "stderr" ? stderr : stdout;
    if (options.timestamps && entry.time != absl::InfinitePast()) {
      std::fprintf(out, "%s ",
                   absl::FormatTime("%Y-%m-%dT%H:%M:%E9SZ", entry.time,
                                    absl::UTCTimeZone())
                       .c_str());
    }
    std::fwrite(entry.text.data(), 1, entry.text.size(), out);
    std::fflush(out);
  };
  if (options.from_end) {
    RETURN_IF_ERROR(source.SkipToEnd());
  } else if (options.tail >= 0) {
    std::deque<LogEntry> last;
    RETURN_IF_ERROR(source.ReadAvailable([&](const LogEntry& entry) {
      last.push_back(entry);
      if (last.size() > static_cast<size_t>(options.tail)) last.pop_front();
    }));
    for (const LogEntry& entry : last) print(entry);
  } else {
    RETURN_IF_ERROR(source.ReadAvailable(print));
  }
  if (options.placed) options.placed();
  while (options.follow) {
    pollfd stop = {stop_fd, POLLIN, 0};
    const bool stopped = stop_fd >= 0 && ::poll(&stop, 1, 0) > 0;
    RETURN_IF_ERROR(source.ReadAvailable(print));
    if (stopped) break;
    RETURN_IF_ERROR(source.WaitForMore(stop_fd));
  }
  source.Flush(print);
  return absl::OkStatus();
}

namespace {

std::string PercentEncode(const std::string& text) {
  std::string encoded;
  for (const char c : text) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                       (c >= '0' && c <= '9') || c == '-' || c == '_' ||
                       c == '.' || c == '~' || c == '/';
    if (plain) {
      encoded += c;
    } else {
      encoded += '%';
      encoded += "0123456789ABCDEF"[static_cast<unsigned char>(c) >> 4];
      encoded += "0123456789ABCDEF"[static_cast<unsigned char>(c) & 15];
    }
  }
  return encoded;
}

}  // namespace

std::string JsonLogUri(const std::string& path, const std::string& options,
                       const std::string& tee) {
  std::string uri = "json-file://" + PercentEncode(path);
  char separator = '?';
  for (const std::string& part :
       {options, tee.empty() ? "" : "tee=" + PercentEncode(tee)}) {
    if (part.empty()) continue;
    uri += separator + part;
    separator = '&';
  }
  return uri;
}

}  // namespace bulkhead::cli
