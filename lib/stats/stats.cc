#include "lib/stats/stats.h"

#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <map>
#include <memory>
#include <mutex>
#include <thread>

namespace bulkhead::stats {
namespace {

constexpr int64_t kBoundsMicros[Histogram::kBuckets - 1] = {
    100,   250,    500,    1000,   2500,    5000,    10000,   25000,
    50000, 100000, 250000, 500000, 1000000, 2500000, 5000000, 10000000};
// Between two tries when no descriptor is free.
constexpr useconds_t kNoAcceptMicros = 100'000;
constexpr const char* kBoundNames[Histogram::kBuckets] = {
    "0.0001", "0.00025", "0.0005", "0.001", "0.0025", "0.005",
    "0.01",   "0.025",   "0.05",   "0.1",   "0.25",   "0.5",
    "1",      "2.5",     "5",      "10",    "+Inf"};

template <typename T>
using Family = std::map<std::string, std::unique_ptr<T>>;  // By label text.

struct Registry {
  std::mutex mutex;
  int series = 0;
  std::map<std::string, Family<Value>> counters;
  std::map<std::string, Family<Value>> gauges;
  std::map<std::string, Family<Histogram>> latencies;
  Value overflow_value;
  Histogram overflow_histogram;
};

Registry& Global() {
  static auto* registry = new Registry;
  return *registry;
}

std::string LabelText(const Labels& labels) {
  std::string text;
  for (const auto& [key, value] : labels) {
    if (!text.empty()) text.push_back(',');
    text += key + "=\"";
    for (const char c : value) {
      if (c == '\n') {
        text += "\\n";
        continue;
      }
      if (c == '"' || c == '\\') text.push_back('\\');
      text.push_back(c);
    }
    text.push_back('"');
  }
  return text;
}

template <typename T>
T* Find(std::map<std::string, Family<T>>* families, const std::string& name,
        const Labels& labels, T* overflow) {
  Registry& registry = Global();
  const std::string text = LabelText(labels);
  std::lock_guard<std::mutex> lock(registry.mutex);
  Family<T>& family = (*families)[name];
  auto found = family.find(text);
  if (found != family.end()) return found->second.get();
  if (registry.series >= kSeriesMax) return overflow;
  ++registry.series;
  return (family[text] = std::make_unique<T>()).get();
}

void AppendValues(const std::map<std::string, Family<Value>>& families,
                  const char* type, std::string* out) {
  for (const auto& [name, family] : families) {
    *out += "# TYPE " + name + " " + type + "\n";
    for (const auto& [labels, value] : family) {
      *out += name;
      if (!labels.empty()) *out += "{" + labels + "}";
      *out += " " + std::to_string(value->Get()) + "\n";
    }
  }
}

void Answer(int fd) {
  // The request is read only as far as it takes to be polite.
  timeval timeout{2, 0};
  ::setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
  ::setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout));
  char request[2048];
  (void)!::recv(fd, request, sizeof(request), 0);
  const std::string body = Text();
  const std::string response =
      "HTTP/1.0 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\n"
      "Content-Length: " +
      std::to_string(body.size()) + "\r\n\r\n" + body;
  size_t done = 0;
  while (done < response.size()) {
    const ssize_t n = ::send(fd, response.data() + done, response.size() - done,
                             MSG_NOSIGNAL);
    if (n <= 0) break;
    done += static_cast<size_t>(n);
  }
}

}  // namespace

void Histogram::ObserveMicros(int64_t micros) {
  int bucket = 0;
  while (bucket < kBuckets - 1 && micros > kBoundsMicros[bucket]) ++bucket;
  buckets_[bucket].fetch_add(1, std::memory_order_relaxed);
  count_.fetch_add(1, std::memory_order_relaxed);
  sum_micros_.fetch_add(static_cast<uint64_t>(micros < 0 ? 0 : micros),
                        std::memory_order_relaxed);
}

void Histogram::AppendText(const std::string& name, const std::string& labels,
                           std::string* out) const {
  const std::string comma = labels.empty() ? "" : ",";
  uint64_t total = 0;
  for (int i = 0; i < kBuckets; ++i) {
    total += buckets_[i].load(std::memory_order_relaxed);
    *out += name + "_bucket{" + labels + comma + "le=\"" + kBoundNames[i] +
            "\"} " + std::to_string(total) + "\n";
  }
  const std::string braces = labels.empty() ? "" : "{" + labels + "}";
  const uint64_t micros = sum_micros_.load(std::memory_order_relaxed);
  *out += name + "_sum" + braces + " " +
          std::to_string(static_cast<double>(micros) / 1e6) + "\n";
  *out += name + "_count" + braces + " " + std::to_string(total) + "\n";
}

Value* Counter(const std::string& name, const Labels& labels) {
  return Find(&Global().counters, name, labels, &Global().overflow_value);
}

Value* Gauge(const std::string& name, const Labels& labels) {
  return Find(&Global().gauges, name, labels, &Global().overflow_value);
}

Histogram* Latency(const std::string& name, const Labels& labels) {
  return Find(&Global().latencies, name, labels, &Global().overflow_histogram);
}

std::string Text() {
  Registry& registry = Global();
  std::lock_guard<std::mutex> lock(registry.mutex);
  std::string out;
  AppendValues(registry.counters, "counter", &out);
  AppendValues(registry.gauges, "gauge", &out);
  for (const auto& [name, family] : registry.latencies) {
    out += "# TYPE " + name + " histogram\n";
    for (const auto& [labels, histogram] : family) {
      histogram->AppendText(name, labels, &out);
    }
  }
  return out;
}

void ServeText(int listener) {
  std::thread([listener] {
    for (;;) {
      const int fd = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
      if (fd < 0) {
        if (errno == EINVAL || errno == EBADF) {  // Shut down.
          ::close(listener);
          return;
        }
        // Without a free descriptor the client waits a moment longer.
        if (errno != EINTR && errno != ECONNABORTED) ::usleep(kNoAcceptMicros);
        continue;
      }
      Answer(fd);
      ::close(fd);
    }
  }).detach();
}

}  // namespace bulkhead::stats
