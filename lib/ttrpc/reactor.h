// One thread that watches many descriptors and timers: what lets hundreds of
// ttrpc connections wait without a thread each.
#ifndef BULKHEAD_LIB_TTRPC_REACTOR_H_
#define BULKHEAD_LIB_TTRPC_REACTOR_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <thread>

#include "absl/time/time.h"
#include "lib/os/fd.h"

namespace bulkhead::ttrpc {

// Thread-safe. Hooks run one at a time on the reactor's thread, without any
// lock held, and must not block. The destructor ends the thread; it must not
// run on it.
class Reactor {
 public:
  using FdHook = std::function<void(uint32_t epoll_events)>;
  using TimerId = uint64_t;

  Reactor();
  ~Reactor();
  Reactor(const Reactor&) = delete;
  Reactor& operator=(const Reactor&) = delete;

  // Watches `fd` (borrowed) for EPOLL* `events`, level-triggered. One hook a
  // descriptor.
  void Watch(int fd, uint32_t events, FdHook hook);
  void Change(int fd, uint32_t events);
  // After this returns no new run of the hook starts; one may be under way
  // unless this is called on the reactor's thread. Call before closing `fd`.
  void Forget(int fd);

  // Runs `hook` once at `when`; the id is never 0.
  TimerId At(absl::Time when, std::function<void()> hook);
  void Cancel(TimerId id);
  // Runs `hook` soon on the reactor's thread.
  void Post(std::function<void()> hook) { At(absl::Now(), std::move(hook)); }

  bool OnThread() const { return std::this_thread::get_id() == thread_id_; }

 private:
  struct Watched {
    uint64_t generation;
    std::shared_ptr<FdHook> hook;
  };
  void Run();
  void Wake();

  os::UniqueFd epoll_;
  os::UniqueFd wake_;
  std::mutex mutex_;
  bool stopping_ = false;
  uint64_t next_generation_ = 1;
  std::map<int, Watched> watched_;
  TimerId next_timer_ = 1;
  std::map<std::pair<absl::Time, TimerId>, std::function<void()>> timers_;
  std::map<TimerId, absl::Time> timer_times_;
  std::thread thread_;
  std::thread::id thread_id_;
};

}  // namespace bulkhead::ttrpc

#endif  // BULKHEAD_LIB_TTRPC_REACTOR_H_
