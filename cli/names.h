// Ids and names of containers.
#ifndef BULKHEAD_CLI_NAMES_H_
#define BULKHEAD_CLI_NAMES_H_

#include <string>

#include "absl/status/status.h"

namespace bulkhead::cli {

constexpr size_t kIdHexDigits = 64;
constexpr size_t kShortIdHexDigits = 12;
constexpr size_t kNameBytesMax = 128;

// 64 random hexadecimal digits that are not all decimal among the first 12, so
// that a short id never looks like a number.
std::string NewId();
// "calm_otter": an adjective and a noun of the sea.
std::string RandomName();
// The first 12 digits of a 64-digit id; anything else as it is.
std::string ShortId(const std::string& id);
// kInvalidArgument unless `name` is a letter or digit followed by letters,
// digits, '_', '.' or '-'.
absl::Status ValidateName(const std::string& name);

}  // namespace bulkhead::cli

#endif  // BULKHEAD_CLI_NAMES_H_
