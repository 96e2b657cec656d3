// Landlock: a process gives up file-system rights it does not need, for good.
#ifndef BULKHEAD_LIB_OS_LANDLOCK_H_
#define BULKHEAD_LIB_OS_LANDLOCK_H_

#include <string>
#include <vector>

#include "absl/status/status.h"

namespace bulkhead::os {

// From now on the calling thread, and every thread and process it makes, can
// change the file system only below `folders`: nothing else can be opened for
// writing, made, linked, renamed, truncated or removed, and nothing mounted.
// Reading, open descriptors and those received from others are not touched.
// Cannot be undone; further calls only take away. Sets no_new_privs.
// Errors: kNotFound: a folder is missing. kInternal. A kernel without Landlock
// is OK: nothing is restricted then.
absl::Status RestrictWritesTo(const std::vector<std::string>& folders);

// Likewise for executing: from now on only files at or below `paths` can be
// executed, as programs, interpreters or dynamic loaders; with none, nothing.
// Paths that are missing are left out: what is made there later cannot be
// executed. (A dynamic loader that may be executed can itself load any file
// that can be read: this is a second fence, not the only one.)
// Errors: kInternal. A kernel without Landlock is OK, as above.
absl::Status RestrictExecutionTo(const std::vector<std::string>& paths);

// True if the kernel enforces RestrictWritesTo.
bool HasLandlock();

}  // namespace bulkhead::os

#endif  // BULKHEAD_LIB_OS_LANDLOCK_H_
