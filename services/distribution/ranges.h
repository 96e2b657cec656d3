// A large blob over several connections at once, where that is faster.
#ifndef BULKHEAD_SERVICES_DISTRIBUTION_RANGES_H_
#define BULKHEAD_SERVICES_DISTRIBUTION_RANGES_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>

#include "absl/status/status.h"
#include "services/distribution/registry.h"

namespace bulkhead::distribution {

// Less than this left: one stream.
constexpr int64_t kRangesFromBytes = 32 << 20;
// Nothing is fetched further than this ahead of what is complete.
constexpr int64_t kRangeWindowBytes = 288 << 20;
// One range: what a stream brings in 0.3 s, or in five times what it waits for
// the first byte.
constexpr int64_t kRangeBytesMin = 4 << 20;
constexpr int64_t kRangeBytesMax = 48 << 20;
// Nothing behind the network takes more than this; more streams are no use.
constexpr int64_t kFastEnoughBytesPerSecond = int64_t{400} << 20;

// The streams that a transfer may have at once. Thread-safe.
class StreamSlots {
 public:
  explicit StreamSlots(int free) : free_(free) {}
  bool TryTake() {
    int free = free_;
    while (free > 0 && !free_.compare_exchange_weak(free, free - 1)) {
    }
    return free > 0;
  }
  void Give() { ++free_; }

 private:
  std::atomic<int> free_;
};

struct RangeTarget {
  // Bytes for their place. In the HTTP thread, one call at a time. What is
  // written behind a gap is written in whole pages: a file's holes tell what is
  // missing.
  std::function<absl::Status(int64_t at, const char* data, size_t size)> write;
  // All bytes below `prefix_bytes` are written; it only grows. From several
  // threads, one call at a time.
  std::function<absl::Status(int64_t prefix_bytes)> advance;
  // So many bytes came, in all.
  std::function<void(int64_t got_bytes)> got;
};

// Fetches what `gaps` says (begin and end of each) with one stream, and adds
// others from `slots` (at most `streams_max` in all) as long as each doubling
// makes it clearly faster; what brought nothing is given back and not tried
// again soon. `*prefix_bytes` becomes the end of what is complete; on an error
// there may be more, behind gaps. Blocks; nothing is written any more when it
// returns. Errors: as Registry::FetchBlob's, and those of `target`.
absl::Status FetchInRanges(Registry& registry,
                           const oci::Descriptor& descriptor,
                           const std::map<int64_t, int64_t>& gaps,
                           StreamSlots* slots, int streams_max,
                           const RangeTarget& target, int64_t* prefix_bytes);

}  // namespace bulkhead::distribution

#endif  // BULKHEAD_SERVICES_DISTRIBUTION_RANGES_H_
