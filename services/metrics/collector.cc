#include "services/metrics/collector.h"

#include <prometheus/text_serializer.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <cerrno>
#include <map>
#include <mutex>
#include <optional>
#include <sstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "lib/os/socket.h"
#include "lib/rpc/channel.h"
#include "lib/rpc/context.h"
#include "lib/service/service.h"
#include "proto/containerd/services/containers/v1/containers.grpc.pb.h"
#include "proto/containerd/services/namespaces/v1/namespaces.grpc.pb.h"
#include "proto/containerd/services/tasks/v1/tasks.grpc.pb.h"
#include "services/metrics/exposition.h"

namespace bulkhead::metrics {
namespace {

namespace containers = ::containerd::services::containers::v1;
namespace namespaces = ::containerd::services::namespaces::v1;
namespace tasks = ::containerd::services::tasks::v1;

constexpr const char* kServices[] = {"content",      "snapshotter", "metadata",
                                     "distribution", "runtime",     "gateway",
                                     "metrics"};
constexpr size_t kStatsBytesMax = 16 << 20;
constexpr timeval kStatsTimeout{1, 0};
constexpr absl::Duration kCallTimeout = absl::Seconds(5);
constexpr int kNamespacesMax = 1000;

// The body of the HTTP response on a stats socket, which may be empty; nullopt
// if there is no whole response.
std::optional<std::string> ReadStats(const std::string& path) {
  const absl::StatusOr<os::UniqueFd> socket = os::ConnectUnix(path);
  if (!socket.ok()) return std::nullopt;
  ::setsockopt(socket->get(), SOL_SOCKET, SO_RCVTIMEO, &kStatsTimeout,
               sizeof(kStatsTimeout));
  ::setsockopt(socket->get(), SOL_SOCKET, SO_SNDTIMEO, &kStatsTimeout,
               sizeof(kStatsTimeout));
  constexpr char kRequest[] = "GET /metrics HTTP/1.0\r\n\r\n";
  (void)::send(socket->get(), kRequest, sizeof(kRequest) - 1,
               MSG_NOSIGNAL);  // Answered whatever is asked.
  std::string response;
  char buffer[64 << 10];
  while (response.size() < kStatsBytesMax) {
    const ssize_t count = ::recv(socket->get(), buffer, sizeof(buffer), 0);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      // A service that does not read the request resets after its answer.
      if (errno != ECONNRESET) return std::nullopt;
      break;
    }
    if (count == 0) break;
    response.append(buffer, static_cast<size_t>(count));
  }
  const size_t body = response.find("\r\n\r\n");
  if (body == std::string::npos) return std::nullopt;
  return response.substr(body + 4);
}

}  // namespace

struct Collector::Impl {
  explicit Impl(const config::Config& c)
      : config(c),
        metadata(rpc::Connect(c.Socket("metadata"))),
        runtime(rpc::Connect(c.Socket("runtime"))),
        namespaces_stub(namespaces::Namespaces::NewStub(metadata)),
        containers_stub(containers::Containers::NewStub(metadata)),
        tasks_stub(tasks::Tasks::NewStub(runtime)) {}

  void GatherContainers(Snapshot* snapshot) {
    auto context = rpc::MakeClientContext({}, kCallTimeout);
    namespaces::ListNamespacesResponse listed;
    grpc::Status status = namespaces_stub->List(
        context.get(), namespaces::ListNamespacesRequest(), &listed);
    if (!status.ok()) {
      snapshot->containers_error =
          absl::StrCat("namespaces: ", status.error_message());
      return;
    }
    int count = 0;
    for (const auto& ns : listed.namespaces()) {
      if (++count > kNamespacesMax) {
        snapshot->containers_error = "too many namespaces";
        return;
      }
      status = GatherNamespace(ns.name(), snapshot);
      if (!status.ok()) {
        snapshot->containers_error =
            absl::StrCat(ns.name(), ": ", status.error_message());
      }
    }
  }

  grpc::Status GatherNamespace(const std::string& ns, Snapshot* snapshot) {
    auto context = rpc::MakeClientContext({.ns = ns}, kCallTimeout);
    tasks::MetricsResponse metrics;
    grpc::Status status =
        tasks_stub->Metrics(context.get(), tasks::MetricsRequest(), &metrics);
    if (!status.ok() || metrics.metrics().empty()) return status;
    // Only for the runtime's name; the figures are good without.
    std::map<std::string, std::string> runtimes;
    auto list_context = rpc::MakeClientContext({.ns = ns}, kCallTimeout);
    containers::ListContainersResponse listed;
    status = containers_stub->List(
        list_context.get(), containers::ListContainersRequest(), &listed);
    for (const auto& container : listed.containers()) {
      runtimes[container.id()] = container.runtime().name();
    }
    for (auto& metric : *metrics.mutable_metrics()) {
      ContainerFigures figures;
      figures.ns = ns;
      figures.id = metric.id();
      figures.runtime = runtimes[metric.id()];
      figures.type_url = metric.data().type_url();
      figures.data = std::move(*metric.mutable_data()->mutable_value());
      snapshot->containers.push_back(std::move(figures));
    }
    return status;
  }

  config::Config config;
  std::shared_ptr<grpc::Channel> metadata;
  std::shared_ptr<grpc::Channel> runtime;
  std::unique_ptr<namespaces::Namespaces::Stub> namespaces_stub;
  std::unique_ptr<containers::Containers::Stub> containers_stub;
  std::unique_ptr<tasks::Tasks::Stub> tasks_stub;
  std::mutex mutex;
  std::shared_ptr<const Snapshot> last;
};

Collector::Collector(const config::Config& config)
    : impl_(std::make_unique<Impl>(config)) {}

Collector::~Collector() = default;

std::shared_ptr<const Snapshot> Collector::Gather() {
  std::lock_guard<std::mutex> lock(impl_->mutex);
  const absl::Time now = absl::Now();
  if (impl_->last != nullptr && now - impl_->last->taken_at < kKeep) {
    return impl_->last;
  }
  auto snapshot = std::make_shared<Snapshot>();
  for (const char* name : kServices) {
    ServiceFigures figures;
    figures.name = name;
    std::optional<std::string> text =
        ReadStats(impl_->config.StatsSocket(name));
    figures.up = text.has_value();
    if (figures.up) figures.text = *std::move(text);
    snapshot->services.push_back(std::move(figures));
  }
  impl_->GatherContainers(snapshot.get());
  snapshot->taken_at = absl::Now();
  impl_->last = snapshot;
  return snapshot;
}

std::string Collector::Exposition(const Snapshot& snapshot) {
  metrics::Exposition merged;
  prometheus::MetricFamily up;
  up.name = "bulkhead_service_up";
  up.help = "Whether the service answers";
  up.type = prometheus::MetricType::Gauge;
  for (const ServiceFigures& service : snapshot.services) {
    merged.Add(service.name, service.text);
    prometheus::ClientMetric metric;
    metric.label = {{"service", service.name}};
    metric.gauge.value = service.up ? 1 : 0;
    up.metric.push_back(std::move(metric));
  }
  prometheus::MetricFamily build;
  build.name = "containerd_build_info_total";
  build.help = "The version in use";
  build.type = prometheus::MetricType::Counter;
  prometheus::ClientMetric one;
  one.label = {{"version", service::kVersion}, {"revision", "bulkhead"}};
  one.counter.value = 1;
  build.metric.push_back(std::move(one));
  std::vector<prometheus::MetricFamily> families =
      Families(snapshot.containers);
  families.push_back(std::move(up));
  families.push_back(std::move(build));
  return absl::StrCat(prometheus::TextSerializer().Serialize(families),
                      merged.Text());
}

}  // namespace bulkhead::metrics
