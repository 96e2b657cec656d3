// A container's cgroup figures, from either version's message.
#ifndef BULKHEAD_CLI_METRICS_H_
#define BULKHEAD_CLI_METRICS_H_

#include <cstdint>
#include <map>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cli/client.h"

namespace bulkhead::cli {

struct Usage {
  int64_t cpu_nanos = 0;     // So far.
  int64_t memory_bytes = 0;  // Without what can be dropped at once.
  int64_t memory_limit = 0;  // 0: none.
  int64_t read_bytes = 0;    // Block devices.
  int64_t written_bytes = 0;
  int64_t pids = 0;
  absl::Time when;
};

// The figures of all tasks of the namespace by container id.
absl::StatusOr<std::map<std::string, Usage>> ReadUsage(Client& client);

// The message in a Metric: `type_url` may have a prefix. kUnimplemented: an
// unknown type.
absl::StatusOr<Usage> ParseUsage(const std::string& type_url,
                                 const std::string& value);

// 0..100 times the number of processors; 0 if no time has passed.
double CpuPercent(const Usage& before, const Usage& after);

}  // namespace bulkhead::cli

#endif  // BULKHEAD_CLI_METRICS_H_
