// Folders whose names survive a power failure.
#ifndef BULKHEAD_LIB_OS_DURABLE_DIRS_H_
#define BULKHEAD_LIB_OS_DURABLE_DIRS_H_

#include <sys/types.h>

#include <string>

#include "absl/status/status.h"

namespace bulkhead::os {

// MakeDirs(), and the names of the folders made are on stable storage.
absl::Status MakeDurableDirs(const std::string& path, mode_t mode);

}  // namespace bulkhead::os

#endif  // BULKHEAD_LIB_OS_DURABLE_DIRS_H_
