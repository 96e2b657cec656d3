#include "cli/metrics.h"

#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "lib/base/status_macros.h"
#include "proto/containerd/services/tasks/v1/tasks.pb.h"
#include "proto/io/containerd/cgroups/v1/metrics.pb.h"
#include "proto/io/containerd/cgroups/v2/metrics.pb.h"

namespace bulkhead::cli {
namespace {

// cgroups say "no limit" with a number near the largest.
constexpr uint64_t kNoLimit = uint64_t{1} << 62;

int64_t Signed(uint64_t value) {
  return value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())
             ? std::numeric_limits<int64_t>::max()
             : static_cast<int64_t>(value);
}

Usage FromV1(const io::containerd::cgroups::v1::Metrics& metrics) {
  Usage usage;
  usage.cpu_nanos = Signed(metrics.cpu().usage().total());
  const auto& memory = metrics.memory();
  const uint64_t used = memory.usage().usage();
  const uint64_t idle = memory.total_inactive_file();
  usage.memory_bytes = Signed(idle < used ? used - idle : used);
  if (memory.usage().limit() < kNoLimit) {
    usage.memory_limit = Signed(memory.usage().limit());
  }
  for (const auto& entry : metrics.blkio().io_service_bytes_recursive()) {
    if (entry.op() == "Read" || entry.op() == "read") {
      usage.read_bytes += Signed(entry.value());
    } else if (entry.op() == "Write" || entry.op() == "write") {
      usage.written_bytes += Signed(entry.value());
    }
  }
  usage.pids = Signed(metrics.pids().current());
  return usage;
}

Usage FromV2(const io::containerd::cgroups::v2::Metrics& metrics) {
  Usage usage;
  usage.cpu_nanos = Signed(metrics.cpu().usage_usec()) * 1000;
  const uint64_t used = metrics.memory().usage();
  const uint64_t idle = metrics.memory().inactive_file();
  usage.memory_bytes = Signed(idle < used ? used - idle : used);
  if (metrics.memory().usage_limit() < kNoLimit) {
    usage.memory_limit = Signed(metrics.memory().usage_limit());
  }
  for (const auto& entry : metrics.io().usage()) {
    usage.read_bytes += Signed(entry.rbytes());
    usage.written_bytes += Signed(entry.wbytes());
  }
  usage.pids = Signed(metrics.pids().current());
  return usage;
}

}  // namespace

absl::StatusOr<Usage> ParseUsage(const std::string& type_url,
                                 const std::string& value) {
  const std::string name = type_url.substr(type_url.rfind('/') + 1);
  io::containerd::cgroups::v1::Metrics v1;
  io::containerd::cgroups::v2::Metrics v2;
  if (name == v1.GetTypeName() && v1.ParseFromString(value)) return FromV1(v1);
  if (name == v2.GetTypeName() && v2.ParseFromString(value)) return FromV2(v2);
  return absl::UnimplementedError(
      absl::StrCat("metrics of type '", type_url, "'"));
}

absl::StatusOr<std::map<std::string, Usage>> ReadUsage(Client& client) {
  containerd::services::tasks::v1::MetricsRequest request;
  containerd::services::tasks::v1::MetricsResponse response;
  RETURN_IF_ERROR(
      client.Call(std::string(kTasks) + "Metrics", request, &response));
  std::map<std::string, Usage> all;
  for (const auto& metric : response.metrics()) {
    absl::StatusOr<Usage> usage =
        ParseUsage(metric.data().type_url(), metric.data().value());
    if (!usage.ok()) continue;  // Of another kind of runtime.
    usage->when = absl::Now();
    all[metric.id()] = *usage;
  }
  return all;
}

double CpuPercent(const Usage& before, const Usage& after) {
  const double elapsed = absl::ToDoubleNanoseconds(after.when - before.when);
  if (elapsed <= 0 || after.cpu_nanos < before.cpu_nanos) return 0;
  return 100.0 * static_cast<double>(after.cpu_nanos - before.cpu_nanos) /
         elapsed;
}

}  // namespace bulkhead::cli
