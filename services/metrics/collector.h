// Gathers the figures of the whole suite: each service's own from its stats
// socket, and the containers' from the runtime service.
#ifndef BULKHEAD_SERVICES_METRICS_COLLECTOR_H_
#define BULKHEAD_SERVICES_METRICS_COLLECTOR_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "lib/config/config.h"
#include "services/metrics/container_metrics.h"

namespace bulkhead::metrics {

struct ServiceFigures {
  std::string name;
  bool up = false;   // Its stats socket answered.
  std::string text;  // Prometheus text.
};

struct Snapshot {
  absl::Time taken_at;
  std::vector<ServiceFigures> services;
  std::vector<ContainerFigures> containers;
  std::string containers_error;  // Why they are missing or incomplete.
};

// Thread-safe. A snapshot is kept for kKeep, so that many readers cost no more
// than one.
class Collector {
 public:
  static constexpr absl::Duration kKeep = absl::Seconds(1);

  explicit Collector(const config::Config& config);
  ~Collector();

  std::shared_ptr<const Snapshot> Gather();

  // All figures in the text exposition format.
  static std::string Exposition(const Snapshot& snapshot);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace bulkhead::metrics

#endif  // BULKHEAD_SERVICES_METRICS_COLLECTOR_H_
