#include "services/runtime/process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/os/pidfd.h"

namespace bulkhead::runtime {
namespace {

// How long output may go on after the program itself has exited.
constexpr absl::Duration kLingerMax = absl::Seconds(1);

std::vector<char*> Pointers(const std::vector<std::string>& strings) {
  std::vector<char*> out;
  out.reserve(strings.size() + 1);
  for (const std::string& s : strings)
    out.push_back(const_cast<char*>(s.c_str()));
  out.push_back(nullptr);
  return out;
}

absl::StatusOr<os::UniqueFd> InputFile(const std::string& input) {
  if (input.empty()) return os::Open("/dev/null", O_RDONLY);
  os::UniqueFd fd(::memfd_create("stdin", MFD_CLOEXEC));
  if (!fd.valid()) return os::ErrnoStatus(errno, "memfd_create");
  RETURN_IF_ERROR(os::WriteFull(fd.get(), input.data(), input.size()));
  if (::lseek(fd.get(), 0, SEEK_SET) < 0) {
    return os::ErrnoStatus(errno, "lseek");
  }
  return fd;
}

struct Pipe {
  os::UniqueFd read;
  os::UniqueFd write;
};

absl::StatusOr<Pipe> MakePipe() {
  int fds[2];
  if (::pipe2(fds, O_CLOEXEC) != 0) return os::ErrnoStatus(errno, "pipe");
  return Pipe{os::UniqueFd(fds[0]), os::UniqueFd(fds[1])};
}

int PollMs(absl::Time until) {
  const int64_t ms = absl::ToInt64Milliseconds(until - absl::Now()) + 1;
  return static_cast<int>(std::clamp<int64_t>(ms, 0, 60'000));
}

// One read into `out`; closes the pipe at its end.
void Drain(os::UniqueFd* pipe, std::string* out) {
  char buffer[16384];
  const ssize_t n = ::read(pipe->get(), buffer, sizeof(buffer));
  if (n < 0 && errno == EINTR) return;
  if (n <= 0) return pipe->Reset();
  const size_t room = kCommandOutputBytesMax - out->size();
  out->append(buffer, std::min(room, static_cast<size_t>(n)));
}

}  // namespace

absl::StatusOr<CommandResult> RunCommand(const Command& command) {
  ASSIGN_OR_RETURN(os::UniqueFd input, InputFile(command.input));
  ASSIGN_OR_RETURN(Pipe output, MakePipe());
  Pipe errors;
  if (!command.merge_stderr) {
    ASSIGN_OR_RETURN(errors, MakePipe());
  }

  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addchdir_np(&actions, command.cwd.c_str());
  posix_spawn_file_actions_adddup2(&actions, input.get(), 0);
  posix_spawn_file_actions_adddup2(&actions, output.write.get(), 1);
  posix_spawn_file_actions_adddup2(
      &actions, command.merge_stderr ? output.write.get() : errors.write.get(),
      2);
  posix_spawn_file_actions_addclosefrom_np(&actions, 3);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t all, none;
  sigfillset(&all);
  sigemptyset(&none);
  posix_spawnattr_setsigdefault(&attributes, &all);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSID |
                                            POSIX_SPAWN_SETSIGDEF |
                                            POSIX_SPAWN_SETSIGMASK);
  pid_t pid = -1;
  const int error = ::posix_spawn(&pid, command.argv[0].c_str(), &actions,
                                  &attributes, Pointers(command.argv).data(),
                                  Pointers(command.env).data());
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) {
    return os::ErrnoStatus(error, absl::StrCat("run ", command.argv[0]));
  }
  output.write.Reset();
  errors.write.Reset();
  input.Reset();

  os::UniqueFd pidfd = os::OpenPidfd(pid);
  CommandResult result;
  absl::Time until = absl::Now() + command.timeout;
  bool exited = false;
  bool timed_out = false;
  while (!exited || output.read.valid() || errors.read.valid()) {
    pollfd fds[3] = {{exited ? -1 : pidfd.get(), POLLIN, 0},
                     {output.read.get(), POLLIN, 0},
                     {errors.read.get(), POLLIN, 0}};
    const int count = ::poll(fds, 3, PollMs(until));
    if (count < 0 && errno == EINTR) continue;
    if (absl::Now() >= until) {
      if (exited) break;  // Somebody kept the pipe: no more to wait for.
      timed_out = true;
      ::kill(-pid, SIGKILL);
      until = absl::InfiniteFuture();
      output.read.Reset();
      errors.read.Reset();
      continue;
    }
    if (fds[1].revents != 0) Drain(&output.read, &result.output);
    if (fds[2].revents != 0) Drain(&errors.read, &result.errors);
    if (fds[0].revents != 0) {
      exited = true;
      until = std::min(until, absl::Now() + kLingerMax);
    }
  }
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (timed_out) {
    return absl::DeadlineExceededError(
        absl::StrCat(command.argv[0], " did not finish within ",
                     absl::FormatDuration(command.timeout)));
  }
  result.exit_code =
      WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return result;
}

os::UniqueFd OpenProcess(pid_t pid, pid_t parent) {
  if (pid <= 0) return os::UniqueFd();
  os::UniqueFd fd = os::OpenPidfd(pid);
  if (!fd.valid() || parent <= 0) return fd;
  // Checked after opening: a number that was reused has another parent.
  absl::StatusOr<std::string> stat =
      os::ReadFile(absl::StrCat("/proc/", pid, "/stat"), 4096);
  if (!stat.ok()) return os::UniqueFd();
  const size_t name_end = stat->rfind(')');
  char state = 0;
  int ppid = 0;
  if (name_end == std::string::npos ||
      ::sscanf(stat->c_str() + name_end + 1, " %c %d", &state, &ppid) != 2 ||
      ppid != parent) {
    return os::UniqueFd();
  }
  return fd;
}

bool IsAlive(const os::UniqueFd& pidfd) {
  return pidfd.valid() && !AwaitExit(pidfd, absl::ZeroDuration());
}

bool AwaitExit(const os::UniqueFd& pidfd, absl::Duration timeout) {
  if (!pidfd.valid()) return true;
  const absl::Time until = absl::Now() + timeout;
  for (;;) {
    pollfd fd{pidfd.get(), POLLIN, 0};
    const int left = timeout <= absl::ZeroDuration() ? 0 : PollMs(until);
    const int count = ::poll(&fd, 1, left);
    if (count > 0) return true;
    if (count == 0 && absl::Now() >= until) return false;
  }
}

void SendSignal(const os::UniqueFd& pidfd, int signal) {
  if (!pidfd.valid()) return;
  (void)os::SendPidfdSignal(pidfd, signal);  // It may have ended.
}

}  // namespace bulkhead::runtime
