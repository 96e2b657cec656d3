#include "cli/spec/user.h"

#include <algorithm>
#include <functional>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace bulkhead::cli {
namespace {

using Fields = std::vector<std::string>;

// Calls `visit` with the fields of each line that has at least `fields_min`.
void EachLine(const std::string& content, size_t fields_min,
              const std::function<void(const Fields&)>& visit) {
  for (const absl::string_view line : absl::StrSplit(content, '\n')) {
    if (line.empty() || line[0] == '#') continue;
    const Fields fields = absl::StrSplit(line, ':');
    if (fields.size() >= fields_min) visit(fields);
  }
}

bool ParseId(const std::string& text, uint32_t* id) {
  // -1 means "unchanged" to the kernel.
  return absl::SimpleAtoi(text, id) && *id != UINT32_MAX &&
         text.find_first_not_of("0123456789") == std::string::npos;
}

}  // namespace

bool IsNumericUser(const std::string& text) {
  return text.find_first_not_of("0123456789:") == std::string::npos;
}

absl::StatusOr<User> ResolveUser(const std::string& text,
                                 const std::string& passwd,
                                 const std::string& group) {
  const size_t colon = text.find(':');
  const std::string user_part = text.substr(0, colon);
  const std::string group_part =
      colon == std::string::npos ? "" : text.substr(colon + 1);
  if (group_part.find(':') != std::string::npos ||
      (user_part.empty() && !text.empty())) {
    return absl::InvalidArgumentError(
        absl::StrCat("invalid user '", text, "': user[:group]"));
  }
  User user;
  uint32_t id = 0;
  const bool numeric = ParseId(user_part, &id);
  std::string name;
  bool found = false;
  EachLine(passwd, 4, [&](const Fields& fields) {
    uint32_t uid = 0;
    uint32_t gid = 0;
    if (found || !ParseId(fields[2], &uid) || !ParseId(fields[3], &gid)) return;
    const bool matches = fields[0] == user_part || (numeric && uid == id) ||
                         (user_part.empty() && uid == 0);
    if (!matches) return;
    found = true;
    name = fields[0];
    user.uid = uid;
    user.gid = gid;
    if (fields.size() > 5) user.home = fields[5];
  });
  if (!found) {
    if (!numeric && !user_part.empty()) {
      return absl::NotFoundError(
          absl::StrCat("no user '", user_part, "' in the image's /etc/passwd"));
    }
    user.uid = numeric ? id : 0;
  }
  if (!group_part.empty()) {
    uint32_t gid = 0;
    bool group_found = ParseId(group_part, &gid);
    EachLine(group, 3, [&](const Fields& fields) {
      if (group_found || fields[0] != group_part) return;
      group_found = ParseId(fields[2], &gid);
    });
    if (!group_found) {
      return absl::NotFoundError(absl::StrCat("no group '", group_part,
                                              "' in the image's /etc/group"));
    }
    user.gid = gid;
    user.additional_gids = {gid};  // An explicit group is the only one.
    return user;
  }
  // The primary group is a supplementary one too: otherwise dropping it would
  // get around a file that refuses it (CVE-2022-36109).
  user.additional_gids = {user.gid};
  if (name.empty()) return user;
  EachLine(group, 4, [&](const Fields& fields) {
    uint32_t gid = 0;
    if (!ParseId(fields[2], &gid)) return;
    const std::vector<std::string> members = absl::StrSplit(fields[3], ',');
    if (std::find(members.begin(), members.end(), name) == members.end()) {
      return;
    }
    std::vector<uint32_t>& gids = user.additional_gids;
    if (std::find(gids.begin(), gids.end(), gid) == gids.end()) {
      gids.push_back(gid);
    }
  });
  return user;
}

}  // namespace bulkhead::cli
