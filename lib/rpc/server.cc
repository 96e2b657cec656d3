#include "lib/rpc/server.h"

#include <fcntl.h>
#include <grpc/grpc.h>
#include <grpcpp/resource_quota.h>
#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>
#include <grpcpp/server_posix.h>
#include <grpcpp/support/server_interceptor.h>
#include <poll.h>
#include <sys/eventfd.h>

#include <cerrno>
#include <chrono>
#include <map>
#include <mutex>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "lib/log/log.h"
#include "lib/os/acceptor.h"
#include "lib/rpc/status.h"
#include "lib/stats/method_stats.h"
#include "proto/grpc/health/v1/health.grpc.pb.h"

namespace bulkhead::rpc {
namespace {

// More calls than this at once wait for a thread.
constexpr int kThreadsMax = 512;
// Threads that stay, for some seconds, when calls that came at once are done:
// otherwise every call of a burst starts a thread and ends it.
constexpr int kIdleThreadsMax = 16;

// The counters of a method ("/service/Method"), looked up once a call.
stats::MethodStats* StatsOf(const char* path) {
  static auto* mutex = new std::mutex;
  static auto* methods =
      new std::map<std::string, std::unique_ptr<stats::MethodStats>>;
  std::lock_guard<std::mutex> lock(*mutex);
  std::unique_ptr<stats::MethodStats>& found = (*methods)[path];
  if (found == nullptr) {
    const std::string text = path;
    const size_t slash = text.rfind('/');
    const bool whole = slash != 0 && slash != std::string::npos;
    found = std::make_unique<stats::MethodStats>(
        whole ? text.substr(1, slash - 1) : "", text.substr(slash + 1));
  }
  return found.get();
}

class CallStats : public grpc::experimental::Interceptor {
 public:
  explicit CallStats(grpc::experimental::ServerRpcInfo* info)
      : method_(StatsOf(info->method())),
        started_at_(std::chrono::steady_clock::now()) {
    method_->Started();
  }

  void Intercept(grpc::experimental::InterceptorBatchMethods* batch) override {
    if (batch->QueryInterceptionHookPoint(
            grpc::experimental::InterceptionHookPoints::PRE_SEND_STATUS)) {
      const grpc::Status status = batch->GetSendStatus();
      method_->Handled(status.error_code(),
                       std::chrono::duration_cast<std::chrono::microseconds>(
                           std::chrono::steady_clock::now() - started_at_)
                           .count());
      if (!status.ok()) LogFailure(status);
    }
    batch->Proceed();
  }

 private:
  void LogFailure(const grpc::Status& status) {
    const bool ours = status.error_code() == grpc::StatusCode::INTERNAL ||
                      status.error_code() == grpc::StatusCode::UNKNOWN ||
                      status.error_code() == grpc::StatusCode::DATA_LOSS;
    const log::Level level = ours ? log::Level::kError : log::Level::kDebug;
    if (!log::Enabled(level)) return;
    log::Write(level, "call failed",
               {{"service", method_->service()},
                {"method", method_->method()},
                {"code", stats::GrpcCodeName(status.error_code())},
                {"error", status.error_message()}});
  }

  stats::MethodStats* method_;
  std::chrono::steady_clock::time_point started_at_;
};

class CallStatsFactory
    : public grpc::experimental::ServerInterceptorFactoryInterface {
 public:
  grpc::experimental::Interceptor* CreateServerInterceptor(
      grpc::experimental::ServerRpcInfo* info) override {
    return new CallStats(info);
  }
};

// gRPC has one of its own, which uses the callback API: two more threads in
// each process. Where gRPC's own queue serves that API (callback_queue.cc says
// when), those "nexting" threads poll all connections, and sleep for 100 ms
// whenever there was none of *their* calls for a second; requests that come
// meanwhile wait (gRPC 1.51, CallbackAlternativeCQ).
class HealthService final : public grpc::health::v1::Health::Service {
 public:
  grpc::Status Check(grpc::ServerContext*,
                     const grpc::health::v1::HealthCheckRequest* request,
                     grpc::health::v1::HealthCheckResponse* response) override {
    if (!request->service().empty()) {
      return grpc::Status(grpc::StatusCode::NOT_FOUND, "unknown service");
    }
    response->set_status(grpc::health::v1::HealthCheckResponse::SERVING);
    return grpc::Status::OK;
  }
};

class ServerImpl : public Server {
 public:
  ServerImpl(os::UniqueFd listener, os::UniqueFd wake,
             std::unique_ptr<grpc::Service> health,
             std::unique_ptr<grpc::Server> server)
      : listener_(std::move(listener)),
        wake_(std::move(wake)),
        health_(std::move(health)),
        server_(std::move(server)),
        acceptor_([this] { AcceptLoop(); }) {}

  ~ServerImpl() override { Stop(absl::ZeroDuration()); }

  void Stop(absl::Duration grace) override {
    if (!acceptor_.joinable()) return;
    const uint64_t one = 1;
    (void)os::WriteFull(wake_.get(), &one, sizeof(one));  // Only wakes.
    acceptor_.join();
    listener_.Reset();
    server_->Shutdown(std::chrono::system_clock::now() +
                      absl::ToChronoMicroseconds(grace));
    server_->Wait();
  }

 private:
  void AcceptLoop() {
    os::Acceptor acceptor(listener_.get());
    for (;;) {
      pollfd waits[2] = {{listener_.get(), POLLIN, 0},
                         {wake_.get(), POLLIN, 0}};
      if (::poll(waits, 2, -1) < 0 && errno != EINTR) return;
      if (waits[1].revents != 0) return;
      if ((waits[0].revents & POLLIN) == 0) continue;
      absl::StatusOr<os::UniqueFd> client = acceptor.Accept();
      if (absl::IsUnavailable(client.status())) continue;  // It has left.
      if (!client.ok()) {
        log::Error("accept failed", {{"error", client.status().ToString()}});
        if (absl::IsResourceExhausted(client.status())) continue;
        absl::SleepFor(absl::Milliseconds(50));
        continue;
      }
      const int fd = client->Release();
      ::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) | O_NONBLOCK);
      grpc::AddInsecureChannelFromFd(server_.get(), fd);
    }
  }

  os::UniqueFd listener_;
  os::UniqueFd wake_;
  const std::unique_ptr<grpc::Service> health_;
  std::unique_ptr<grpc::Server> server_;
  std::thread acceptor_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Server>> Server::Start(
    os::UniqueFd listener, const std::vector<grpc::Service*>& services) {
  // Never shut the library down: that may wait 10 s for a poller of its own.
  [[maybe_unused]] static const bool kept = (grpc_init(), true);
  ::fcntl(listener.get(), F_SETFL,
          ::fcntl(listener.get(), F_GETFL) | O_NONBLOCK);
  grpc::ServerBuilder builder;
  builder.SetMaxReceiveMessageSize(kMessageBytesMax);
  builder.SetMaxSendMessageSize(kMessageBytesMax);
  builder.SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::NUM_CQS,
                              1);
  builder.SetSyncServerOption(
      grpc::ServerBuilder::SyncServerOption::MIN_POLLERS, 1);
  builder.SetSyncServerOption(
      grpc::ServerBuilder::SyncServerOption::MAX_POLLERS, kIdleThreadsMax);
  // Clients may ping as often as they like: they are on this machine.
  builder.AddChannelArgument(
      GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 0);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0);
  grpc::ResourceQuota quota;
  quota.SetMaxThreads(kThreadsMax);
  builder.SetResourceQuota(quota);
  auto health = std::make_unique<HealthService>();
  builder.RegisterService(health.get());
  for (grpc::Service* service : services) builder.RegisterService(service);
  std::vector<
      std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>>
      interceptors;
  interceptors.push_back(std::make_unique<CallStatsFactory>());
  builder.experimental().SetInterceptorCreators(std::move(interceptors));
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr) {
    return absl::InternalError("the gRPC server did not start");
  }
  os::UniqueFd wake(::eventfd(0, EFD_CLOEXEC));
  if (!wake.valid()) return os::ErrnoStatus(errno, "eventfd");
  return std::unique_ptr<Server>(
      std::make_unique<ServerImpl>(std::move(listener), std::move(wake),
                                   std::move(health), std::move(server)));
}

}  // namespace bulkhead::rpc
