// Capabilities of single threads.
#ifndef BULKHEAD_LIB_OS_CAPABILITY_H_
#define BULKHEAD_LIB_OS_CAPABILITY_H_

#include <vector>

#include "absl/status/status.h"

namespace bulkhead::os {

// From now on the calling thread, and threads and programs it starts, has none
// but those of its capabilities that are in `keep` (CAP_* numbers), and no
// program gives it more (no_new_privs). Cannot be undone.
absl::Status KeepOnlyCapabilities(const std::vector<int>& keep);

}  // namespace bulkhead::os

#endif  // BULKHEAD_LIB_OS_CAPABILITY_H_
