#include "services/metadata/util.h"

#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace bulkhead::metadata {
namespace {

constexpr size_t kLabelKeyShownBytes = 64;
constexpr char kIdentifierRegex[] = "^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$";

bool IsAlphanumeric(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') ||
         (c >= 'A' && c <= 'Z');
}

}  // namespace

google::protobuf::Timestamp ToTimestamp(absl::Time time) {
  google::protobuf::Timestamp timestamp;
  const int64_t nanos = absl::ToUnixNanos(time);
  int64_t seconds = nanos / 1'000'000'000;
  int64_t rest = nanos % 1'000'000'000;
  if (rest < 0) {
    rest += 1'000'000'000;
    --seconds;
  }
  timestamp.set_seconds(seconds);
  timestamp.set_nanos(static_cast<int32_t>(rest));
  return timestamp;
}

google::protobuf::Timestamp Now() { return ToTimestamp(absl::Now()); }

absl::Time ToTime(const google::protobuf::Timestamp& timestamp) {
  return absl::FromUnixSeconds(timestamp.seconds()) +
         absl::Nanoseconds(timestamp.nanos());
}

std::string Quoted(const std::string& text) {
  return absl::StrCat("\"", absl::Utf8SafeCEscape(text), "\"");
}

absl::Status CheckIdentifier(const std::string& id) {
  if (id.empty()) {
    return absl::InvalidArgumentError("identifier must not be empty");
  }
  if (id.size() > kIdentifierBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "identifier ", Quoted(id), " greater than maximum length (",
        kIdentifierBytesMax, " characters)"));
  }
  bool good = IsAlphanumeric(id.front()) && IsAlphanumeric(id.back());
  for (size_t i = 0; good && i < id.size(); ++i) {
    if (IsAlphanumeric(id[i])) continue;
    const bool separator = id[i] == '.' || id[i] == '_' || id[i] == '-';
    good = separator && IsAlphanumeric(id[i - 1]);
  }
  if (good) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "identifier ", Quoted(id), " must match ", kIdentifierRegex));
}

absl::Status CheckLabels(const LabelMap& labels, const std::string& context) {
  for (const auto& [key, value] : labels) {
    const size_t total = key.size() + value.size();
    if (total <= kLabelBytesMax) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        context, context.empty() ? "" : ": ", "label key and value length (",
        total, " bytes) greater than maximum size (", kLabelBytesMax,
        " bytes), key: ", key.substr(0, kLabelKeyShownBytes)));
  }
  return absl::OkStatus();
}

void DropEmpty(LabelMap* labels) {
  std::vector<std::string> empty;
  for (const auto& [key, value] : *labels) {
    if (value.empty()) empty.push_back(key);
  }
  for (const std::string& key : empty) labels->erase(key);
}

bool MaskKey(const std::string& path, const std::string& prefix,
             std::string* key) {
  if (!absl::StartsWith(path, absl::StrCat(prefix, "."))) return false;
  *key = path.substr(prefix.size() + 1);
  return true;
}

void SetLabel(const std::string& key, const LabelMap& from, LabelMap* labels) {
  auto it = from.find(key);
  if (it == from.end() || it->second.empty()) {
    labels->erase(key);
  } else {
    (*labels)[key] = it->second;
  }
}

bool Expired(const LabelMap& labels, absl::Time now) {
  auto it = labels.find(kLabelExpire);
  if (it == labels.end()) return false;
  absl::Time expiry;
  std::string error;
  if (!absl::ParseTime(absl::RFC3339_full, it->second, &expiry, &error)) {
    return false;
  }
  return now > expiry;
}

}  // namespace bulkhead::metadata
