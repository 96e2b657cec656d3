// Threads for work that blocks on shims: as many as there is work, up to a
// limit, gone again when there is none.
#ifndef BULKHEAD_SERVICES_RUNTIME_WORKERS_H_
#define BULKHEAD_SERVICES_RUNTIME_WORKERS_H_

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>

namespace bulkhead::runtime {

// Thread-safe. The destructor waits for everything posted.
class Workers {
 public:
  explicit Workers(int threads_max) : threads_max_(threads_max) {}
  ~Workers();
  void Post(std::function<void()> work);

 private:
  void Run();

  const int threads_max_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> queue_;
  int threads_ = 0;
  int idle_ = 0;
  bool stopping_ = false;
};

}  // namespace bulkhead::runtime

#endif  // BULKHEAD_SERVICES_RUNTIME_WORKERS_H_
