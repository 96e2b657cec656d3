// Who a container's process runs as: "uid", "name", "uid:gid", "name:group".
#ifndef BULKHEAD_CLI_SPEC_USER_H_
#define BULKHEAD_CLI_SPEC_USER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace bulkhead::cli {

// An image's account files come from strangers.
constexpr size_t kAccountFileBytesMax = 4 << 20;

struct User {
  uint32_t uid = 0;
  uint32_t gid = 0;
  std::vector<uint32_t> additional_gids;
  std::string home;  // From passwd; empty if unknown.
};

// True if resolving `text` needs no account files ("0", "1000:1000", "").
bool IsNumericUser(const std::string& text);

// `passwd` and `group` are the contents of the image's /etc/passwd and
// /etc/group (empty if it has none). Errors: kNotFound: no such name.
//   kInvalidArgument: malformed.
absl::StatusOr<User> ResolveUser(const std::string& text,
                                 const std::string& passwd,
                                 const std::string& group);

}  // namespace bulkhead::cli

#endif  // BULKHEAD_CLI_SPEC_USER_H_
