#include "lib/os/landlock.h"

#include <fcntl.h>
#include <linux/landlock.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

#include "lib/base/status_macros.h"
#include "lib/os/fd.h"

// Newer than Debian's kernel headers.
#ifndef LANDLOCK_ACCESS_FS_REFER
#define LANDLOCK_ACCESS_FS_REFER (1ULL << 13)
#endif
#ifndef LANDLOCK_ACCESS_FS_TRUNCATE
#define LANDLOCK_ACCESS_FS_TRUNCATE (1ULL << 14)
#endif

namespace bulkhead::os {
namespace {

constexpr uint64_t kChanges =
    LANDLOCK_ACCESS_FS_WRITE_FILE | LANDLOCK_ACCESS_FS_REMOVE_DIR |
    LANDLOCK_ACCESS_FS_REMOVE_FILE | LANDLOCK_ACCESS_FS_MAKE_CHAR |
    LANDLOCK_ACCESS_FS_MAKE_DIR | LANDLOCK_ACCESS_FS_MAKE_REG |
    LANDLOCK_ACCESS_FS_MAKE_SOCK | LANDLOCK_ACCESS_FS_MAKE_FIFO |
    LANDLOCK_ACCESS_FS_MAKE_BLOCK | LANDLOCK_ACCESS_FS_MAKE_SYM;

int Version() {
  return static_cast<int>(syscall(SYS_landlock_create_ruleset, nullptr, 0,
                                  LANDLOCK_CREATE_RULESET_VERSION));
}

}  // namespace

bool HasLandlock() { return Version() >= 1; }

namespace {

absl::StatusOr<UniqueFd> MakeRules(uint64_t rights) {
  landlock_ruleset_attr attributes{};
  attributes.handled_access_fs = rights;
  UniqueFd rules(static_cast<int>(syscall(SYS_landlock_create_ruleset,
                                          &attributes, sizeof(attributes), 0)));
  if (!rules.valid()) return ErrnoStatus(errno, "landlock_create_ruleset");
  return rules;
}

absl::Status AddRule(const UniqueFd& rules, const UniqueFd& at, uint64_t rights,
                     const std::string& path) {
  landlock_path_beneath_attr beneath{};
  beneath.allowed_access = rights;
  beneath.parent_fd = at.get();
  if (syscall(SYS_landlock_add_rule, rules.get(), LANDLOCK_RULE_PATH_BENEATH,
              &beneath, 0) != 0) {
    return ErrnoStatus(errno, "landlock_add_rule " + path);
  }
  return absl::OkStatus();
}

absl::Status Enforce(const UniqueFd& rules) {
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) {
    return ErrnoStatus(errno, "no_new_privs");
  }
  if (syscall(SYS_landlock_restrict_self, rules.get(), 0) != 0) {
    return ErrnoStatus(errno, "landlock_restrict_self");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status RestrictWritesTo(const std::vector<std::string>& folders) {
  const int version = Version();
  if (version < 1) return absl::OkStatus();
  uint64_t rights = kChanges;
  if (version >= 2) rights |= LANDLOCK_ACCESS_FS_REFER;
  if (version >= 3) rights |= LANDLOCK_ACCESS_FS_TRUNCATE;
  ASSIGN_OR_RETURN(const UniqueFd rules, MakeRules(rights));
  for (const std::string& folder : folders) {
    ASSIGN_OR_RETURN(const UniqueFd dir, Open(folder, O_PATH | O_DIRECTORY));
    RETURN_IF_ERROR(AddRule(rules, dir, rights, folder));
  }
  return Enforce(rules);
}

absl::Status RestrictExecutionTo(const std::vector<std::string>& paths) {
  if (Version() < 1) return absl::OkStatus();
  ASSIGN_OR_RETURN(const UniqueFd rules, MakeRules(LANDLOCK_ACCESS_FS_EXECUTE));
  for (const std::string& path : paths) {
    const absl::StatusOr<UniqueFd> at = Open(path, O_PATH);
    if (!at.ok()) continue;
    RETURN_IF_ERROR(AddRule(rules, *at, LANDLOCK_ACCESS_FS_EXECUTE, path));
  }
  return Enforce(rules);
}

}  // namespace bulkhead::os
