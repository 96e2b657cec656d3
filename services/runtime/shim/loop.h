// One epoll loop: descriptors, timers, child processes. Everything in the shim
// runs on it; nothing here is thread-safe.
#ifndef BULKHEAD_SERVICES_RUNTIME_SHIM_LOOP_H_
#define BULKHEAD_SERVICES_RUNTIME_SHIM_LOOP_H_

#include <sys/types.h>
#include <time.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>

#include "absl/status/status.h"
#include "lib/os/fd.h"

namespace bulkhead::shim {

struct ExitInfo {
  int status = 0;  // 128 + signal when a signal ended it.
  timespec at{};
};

timespec Now();

class Loop {
 public:
  using FdHandler = std::function<void(uint32_t events)>;
  using ExitHandler = std::function<void(const ExitInfo&)>;

  // Blocks SIGCHLD, SIGTERM, SIGINT and SIGUSR1 for good and takes them through
  // a descriptor; ignores SIGPIPE; makes this process a subreaper.
  absl::Status Init();

  // Calls `handler` with epoll events while `fd` is watched. The handler may
  // unwatch any descriptor, its own included. `fd` stays the caller's.
  absl::Status Watch(int fd, uint32_t events, FdHandler handler);
  void Modify(int fd, uint32_t events);
  void Unwatch(int fd);  // Unknown descriptors are fine.

  // Runs `call` once, after `delay_ms`. The id is never 0.
  uint64_t After(int64_t delay_ms, std::function<void()> call);
  void Cancel(uint64_t timer);  // Fired and unknown timers are fine.

  // Calls `handler` once when the child `pid` is reaped, also when that already
  // happened while exits were kept (see KeepExits). Never calls it before
  // returning.
  void OnExit(pid_t pid, ExitHandler handler);
  // For a child just started: forgets what is kept under its number.
  void OnExitOfNew(pid_t pid, ExitHandler handler);

  // While held, exits of unknown children are kept for a later OnExit: an OCI
  // runtime leaves processes whose number is learnt after they may have ended.
  void KeepExits();
  void ReleaseExits();

  // SIGTERM or SIGINT.
  void OnTerminate(std::function<void()> handler) {
    on_terminate_ = std::move(handler);
  }

  // SIGUSR1, with which daemons' shims tell what they are about.
  void OnDump(std::function<void()> handler) { on_dump_ = std::move(handler); }

  // Nothing happened for a while; called once until something does.
  void OnQuiet(std::function<void()> handler) {
    on_quiet_ = std::move(handler);
  }

  void Run();  // Until Stop().
  void Stop() { stopped_ = true; }

 private:
  struct Watcher {
    uint32_t generation = 0;
    FdHandler handler;
  };

  void HandleSignals();
  void Reap();
  int NextTimeoutMs() const;
  void RunTimers();

  os::UniqueFd epoll_;
  os::UniqueFd signals_;
  std::map<int, std::shared_ptr<Watcher>> watchers_;
  uint32_t generation_ = 0;
  std::map<std::pair<int64_t, uint64_t>, std::function<void()>> timers_;
  std::map<uint64_t, int64_t> timer_times_;
  uint64_t timer_last_ = 0;
  std::map<pid_t, ExitHandler> exit_handlers_;
  std::map<pid_t, ExitInfo> kept_exits_;
  int keepers_ = 0;
  std::function<void()> on_terminate_;
  std::function<void()> on_dump_;
  std::function<void()> on_quiet_;
  bool stopped_ = false;
};

}  // namespace bulkhead::shim

#endif  // BULKHEAD_SERVICES_RUNTIME_SHIM_LOOP_H_
