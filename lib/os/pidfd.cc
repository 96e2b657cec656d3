#include "lib/os/pidfd.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

namespace bulkhead::os {

UniqueFd OpenPidfd(pid_t pid) {
  return UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
}

int SendPidfdSignal(const UniqueFd& pidfd, int signal) {
  return ::syscall(SYS_pidfd_send_signal, pidfd.get(), signal, nullptr, 0) == 0
             ? 0
             : errno;
}

}  // namespace bulkhead::os
