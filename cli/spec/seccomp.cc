#include "cli/spec/seccomp.h"

#include <sched.h>
#include <sys/personality.h>
#include <sys/socket.h>

#include <vector>

namespace bulkhead::cli {
namespace {

using ::nlohmann::json;

// Harmless for everybody. Names of other architectures' variants are in the
// list too; runtimes skip what they do not know. Not by the alphabet but by
// i386's numbers, the highest first (then what only x86-64 has, likewise):
// libseccomp walks a list in ascending order for each rule that it is given,
// and from this side the walk is short. That saves a tenth of what the filter
// costs every start and every exec.
constexpr const char* kAllowed[] = {
    "futex_requeue",
    "futex_wait",
    "futex_wake",
    "map_shadow_stack",
    "fchmodat2",
    "cachestat",
    "futex_waitv",
    "process_mrelease",
    "memfd_secret",
    "landlock_restrict_self",
    "landlock_add_rule",
    "landlock_create_ruleset",
    "epoll_pwait2",
    "faccessat2",
    "openat2",
    "close_range",
    "pidfd_open",
    "pidfd_send_signal",
    "sched_rr_get_interval_time64",
    "futex_time64",
    "rt_sigtimedwait_time64",
    "semtimedop_time64",
    "mq_timedreceive_time64",
    "mq_timedsend_time64",
    "recvmmsg_time64",
    "io_pgetevents_time64",
    "ppoll_time64",
    "pselect6_time64",
    "utimensat_time64",
    "timerfd_settime64",
    "timerfd_gettime64",
    "timer_settime64",
    "timer_gettime64",
    "clock_nanosleep_time64",
    "clock_getres_time64",
    "clock_adjtime64",
    "clock_gettime64",
    "rseq",
    "io_pgetevents",
    "arch_prctl",
    "statx",
    "pkey_free",
    "pkey_alloc",
    "pkey_mprotect",
    "pwritev2",
    "preadv2",
    "copy_file_range",
    "mlock2",
    "membarrier",
    "execveat",
    "memfd_create",
    "getrandom",
    "seccomp",
    "renameat2",
    "sched_getattr",
    "sched_setattr",
    "process_vm_writev",
    "process_vm_readv",
    "syncfs",
    "clock_adjtime",
    "name_to_handle_at",
    "prlimit64",
    "fanotify_mark",
    "rt_tgsigqueueinfo",
    "pwritev",
    "preadv",
    "inotify_init1",
    "pipe2",
    "dup3",
    "epoll_create1",
    "eventfd2",
    "signalfd4",
    "timerfd_gettime",
    "timerfd_settime",
    "fallocate",
    "eventfd",
    "timerfd_create",
    "signalfd",
    "utimensat",
    "epoll_pwait",
    "getcpu",
    "vmsplice",
    "tee",
    "sync_file_range",
    "splice",
    "get_robust_list",
    "set_robust_list",
    "ppoll",
    "pselect6",
    "faccessat",
    "fchmodat",
    "readlinkat",
    "symlinkat",
    "linkat",
    "renameat",
    "unlinkat",
    "fstatat64",
    "futimesat",
    "fchownat",
    "mknodat",
    "mkdirat",
    "openat",
    "inotify_rm_watch",
    "inotify_add_watch",
    "inotify_init",
    "ioprio_get",
    "ioprio_set",
    "waitid",
    "mq_getsetattr",
    "mq_notify",
    "mq_timedreceive",
    "mq_timedsend",
    "mq_unlink",
    "mq_open",
    "fadvise64_64",
    "utimes",
    "tgkill",
    "fstatfs64",
    "statfs64",
    "clock_nanosleep",
    "clock_getres",
    "clock_gettime",
    "timer_delete",
    "timer_getoverrun",
    "timer_gettime",
    "timer_settime",
    "timer_create",
    "set_tid_address",
    "remap_file_pages",
    "epoll_wait",
    "epoll_ctl",
    "epoll_create",
    "exit_group",
    "fadvise64",
    "io_cancel",
    "io_submit",
    "io_getevents",
    "io_destroy",
    "io_setup",
    "get_thread_area",
    "set_thread_area",
    "sched_getaffinity",
    "sched_setaffinity",
    "futex",
    "sendfile64",
    "tkill",
    "fremovexattr",
    "lremovexattr",
    "removexattr",
    "flistxattr",
    "llistxattr",
    "listxattr",
    "fgetxattr",
    "lgetxattr",
    "getxattr",
    "fsetxattr",
    "lsetxattr",
    "setxattr",
    "readahead",
    "gettid",
    "fcntl64",
    "getdents64",
    "madvise",
    "mincore",
    "setfsgid32",
    "setfsuid32",
    "setgid32",
    "setuid32",
    "chown32",
    "getresgid32",
    "setresgid32",
    "getresuid32",
    "setresuid32",
    "fchown32",
    "setgroups32",
    "getgroups32",
    "setregid32",
    "setreuid32",
    "getegid32",
    "geteuid32",
    "getgid32",
    "getuid32",
    "lchown32",
    "fstat64",
    "lstat64",
    "stat64",
    "ftruncate64",
    "truncate64",
    "mmap2",
    "ugetrlimit",
    "vfork",
    "sendfile",
    "sigaltstack",
    "capset",
    "capget",
    "getcwd",
    "chown",
    "pwrite64",
    "pread64",
    "rt_sigsuspend",
    "rt_sigqueueinfo",
    "rt_sigtimedwait",
    "rt_sigpending",
    "rt_sigprocmask",
    "rt_sigaction",
    "rt_sigreturn",
    "prctl",
    "getresgid",
    "setresgid",
    "poll",
    "getresuid",
    "setresuid",
    "mremap",
    "nanosleep",
    "sched_rr_get_interval",
    "sched_get_priority_min",
    "sched_get_priority_max",
    "sched_yield",
    "sched_getscheduler",
    "sched_setscheduler",
    "sched_getparam",
    "sched_setparam",
    "munlockall",
    "mlockall",
    "munlock",
    "mlock",
    "fdatasync",
    "getsid",
    "writev",
    "readv",
    "msync",
    "flock",
    "_newselect",
    "getdents",
    "_llseek",
    "setfsgid",
    "setfsuid",
    "fchdir",
    "getpgid",
    "sigprocmask",
    "mprotect",
    "adjtimex",
    "modify_ldt",
    "uname",
    "sigreturn",
    "fsync",
    "ipc",
    "sysinfo",
    "wait4",
    "fstat",
    "lstat",
    "stat",
    "getitimer",
    "setitimer",
    "socketcall",
    "fstatfs",
    "statfs",
    "setpriority",
    "getpriority",
    "fchown",
    "fchmod",
    "ftruncate",
    "truncate",
    "munmap",
    "mmap",
    "readlink",
    "symlink",
    "select",
    "setgroups",
    "getgroups",
    "gettimeofday",
    "getrusage",
    "getrlimit",
    "setrlimit",
    "setregid",
    "setreuid",
    "setsid",
    "getpgrp",
    "getppid",
    "dup2",
    "umask",
    "setpgid",
    "fcntl",
    "ioctl",
    "getegid",
    "geteuid",
    "getgid",
    "setgid",
    "brk",
    "times",
    "pipe",
    "dup",
    "rmdir",
    "mkdir",
    "rename",
    "kill",
    "sync",
    "access",
    "utime",
    "pause",
    "alarm",
    "ptrace",
    "getuid",
    "setuid",
    "getpid",
    "lseek",
    "lchown",
    "chmod",
    "mknod",
    "time",
    "chdir",
    "execve",
    "unlink",
    "link",
    "creat",
    "waitpid",
    "close",
    "open",
    "write",
    "read",
    "fork",
    "exit",
    "restart_syscall",
    "sendmmsg",
    "recvmmsg",
    "accept4",
    "newfstatat",
    "semtimedop",
    "epoll_wait_old",
    "epoll_ctl_old",
    "msgctl",
    "msgrcv",
    "msgsnd",
    "msgget",
    "shmdt",
    "semctl",
    "semop",
    "semget",
    "getsockopt",
    "setsockopt",
    "socketpair",
    "getpeername",
    "getsockname",
    "listen",
    "bind",
    "shutdown",
    "recvmsg",
    "sendmsg",
    "recvfrom",
    "sendto",
    "accept",
    "connect",
    "shmctl",
    "shmat",
    "shmget",
    "send",
    "recv",
};

// Calls that come with a capability.
struct WithCapability {
  const char* capability;
  std::vector<const char*> names;
};

const std::vector<WithCapability>& ByCapability() {
  static const auto* table = new std::vector<WithCapability>{
      {"CAP_DAC_READ_SEARCH", {"open_by_handle_at"}},
      {"CAP_SYS_ADMIN", {"bpf",           "clone",           "clone3",
                         "fanotify_init", "fsconfig",        "fsmount",
                         "fsopen",        "fspick",          "lookup_dcookie",
                         "mount",         "mount_setattr",   "move_mount",
                         "open_tree",     "perf_event_open", "quotactl",
                         "quotactl_fd",   "setdomainname",   "sethostname",
                         "setns",         "syslog",          "umount",
                         "umount2",       "unshare"}},
      {"CAP_SYS_BOOT", {"reboot"}},
      {"CAP_SYS_CHROOT", {"chroot"}},
      {"CAP_SYS_MODULE", {"delete_module", "finit_module", "init_module"}},
      {"CAP_SYS_PACCT", {"acct"}},
      {"CAP_SYS_PTRACE", {"kcmp", "pidfd_getfd", "process_madvise"}},
      {"CAP_SYS_RAWIO", {"ioperm", "iopl"}},
      {"CAP_SYS_TIME",
       {"clock_settime", "clock_settime64", "settimeofday", "stime"}},
      {"CAP_SYS_TTY_CONFIG", {"vhangup"}},
      {"CAP_SYS_NICE",
       {"get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"}},
      {"CAP_SYSLOG", {"syslog"}},
      {"CAP_BPF", {"bpf"}},
      {"CAP_PERFMON", {"perf_event_open"}},
  };
  return *table;
}

// Every flag of clone(2) that makes a namespace.
constexpr uint64_t kNamespaceFlags = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC |
                                     CLONE_NEWUSER | CLONE_NEWPID |
                                     CLONE_NEWNET | CLONE_NEWCGROUP;

json Allow(const std::vector<std::string>& names) {
  return {{"names", names}, {"action", "SCMP_ACT_ALLOW"}};
}

json Argument(int index, uint64_t value, const char* op) {
  return {{"index", index}, {"value", value}, {"op", op}};
}

}  // namespace

json DefaultSeccomp(const std::set<std::string>& capabilities) {
  json calls = json::array();
  // A set: some calls come with either of two capabilities.
  std::set<std::string> more;
  for (const WithCapability& entry : ByCapability()) {
    if (!capabilities.contains(entry.capability)) continue;
    more.insert(entry.names.begin(), entry.names.end());
  }
  std::vector<std::string> allowed(more.begin(), more.end());
  for (const char* name : kAllowed) {
    if (!more.contains(name)) allowed.emplace_back(name);
  }
  calls.push_back(Allow(allowed));

  // Only the execution domains that ordinary tools ask for.
  for (const uint64_t domain :
       {uint64_t{PER_LINUX}, uint64_t{PER_LINUX32}, uint64_t{UNAME26},
        uint64_t{UNAME26} | uint64_t{PER_LINUX32}, uint64_t{0xffffffff}}) {
    json rule = Allow({"personality"});
    rule["args"] = json::array({Argument(0, domain, "SCMP_CMP_EQ")});
    calls.push_back(rule);
  }

  // No way to the host's hypervisor. (Rules of one call are alternatives, so
  // the allowed families are written as ranges around the refused one.)
  json below = Allow({"socket"});
  below["args"] = json::array({Argument(0, AF_VSOCK, "SCMP_CMP_LT")});
  calls.push_back(below);
  json above = Allow({"socket"});
  above["args"] = json::array({Argument(0, AF_VSOCK, "SCMP_CMP_GT")});
  calls.push_back(above);

  if (!capabilities.contains("CAP_SYS_ADMIN")) {
    json clone = Allow({"clone"});
    json no_namespaces = Argument(0, kNamespaceFlags, "SCMP_CMP_MASKED_EQ");
    no_namespaces["valueTwo"] = 0;
    clone["args"] = json::array({no_namespaces});
    calls.push_back(clone);
    // Its flags are behind a pointer, which a filter cannot follow: ENOSYS
    // sends C libraries to clone.
    calls.push_back({{"names", {"clone3"}},
                     {"action", "SCMP_ACT_ERRNO"},
                     {"errnoRet", ENOSYS}});
  }

  // Not x32: nobody has programs for it, kernels come without it, and building
  // its share of the filter took half of the time that the filter costs every
  // start and every exec (6 of 11 ms).
  return {{"defaultAction", "SCMP_ACT_ERRNO"},
          {"defaultErrnoRet", EPERM},
          {"architectures", {"SCMP_ARCH_X86_64", "SCMP_ARCH_X86"}},
          {"syscalls", calls}};
}

}  // namespace bulkhead::cli
