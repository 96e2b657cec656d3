#include "services/metrics/container_metrics.h"

#include <utility>

#include "proto/io/containerd/cgroups/v1/metrics.pb.h"
#include "proto/io/containerd/cgroups/v2/metrics.pb.h"

namespace bulkhead::metrics {
namespace {

namespace v1 = ::io::containerd::cgroups::v1;
namespace v2 = ::io::containerd::cgroups::v2;
using Labels = std::vector<prometheus::ClientMetric::Label>;

constexpr char kV1[] = "io.containerd.cgroups.v1.Metrics";
constexpr char kV2[] = "io.containerd.cgroups.v2.Metrics";
// Limits above this mean "none" in version 1.
constexpr uint64_t kNoLimitFrom = uint64_t{1} << 62;

bool Is(const std::string& type_url, const std::string& name) {
  return type_url == name ||
         (type_url.size() > name.size() &&
          type_url.compare(type_url.size() - name.size() - 1, std::string::npos,
                           "/" + name) == 0);
}

class Builder {
 public:
  void Start(const ContainerFigures& figures) {
    base_ = {{"container_id", figures.id}, {"namespace", figures.ns}};
    if (!figures.runtime.empty()) base_.push_back({"runtime", figures.runtime});
  }

  void Add(const std::string& name, const char* help, uint64_t value,
           const Labels& more = {}) {
    prometheus::MetricFamily& family = families_["container_" + name];
    family.name = "container_" + name;
    family.help = help;
    family.type = prometheus::MetricType::Gauge;
    prometheus::ClientMetric metric;
    metric.label = base_;
    metric.label.insert(metric.label.end(), more.begin(), more.end());
    metric.gauge.value = static_cast<double>(value);
    family.metric.push_back(std::move(metric));
  }

  std::vector<prometheus::MetricFamily> Take() {
    std::vector<prometheus::MetricFamily> all;
    for (auto& [name, family] : families_) all.push_back(std::move(family));
    return all;
  }

 private:
  Labels base_;
  std::map<std::string, prometheus::MetricFamily> families_;
};

template <typename Message>
struct Field {
  const char* name;
  uint64_t (Message::*get)() const;
};

constexpr Field<v1::MemoryStat> kMemoryV1[] = {
    {"cache", &v1::MemoryStat::cache},
    {"rss", &v1::MemoryStat::rss},
    {"rss_huge", &v1::MemoryStat::rss_huge},
    {"mapped_file", &v1::MemoryStat::mapped_file},
    {"dirty", &v1::MemoryStat::dirty},
    {"writeback", &v1::MemoryStat::writeback},
    {"pgpgin", &v1::MemoryStat::pg_pg_in},
    {"pgpgout", &v1::MemoryStat::pg_pg_out},
    {"pgfault", &v1::MemoryStat::pg_fault},
    {"pgmajfault", &v1::MemoryStat::pg_maj_fault},
    {"inactive_anon", &v1::MemoryStat::inactive_anon},
    {"active_anon", &v1::MemoryStat::active_anon},
    {"inactive_file", &v1::MemoryStat::inactive_file},
    {"active_file", &v1::MemoryStat::active_file},
    {"unevictable", &v1::MemoryStat::unevictable},
    {"hierarchical_memory_limit", &v1::MemoryStat::hierarchical_memory_limit},
    {"hierarchical_memsw_limit", &v1::MemoryStat::hierarchical_swap_limit},
    {"total_cache", &v1::MemoryStat::total_cache},
    {"total_rss", &v1::MemoryStat::total_rss},
    {"total_rss_huge", &v1::MemoryStat::total_rss_huge},
    {"total_mapped_file", &v1::MemoryStat::total_mapped_file},
    {"total_dirty", &v1::MemoryStat::total_dirty},
    {"total_writeback", &v1::MemoryStat::total_writeback},
    {"total_pgpgin", &v1::MemoryStat::total_pg_pg_in},
    {"total_pgpgout", &v1::MemoryStat::total_pg_pg_out},
    {"total_pgfault", &v1::MemoryStat::total_pg_fault},
    {"total_pgmajfault", &v1::MemoryStat::total_pg_maj_fault},
    {"total_inactive_anon", &v1::MemoryStat::total_inactive_anon},
    {"total_active_anon", &v1::MemoryStat::total_active_anon},
    {"total_inactive_file", &v1::MemoryStat::total_inactive_file},
    {"total_active_file", &v1::MemoryStat::total_active_file},
    {"total_unevictable", &v1::MemoryStat::total_unevictable}};

constexpr Field<v2::MemoryStat> kMemoryV2[] = {
    {"usage", &v2::MemoryStat::usage},
    {"usage_limit", &v2::MemoryStat::usage_limit},
    {"swap_usage", &v2::MemoryStat::swap_usage},
    {"swap_limit", &v2::MemoryStat::swap_limit},
    {"anon", &v2::MemoryStat::anon},
    {"file", &v2::MemoryStat::file},
    {"kernel_stack", &v2::MemoryStat::kernel_stack},
    {"slab", &v2::MemoryStat::slab},
    {"sock", &v2::MemoryStat::sock},
    {"shmem", &v2::MemoryStat::shmem},
    {"file_mapped", &v2::MemoryStat::file_mapped},
    {"file_dirty", &v2::MemoryStat::file_dirty},
    {"file_writeback", &v2::MemoryStat::file_writeback},
    {"anon_thp", &v2::MemoryStat::anon_thp},
    {"inactive_anon", &v2::MemoryStat::inactive_anon},
    {"active_anon", &v2::MemoryStat::active_anon},
    {"inactive_file", &v2::MemoryStat::inactive_file},
    {"active_file", &v2::MemoryStat::active_file},
    {"unevictable", &v2::MemoryStat::unevictable},
    {"slab_reclaimable", &v2::MemoryStat::slab_reclaimable},
    {"slab_unreclaimable", &v2::MemoryStat::slab_unreclaimable},
    {"pgfault", &v2::MemoryStat::pgfault},
    {"pgmajfault", &v2::MemoryStat::pgmajfault},
    {"workingset_refault", &v2::MemoryStat::workingset_refault},
    {"workingset_activate", &v2::MemoryStat::workingset_activate},
    {"workingset_nodereclaim", &v2::MemoryStat::workingset_nodereclaim},
    {"pgrefill", &v2::MemoryStat::pgrefill},
    {"pgscan", &v2::MemoryStat::pgscan},
    {"pgsteal", &v2::MemoryStat::pgsteal},
    {"pgactivate", &v2::MemoryStat::pgactivate},
    {"pgdeactivate", &v2::MemoryStat::pgdeactivate},
    {"pglazyfree", &v2::MemoryStat::pglazyfree},
    {"pglazyfreed", &v2::MemoryStat::pglazyfreed},
    {"thp_fault_alloc", &v2::MemoryStat::thp_fault_alloc},
    {"thp_collapse_alloc", &v2::MemoryStat::thp_collapse_alloc}};

void AddEntryV1(Builder* out, const std::string& kind,
                const v1::MemoryEntry& entry) {
  const std::string prefix = "memory_" + kind;
  out->Add(prefix + "_usage_bytes", "Memory in use", entry.usage());
  out->Add(prefix + "_limit_bytes", "Memory limit", entry.limit());
  out->Add(prefix + "_max_bytes", "Most memory in use so far", entry.max());
  out->Add(prefix + "_failcnt_total", "Times the limit was hit",
           entry.failcnt());
}

void AddBlkioV1(Builder* out, const char* name,
                const google::protobuf::RepeatedPtrField<v1::BlkIOEntry>& all) {
  for (const auto& entry : all) {
    out->Add(std::string("blkio_") + name, "Block device figure", entry.value(),
             {{"op", entry.op()},
              {"device", entry.device()},
              {"major", std::to_string(entry.major())},
              {"minor", std::to_string(entry.minor())}});
  }
}

void AddV1(Builder* out, const v1::Metrics& m) {
  if (m.has_pids()) {
    out->Add("pids_current", "Processes and threads", m.pids().current());
    out->Add("pids_limit", "Most processes and threads", m.pids().limit());
  }
  if (m.has_cpu()) {
    const auto& usage = m.cpu().usage();
    out->Add("cpu_total_nanoseconds", "CPU time", usage.total());
    out->Add("cpu_kernel_nanoseconds", "CPU time in the kernel",
             usage.kernel());
    out->Add("cpu_user_nanoseconds", "CPU time in user mode", usage.user());
    for (int i = 0; i < usage.per_cpu_size(); ++i) {
      out->Add("per_cpu_nanoseconds", "CPU time of one CPU", usage.per_cpu(i),
               {{"cpu", std::to_string(i)}});
    }
    const auto& throttle = m.cpu().throttling();
    out->Add("cpu_throttle_periods_total", "Enforcement periods",
             throttle.periods());
    out->Add("cpu_throttled_periods_total", "Periods with throttling",
             throttle.throttled_periods());
    out->Add("cpu_throttled_time_nanoseconds", "Time throttled",
             throttle.throttled_time());
  }
  if (m.has_memory()) {
    for (const auto& field : kMemoryV1) {
      out->Add(std::string("memory_") + field.name + "_bytes",
               "Memory figure of the control group", (m.memory().*field.get)());
    }
    if (m.memory().has_usage()) AddEntryV1(out, "usage", m.memory().usage());
    if (m.memory().has_swap()) AddEntryV1(out, "swap", m.memory().swap());
    if (m.memory().has_kernel()) AddEntryV1(out, "kernel", m.memory().kernel());
    if (m.memory().has_kernel_tcp()) {
      AddEntryV1(out, "kerneltcp", m.memory().kernel_tcp());
    }
  }
  for (const auto& page : m.hugetlb()) {
    const Labels labels = {{"page", page.pagesize()}};
    out->Add("hugetlb_usage_bytes", "Huge pages in use", page.usage(), labels);
    out->Add("hugetlb_max_bytes", "Most huge pages so far", page.max(), labels);
    out->Add("hugetlb_failcnt_total", "Times the limit was hit", page.failcnt(),
             labels);
  }
  const auto& io = m.blkio();
  AddBlkioV1(out, "io_service_bytes_recursive_bytes",
             io.io_service_bytes_recursive());
  AddBlkioV1(out, "io_serviced_recursive_total", io.io_serviced_recursive());
  AddBlkioV1(out, "io_queued_recursive_total", io.io_queued_recursive());
  AddBlkioV1(out, "io_service_time_recursive_total",
             io.io_service_time_recursive());
  AddBlkioV1(out, "io_merged_recursive_total", io.io_merged_recursive());
  AddBlkioV1(out, "io_time_recursive_total", io.io_time_recursive());
  AddBlkioV1(out, "sectors_recursive_total", io.sectors_recursive());
}

void AddV2(Builder* out, const v2::Metrics& m) {
  if (m.has_pids()) {
    out->Add("pids_current", "Processes and threads", m.pids().current());
    out->Add("pids_limit", "Most processes and threads", m.pids().limit());
  }
  if (m.has_cpu()) {
    out->Add("cpu_usage_usec_microseconds", "CPU time", m.cpu().usage_usec());
    out->Add("cpu_user_usec_microseconds", "CPU time in user mode",
             m.cpu().user_usec());
    out->Add("cpu_system_usec_microseconds", "CPU time in the kernel",
             m.cpu().system_usec());
    out->Add("cpu_nr_periods_total", "Enforcement periods",
             m.cpu().nr_periods());
    out->Add("cpu_nr_throttled_total", "Periods with throttling",
             m.cpu().nr_throttled());
    out->Add("cpu_throttled_usec_microseconds", "Time throttled",
             m.cpu().throttled_usec());
  }
  if (m.has_memory()) {
    for (const auto& field : kMemoryV2) {
      out->Add(std::string("memory_") + field.name + "_bytes",
               "Memory figure of the control group", (m.memory().*field.get)());
    }
  }
  if (m.has_memory_events()) {
    out->Add("memory_oom_total", "Times the group ran out of memory",
             m.memory_events().oom());
  }
  for (const auto& device : m.io().usage()) {
    const Labels labels = {{"major", std::to_string(device.major())},
                           {"minor", std::to_string(device.minor())}};
    out->Add("io_rbytes_bytes", "Bytes read", device.rbytes(), labels);
    out->Add("io_wbytes_bytes", "Bytes written", device.wbytes(), labels);
    out->Add("io_rios_total", "Reads", device.rios(), labels);
    out->Add("io_wios_total", "Writes", device.wios(), labels);
  }
}

}  // namespace

std::vector<prometheus::MetricFamily> Families(
    const std::vector<ContainerFigures>& containers) {
  Builder builder;
  for (const ContainerFigures& figures : containers) {
    builder.Start(figures);
    if (Is(figures.type_url, kV1)) {
      v1::Metrics message;
      if (message.ParseFromString(figures.data)) AddV1(&builder, message);
    } else if (Is(figures.type_url, kV2)) {
      v2::Metrics message;
      if (message.ParseFromString(figures.data)) AddV2(&builder, message);
    }
  }
  return builder.Take();
}

Summary Summarise(const ContainerFigures& figures) {
  Summary summary;
  if (Is(figures.type_url, kV1)) {
    v1::Metrics m;
    if (!m.ParseFromString(figures.data)) return summary;
    summary.cpu_ns = m.cpu().usage().total();
    summary.memory_bytes = m.memory().usage().usage();
    summary.memory_limit_bytes = m.memory().usage().limit();
    summary.pids = m.pids().current();
  } else if (Is(figures.type_url, kV2)) {
    v2::Metrics m;
    if (!m.ParseFromString(figures.data)) return summary;
    summary.cpu_ns = m.cpu().usage_usec() * 1000;
    summary.memory_bytes = m.memory().usage();
    summary.memory_limit_bytes = m.memory().usage_limit();
    summary.pids = m.pids().current();
  }
  if (summary.memory_limit_bytes >= kNoLimitFrom) {
    summary.memory_limit_bytes = 0;
  }
  return summary;
}

}  // namespace bulkhead::metrics
