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

// True if the kernel enforces RestrictWritesTo.
bool HasLandlock();

}  // namespace bulkhead::os

#endif  // BULKHEAD_LIB_OS_LANDLOCK_H_
