// Processes by descriptor: a number can be reused, a pidfd cannot.
#ifndef BULKHEAD_LIB_OS_PIDFD_H_
#define BULKHEAD_LIB_OS_PIDFD_H_

#include <sys/types.h>

#include "lib/os/fd.h"

namespace bulkhead::os {

// Empty if there is no such process (errno says why).
UniqueFd OpenPidfd(pid_t pid);

// 0, or the errno value (ESRCH: it has ended).
int SendPidfdSignal(const UniqueFd& pidfd, int signal);

}  // namespace bulkhead::os

#endif  // BULKHEAD_LIB_OS_PIDFD_H_
