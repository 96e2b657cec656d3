#include "services/content/hash_file.h"

#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace bulkhead::content {
namespace {

constexpr char kVersion[] = "bulkhead-hash-1";

}  // namespace

std::string EncodeHashFile(const std::string& boot_id, const Hasher& hasher) {
  const std::string line = absl::StrCat(kVersion, " ", boot_id, " ",
                                        absl::BytesToHexString(hasher.State()));
  return absl::StrCat(line, " ", Digest::Of(line).hex());
}

std::optional<Hasher> DecodeHashFile(const std::string& text,
                                     const std::string& boot_id) {
  const size_t end = text.rfind(' ');
  if (end == std::string::npos ||
      Digest::Of(text.substr(0, end)).hex() != text.substr(end + 1)) {
    return std::nullopt;
  }
  const std::vector<std::string> parts =
      absl::StrSplit(text.substr(0, end), ' ');
  if (boot_id.empty() || parts.size() != 3 || parts[0] != kVersion ||
      parts[1] != boot_id) {
    return std::nullopt;
  }
  return Hasher::FromState(absl::HexStringToBytes(parts[2]));
}

}  // namespace bulkhead::content
