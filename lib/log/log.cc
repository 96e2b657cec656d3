#include "lib/log/log.h"

#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

namespace bulkhead::log {
namespace {

// Set once by Init() before threads start; trivially destructible parts only.
Level g_level = Level::kInfo;
Format g_format = Format::kText;
std::string& ServiceName() {
  static auto* name = new std::string("bulkhead");
  return *name;
}

const char* LevelName(Level level, bool upper) {
  switch (level) {
    case Level::kDebug:
      return upper ? "DEBUG" : "debug";
    case Level::kInfo:
      return upper ? "INFO" : "info";
    case Level::kWarn:
      return upper ? "WARN" : "warn";
    case Level::kError:
      return upper ? "ERROR" : "error";
  }
  return "";
}

std::string Timestamp() {
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  tm parts{};
  ::gmtime_r(&now.tv_sec, &parts);
  char text[64];
  std::snprintf(text, sizeof(text), "%04d-%02d-%02dT%02d:%02d:%02d.%06ldZ",
                parts.tm_year + 1900, parts.tm_mon + 1, parts.tm_mday,
                parts.tm_hour, parts.tm_min, parts.tm_sec, now.tv_nsec / 1000);
  return text;
}

void AppendJsonString(const std::string& value, std::string* out) {
  out->push_back('"');
  for (const char c : value) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out->push_back('\\');
      out->push_back(c);
    } else if (c == '\n') {
      out->append("\\n");
    } else if (byte < 0x20 || byte == 0x7f) {
      char escaped[8];
      std::snprintf(escaped, sizeof(escaped), "\\u%04x", byte);
      out->append(escaped);
    } else {
      out->push_back(c);
    }
  }
  out->push_back('"');
}

bool NeedsQuotes(const std::string& value) {
  if (value.empty()) return true;
  for (const char c : value) {
    if (static_cast<unsigned char>(c) <= ' ' || c == '"' || c == '=' ||
        c == '\\' || c == 0x7f) {
      return true;
    }
  }
  return false;
}

}  // namespace

void Init(const std::string& service, Level level, Format format) {
  ServiceName() = service;
  g_level = level;
  g_format = format;
}

bool Enabled(Level level) { return level >= g_level; }

void Write(Level level, const std::string& message, Fields fields) {
  if (!Enabled(level)) return;
  std::string line;
  if (g_format == Format::kJson) {
    line = "{\"time\":\"" + Timestamp() + "\",\"level\":\"" +
           LevelName(level, false) + "\",\"service\":";
    AppendJsonString(ServiceName(), &line);
    line += ",\"msg\":";
    AppendJsonString(message, &line);
    for (const Field& field : fields) {
      line.push_back(',');
      AppendJsonString(field.first, &line);
      line.push_back(':');
      AppendJsonString(field.second, &line);
    }
    line += "}\n";
  } else {
    line =
        Timestamp() + " " + LevelName(level, true) + " " + ServiceName() + ": ";
    for (const char c : message) {
      line.push_back(static_cast<unsigned char>(c) < ' ' ? ' ' : c);
    }
    for (const Field& field : fields) {
      line += std::string(" ") + field.first + "=";
      if (NeedsQuotes(field.second)) {
        AppendJsonString(field.second, &line);
      } else {
        line += field.second;
      }
    }
    line.push_back('\n');
  }
  // Logging must never fail its caller: a short or failed write is dropped.
  const int saved_errno = errno;
  (void)!::write(STDERR_FILENO, line.data(), line.size());
  errno = saved_errno;
}

}  // namespace bulkhead::log
