#include "lib/os/seccomp.h"

#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>

#include "lib/os/fd.h"

namespace bulkhead::os {
namespace {

#if defined(__x86_64__)
constexpr uint32_t kArch = AUDIT_ARCH_X86_64;
constexpr uint32_t kNumbersEnd = 0x40000000;  // x32's numbers begin here.
#elif defined(__aarch64__)
constexpr uint32_t kArch = AUDIT_ARCH_AARCH64;
constexpr uint32_t kNumbersEnd = 0x80000000;
#endif

constexpr size_t kCallsMax = 200;  // Jumps reach 255 instructions.

constexpr int kAlways[] = {
    SYS_brk,
    SYS_mmap,
    SYS_munmap,
    SYS_mremap,
    SYS_mprotect,
    SYS_madvise,
    SYS_futex,
    SYS_sched_yield,
    SYS_sched_getaffinity,
    SYS_exit,
    SYS_rt_sigprocmask,
    SYS_rt_sigaction,
    SYS_rt_sigreturn,
    SYS_sigaltstack,
    SYS_set_robust_list,
    SYS_rseq,
    SYS_gettid,
    SYS_getpid,
    SYS_clock_gettime,
    SYS_clock_nanosleep,
    SYS_restart_syscall,
    SYS_gettimeofday,
    SYS_getrandom,
    SYS_close,
    SYS_write,
    SYS_exit_group,
    SYS_nanosleep,
};

}  // namespace

absl::Status AllowOnly(const std::vector<int>& calls) {
  std::vector<int> all(std::begin(kAlways), std::end(kAlways));
  all.insert(all.end(), calls.begin(), calls.end());
  if (all.size() > kCallsMax) {
    return absl::InvalidArgumentError("too many system calls to allow");
  }
  const uint32_t deny = SECCOMP_RET_ERRNO | EPERM;
  std::vector<sock_filter> code = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, arch)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, kArch, 1, 0),
      BPF_STMT(BPF_RET | BPF_K, deny),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, kNumbersEnd, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, deny),
  };
  for (size_t i = 0; i < all.size(); ++i) {
    // Over the rest of the list and the denial, to the last instruction.
    const auto jump = static_cast<uint8_t>(all.size() - i);
    code.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K,
                            static_cast<uint32_t>(all[i]), jump, 0));
  }
  code.push_back(BPF_STMT(BPF_RET | BPF_K, deny));
  code.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
  sock_fprog program{static_cast<unsigned short>(code.size()), code.data()};
  if (::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) {
    return ErrnoStatus(errno, "prctl(PR_SET_SECCOMP)");
  }
  return absl::OkStatus();
}

}  // namespace bulkhead::os
