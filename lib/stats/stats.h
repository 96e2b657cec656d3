// Counters, gauges and histograms of one process, in Prometheus' text format.
// Static linking rules prometheus-cpp out for most services; bulkhead-metrics
// (which uses it) gathers this text from each service's STATE/<svc>/stats.sock.
// Thread-safe; updating a metric is one atomic add, looking one up takes a
// lock (keep the pointer).
#ifndef BULKHEAD_LIB_STATS_STATS_H_
#define BULKHEAD_LIB_STATS_STATS_H_

#include <atomic>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace bulkhead::stats {

using Labels = std::vector<std::pair<std::string, std::string>>;

class Value {
 public:
  void Add(int64_t n = 1) { value_.fetch_add(n, std::memory_order_relaxed); }
  void Set(int64_t n) { value_.store(n, std::memory_order_relaxed); }
  int64_t Get() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<int64_t> value_{0};
};

// Buckets fixed at 100 us, 250, 500, 1 ms, 2.5, 5, 10, 25, 50, 100, 250, 500,
// 1 s, 2.5, 5, 10, +Inf.
class Histogram {
 public:
  static constexpr int kBuckets = 17;
  void ObserveMicros(int64_t micros);
  void AppendText(const std::string& name, const std::string& labels,
                  std::string* out) const;

 private:
  std::atomic<uint64_t> buckets_[kBuckets] = {};
  std::atomic<uint64_t> count_{0};
  std::atomic<uint64_t> sum_micros_{0};
};

// The same name and labels give the same object, which lives for ever.
// At most kSeriesMax series a process; past it a shared overflow object.
constexpr int kSeriesMax = 10000;
Value* Counter(const std::string& name, const Labels& labels = {});
Value* Gauge(const std::string& name, const Labels& labels = {});
Histogram* Latency(const std::string& name, const Labels& labels = {});

// Everything in the text exposition format 0.0.4.
std::string Text();

// Answers every connection on the listening Unix socket `listener` with one
// HTTP/1.0 response of Text(), from one detached thread. Takes the descriptor.
void ServeText(int listener);

}  // namespace bulkhead::stats

#endif  // BULKHEAD_LIB_STATS_STATS_H_
