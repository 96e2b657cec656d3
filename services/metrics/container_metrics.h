// A container's cgroup figures under the names that dashboards for containerd
// use.
#ifndef BULKHEAD_SERVICES_METRICS_CONTAINER_METRICS_H_
#define BULKHEAD_SERVICES_METRICS_CONTAINER_METRICS_H_

#include <prometheus/metric_family.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace bulkhead::metrics {

struct ContainerFigures {
  std::string ns;
  std::string id;
  std::string runtime;   // Empty: not known; no label then.
  std::string type_url;  // "io.containerd.cgroups.v1.Metrics" or v2.
  std::string data;      // That message, serialised.
};

// One family a name. Figures of an unknown type or that do not parse are left
// out.
std::vector<prometheus::MetricFamily> Families(
    const std::vector<ContainerFigures>& containers);

// What the status page shows of one container.
struct Summary {
  uint64_t cpu_ns = 0;
  uint64_t memory_bytes = 0;
  uint64_t memory_limit_bytes = 0;  // 0: none.
  uint64_t pids = 0;
};
Summary Summarise(const ContainerFigures& figures);

}  // namespace bulkhead::metrics

#endif  // BULKHEAD_SERVICES_METRICS_CONTAINER_METRICS_H_
