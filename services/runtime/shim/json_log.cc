#include "services/runtime/shim/json_log.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "services/runtime/shim/json_scan.h"

namespace bulkhead::shim {
namespace {

constexpr int kLogFilesMax = 1000;

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

absl::StatusOr<JsonLogUri> ParseJsonLogUri(std::string_view uri) {
  constexpr std::string_view kScheme = "json-file://";
  if (uri.substr(0, kScheme.size()) != kScheme) {
    return absl::InvalidArgumentError("not a json-file URI");
  }
  uri.remove_prefix(kScheme.size());
  const size_t question = uri.find('?');
  JsonLogUri parsed;
  parsed.options.path = PercentDecode(uri.substr(0, question));
  if (parsed.options.path.empty() || parsed.options.path[0] != '/') {
    return absl::InvalidArgumentError("json-file needs an absolute path");
  }
  std::string_view query =
      question == std::string_view::npos ? "" : uri.substr(question + 1);
  while (!query.empty()) {
    const size_t end = std::min(query.find('&'), query.size());
    const std::string_view pair = query.substr(0, end);
    query.remove_prefix(std::min(end + 1, query.size()));
    const size_t equals = std::min(pair.find('='), pair.size());
    const std::string_view key = pair.substr(0, equals);
    const std::string value =
        PercentDecode(pair.substr(std::min(equals + 1, pair.size())));
    if (key == "tee") {
      parsed.tee = value;
    } else if (key == "max-size") {
      parsed.options.size_bytes_max = std::atoll(value.c_str());
    } else if (key == "max-file") {
      parsed.options.files_max =
          std::clamp(std::atoi(value.c_str()), 1, kLogFilesMax);
    }
  }
  return parsed;
}

std::string FormatRfc3339Nano(timespec at) {
  tm parts{};
  ::gmtime_r(&at.tv_sec, &parts);
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
  return out.append("Z");
}

absl::Status JsonLog::Open() {
  const size_t slash = options_.path.rfind('/');
  if (slash > 0 && slash != std::string::npos) {
    RETURN_IF_ERROR(os::MakeDirs(options_.path.substr(0, slash), 0755));
  }
  ASSIGN_OR_RETURN(
      file_, os::Open(options_.path, O_WRONLY | O_APPEND | O_CREAT, 0640));
  struct stat info {};
  if (::fstat(file_.get(), &info) == 0) size_bytes_ = info.st_size;
  return absl::OkStatus();
}

absl::Status JsonLog::Rotate() {
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

absl::Status JsonLog::Append(std::string_view stream, std::string_view text,
                             timespec at) {
  std::string entry = "{\"log\":";
  entry.reserve(text.size() + text.size() / 8 + 96);
  AppendJsonString(text, &entry);
  entry.append(",\"stream\":\"").append(stream).append("\",\"time\":\"");
  entry.append(FormatRfc3339Nano(at)).append("\"}\n");
  if (options_.size_bytes_max > 0 && size_bytes_ > 0 &&
      size_bytes_ + static_cast<int64_t>(entry.size()) >
          options_.size_bytes_max) {
    RETURN_IF_ERROR(Rotate());
  }
  RETURN_IF_ERROR(os::WriteFull(file_.get(), entry.data(), entry.size()));
  size_bytes_ += static_cast<int64_t>(entry.size());
  return absl::OkStatus();
}

absl::Status LogLines::Write(std::string_view bytes, timespec at) {
  absl::Status result;
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
      status = log_->Append(stream_, piece, at);
    } else {
      partial_.append(piece);
      if (whole || partial_.size() >= kLogLineSizeBytesMax) {
        status = log_->Append(stream_, partial_, at);
        std::string().swap(partial_);
      }
    }
    if (!status.ok()) result = status;  // The rest is still worth writing.
  }
  return result;
}

absl::Status LogLines::Flush(timespec at) {
  if (partial_.empty()) return absl::OkStatus();
  const absl::Status status = log_->Append(stream_, partial_, at);
  std::string().swap(partial_);
  return status;
}

}  // namespace bulkhead::shim
