#include "lib/service/service.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <malloc.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "lib/base/status_macros.h"
#include "lib/config/flags.h"
#include "lib/log/log.h"
#include "lib/os/memory.h"
#include "lib/os/socket.h"
#include "lib/stats/stats.h"

namespace bulkhead::service {
namespace {

constexpr absl::Duration kDrainGrace = absl::Seconds(2);
// Memory goes back when there was work, start-up included, and then next to
// none for the first, looked at that often.
constexpr absl::Duration kIdleLook = absl::Seconds(2);
constexpr absl::Duration kIdleCpuMax = absl::Milliseconds(10);
constexpr int kExitFailed = 1;
constexpr int kExitUsage = 2;

void PrintHelp(const Options& options) {
  std::printf(
      "Usage: bulkhead-%s [flags]\n\n%s\n\nFlags:\n"
      "  --config FILE       configuration (default %s, if it is there)\n"
      "  --root DIR          what lasts; over the config's `root`\n"
      "  --state DIR         sockets and bundles; over the config's `state`\n"
      "  --log-level LEVEL   debug, info, warn or error\n"
      "  --log-format FORMAT text or json\n"
      "  --version           print the version and exit\n"
      "  --help              this text\n",
      options.name.c_str(), options.summary.c_str(), config::kDefaultPath);
}

// What this process has used of the processors so far.
absl::Duration CpuTime() {
  timespec used{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
  return absl::DurationFromTimespec(used);
}

absl::Status DropCapabilities(const std::vector<int>& keep) {
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) {
    return os::ErrnoStatus(errno, "no_new_privs");
  }
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2] = {};
  if (::syscall(SYS_capget, &header, data) != 0) {
    return os::ErrnoStatus(errno, "capget");
  }
  // The bounding set first: it takes CAP_SETPCAP.
  for (int cap = 0; cap <= CAP_LAST_CAP; ++cap) {
    if (std::find(keep.begin(), keep.end(), cap) != keep.end()) continue;
    if (::prctl(PR_CAPBSET_READ, cap, 0, 0, 0) != 1) continue;
    if (::prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) != 0 && errno != EPERM) {
      return os::ErrnoStatus(errno, "drop from the bounding set");
    }
  }
  ::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
  uint32_t mask[2] = {};
  for (const int cap : keep) mask[cap / 32] |= 1u << (cap % 32);
  for (int i = 0; i < 2; ++i) {
    data[i].permitted &= mask[i];
    data[i].effective = data[i].permitted;
    data[i].inheritable = 0;
  }
  if (::syscall(SYS_capset, &header, data) != 0) {
    return os::ErrnoStatus(errno, "capset");
  }
  return absl::OkStatus();
}

class ContextImpl : public Context {
 public:
  ContextImpl(Options options, config::Flags flags, config::Config config)
      : options_(std::move(options)),
        flags_(std::move(flags)),
        config_(std::move(config)),
        activated_(os::TakeActivatedSockets()) {}

  const config::Config& config() const override { return config_; }

  void OnReload(std::function<void(const config::Config&)> hook) override {
    reload_hook_ = std::move(hook);
  }

  absl::StatusOr<os::UniqueFd> Listen(const std::string& name,
                                      const std::string& path, mode_t mode,
                                      int type) override {
    for (auto& [activated_name, fd] : activated_) {
      if (activated_name == name && fd.valid()) return std::move(fd);
    }
    return os::ListenUnix(path, {.type = type, .mode = mode});
  }

  absl::Status ListenGrpc(
      const std::vector<grpc::Service*>& services) override {
    ASSIGN_OR_RETURN(
        os::UniqueFd listener,
        Listen("grpc", config_.Socket(options_.name), 0600, SOCK_STREAM));
    ASSIGN_OR_RETURN(server_,
                     rpc::Server::Start(std::move(listener), services));
    return absl::OkStatus();
  }

  void Run() override {
    absl::StatusOr<os::UniqueFd> stats_listener =
        Listen("stats", config_.StatsSocket(options_.name), 0600, SOCK_STREAM);
    if (stats_listener.ok()) {
      stats::ServeText(stats_listener->Release());
    } else {
      log::Warn("no stats socket",
                {{"error", stats_listener.status().ToString()}});
    }
    os::NotifySystemd("READY=1");
    if (const char* ready = std::getenv("BULKHEAD_READY_FD")) {
      int fd = -1;
      if (absl::SimpleAtoi(ready, &fd) && fd > 2) {
        (void)os::WriteFull(fd, "ready\n", 6);  // `up` may have gone.
        ::close(fd);
      }
    }
    log::Info("ready", {{"version", kProductVersion}});
    os::ReleaseIdleMemory();  // Nothing of the start is needed again.
    WaitForEnd();
    os::NotifySystemd("STOPPING=1");
    if (server_ != nullptr) server_->Stop(kDrainGrace);
    log::Info("stopped");
  }

 private:
  void WaitForEnd() {
    sigset_t signals;
    ::sigemptyset(&signals);
    ::sigaddset(&signals, SIGTERM);
    ::sigaddset(&signals, SIGINT);
    ::sigaddset(&signals, SIGHUP);
    const timespec look = absl::ToTimespec(kIdleLook);
    absl::Duration last_look = CpuTime();
    absl::Duration last_release = absl::ZeroDuration();
    for (;;) {
      const int signal = ::sigtimedwait(&signals, nullptr, &look);
      if (signal < 0) {
        if (errno != EAGAIN) continue;
        const absl::Duration now = CpuTime();
        if (now - last_look < kIdleCpuMax && now - last_release > kIdleCpuMax) {
          os::ReleaseIdleMemory();
          last_release = CpuTime();
        }
        last_look = now;
        continue;
      }
      if (signal != SIGHUP) return;
      absl::StatusOr<config::Config> fresh = config::LoadWithFlags(flags_);
      if (!fresh.ok()) {
        log::Error("reload refused, the old configuration stays",
                   {{"error", MessageOf(fresh.status())}});
        continue;
      }
      log::Info("configuration reloaded");
      if (reload_hook_) reload_hook_(*fresh);
    }
  }

  Options options_;
  config::Flags flags_;
  config::Config config_;
  std::vector<std::pair<std::string, os::UniqueFd>> activated_;
  std::function<void(const config::Config&)> reload_hook_;
  std::unique_ptr<rpc::Server> server_;
};

int Fail(const Options& options, const absl::Status& status, int code) {
  std::fprintf(stderr, "bulkhead-%s: %s\n", options.name.c_str(),
               MessageOf(status).c_str());
  return code;
}

absl::Status Confine(const Options& options) {
  if (options.no_network && ::unshare(CLONE_NEWNET) != 0 && errno != EPERM) {
    return os::ErrnoStatus(errno, "unshare the network");
  }
  if (options.keep_privileges) return absl::OkStatus();
  return DropCapabilities(options.capabilities);
}

}  // namespace

int Main(int argc, char** argv, const Options& options,
         const std::function<absl::Status(Context&)>& body) {
  const absl::StatusOr<config::Flags> flags = config::ParseFlags(argc, argv);
  if (!flags.ok()) return Fail(options, flags.status(), kExitUsage);
  if (flags->help) {
    PrintHelp(options);
    return 0;
  }
  if (flags->version) {
    std::printf("bulkhead-%s %s\n", options.name.c_str(), kProductVersion);
    return 0;
  }
  absl::StatusOr<config::Config> config = config::LoadWithFlags(*flags);
  if (!config.ok()) return Fail(options, config.status(), kExitUsage);
  log::Init(options.name, config->log.level, config->log.format);

  // One arena: idle daemons stay small. Signals are taken by Run() alone, so
  // they are blocked before the first thread.
  ::mallopt(M_ARENA_MAX, 1);
  ::signal(SIGPIPE, SIG_IGN);
  sigset_t signals;
  ::sigemptyset(&signals);
  ::sigaddset(&signals, SIGTERM);
  ::sigaddset(&signals, SIGINT);
  ::sigaddset(&signals, SIGHUP);
  ::pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  ::umask(022);
  // Debian's Abseil is built with its debug checks: each lock would go through
  // one graph of all locks.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  rlimit files{};
  if (::getrlimit(RLIMIT_NOFILE, &files) == 0) {
    files.rlim_cur = files.rlim_max;
    ::setrlimit(RLIMIT_NOFILE, &files);
  }

  absl::Status status = os::MakeDirs(config->root, 0711);
  if (status.ok()) status = os::MakeDirs(config->state, 0711);
  if (status.ok()) {
    status = os::MakeDirs(config->ServiceDir(options.name), 0700);
  }
  if (status.ok()) status = Confine(options);
  if (!status.ok()) return Fail(options, status, kExitFailed);

  ContextImpl context(options, *flags, std::move(*config));
  status = body(context);
  if (!status.ok()) return Fail(options, status, kExitFailed);
  return 0;
}

}  // namespace bulkhead::service
