#include "services/runtime/shim/log_lines.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "services/runtime/shim/json_scan.h"

namespace bulkhead::shim {
namespace {

constexpr int64_t kLogFilesMax = 1000;

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if ((c | 32) >= 'a' && (c | 32) <= 'f') return (c | 32) - 'a' + 10;
  return -1;
}

}  // namespace

std::string PercentDecode(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size() && HexDigit(text[i + 1]) >= 0 &&
        HexDigit(text[i + 2]) >= 0) {
      out.push_back(static_cast<char>(HexDigit(text[i + 1]) * 16 +
                                      HexDigit(text[i + 2])));
      i += 2;
    } else {
      out.push_back(text[i]);
    }
  }
  return out;
}

absl::StatusOr<LogUri> ParseLogUri(std::string_view scheme,
                                   std::string_view uri) {
  if (uri.substr(0, scheme.size()) != scheme ||
      uri.substr(scheme.size(), 3) != "://") {
    return absl::InvalidArgumentError(
        absl::StrCat("not a ", std::string(scheme), " URI"));
  }
  uri.remove_prefix(scheme.size() + 3);
  const size_t question = uri.find('?');
  LogUri parsed;
  parsed.file.path = PercentDecode(uri.substr(0, question));
  if (parsed.file.path.empty() || parsed.file.path[0] != '/') {
    return absl::InvalidArgumentError(
        absl::StrCat(std::string(scheme), " needs an absolute path"));
  }
  std::string_view query =
      question == std::string_view::npos ? "" : uri.substr(question + 1);
  while (!query.empty()) {
    const size_t end = std::min(query.find('&'), query.size());
    const std::string_view pair = query.substr(0, end);
    query.remove_prefix(std::min(end + 1, query.size()));
    const size_t equals = std::min(pair.find('='), pair.size());
    const std::string key(pair.substr(0, equals));
    const std::string value =
        PercentDecode(pair.substr(std::min(equals + 1, pair.size())));
    if (key == "tee") parsed.tee = value;
    if (key != "max-size" && key != "max-file" && key != "max-line") continue;
    int64_t number = 0;
    if (!absl::SimpleAtoi(value, &number)) {
      return absl::InvalidArgumentError(
          absl::StrCat(key, " of a log: \"", value, "\" is no number"));
    }
    if (key == "max-size") {
      parsed.file.size_bytes_max = std::max<int64_t>(number, 0);
    } else if (key == "max-file") {
      parsed.file.files_max =
          static_cast<int>(std::clamp<int64_t>(number, 1, kLogFilesMax));
    } else {
      parsed.line_size_bytes_max =
          static_cast<size_t>(std::max<int64_t>(number, 0));
    }
  }
  return parsed;
}

std::string FormatRfc3339Nano(timespec at, bool local) {
  tm parts{};
  if (local) {
    ::localtime_r(&at.tv_sec, &parts);
  } else {
    ::gmtime_r(&at.tv_sec, &parts);
  }
  char text[64];
  int size =
      std::snprintf(text, sizeof(text), "%04d-%02d-%02dT%02d:%02d:%02d",
                    parts.tm_year + 1900, parts.tm_mon + 1, parts.tm_mday,
                    parts.tm_hour, parts.tm_min, parts.tm_sec);
  std::string out(text, static_cast<size_t>(size));
  if (at.tv_nsec != 0) {
    size = std::snprintf(text, sizeof(text), ".%09ld", at.tv_nsec);
    while (text[size - 1] == '0') --size;
    out.append(text, static_cast<size_t>(size));
  }
  if (parts.tm_gmtoff == 0) return out.append("Z");
  const long minutes = std::abs(parts.tm_gmtoff) / 60;
  size = std::snprintf(text, sizeof(text), "%c%02ld:%02ld",
                       parts.tm_gmtoff < 0 ? '-' : '+', minutes / 60,
                       minutes % 60);
  return out.append(text, static_cast<size_t>(size));
}

absl::Status JsonLines::Append(std::string_view text, timespec at) {
  std::string entry = "{\"log\":";
  entry.reserve(text.size() + text.size() / 8 + 96);
  AppendJsonString(text, &entry);
  entry.append(",\"stream\":\"").append(stream_).append("\",\"time\":\"");
  entry.append(FormatRfc3339Nano(at)).append("\"}\n");
  return log_->Append(entry);
}

absl::Status JsonLines::Write(std::string_view bytes, timespec at) {
  absl::Status result = log_->Follow();
  while (!bytes.empty()) {
    const size_t newline = bytes.find('\n');
    const size_t room = kLogLineSizeBytesMax - partial_.size();
    const size_t size = std::min(
        {newline == std::string_view::npos ? bytes.size() : newline + 1, room,
         bytes.size()});
    const bool whole = newline != std::string_view::npos && newline < size;
    const std::string_view piece = bytes.substr(0, size);
    bytes.remove_prefix(size);
    absl::Status status;
    if (partial_.empty() && (whole || size == kLogLineSizeBytesMax)) {
      status = Append(piece, at);
    } else {
      partial_.append(piece);
      if (whole || partial_.size() >= kLogLineSizeBytesMax) {
        status = Append(partial_, at);
        std::string().swap(partial_);
      }
    }
    if (!status.ok()) result = status;  // The rest is still worth writing.
  }
  return result;
}

absl::Status JsonLines::Flush(timespec at) {
  if (partial_.empty()) return absl::OkStatus();
  const absl::Status status = Append(partial_, at);
  std::string().swap(partial_);
  return status;
}

CriLines::CriLines(LogFile* log, std::string stream, size_t line_size_bytes_max)
    : log_(log),
      stream_(std::move(stream)),
      max_(line_size_bytes_max == 0
               ? kCriLineSizeBytesMaxMax
               : std::min(line_size_bytes_max, kCriLineSizeBytesMaxMax)) {}

absl::Status CriLines::Append(char tag, std::string_view text, timespec at) {
  std::string entry = FormatRfc3339Nano(at, true);
  entry.reserve(entry.size() + stream_.size() + text.size() + 8);
  entry.append(" ").append(stream_).append(" ");
  entry.push_back(tag);
  entry.append(" ").append(text).append("\n");
  return log_->Append(entry);
}

std::string_view CriLines::AppendPieces(std::string_view line, timespec at,
                                        absl::Status* result) {
  while (line.size() > max_) {
    const absl::Status status = Append('P', line.substr(0, max_), at);
    if (!status.ok()) *result = status;
    line.remove_prefix(max_);
  }
  return line;
}

absl::Status CriLines::Write(std::string_view bytes, timespec at) {
  absl::Status result = log_->Follow();
  while (!bytes.empty()) {
    const size_t newline = bytes.find('\n');
    std::string_view line = bytes.substr(0, newline);
    if (!partial_.empty() || newline == std::string_view::npos) {
      partial_.append(line);
      line = partial_;
    }
    if (newline == std::string_view::npos) {
      // What may turn out to be the whole line is kept, and so is a "\r" that
      // may belong to its newline.
      const bool open_return = !line.empty() && line.back() == '\r';
      std::string_view sure = line;
      if (open_return) sure.remove_suffix(1);
      const std::string_view rest = AppendPieces(sure, at, &result);
      partial_.erase(0, sure.size() - rest.size());
      return result;
    }
    bytes.remove_prefix(newline + 1);
    if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
    line = AppendPieces(line, at, &result);
    const absl::Status status = Append('F', line, at);
    if (!status.ok()) result = status;  // The rest is still worth writing.
    std::string().swap(partial_);
  }
  return result;
}

absl::Status CriLines::Flush(timespec at) {
  absl::Status result;
  if (partial_.empty()) return result;
  const std::string_view rest = AppendPieces(partial_, at, &result);
  const absl::Status status = Append('P', rest, at);
  if (!status.ok()) result = status;
  std::string().swap(partial_);
  return result;
}

}  // namespace bulkhead::shim
