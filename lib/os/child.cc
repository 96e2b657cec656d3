#include "lib/os/child.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "lib/base/status_macros.h"

namespace bulkhead::os {
namespace {

constexpr int kFirstFreeFd = 64;  // Above any number a child is to have.

absl::StatusOr<std::string> FindProgram(const std::string& path) {
  if (path.find('/') != std::string::npos) return path;
  for (const auto part : absl::StrSplit(kChildPath, ':')) {
    const std::string full =
        absl::StrCat(std::string(part.data(), part.size()), "/", path);
    struct stat st;
    if (::stat(full.c_str(), &st) == 0 && S_ISREG(st.st_mode) &&
        ::access(full.c_str(), X_OK) == 0) {
      return full;
    }
  }
  return absl::NotFoundError(absl::StrCat("program ", path));
}

std::vector<char*> Pointers(const std::vector<std::string>& strings) {
  std::vector<char*> out;
  for (const std::string& s : strings)
    out.push_back(const_cast<char*>(s.c_str()));
  out.push_back(nullptr);
  return out;
}

// Between vfork and exec: no allocation, no locks. Returns only on an error.
int RunChild(const char* program, char* const* argv, char* const* env,
             const std::pair<int, int>* fds, size_t fds_count) {
  ::signal(SIGPIPE, SIG_DFL);
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  if (::setpgid(0, 0) != 0) return errno;
  if (::prctl(PR_SET_PDEATHSIG, SIGKILL) != 0) return errno;
  ::umask(022);
  // With no_new_privs, exec gives back none of these.
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return errno;
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2] = {};
  if (::syscall(SYS_capset, &header, data) != 0) return errno;
  for (size_t i = 0; i < fds_count; ++i) {
    if (::dup2(fds[i].first, fds[i].second) < 0) return errno;
  }
  // The rest is close-on-exec from birth; this is for libraries' descriptors.
  (void)::syscall(SYS_close_range, kFirstFreeFd, ~0u, 4 /* CLOEXEC */);
  ::execve(program, argv, env);
  return errno;
}

// Kept apart so that nothing of the caller lives in registers across vfork.
__attribute__((noinline)) pid_t VforkAndRun(const char* program,
                                            char* const* argv, char* const* env,
                                            const std::pair<int, int>* fds,
                                            size_t fds_count,
                                            volatile int* error) {
  const pid_t pid = ::vfork();
  if (pid != 0) return pid;
  *error = RunChild(program, argv, env, fds, fds_count);
  ::_exit(127);
}

}  // namespace

absl::StatusOr<Child> Child::Start(const ChildSpec& spec) {
  ASSIGN_OR_RETURN(const std::string program, FindProgram(spec.path));
  std::vector<std::string> args = {spec.path};
  args.insert(args.end(), spec.args.begin(), spec.args.end());
  const std::vector<char*> argv = Pointers(args);
  const std::vector<char*> env = Pointers(spec.env);
  // High numbers, so that no dup2 closes what a later one needs.
  std::vector<UniqueFd> high;
  std::vector<std::pair<int, int>> moves;
  for (const auto& [here, there] : spec.fds) {
    high.emplace_back(::fcntl(here, F_DUPFD_CLOEXEC, kFirstFreeFd));
    if (!high.back().valid()) return ErrnoStatus(errno, "dup");
    moves.emplace_back(high.back().get(), there);
  }
  sigset_t all;
  sigset_t before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  volatile int error = 0;  // Written by the child, which shares memory.
  const pid_t pid = VforkAndRun(program.c_str(), argv.data(), env.data(),
                                moves.data(), moves.size(), &error);
  const int failed = pid < 0 ? errno : error;
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (pid > 0 && failed == 0) return Child(pid);
  if (pid > 0) {
    int status;
    while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
  }
  return ErrnoStatus(failed, absl::StrCat("starting ", program));
}

Child::~Child() {
  if (pid_ < 0) return;
  Kill();
  (void)Wait();
}

void Child::Kill() {
  // Before it is reaped the number is its own.
  if (pid_ > 0) ::kill(-pid_, SIGKILL);
}

int Child::Wait() {
  int status = 0;
  while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
  pid_ = -1;
  return status;
}

absl::StatusOr<UniqueFd> MemoryFile(const std::string& name,
                                    const std::string& bytes) {
  UniqueFd fd(::memfd_create(name.c_str(), MFD_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus(errno, "memfd_create");
  RETURN_IF_ERROR(PWriteFull(fd.get(), bytes.data(), bytes.size(), 0));
  return fd;
}

absl::StatusOr<UniqueFd> FixedMemoryFile(const std::string& name,
                                         size_t size_bytes) {
  UniqueFd fd(::memfd_create(name.c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.valid()) return ErrnoStatus(errno, "memfd_create");
  if (::ftruncate(fd.get(), static_cast<off_t>(size_bytes)) != 0 ||
      ::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK) != 0) {
    return ErrnoStatus(errno, "sealing a file in memory");
  }
  return fd;
}

}  // namespace bulkhead::os
