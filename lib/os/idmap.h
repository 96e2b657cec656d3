// Id-mapped mounts: the owners that files have on disk, shown shifted.
#ifndef BULKHEAD_LIB_OS_IDMAP_H_
#define BULKHEAD_LIB_OS_IDMAP_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lib/os/fd.h"

namespace bulkhead::os {

constexpr int kIdMapRangesMax = 340;  // What the kernel takes.

// Whether `map` is "inside:outside:size[,...]" with ids of 32 bits.
// Errors: kInvalidArgument.
absl::Status CheckIdMap(const std::string& map);

// A user namespace with these maps and no process. Needs CAP_SETUID and
// CAP_SETGID. Makes a child for a moment; safe with threads and with a
// waitpid(-1) elsewhere.
// Errors: kInvalidArgument: a bad map. Others: the failed call's.
absl::StatusOr<UniqueFd> OpenIdMapNamespace(const std::string& uid_map,
                                            const std::string& gid_map);

// A detached copy of the mount that shows `path`, id-mapped by `user_ns`, with
// the attributes MOUNT_ATTR_* `attributes` set; those mounted below it too if
// `recursive`. It is gone with its descriptor unless attached.
absl::StatusOr<UniqueFd> CloneIdMapped(const std::string& path, int user_ns,
                                       unsigned attributes, bool recursive);

}  // namespace bulkhead::os

#endif  // BULKHEAD_LIB_OS_IDMAP_H_
