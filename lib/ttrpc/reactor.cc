#include "lib/ttrpc/reactor.h"

#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <vector>

namespace bulkhead::ttrpc {
namespace {
constexpr int kEventsMax = 64;
constexpr int64_t kSleepMsMax = 60'000;
}  // namespace

Reactor::Reactor()
    : epoll_(::epoll_create1(EPOLL_CLOEXEC)),
      wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  if (!epoll_.valid() || !wake_.valid()) std::abort();  // Out of descriptors.
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = 0;
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, wake_.get(), &event);
  // The process's signals go to its other threads.
  sigset_t all, old;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &old);
  thread_ = std::thread([this] { Run(); });
  thread_id_ = thread_.get_id();
  pthread_sigmask(SIG_SETMASK, &old, nullptr);
}

Reactor::~Reactor() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  Wake();
  thread_.join();
}

void Reactor::Wake() {
  const uint64_t one = 1;
  (void)!::write(wake_.get(), &one, sizeof(one));  // Full: awake anyway.
}

void Reactor::Watch(int fd, uint32_t events, FdHook hook) {
  std::lock_guard<std::mutex> lock(mutex_);
  const uint64_t generation = next_generation_++;
  watched_[fd] = {generation, std::make_shared<FdHook>(std::move(hook))};
  epoll_event event{};
  event.events = events;
  // Descriptor numbers are reused; the generation tells a stale event apart.
  event.data.u64 = generation << 24 | static_cast<uint64_t>(fd);
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event);
}

void Reactor::Change(int fd, uint32_t events) {
  std::lock_guard<std::mutex> lock(mutex_);
  auto it = watched_.find(fd);
  if (it == watched_.end()) return;
  epoll_event event{};
  event.events = events;
  event.data.u64 = it->second.generation << 24 | static_cast<uint64_t>(fd);
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, fd, &event);
}

void Reactor::Forget(int fd) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (watched_.erase(fd) == 0) return;
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
}

Reactor::TimerId Reactor::At(absl::Time when, std::function<void()> hook) {
  TimerId id;
  bool first;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    id = next_timer_++;
    first = timers_.empty() || when < timers_.begin()->first.first;
    timers_[{when, id}] = std::move(hook);
    timer_times_[id] = when;
  }
  if (first && !OnThread()) Wake();
  return id;
}

void Reactor::Cancel(TimerId id) {
  std::function<void()> dropped;  // Destroyed after the lock.
  std::lock_guard<std::mutex> lock(mutex_);
  auto it = timer_times_.find(id);
  if (it == timer_times_.end()) return;
  auto timer = timers_.find({it->second, id});
  dropped = std::move(timer->second);
  timers_.erase(timer);
  timer_times_.erase(it);
}

void Reactor::Run() {
  epoll_event events[kEventsMax];
  for (;;) {
    int timeout_ms = -1;
    std::vector<std::function<void()>> due;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (stopping_) return;
      const absl::Time now = absl::Now();
      while (!timers_.empty() && timers_.begin()->first.first <= now) {
        due.push_back(std::move(timers_.begin()->second));
        timer_times_.erase(timers_.begin()->first.second);
        timers_.erase(timers_.begin());
      }
      if (!due.empty()) {
        timeout_ms = 0;
      } else if (!timers_.empty()) {
        timeout_ms = static_cast<int>(std::min(
            kSleepMsMax,
            absl::ToInt64Milliseconds(timers_.begin()->first.first - now) + 1));
      }
    }
    for (auto& hook : due) {
      hook();
      hook = nullptr;
    }
    const int count =
        ::epoll_wait(epoll_.get(), events, kEventsMax, timeout_ms);
    for (int i = 0; i < count; ++i) {
      if (events[i].data.u64 == 0) {
        uint64_t value;
        (void)!::read(wake_.get(), &value, sizeof(value));
        continue;
      }
      const int fd = static_cast<int>(events[i].data.u64 & 0xffffff);
      std::shared_ptr<FdHook> hook;
      {
        std::lock_guard<std::mutex> lock(mutex_);
        auto it = watched_.find(fd);
        if (it != watched_.end() &&
            it->second.generation == events[i].data.u64 >> 24) {
          hook = it->second.hook;
        }
      }
      if (hook != nullptr) (*hook)(events[i].events);
    }
  }
}

}  // namespace bulkhead::ttrpc
