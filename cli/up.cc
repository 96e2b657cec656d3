#include "cli/up.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "lib/base/status_macros.h"
#include "lib/config/config.h"
#include "lib/config/flags.h"
#include "lib/log/log.h"
#include "lib/os/fd.h"
#include "lib/os/memory.h"
#include "lib/os/socket.h"

extern char** environ;

namespace bulkhead {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

// Started from left to right, stopped from right to left; what is on one level
// does not wait for each other.
const std::vector<std::vector<std::string>>& Levels() {
  static const auto* levels =
      new std::vector<std::vector<std::string>>{{"content", "snapshotter"},
                                                {"metadata"},
                                                {"distribution", "runtime"},
                                                {"metrics", "gateway"}};
  return *levels;
}
// The services that the multi-call binary contains.
constexpr const char* kBuiltIn[] = {"content", "metadata", "runtime",
                                    "gateway"};

constexpr milliseconds kBackOffMin{100};
constexpr milliseconds kBackOffMax{5000};
// Of one that came as far as being ready: clients wait 5 s for its return.
constexpr milliseconds kBackOffReadyMax{2000};
// A service that ran this long starts again without delay.
constexpr milliseconds kHealthyAfter{10000};
constexpr milliseconds kReadyTimeout{60000};
constexpr milliseconds kStopTimeout{5000};
constexpr size_t kLineBytesMax = 64 << 10;
constexpr int kReadyFd = 3;

struct UpFlags : config::Flags {
  std::string without;  // --without NAMES
};

void PrintHelp() {
  std::printf(
      "Usage: bulkhead up [flags]\n\n"
      "Runs one whole suite in the foreground until SIGTERM or SIGINT.\n"
      "Containers go on running when it ends.\n\nFlags:\n"
      "  --config FILE        configuration (default %s, if there)\n"
      "  --root DIR           what lasts (default /var/lib/bulkhead)\n"
      "  --state DIR          sockets and bundles (default /run/bulkhead)\n"
      "  --log-level LEVEL    debug, info, warn or error\n"
      "  --log-format FORMAT  text or json\n"
      "  --without NAMES      services not to start, comma-separated\n",
      config::kDefaultPath);
}

// Holds `path` locked, with our process number in it, until destroyed.
absl::StatusOr<os::UniqueFd> Lock(const std::string& what,
                                  const std::string& folder,
                                  const std::string& path) {
  ASSIGN_OR_RETURN(os::UniqueFd fd, os::Open(path, O_RDWR | O_CREAT, 0644));
  if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    const absl::StatusOr<std::string> pid = os::ReadFile(path, 64);
    return absl::FailedPreconditionError(absl::StrCat(
        "the ", what, " folder ", folder, " is in use by another 'bulkhead up'",
        pid.ok() && !pid->empty()
            ? absl::StrCat(", pid ", std::string(absl::StripSuffix(*pid, "\n")))
            : ""));
  }
  const std::string text = absl::StrCat(::getpid(), "\n");
  if (::ftruncate(fd.get(), 0) != 0) return os::ErrnoStatus(errno, path);
  RETURN_IF_ERROR(os::PWriteFull(fd.get(), text.data(), text.size(), 0));
  return fd;
}

struct Child {
  std::string name;
  std::vector<std::string> command;
  pid_t pid = 0;  // 0: not running.
  bool ready = false;
  os::UniqueFd ready_pipe;
  os::UniqueFd error_pipe;
  std::string line;       // Unfinished, from stderr.
  std::string last_line;  // Finished, from stderr.
  Clock::time_point started_at;
  Clock::time_point start_again_at;
  milliseconds back_off{0};
};

class Supervisor {
 public:
  Supervisor(config::Config config, const UpFlags& flags)
      : config_(std::move(config)), flags_(flags) {}

  int Run() {
    absl::Status status = Prepare();
    if (!status.ok()) return Complain(MessageOf(status));
    for (size_t level = 0; level < levels_.size() && !stop_; ++level) {
      status = StartLevel(level);
      if (!status.ok()) {
        StopAll();
        return Complain(MessageOf(status));
      }
    }
    if (!stop_) {
      started_ = true;
      std::printf("bulkhead is ready: %s\n", config_.GatewayAddress().c_str());
      std::fflush(stdout);
      os::NotifySystemd("READY=1");
      os::ReleaseIdleMemory();
    }
    while (!stop_) {
      StartDue();
      Pump(UntilNextStart());
    }
    os::NotifySystemd("STOPPING=1");
    StopAll();
    (void)::unlink(UpPidPath().c_str());  // Only a courtesy.
    return 0;
  }

 private:
  std::string UpPidPath() const { return config_.state + "/up.pid"; }
  std::string PidPath(const Child& child) const {
    return config_.ServiceDir(child.name) + "/pid";
  }

  static int Complain(const std::string& message) {
    std::fprintf(stderr, "bulkhead up: %s\n", message.c_str());
    return 1;
  }

  absl::Status Prepare() {
    RETURN_IF_ERROR(os::MakeDirs(config_.root, 0711));
    RETURN_IF_ERROR(os::MakeDirs(config_.state, 0711));
    ASSIGN_OR_RETURN(root_lock_,
                     Lock("root", config_.root, config_.root + "/up.lock"));
    ASSIGN_OR_RETURN(state_lock_, Lock("state", config_.state, UpPidPath()));
    RETURN_IF_ERROR(FindPrograms());
    for (auto& level : levels_) {
      for (auto& child : level) {
        RETURN_IF_ERROR(os::MakeDirs(config_.RootDir(child->name), 0700));
        RETURN_IF_ERROR(os::MakeDirs(config_.ServiceDir(child->name), 0700));
      }
    }
    sigset_t signals;
    ::sigemptyset(&signals);
    for (const int signal : {SIGTERM, SIGINT, SIGHUP, SIGCHLD}) {
      ::sigaddset(&signals, signal);
    }
    ::sigprocmask(SIG_BLOCK, &signals, &old_mask_);
    ::signal(SIGPIPE, SIG_IGN);
    signals_.Reset(::signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK));
    if (!signals_.valid()) return os::ErrnoStatus(errno, "signalfd");
    return absl::OkStatus();
  }

  absl::Status FindPrograms() {
    char self[4096];
    const ssize_t size = ::readlink("/proc/self/exe", self, sizeof(self) - 1);
    if (size <= 0) return os::ErrnoStatus(errno, "/proc/self/exe");
    const std::string executable(self, static_cast<size_t>(size));
    const std::string folder = executable.substr(0, executable.rfind('/'));
    std::set<std::string> without;
    for (const auto& name :
         absl::StrSplit(flags_.without, ',', absl::SkipEmpty())) {
      without.insert(std::string(name));
    }
    for (const auto& names : Levels()) {
      levels_.emplace_back();
      for (const std::string& name : names) {
        if (without.erase(name) > 0) continue;
        auto child = std::make_unique<Child>();
        child->name = name;
        const std::string program = absl::StrCat(folder, "/bulkhead-", name);
        if (::access(program.c_str(), X_OK) == 0) {
          child->command = {program};
        } else if (std::find(std::begin(kBuiltIn), std::end(kBuiltIn), name) !=
                   std::end(kBuiltIn)) {
          child->command = {executable, name};
        } else {
          return absl::NotFoundError(absl::StrCat(program, " is missing"));
        }
        for (const auto& [flag, value] :
             {std::pair<const char*, std::string>{"--root", config_.root},
              {"--state", config_.state},
              {"--config", flags_.config},
              {"--log-level", flags_.log_level},
              {"--log-format", flags_.log_format}}) {
          if (value.empty()) continue;
          child->command.push_back(flag);
          child->command.push_back(value);
        }
        levels_.back().push_back(std::move(child));
      }
    }
    if (!without.empty()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--without: no service is called '", *without.begin(), "'"));
    }
    return absl::OkStatus();
  }

  absl::Status Spawn(Child* child) {
    int ready[2];
    int error[2];
    if (::pipe2(ready, O_CLOEXEC) != 0) return os::ErrnoStatus(errno, "pipe");
    os::UniqueFd ready_read(ready[0]);
    os::UniqueFd ready_write(ready[1]);
    if (::pipe2(error, O_CLOEXEC) != 0) return os::ErrnoStatus(errno, "pipe");
    os::UniqueFd error_read(error[0]);
    os::UniqueFd error_write(error[1]);

    std::vector<std::string> environment;
    for (char** variable = environ; *variable != nullptr; ++variable) {
      const std::string text = *variable;
      if (text.rfind("NOTIFY_SOCKET=", 0) == 0 ||
          text.rfind("LISTEN_", 0) == 0 ||
          text.rfind("BULKHEAD_READY_FD=", 0) == 0) {
        continue;
      }
      environment.push_back(text);
    }
    environment.push_back(absl::StrCat("BULKHEAD_READY_FD=", kReadyFd));
    std::vector<char*> argv;
    for (std::string& word : child->command) argv.push_back(word.data());
    argv.push_back(nullptr);
    std::vector<char*> envp;
    for (std::string& word : environment) envp.push_back(word.data());
    envp.push_back(nullptr);

    const pid_t parent = ::getpid();
    const pid_t pid = ::fork();
    if (pid < 0) return os::ErrnoStatus(errno, "fork");
    if (pid == 0) {
      // A group of its own: ^C in the terminal is for `up` alone.
      ::setpgid(0, 0);
      // No service outlives `up`, not even a killed one.
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (::getppid() != parent) ::_exit(1);
      const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
      ::dup2(null, 0);
      ::dup2(error_write.get(), 2);
      if (ready_write.get() == kReadyFd) {
        ::fcntl(kReadyFd, F_SETFD, 0);
      } else {
        ::dup2(ready_write.get(), kReadyFd);
      }
      ::signal(SIGPIPE, SIG_DFL);
      ::sigprocmask(SIG_SETMASK, &old_mask_, nullptr);
      ::execve(argv[0], argv.data(), envp.data());
      const char message[] = "cannot be executed\n";
      (void)!::write(2, message, sizeof(message) - 1);  // Last words.
      ::_exit(127);
    }
    child->pid = pid;
    child->ready = false;
    child->ready_pipe = std::move(ready_read);
    child->error_pipe = std::move(error_read);
    ::fcntl(child->error_pipe.get(), F_SETFL, O_NONBLOCK);
    child->line.clear();
    child->last_line.clear();
    child->started_at = Clock::now();
    const absl::Status written =
        os::WriteFileAtomic(PidPath(*child), absl::StrCat(pid, "\n"), 0644);
    if (!written.ok()) {
      log::Warn("no pid file",
                {{"service", child->name}, {"error", MessageOf(written)}});
    }
    return absl::OkStatus();
  }

  absl::Status StartLevel(size_t level) {
    for (auto& child : levels_[level]) {
      RETURN_IF_ERROR(Annotate(Spawn(child.get()), child->name));
    }
    const auto deadline = Clock::now() + kReadyTimeout;
    for (;;) {
      Child* waiting_for = nullptr;
      for (auto& child : levels_[level]) {
        if (!child->ready) waiting_for = child.get();
      }
      if (!failed_.ok()) return failed_;
      if (waiting_for == nullptr || stop_) return absl::OkStatus();
      if (Clock::now() >= deadline) {
        return absl::DeadlineExceededError(
            absl::StrCat(waiting_for->name, " is not ready after ",
                         kReadyTimeout.count() / 1000, " s"));
      }
      Pump(milliseconds(1000));
    }
  }

  template <typename Function>
  void ForEach(const Function& function) {
    for (auto& level : levels_) {
      for (auto& child : level) function(child.get());
    }
  }

  // Waits for something to happen and deals with it.
  void Pump(milliseconds timeout) {
    std::vector<pollfd> polls = {{signals_.get(), POLLIN, 0}};
    std::vector<std::pair<Child*, bool>> owners = {{nullptr, false}};
    ForEach([&](Child* child) {
      if (child->ready_pipe.valid()) {
        polls.push_back({child->ready_pipe.get(), POLLIN, 0});
        owners.push_back({child, true});
      }
      if (child->error_pipe.valid()) {
        polls.push_back({child->error_pipe.get(), POLLIN, 0});
        owners.push_back({child, false});
      }
    });
    if (::poll(polls.data(), polls.size(), static_cast<int>(timeout.count())) <=
        0) {
      return;
    }
    for (size_t i = 1; i < polls.size(); ++i) {
      if (polls[i].revents == 0) continue;
      if (owners[i].second) {
        ReadReady(owners[i].first);
      } else {
        ReadErrors(owners[i].first);
      }
    }
    if (polls[0].revents != 0) ReadSignals();
  }

  void ReadReady(Child* child) {
    char byte;
    const ssize_t count = ::read(child->ready_pipe.get(), &byte, 1);
    if (count < 0 && errno == EINTR) return;
    if (count > 0) child->ready = true;
    child->ready_pipe.Reset();
  }

  // Hands whole lines on to our stderr and remembers the last.
  void ReadErrors(Child* child) {
    char buffer[16 << 10];
    for (;;) {
      const ssize_t count =
          ::read(child->error_pipe.get(), buffer, sizeof(buffer));
      if (count < 0 && errno == EINTR) continue;
      if (count < 0 && errno == EAGAIN) return;
      if (count <= 0) {
        if (!child->line.empty()) TakeLine(child, child->line);
        child->line.clear();
        child->error_pipe.Reset();
        return;
      }
      child->line.append(buffer, static_cast<size_t>(count));
      size_t end;
      while ((end = child->line.find('\n')) != std::string::npos) {
        TakeLine(child, child->line.substr(0, end));
        child->line.erase(0, end + 1);
      }
      if (child->line.size() > kLineBytesMax) {
        TakeLine(child, child->line);
        child->line.clear();
      }
    }
  }

  static void TakeLine(Child* child, const std::string& line) {
    if (!line.empty()) child->last_line = line;
    const std::string whole = line + "\n";
    (void)os::WriteFull(2, whole.data(), whole.size());  // Nobody reads it.
  }

  void ReadSignals() {
    signalfd_siginfo info{};
    while (::read(signals_.get(), &info, sizeof(info)) == sizeof(info)) {
      switch (info.ssi_signo) {
        case SIGCHLD:
          Reap();
          break;
        case SIGHUP:
          ForEach([](Child* child) {
            if (child->pid > 0) ::kill(child->pid, SIGHUP);
          });
          break;
        default:
          hurry_ = stop_;
          stop_ = true;
      }
    }
  }

  void Reap() {
    int status = 0;
    pid_t pid;
    while ((pid = ::waitpid(-1, &status, WNOHANG)) > 0) {
      ForEach([&](Child* child) {
        if (child->pid == pid) Died(child, status);
      });
    }
  }

  void Died(Child* child, int status) {
    // Its last words may still be in the pipe.
    if (child->error_pipe.valid()) ReadErrors(child);
    child->pid = 0;
    child->ready_pipe.Reset();
    // Only shims of its making could still hold the other end.
    child->error_pipe.Reset();
    const bool was_ready = std::exchange(child->ready, false);
    (void)::unlink(PidPath(*child).c_str());  // Only a courtesy.
    if (stop_ || stopping_) return;
    const std::string how =
        WIFSIGNALED(status)
            ? absl::StrCat("was killed by signal ", WTERMSIG(status))
            : absl::StrCat("exited with code ", WEXITSTATUS(status));
    if (!started_ && !was_ready) {
      if (failed_.ok()) {
        failed_ = absl::UnavailableError(absl::StrCat(
            child->name, " ", how, " before it was ready",
            child->last_line.empty() ? "" : ": ", child->last_line));
      }
      return;
    }
    const auto now = Clock::now();
    if (now - child->started_at >= kHealthyAfter) {
      child->back_off = milliseconds(0);
    }
    child->back_off = std::clamp(child->back_off * 2, kBackOffMin,
                                 was_ready ? kBackOffReadyMax : kBackOffMax);
    child->start_again_at = now + child->back_off;
    log::Warn("service ended, starting it again",
              {{"service", child->name},
               {"how", how},
               {"after_ms", std::to_string(child->back_off.count())}});
  }

  void StartDue() {
    ForEach([this](Child* child) {
      if (child->pid != 0 || Clock::now() < child->start_again_at) return;
      const absl::Status status = Spawn(child);
      if (status.ok()) return;
      child->back_off =
          std::clamp(child->back_off * 2, kBackOffMin, kBackOffMax);
      child->start_again_at = Clock::now() + child->back_off;
      log::Error("cannot start",
                 {{"service", child->name}, {"error", MessageOf(status)}});
    });
  }

  milliseconds UntilNextStart() {
    milliseconds left(60000);
    ForEach([&](Child* child) {
      if (child->pid != 0) return;
      left = std::min(left, std::chrono::duration_cast<milliseconds>(
                                child->start_again_at - Clock::now()) +
                                milliseconds(1));
    });
    return std::max(left, milliseconds(0));
  }

  void StopAll() {
    stopping_ = true;
    for (size_t i = levels_.size(); i-- > 0;) {
      for (auto& child : levels_[i]) {
        if (child->pid > 0) ::kill(child->pid, SIGTERM);
      }
      const auto deadline = Clock::now() + kStopTimeout;
      bool killed = false;
      for (;;) {
        Reap();
        const bool running =
            std::any_of(levels_[i].begin(), levels_[i].end(),
                        [](const auto& child) { return child->pid > 0; });
        if (!running) break;
        if (!killed && (hurry_ || Clock::now() >= deadline)) {
          for (auto& child : levels_[i]) {
            if (child->pid <= 0) continue;
            log::Warn("does not stop, killing it", {{"service", child->name}});
            ::kill(child->pid, SIGKILL);
          }
          killed = true;
        }
        Pump(milliseconds(100));
      }
    }
  }

  config::Config config_;
  UpFlags flags_;
  std::vector<std::vector<std::unique_ptr<Child>>> levels_;
  os::UniqueFd root_lock_;
  os::UniqueFd state_lock_;
  os::UniqueFd signals_;
  sigset_t old_mask_;
  absl::Status failed_;
  bool started_ = false;
  bool stop_ = false;      // A signal asked for the end.
  bool hurry_ = false;     // A second one did.
  bool stopping_ = false;  // Nothing is started again.
};

int Complain(const absl::Status& status) {
  std::fprintf(stderr, "bulkhead up: %s\n", MessageOf(status).c_str());
  return 2;
}

}  // namespace

int UpMain(int argc, char** argv) {
  // `bulkhead up ...` and a program called bulkhead-up both end here.
  if (argc > 1 && std::strcmp(argv[1], "up") == 0) {
    --argc;
    ++argv;
  }
  UpFlags flags;
  absl::StatusOr<config::Flags> parsed =
      config::ParseFlags(argc, argv, {{"--without", &flags.without}});
  if (!parsed.ok()) return Complain(parsed.status());
  static_cast<config::Flags&>(flags) = *std::move(parsed);
  if (flags.help) {
    PrintHelp();
    return 0;
  }
  absl::StatusOr<config::Config> config = config::LoadWithFlags(flags);
  if (!config.ok()) return Complain(config.status());
  log::Init("up", config->log.level, config->log.format);
  ::umask(022);
  Supervisor supervisor(std::move(*config), flags);
  return supervisor.Run();
}

}  // namespace bulkhead
