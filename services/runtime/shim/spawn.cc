#include "services/runtime/shim/spawn.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/os/fd.h"

namespace bulkhead::shim {
namespace {

constexpr int kFirstSpareFd = 128;  // Above every number a child asks for.

struct Plan {
  const char* path;
  char* const* argv;
  char* const* envp;
  const char* working_directory;
  const std::pair<int, int>* fds;
  std::pair<int, int>* spare;  // Same size, for the child to write.
  size_t fd_count;
  int fd_highest;
  bool own_group;
  bool die_with_parent;
  pid_t parent;
};

// Runs in the child, on the parent's memory: system calls only. Returns the
// errno of what failed.
int RunChild(const Plan& plan) {
  for (int signal = 1; signal < NSIG; ++signal) {
    struct sigaction action {};
    action.sa_handler = SIG_DFL;
    if (signal != SIGKILL && signal != SIGSTOP) {
      (void)::sigaction(signal, &action, nullptr);  // Some are libc's own.
    }
  }
  if (plan.own_group && ::setpgid(0, 0) != 0) return errno;
  if (plan.die_with_parent) {
    if (::prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) != 0) return errno;
    if (::getppid() != plan.parent) return ESRCH;
  }
  if (plan.working_directory != nullptr &&
      ::chdir(plan.working_directory) != 0) {
    return errno;
  }
  for (size_t i = 0; i < plan.fd_count; ++i) {
    plan.spare[i].first =
        ::fcntl(plan.fds[i].first, F_DUPFD_CLOEXEC, kFirstSpareFd);
    if (plan.spare[i].first < 0) return errno;
  }
  for (size_t i = 0; i < plan.fd_count; ++i) {
    if (::dup2(plan.spare[i].first, plan.fds[i].second) < 0) return errno;
  }
  (void)::syscall(SYS_close_range, plan.fd_highest + 1, ~0u,
                  4u /* CLOSE_RANGE_CLOEXEC */);
  sigset_t none;
  sigemptyset(&none);
  (void)::sigprocmask(SIG_SETMASK, &none, nullptr);
  ::execve(plan.path, plan.argv, plan.envp);
  return errno;
}

// Kept apart so that nothing of the caller lives in registers across vfork.
__attribute__((noinline)) pid_t VforkAndRun(const Plan& plan,
                                            volatile int* error) {
  const pid_t pid = ::vfork();
  if (pid != 0) return pid;
  *error = RunChild(plan);
  ::_exit(127);
}

std::vector<char*> Pointers(const std::vector<std::string>& strings) {
  std::vector<char*> out;
  out.reserve(strings.size() + 1);
  for (const std::string& text : strings) {
    out.push_back(const_cast<char*>(text.c_str()));
  }
  out.push_back(nullptr);
  return out;
}

}  // namespace

absl::StatusOr<std::string> FindProgram(const std::string& program) {
  if (program.find('/') != std::string::npos) return program;
  const char* path = ::getenv("PATH");
  std::string rest = path != nullptr
                         ? path
                         : "/usr/local/sbin:/usr/local/bin:/usr/sbin:"
                           "/usr/bin:/sbin:/bin";
  rest += ':';
  for (size_t at = 0, colon; (colon = rest.find(':', at)) != std::string::npos;
       at = colon + 1) {
    if (colon == at) continue;
    const std::string candidate =
        absl::StrCat(rest.substr(at, colon - at), "/", program);
    if (::access(candidate.c_str(), X_OK) == 0) return candidate;
  }
  return absl::NotFoundError(absl::StrCat(
      "exec: \"", program, "\": executable file not found in $PATH"));
}

absl::StatusOr<pid_t> Spawn(const SpawnRequest& request) {
  ASSIGN_OR_RETURN(const std::string path, FindProgram(request.argv.at(0)));
  std::vector<char*> argv = Pointers(request.argv);
  std::vector<char*> envp = Pointers(request.environment);
  if (request.inherit_environment) {
    envp.pop_back();
    for (char** entry = environ; *entry != nullptr; ++entry) {
      if (std::strncmp(*entry, "NOTIFY_SOCKET=", 14) == 0) continue;
      envp.push_back(*entry);
    }
    envp.push_back(nullptr);
  }
  ASSIGN_OR_RETURN(os::UniqueFd null, os::Open("/dev/null", O_RDWR));
  const auto or_null = [&null](int fd) { return fd >= 0 ? fd : null.get(); };
  std::vector<std::pair<int, int>> fds = {{or_null(request.stdin_fd), 0},
                                          {or_null(request.stdout_fd), 1},
                                          {or_null(request.stderr_fd), 2}};
  fds.insert(fds.end(), request.fds.begin(), request.fds.end());
  std::vector<std::pair<int, int>> spare(fds.size());
  int highest = 2;
  for (const auto& [ours, theirs] : fds) highest = std::max(highest, theirs);

  const Plan plan = {
      .path = path.c_str(),
      .argv = argv.data(),
      .envp = envp.data(),
      .working_directory = request.working_directory.empty()
                               ? nullptr
                               : request.working_directory.c_str(),
      .fds = fds.data(),
      .spare = spare.data(),
      .fd_count = fds.size(),
      .fd_highest = highest,
      .own_group = request.own_group,
      .die_with_parent = request.die_with_parent,
      .parent = ::getpid(),
  };
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  (void)::sigprocmask(SIG_SETMASK, &all, &before);
  volatile int error = 0;
  const pid_t pid = VforkAndRun(plan, &error);
  const int fork_error = errno;
  (void)::sigprocmask(SIG_SETMASK, &before, nullptr);
  if (pid < 0) return os::ErrnoStatus(fork_error, "vfork");
  if (error != 0) {
    // The child is ours and gone; the loop ignores its exit.
    const int exec_error = error;
    return os::ErrnoStatus(exec_error, absl::StrCat("exec ", path));
  }
  return pid;
}

}  // namespace bulkhead::shim
