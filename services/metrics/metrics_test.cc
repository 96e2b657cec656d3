#include <gtest/gtest.h>

#include <set>
#include <string>

#include "absl/strings/match.h"
#include "absl/time/clock.h"
#include "proto/io/containerd/cgroups/v1/metrics.pb.h"
#include "proto/io/containerd/cgroups/v2/metrics.pb.h"
#include "services/metrics/collector.h"
#include "services/metrics/container_metrics.h"
#include "services/metrics/exposition.h"
#include "services/metrics/http_server.h"
#include "services/metrics/status_page.h"

namespace bulkhead::metrics {
namespace {

ContainerFigures V1Container() {
  io::containerd::cgroups::v1::Metrics m;
  m.mutable_pids()->set_current(3);
  m.mutable_cpu()->mutable_usage()->set_total(5'000'000);
  m.mutable_cpu()->mutable_usage()->add_per_cpu(4'000'000);
  m.mutable_cpu()->mutable_throttling()->set_throttled_periods(2);
  m.mutable_memory()->set_rss(4096);
  m.mutable_memory()->set_pg_fault(12);
  m.mutable_memory()->set_total_pg_maj_fault(1);
  m.mutable_memory()->mutable_usage()->set_usage(1 << 20);
  m.mutable_memory()->mutable_usage()->set_limit(uint64_t{1} << 63);
  m.mutable_memory()->mutable_kernel_tcp()->set_failcnt(7);
  auto* page = m.add_hugetlb();
  page->set_pagesize("2MB");
  auto* io = m.mutable_blkio()->add_io_service_bytes_recursive();
  io->set_op("Read");
  io->set_device("/dev/vda");
  io->set_major(254);
  io->set_value(512);
  return {"default", "web", "io.containerd.bulkhead.v1",
          "io.containerd.cgroups.v1.Metrics", m.SerializeAsString()};
}

ContainerFigures V2Container() {
  io::containerd::cgroups::v2::Metrics m;
  m.mutable_pids()->set_current(4);
  m.mutable_cpu()->set_usage_usec(77);
  m.mutable_memory()->set_usage(2 << 20);
  m.mutable_memory()->set_usage_limit(4 << 20);
  m.mutable_memory_events()->set_oom(1);
  auto* io = m.mutable_io()->add_usage();
  io->set_major(8);
  io->set_rbytes(1000);
  return {"k8s.io", "db", "",
          "types.googleapis.com/io.containerd.cgroups.v2.Metrics",
          m.SerializeAsString()};
}

Snapshot Both() {
  Snapshot snapshot;
  snapshot.taken_at = absl::Now();
  snapshot.containers = {V1Container(), V2Container()};
  snapshot.services = {
      {"gateway", true,
       "# TYPE grpc_server_handled_total counter\n"
       "grpc_server_handled_total{grpc_code=\"OK\"} 5\n"
       "grpc_server_handled_total{grpc_code=\"NotFound\"} 2\n"
       "# TYPE plain gauge\nplain 1\n"
       "# TYPE t histogram\nt_bucket{le=\"+Inf\"} 1\nt_sum 0.5\nt_count 1\n"},
      {"content", true,
       "# TYPE grpc_server_handled_total counter\n"
       "grpc_server_handled_total{grpc_code=\"OK\"} 1\n"},
      {"runtime", false, ""}};
  return snapshot;
}

TEST(ContainerMetrics, HaveTheNamesOfDashboards) {
  const std::string text = Collector::Exposition(Both());
  const std::string web =
      "{container_id=\"web\",namespace=\"default\","
      "runtime=\"io.containerd.bulkhead.v1\"";
  const std::string db = "{container_id=\"db\",namespace=\"k8s.io\"";
  for (const std::string& line :
       {"container_cpu_total_nanoseconds" + web + "} 5000000",
        "container_per_cpu_nanoseconds" + web + ",cpu=\"0\"} 4000000",
        "container_cpu_throttled_periods_total" + web + "} 2",
        "container_memory_rss_bytes" + web + "} 4096",
        "container_memory_pgfault_bytes" + web + "} 12",
        "container_memory_total_pgmajfault_bytes" + web + "} 1",
        "container_memory_usage_usage_bytes" + web + "} 1048576",
        "container_memory_kerneltcp_failcnt_total" + web + "} 7",
        "container_hugetlb_usage_bytes" + web + ",page=\"2MB\"} 0",
        "container_blkio_io_service_bytes_recursive_bytes" + web +
            ",op=\"Read\",device=\"/dev/vda\",major=\"254\",minor=\"0\"} 512",
        "container_pids_current" + web + "} 3",
        "container_pids_current" + db + "} 4",
        "container_cpu_usage_usec_microseconds" + db + "} 77",
        "container_memory_usage_bytes" + db + "} 2097152",
        "container_memory_oom_total" + db + "} 1",
        "container_io_rbytes_bytes" + db + ",major=\"8\",minor=\"0\"} 1000"}) {
    EXPECT_TRUE(absl::StrContains(text, "\n" + line + "\n"))
        << line << " is not in\n"
        << text;
  }
}

TEST(ContainerMetrics, LeavesOutWhatDoesNotParse) {
  ContainerFigures bad = V1Container();
  bad.data = "\xff\xff";
  ContainerFigures foreign = V1Container();
  foreign.type_url = "io.example.Metrics";
  EXPECT_TRUE(Families({bad, foreign}).empty());
}

TEST(ContainerMetrics, Summary) {
  EXPECT_EQ(Summarise(V1Container()).memory_limit_bytes, 0);
  EXPECT_EQ(Summarise(V2Container()).cpu_ns, 77000);
  EXPECT_EQ(Summarise(V2Container()).memory_limit_bytes, 4 << 20);
}

TEST(Exposition, MergesServicesIntoOneFamilyEach) {
  const std::string text = Collector::Exposition(Both());
  EXPECT_TRUE(absl::StrContains(
      text,
      "# TYPE grpc_server_handled_total counter\n"
      "grpc_server_handled_total{service=\"gateway\",grpc_code=\"OK\"} 5\n"
      "grpc_server_handled_total{service=\"gateway\",grpc_code=\"NotFound\"} 2"
      "\n"
      "grpc_server_handled_total{service=\"content\",grpc_code=\"OK\"} 1\n"))
      << text;
  EXPECT_TRUE(absl::StrContains(text, "\nplain{service=\"gateway\"} 1\n"));
  EXPECT_TRUE(absl::StrContains(
      text,
      "# TYPE t histogram\nt_bucket{service=\"gateway\",le=\"+Inf\"} 1\n"
      "t_sum{service=\"gateway\"} 0.5\n"))
      << text;
  EXPECT_TRUE(
      absl::StrContains(text, "bulkhead_service_up{service=\"runtime\"} 0\n"));
  // Each family is declared once.
  std::set<std::string> seen;
  size_t at = 0;
  while ((at = text.find("# TYPE ", at)) != std::string::npos) {
    EXPECT_TRUE(seen.insert(text.substr(at, text.find('\n', at) - at)).second);
    ++at;
  }
}

TEST(StatusPage, ShowsServicesAndContainersEscaped) {
  StatusPage page;
  Snapshot first = Both();
  first.containers[0].id = "<script>";
  first.taken_at -= absl::Seconds(2);
  page.Render(std::make_shared<Snapshot>(first));
  Snapshot second = first;
  second.taken_at += absl::Seconds(2);
  second.services[1].text = "grpc_server_handled_total{grpc_code=\"OK\"} 11\n";
  const std::string html = page.Render(std::make_shared<Snapshot>(second));
  EXPECT_TRUE(absl::StrContains(html, "&lt;script&gt;"));
  EXPECT_FALSE(absl::StrContains(html, "<script>"));
  EXPECT_TRUE(absl::StrContains(html, "<td class=\"n\">5.0</td>")) << html;
  EXPECT_TRUE(absl::StrContains(html, "class=\"down\">down"));
  EXPECT_FALSE(absl::StrContains(html, "http://"));
  EXPECT_FALSE(absl::StrContains(html, "https://"));
}

TEST(Http, RefusesBadAddresses) {
  EXPECT_TRUE(ListenTcp("127.0.0.1:0").ok());
  EXPECT_TRUE(absl::IsInvalidArgument(ListenTcp("nonsense").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(ListenTcp("example.org:80").status()));
}

}  // namespace
}  // namespace bulkhead::metrics
