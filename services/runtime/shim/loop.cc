#include "services/runtime/shim/loop.h"

#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <utility>

namespace bulkhead::shim {
namespace {

constexpr int kEventsMax = 32;
constexpr size_t kKeptExitsMax = 4096;
constexpr int kQuietMs = 200;

int64_t MonotonicMs() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

}  // namespace

timespec Now() {
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME, &now);
  return now;
}

absl::Status Loop::Init() {
  epoll_ = os::UniqueFd(::epoll_create1(EPOLL_CLOEXEC));
  if (!epoll_.valid()) return os::ErrnoStatus(errno, "epoll_create1");
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGCHLD);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGUSR1);
  if (::sigprocmask(SIG_BLOCK, &set, nullptr) != 0) {
    return os::ErrnoStatus(errno, "sigprocmask");
  }
  ::signal(SIGPIPE, SIG_IGN);
  signals_ = os::UniqueFd(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!signals_.valid()) return os::ErrnoStatus(errno, "signalfd");
  if (::prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0) {
    return os::ErrnoStatus(errno, "PR_SET_CHILD_SUBREAPER");
  }
  return Watch(signals_.get(), EPOLLIN, [this](uint32_t) { HandleSignals(); });
}

absl::Status Loop::Watch(int fd, uint32_t events, FdHandler handler) {
  auto watcher = std::make_shared<Watcher>();
  watcher->generation = ++generation_;
  watcher->handler = std::move(handler);
  epoll_event event{};
  event.events = events;
  event.data.u64 =
      uint64_t{watcher->generation} << 32 | static_cast<uint32_t>(fd);
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
    return os::ErrnoStatus(errno, "epoll_ctl add");
  }
  watchers_[fd] = std::move(watcher);
  return absl::OkStatus();
}

void Loop::Modify(int fd, uint32_t events) {
  const auto found = watchers_.find(fd);
  if (found == watchers_.end()) return;
  epoll_event event{};
  event.events = events;
  event.data.u64 =
      uint64_t{found->second->generation} << 32 | static_cast<uint32_t>(fd);
  (void)::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, fd, &event);  // It is there.
}

void Loop::Unwatch(int fd) {
  if (watchers_.erase(fd) == 0) return;
  (void)::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);  // Likewise.
}

uint64_t Loop::After(int64_t delay_ms, std::function<void()> call) {
  const int64_t when = MonotonicMs() + std::max<int64_t>(delay_ms, 0);
  const uint64_t timer = ++timer_last_;
  timers_[{when, timer}] = std::move(call);
  timer_times_[timer] = when;
  return timer;
}

void Loop::Cancel(uint64_t timer) {
  const auto found = timer_times_.find(timer);
  if (found == timer_times_.end()) return;
  timers_.erase({found->second, timer});
  timer_times_.erase(found);
}

void Loop::OnExit(pid_t pid, ExitHandler handler) {
  const auto kept = kept_exits_.find(pid);
  if (kept == kept_exits_.end()) {
    exit_handlers_[pid] = std::move(handler);
    return;
  }
  const ExitInfo info = kept->second;
  kept_exits_.erase(kept);
  After(0, [handler = std::move(handler), info] { handler(info); });
}

void Loop::OnExitOfNew(pid_t pid, ExitHandler handler) {
  kept_exits_.erase(pid);
  exit_handlers_[pid] = std::move(handler);
}

void Loop::KeepExits() { ++keepers_; }

void Loop::ReleaseExits() {
  if (--keepers_ == 0) kept_exits_.clear();
}

void Loop::HandleSignals() {
  signalfd_siginfo info[8];
  bool child = false;
  bool terminate = false;
  bool dump = false;
  for (;;) {
    const ssize_t size = ::read(signals_.get(), info, sizeof(info));
    if (size <= 0) break;
    for (size_t i = 0; i < static_cast<size_t>(size) / sizeof(info[0]); ++i) {
      (info[i].ssi_signo == SIGCHLD   ? child
       : info[i].ssi_signo == SIGUSR1 ? dump
                                      : terminate) = true;
    }
  }
  if (child) Reap();
  if (dump && on_dump_) on_dump_();
  if (terminate && on_terminate_) on_terminate_();
}

void Loop::Reap() {
  for (;;) {
    int status = 0;
    const pid_t pid = ::waitpid(-1, &status, WNOHANG);
    if (pid <= 0) return;
    ExitInfo info;
    info.at = Now();
    info.status =
        WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
    const auto found = exit_handlers_.find(pid);
    if (found != exit_handlers_.end()) {
      const ExitHandler handler = std::move(found->second);
      exit_handlers_.erase(found);
      handler(info);
    } else if (keepers_ > 0 && kept_exits_.size() < kKeptExitsMax) {
      kept_exits_[pid] = info;
    }
  }
}

int Loop::NextTimeoutMs() const {
  if (timers_.empty()) return -1;
  const int64_t left = timers_.begin()->first.first - MonotonicMs();
  return static_cast<int>(std::clamp<int64_t>(left, 0, 3600 * 1000));
}

void Loop::RunTimers() {
  const int64_t now = MonotonicMs();
  // Only those due now: a timer that sets another at once cannot starve I/O.
  const uint64_t last = timer_last_;
  while (!timers_.empty() && timers_.begin()->first.first <= now &&
         timers_.begin()->first.second <= last) {
    const std::function<void()> call = std::move(timers_.begin()->second);
    timer_times_.erase(timers_.begin()->first.second);
    timers_.erase(timers_.begin());
    call();
  }
}

void Loop::Run() {
  epoll_event events[kEventsMax];
  bool quiet = false;
  while (!stopped_) {
    int timeout_ms = NextTimeoutMs();
    const bool may_become_quiet =
        !quiet && (timeout_ms < 0 || timeout_ms > kQuietMs);
    if (may_become_quiet) timeout_ms = kQuietMs;
    const int count =
        ::epoll_wait(epoll_.get(), events, kEventsMax, timeout_ms);
    if (count == 0 && may_become_quiet) {
      quiet = true;
      if (on_quiet_) on_quiet_();
      continue;
    }
    if (count > 0) quiet = false;
    for (int i = 0; i < count && !stopped_; ++i) {
      const int fd = static_cast<int>(events[i].data.u64 & 0xffffffffu);
      const auto found = watchers_.find(fd);
      if (found == watchers_.end() ||
          found->second->generation != events[i].data.u64 >> 32) {
        continue;  // Unwatched by an earlier handler of this round.
      }
      const std::shared_ptr<Watcher> watcher = found->second;
      watcher->handler(events[i].events);
    }
    RunTimers();
  }
}

}  // namespace bulkhead::shim
