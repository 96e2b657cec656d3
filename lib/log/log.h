// Structured logging to stderr: one line an event, text or JSON.
//   log::Info("shim started", {{"id", id}, {"pid", std::to_string(pid)}});
// text: 2026-11-23T18:22:03.123456Z INFO runtime: shim started id=web pid=42
// JSON: {"time":...,"level":"info","service":"runtime","msg":...,"id":...}
// Thread-safe; each line is one write(2). Values are quoted or escaped as
// needed. Never pass secrets.
#ifndef BULKHEAD_LIB_LOG_LOG_H_
#define BULKHEAD_LIB_LOG_LOG_H_

#include <initializer_list>
#include <string>
#include <utility>

namespace bulkhead::log {

enum class Level { kDebug, kInfo, kWarn, kError };
enum class Format { kText, kJson };

using Field = std::pair<const char*, std::string>;
using Fields = std::initializer_list<Field>;

// Call once, before threads start.
void Init(const std::string& service, Level level, Format format);
bool Enabled(Level level);
void Write(Level level, const std::string& message, Fields fields);

inline void Debug(const std::string& m, Fields f = {}) {
  if (Enabled(Level::kDebug)) Write(Level::kDebug, m, f);
}
inline void Info(const std::string& m, Fields f = {}) {
  Write(Level::kInfo, m, f);
}
inline void Warn(const std::string& m, Fields f = {}) {
  Write(Level::kWarn, m, f);
}
inline void Error(const std::string& m, Fields f = {}) {
  Write(Level::kError, m, f);
}

}  // namespace bulkhead::log

#endif  // BULKHEAD_LIB_LOG_LOG_H_
