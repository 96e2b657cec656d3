#include "services/runtime/workers.h"

#include <chrono>
#include <thread>
#include <utility>

namespace bulkhead::runtime {
namespace {
constexpr std::chrono::seconds kIdleMax(2);
}  // namespace

Workers::~Workers() {
  std::unique_lock<std::mutex> lock(mutex_);
  stopping_ = true;
  changed_.notify_all();
  changed_.wait(lock, [this] { return threads_ == 0; });
}

void Workers::Post(std::function<void()> work) {
  std::lock_guard<std::mutex> lock(mutex_);
  queue_.push_back(std::move(work));
  if (static_cast<int>(queue_.size()) > idle_ && threads_ < threads_max_) {
    ++threads_;
    std::thread([this] { Run(); }).detach();
  } else {
    changed_.notify_one();
  }
}

void Workers::Run() {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    if (queue_.empty()) {
      if (stopping_) break;
      ++idle_;
      changed_.wait_for(lock, kIdleMax,
                        [this] { return stopping_ || !queue_.empty(); });
      --idle_;
      if (queue_.empty()) break;
    }
    std::function<void()> work = std::move(queue_.front());
    queue_.pop_front();
    lock.unlock();
    work();
    work = nullptr;
    lock.lock();
  }
  --threads_;
  changed_.notify_all();
}

}  // namespace bulkhead::runtime
