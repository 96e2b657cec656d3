// gRPC's own client and server, with the gateway between them.
#include "services/gateway/proxy.h"

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "lib/os/socket.h"
#include "lib/rpc/channel.h"
#include "lib/testing/grpc_fixture.h"
#include "lib/testing/temp_dir.h"
#include "proto/containerd/services/content/v1/content.grpc.pb.h"
#include "proto/containerd/services/version/v1/version.grpc.pb.h"
#include "services/gateway/local_services.h"

namespace bulkhead::gateway {
namespace {

namespace content = ::containerd::services::content::v1;
namespace version = ::containerd::services::version::v1;
using Clock = std::chrono::steady_clock;

constexpr char kContent[] = "containerd.services.content.v1.Content";
constexpr size_t kChunkBytes = 1 << 20;

// Borrows the shape of Content for calls of every kind.
class EchoService : public content::Content::Service {
 public:
  explicit EchoService(std::string name = "") : name_(std::move(name)) {}

  grpc::Status Info(grpc::ServerContext* context,
                    const content::InfoRequest* request,
                    content::InfoResponse* response) override {
    if (request->digest() == "fail") {
      return {grpc::StatusCode::NOT_FOUND,
              "bl\xc3\xb6"
              "b 100%\nmissing"};
    }
    const auto& metadata = context->client_metadata();
    const auto found = metadata.find("x-in");
    if (found != metadata.end()) {
      const std::string value(found->second.data(), found->second.size());
      context->AddInitialMetadata("x-out", value);
      context->AddTrailingMetadata("x-trailer-bin", std::string("\0\xff", 2));
    }
    response->mutable_info()->set_digest(name_ + request->digest());
    return grpc::Status::OK;
  }

  // Streams `size` bytes; for ever if that is negative.
  grpc::Status Read(
      grpc::ServerContext*, const content::ReadContentRequest* request,
      grpc::ServerWriter<content::ReadContentResponse>* writer) override {
    content::ReadContentResponse response;
    int64_t left = request->size();
    response.set_data(std::string(kChunkBytes, 'x'));
    while (left != 0) {
      if (left > 0 && left < static_cast<int64_t>(kChunkBytes)) {
        response.set_data(std::string(static_cast<size_t>(left), 'x'));
      }
      if (!writer->Write(response)) {
        ++cancelled;
        break;
      }
      written_bytes += response.data().size();
      if (left > 0) left -= static_cast<int64_t>(response.data().size());
    }
    return grpc::Status::OK;
  }

  grpc::Status Write(
      grpc::ServerContext*,
      grpc::ServerReaderWriter<content::WriteContentResponse,
                               content::WriteContentRequest>* stream) override {
    content::WriteContentRequest request;
    int64_t offset = 0;
    while (stream->Read(&request)) {
      offset += static_cast<int64_t>(request.data().size());
      content::WriteContentResponse response;
      response.set_offset(offset);
      response.set_digest(name_);
      if (!stream->Write(response)) break;
      // Ends the call while the client may still be sending.
      if (request.ref() == "stop") {
        return {grpc::StatusCode::ABORTED, "enough"};
      }
    }
    return grpc::Status::OK;
  }

  // Waits for the client to give up.
  grpc::Status Status(grpc::ServerContext* context,
                      const content::StatusRequest*,
                      content::StatusResponse*) override {
    ++waiting;
    while (!context->IsCancelled()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    ++cancelled;
    return grpc::Status::CANCELLED;
  }

  std::atomic<int> waiting{0};
  std::atomic<int> cancelled{0};
  std::atomic<uint64_t> written_bytes{0};

 private:
  std::string name_;
};

template <typename Predicate>
bool Eventually(const Predicate& predicate) {
  for (int i = 0; i < 5000; ++i) {
    if (predicate()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return false;
}

class ProxyTest : public ::testing::Test {
 protected:
  void SetUp() override {
    backend_ = std::make_unique<testing::GrpcServer>(
        std::vector<grpc::Service*>{&echo_});
    StartProxy({{kContent, backend_->socket_path()}});
  }

  void StartProxy(RouteTable routes) {
    auto listener = os::ListenUnix(address_, {});
    ASSERT_TRUE(listener.ok());
    config_.state = dir_.path();
    local_ = std::make_unique<LocalServices>(config_, "v9", "uuid");
    auto proxy =
        Proxy::Start(std::move(*listener), std::move(routes), {}, local_.get());
    ASSERT_TRUE(proxy.ok());
    proxy_ = std::move(*proxy);
    stub_ = NewStub();
  }

  std::unique_ptr<content::Content::Stub> NewStub() const {
    return content::Content::NewStub(rpc::Connect(address_));
  }

  static grpc::Status CallInfo(content::Content::Stub& stub,
                               const std::string& digest,
                               std::string* out = nullptr) {
    grpc::ClientContext context;
    content::InfoRequest request;
    request.set_digest(digest);
    content::InfoResponse response;
    const grpc::Status status = stub.Info(&context, request, &response);
    if (out != nullptr) *out = response.info().digest();
    return status;
  }

  testing::TempDir dir_;
  std::string address_ = dir_.Path("gw.sock");
  config::Config config_;
  EchoService echo_;
  std::unique_ptr<testing::GrpcServer> backend_;
  std::unique_ptr<LocalServices> local_;
  std::unique_ptr<Proxy> proxy_;
  std::unique_ptr<content::Content::Stub> stub_;
};

TEST_F(ProxyTest, UnaryWithMetadataBothWays) {
  grpc::ClientContext context;
  context.AddMetadata("x-in", "hello");
  content::InfoRequest request;
  request.set_digest("d");
  content::InfoResponse response;
  const grpc::Status status = stub_->Info(&context, request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response.info().digest(), "d");
  const auto& initial = context.GetServerInitialMetadata();
  ASSERT_EQ(initial.count("x-out"), 1u);
  const auto& trailing = context.GetServerTrailingMetadata();
  ASSERT_EQ(trailing.count("x-trailer-bin"), 1u);
  EXPECT_EQ(trailing.find("x-trailer-bin")->second,
            grpc::string_ref(std::string("\0\xff", 2)));
}

TEST_F(ProxyTest, ErrorsKeepCodeAndText) {
  const grpc::Status status = CallInfo(*stub_, "fail");
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(status.error_message(),
            "bl\xc3\xb6"
            "b 100%\nmissing");
}

TEST_F(ProxyTest, LargeHeaders) {
  grpc::ClientContext context;
  context.AddMetadata("x-large", std::string(6 << 10, 'h'));
  content::InfoResponse response;
  const grpc::Status status =
      stub_->Info(&context, content::InfoRequest(), &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
}

TEST_F(ProxyTest, LargeUnaryMessage) {
  const std::string large(8 << 20, 'm');
  std::string out;
  const grpc::Status status = CallInfo(*stub_, large, &out);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_TRUE(out == large);
}

TEST_F(ProxyTest, ServerStreamOfManyBytes) {
  grpc::ClientContext context;
  content::ReadContentRequest request;
  request.set_size(200 << 20);
  auto reader = stub_->Read(&context, request);
  content::ReadContentResponse response;
  int64_t total = 0;
  const auto start = Clock::now();
  while (reader->Read(&response)) {
    total += static_cast<int64_t>(response.data().size());
  }
  const std::chrono::duration<double> took = Clock::now() - start;
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(total, 200 << 20);
  std::printf("stream through the gateway: %.0f MiB/s\n", 200 / took.count());
}

TEST_F(ProxyTest, BidirectionalStream) {
  grpc::ClientContext context;
  auto stream = stub_->Write(&context);
  content::WriteContentResponse response;
  for (int i = 1; i <= 500; ++i) {
    content::WriteContentRequest request;
    request.set_data(std::string(static_cast<size_t>(i) * 10, 'a'));
    ASSERT_TRUE(stream->Write(request));
    ASSERT_TRUE(stream->Read(&response));
    ASSERT_EQ(response.offset(), 10 * i * (i + 1) / 2);
  }
  stream->WritesDone();
  EXPECT_FALSE(stream->Read(&response));
  EXPECT_TRUE(stream->Finish().ok());
}

TEST_F(ProxyTest, ServerEndsTheCallEarly) {
  grpc::ClientContext context;
  auto stream = stub_->Write(&context);
  content::WriteContentRequest request;
  request.set_ref("stop");
  ASSERT_TRUE(stream->Write(request));
  content::WriteContentResponse response;
  while (stream->Read(&response)) {
  }
  const grpc::Status status = stream->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::ABORTED);
  EXPECT_EQ(status.error_message(), "enough");
  EXPECT_TRUE(CallInfo(*stub_, "after").ok());
}

TEST_F(ProxyTest, CancelAndDeadlineReachTheBackend) {
  grpc::ClientContext deadline;
  deadline.set_deadline(std::chrono::system_clock::now() +
                        std::chrono::milliseconds(50));
  content::StatusResponse response;
  EXPECT_EQ(stub_->Status(&deadline, content::StatusRequest(), &response)
                .error_code(),
            grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_TRUE(Eventually([&] { return echo_.cancelled == 1; }));

  grpc::ClientContext cancelled;
  auto call = std::async(std::launch::async, [&] {
    return stub_->Status(&cancelled, content::StatusRequest(), &response)
        .error_code();
  });
  ASSERT_TRUE(Eventually([&] { return echo_.waiting == 2; }));
  cancelled.TryCancel();
  EXPECT_EQ(call.get(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(Eventually([&] { return echo_.cancelled == 2; }));
}

TEST_F(ProxyTest, ASlowReaderStallsNobodyElse) {
  content::ReadContentRequest endless;
  endless.set_size(-1);
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<content::ReadContentResponse>>>
      readers;
  for (int i = 0; i < 8; ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    readers.push_back(stub_->Read(contexts.back().get(), endless));
    content::ReadContentResponse first;
    ASSERT_TRUE(readers.back()->Read(&first));
  }
  // Nobody reads any more; the backend must come to rest, on bounded memory.
  uint64_t before = 0;
  ASSERT_TRUE(Eventually([&] {
    const uint64_t now = echo_.written_bytes;
    const bool rests = now == before;
    before = now;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    return rests;
  }));
  EXPECT_LT(echo_.written_bytes, 128u << 20);

  for (int i = 0; i < 50; ++i) ASSERT_TRUE(CallInfo(*stub_, "x").ok());
  grpc::ClientContext context;
  content::ReadContentRequest request;
  request.set_size(20 << 20);
  auto reader = stub_->Read(&context, request);
  content::ReadContentResponse response;
  int64_t total = 0;
  while (reader->Read(&response)) {
    total += static_cast<int64_t>(response.data().size());
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(total, 20 << 20);
  for (auto& one : contexts) one->TryCancel();
  for (auto& one : readers) one->Finish();
  EXPECT_TRUE(Eventually([&] { return echo_.cancelled == 8; }));
}

TEST_F(ProxyTest, UnknownServiceAndDeadBackend) {
  proxy_->SetRoutes({{kContent, dir_.Path("nobody.sock")}});
  ASSERT_TRUE(Eventually([&] {
    return CallInfo(*NewStub(), "x").error_code() ==
           grpc::StatusCode::UNAVAILABLE;
  }));
  const grpc::Status down = CallInfo(*stub_, "x");
  EXPECT_EQ(down.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(
      down.error_message(),
      absl::StrCat("service ", kContent, " is down: cannot connect to \"",
                   dir_.Path("nobody.sock"), "\": No such file or directory"));
  proxy_->SetRoutes({});
  ASSERT_TRUE(Eventually([&] {
    return CallInfo(*stub_, "x").error_code() ==
           grpc::StatusCode::UNIMPLEMENTED;
  }));
  EXPECT_EQ(CallInfo(*stub_, "x").error_message(),
            absl::StrCat("unknown service ", kContent));
}

TEST_F(ProxyTest, ABackendThatDiesInACallIsUnavailable) {
  // Takes what comes, then dies without a word.
  const std::string path = dir_.Path("dying.sock");
  auto listener = os::ListenUnix(path, {});
  ASSERT_TRUE(listener.ok());
  std::thread dying([&] {
    auto connection = os::Accept(listener->get());
    char buffer[4096];
    (void)!::read(connection->get(), buffer, sizeof(buffer));
    listener->Reset();
    ::unlink(path.c_str());
  });
  proxy_->SetRoutes({{kContent, path}});
  const grpc::Status status = CallInfo(*stub_, "x");
  dying.join();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_TRUE(absl::StrContains(status.error_message(),
                                absl::StrCat("the connection to \"", path)))
      << status.error_message();
  // The client's own connection lived on, and a new backend is found.
  proxy_->SetRoutes({{kContent, backend_->socket_path()}});
  EXPECT_TRUE(Eventually([&] { return CallInfo(*stub_, "x").ok(); }));
}

TEST_F(ProxyTest, BackendRestartIsNoticed) {
  ASSERT_TRUE(CallInfo(*stub_, "x").ok());
  const std::string old = backend_->socket_path();
  backend_->Stop();
  EXPECT_EQ(CallInfo(*stub_, "x").error_code(), grpc::StatusCode::UNAVAILABLE);
  backend_ = std::make_unique<testing::GrpcServer>(
      std::vector<grpc::Service*>{&echo_});
  proxy_->SetRoutes({{kContent, backend_->socket_path()}});
  EXPECT_TRUE(Eventually([&] { return CallInfo(*stub_, "x").ok(); }));
}

TEST_F(ProxyTest, ReloadKeepsRunningCalls) {
  grpc::ClientContext context;
  auto stream = stub_->Write(&context);
  content::WriteContentRequest request;
  request.set_data("1234");
  content::WriteContentResponse response;
  ASSERT_TRUE(stream->Write(request));
  ASSERT_TRUE(stream->Read(&response));

  EchoService other("other:");
  testing::GrpcServer second({&other});
  proxy_->SetRoutes({{kContent, second.socket_path()}});
  std::string out;
  ASSERT_TRUE(Eventually(
      [&] { return CallInfo(*stub_, "x", &out).ok() && out == "other:x"; }));
  ASSERT_TRUE(stream->Write(request));
  ASSERT_TRUE(stream->Read(&response));
  EXPECT_EQ(response.offset(), 8);
  EXPECT_EQ(response.digest(), "");
  stream->WritesDone();
  EXPECT_TRUE(stream->Finish().ok());
  proxy_->Stop(absl::Seconds(1));
}

TEST_F(ProxyTest, StopLetsCallsFinish) {
  grpc::ClientContext context;
  auto stream = stub_->Write(&context);
  content::WriteContentRequest request;
  request.set_data("1234");
  content::WriteContentResponse response;
  ASSERT_TRUE(stream->Write(request));
  ASSERT_TRUE(stream->Read(&response));
  auto stopped =
      std::async(std::launch::async, [&] { proxy_->Stop(absl::Seconds(10)); });
  ASSERT_TRUE(stream->Write(request));
  ASSERT_TRUE(stream->Read(&response));
  stream->WritesDone();
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_EQ(stopped.wait_for(std::chrono::seconds(5)),
            std::future_status::ready);
}

TEST_F(ProxyTest, ManyClientsAtOnce) {
  std::vector<std::thread> threads;
  std::atomic<int> ok{0};
  for (int t = 0; t < 16; ++t) {
    threads.emplace_back([&, t] {
      auto stub = content::Content::NewStub(grpc::CreateCustomChannel(
          "unix://" + address_, grpc::InsecureChannelCredentials(), [&] {
            grpc::ChannelArguments arguments;
            arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
            return arguments;
          }()));
      for (int i = 0; i < 50; ++i) {
        const std::string text = absl::StrCat(t, "-", i);
        std::string out;
        if (CallInfo(*stub, text, &out).ok() && out == text) ++ok;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(ok, 16 * 50);
}

TEST_F(ProxyTest, AnswersVersionItself) {
  auto stub = version::Version::NewStub(rpc::Connect(address_));
  grpc::ClientContext context;
  version::VersionResponse response;
  ASSERT_TRUE(
      stub->Version(&context, google::protobuf::Empty(), &response).ok());
  EXPECT_EQ(response.version(), "v9");
}

// Not asserted: other tests share this machine.
TEST_F(ProxyTest, PrintsLatencies) {
  const auto p50 = [](content::Content::Stub& stub) {
    std::vector<double> micros;
    for (int i = 0; i < 2000; ++i) {
      const auto start = Clock::now();
      EXPECT_TRUE(CallInfo(stub, "x").ok());
      micros.push_back(
          std::chrono::duration<double, std::micro>(Clock::now() - start)
              .count());
    }
    std::nth_element(micros.begin(), micros.begin() + 1000, micros.end());
    return micros[1000];
  };
  auto direct = content::Content::NewStub(backend_->Connect());
  p50(*direct);
  const double without = p50(*direct);
  const double with = p50(*stub_);
  std::printf("p50: direct %.0f us, through the gateway %.0f us, ratio %.2f\n",
              without, with, with / without);
}

}  // namespace
}  // namespace bulkhead::gateway
