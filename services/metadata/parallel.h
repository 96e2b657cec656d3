// One step for each of many items, several at a time.
#ifndef BULKHEAD_SERVICES_METADATA_PARALLEL_H_
#define BULKHEAD_SERVICES_METADATA_PARALLEL_H_

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

namespace bulkhead::metadata {

// Calls `step(i)` once for each i below `count`, from at most `threads_max`
// threads, the caller's among them. Returns after the last.
template <typename Step>
void InParallel(size_t count, size_t threads_max, const Step& step) {
  std::atomic<size_t> next{0};
  const auto work = [&] {
    for (size_t i = next++; i < count; i = next++) step(i);
  };
  std::vector<std::thread> threads;
  for (size_t i = 1; i < std::min(count, threads_max); ++i) {
    threads.emplace_back(work);
  }
  work();
  for (std::thread& thread : threads) thread.join();
}

}  // namespace bulkhead::metadata

#endif  // BULKHEAD_SERVICES_METADATA_PARALLEL_H_
