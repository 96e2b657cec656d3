// What a client is told while a transfer runs.
#ifndef BULKHEAD_SERVICES_DISTRIBUTION_PROGRESS_H_
#define BULKHEAD_SERVICES_DISTRIBUTION_PROGRESS_H_

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "lib/oci/image.h"

namespace bulkhead::distribution {

constexpr absl::Duration kProgressTick = absl::Milliseconds(300);
constexpr size_t kProgressQueueMax = 8192;  // Past it events are dropped.

struct ProgressEvent {
  std::string event;
  std::string name;
  std::vector<std::string> parents;
  int64_t progress = 0;
  int64_t total = 0;
  oci::Descriptor desc;  // Empty digest: none.
};

// Sends from a thread of its own: a slow client never holds a transfer up.
// Changes of state go out at once, byte counts at each tick. Thread-safe.
class Progress {
 public:
  // `send` returns false when nobody listens any more; empty: never anybody.
  explicit Progress(std::function<bool(const ProgressEvent&)> send);
  // Sends what is left.
  ~Progress();

  void Event(const std::string& event, const std::string& name = "",
             const oci::Descriptor* desc = nullptr);
  // The state of one part, known by its ref key.
  void Set(const oci::Descriptor& desc, const std::string& event,
           int64_t progress, const std::vector<std::string>& parents = {});
  // Bytes of a part that is being downloaded.
  void Bytes(const oci::Descriptor& desc, int64_t progress);

 private:
  struct Part {
    ProgressEvent last;
    bool dirty = false;
  };
  void Push(ProgressEvent event);  // Holds mutex_.
  void Loop();

  const std::function<bool(const ProgressEvent&)> send_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<ProgressEvent> queue_;
  std::map<std::string, Part> parts_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace bulkhead::distribution

#endif  // BULKHEAD_SERVICES_DISTRIBUTION_PROGRESS_H_
