// System call filters for single threads.
#ifndef BULKHEAD_LIB_OS_SECCOMP_H_
#define BULKHEAD_LIB_OS_SECCOMP_H_

#include <vector>

#include "absl/status/status.h"

namespace bulkhead::os {

// From now on, and for threads it makes, the calling thread's system calls
// that are not in `calls` (SYS_* numbers, at most 200) fail with EPERM. What
// threads themselves need (memory, locks, ending) is always allowed; clone is
// not, nor is any call of another architecture. Cannot be undone. Needs
// no_new_privs or CAP_SYS_ADMIN.
absl::Status AllowOnly(const std::vector<int>& calls);

}  // namespace bulkhead::os

#endif  // BULKHEAD_LIB_OS_SECCOMP_H_
