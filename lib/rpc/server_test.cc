#include "lib/rpc/server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>

#include "absl/time/clock.h"
#include "lib/os/socket.h"
#include "lib/rpc/channel.h"
#include "lib/rpc/context.h"
#include "lib/rpc/removal.h"
#include "lib/rpc/status.h"
#include "lib/stats/stats.h"
#include "proto/containerd/services/version/v1/version.grpc.pb.h"
#include "proto/grpc/health/v1/health.grpc.pb.h"

namespace bulkhead::rpc {
namespace {

namespace version = ::containerd::services::version::v1;

class VersionService : public version::Version::Service {
 public:
  grpc::Status Version(grpc::ServerContext* context,
                       const google::protobuf::Empty*,
                       version::VersionResponse* response) override {
    const absl::StatusOr<std::string> ns = RequireNamespace(*context);
    if (!ns.ok()) return ToGrpc(ns.status());
    response->set_version(*ns);
    return grpc::Status::OK;
  }
};

class ServerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/bh-XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    dir_ = name;
    Start();
    stub_ = version::Version::NewStub(Connect(path()));
  }
  void TearDown() override {
    server_.reset();
    ASSERT_TRUE(os::RemoveAll(dir_).ok());
  }
  std::string path() const { return dir_ + "/s"; }
  void Start() {
    absl::StatusOr<os::UniqueFd> listener = os::ListenUnix(path(), {});
    ASSERT_TRUE(listener.ok()) << listener.status();
    absl::StatusOr<std::unique_ptr<Server>> server =
        Server::Start(std::move(*listener), {&service_});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = std::move(*server);
  }
  absl::StatusOr<std::string> Call(const std::string& ns) {
    const auto context = MakeClientContext({ns, ""}, absl::Seconds(10));
    version::VersionResponse response;
    const absl::Status status =
        FromGrpc(stub_->Version(context.get(), {}, &response));
    if (!status.ok()) return status;
    return response.version();
  }

  std::string dir_;
  VersionService service_;
  std::unique_ptr<Server> server_;
  std::unique_ptr<version::Version::Stub> stub_;
};

TEST_F(ServerTest, CarriesNamespacesAndErrors) {
  EXPECT_EQ(Call("k8s.io").value_or(""), "k8s.io");
  const absl::Status missing = Call("").status();
  EXPECT_TRUE(absl::IsFailedPrecondition(missing)) << missing;
  EXPECT_EQ(MessageOf(missing), "namespace is required");
  EXPECT_EQ(ToGrpc(missing).error_message(),
            "namespace is required: failed precondition");
  const absl::Status bad = Call("-x").status();
  EXPECT_TRUE(absl::IsInvalidArgument(bad)) << bad;
  EXPECT_THAT(MessageOf(bad),
              ::testing::StartsWith("namespace validation: identifier \"-x\""));
}

TEST_F(ServerTest, ClientsFindARestartedServer) {
  EXPECT_TRUE(Call("a").ok());
  server_.reset();
  EXPECT_TRUE(absl::IsUnavailable(Call("a").status()));
  Start();
  EXPECT_TRUE(RetryUnavailable(absl::Seconds(10), [&] {
                return Call("a").status();
              }).ok());
}

class CallbackVersionService
    : public version::Version::WithCallbackMethod_Version<
          version::Version::Service> {
 public:
  grpc::ServerUnaryReactor* Version(
      grpc::CallbackServerContext* context, const google::protobuf::Empty*,
      version::VersionResponse* response) override {
    response->set_version("by callback");
    grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }
};

// gRPC's own threads for that API would poll, and sleep for 100 ms now and then
// while requests wait.
TEST_F(ServerTest, ThreadsForCallbacksAreOurs) {
  CallbackVersionService service;
  absl::StatusOr<os::UniqueFd> listener = os::ListenUnix(dir_ + "/c", {});
  ASSERT_TRUE(listener.ok()) << listener.status();
  absl::StatusOr<std::unique_ptr<Server>> server =
      Server::Start(std::move(*listener), {&service});
  ASSERT_TRUE(server.ok()) << server.status();
  const auto stub = version::Version::NewStub(Connect(dir_ + "/c"));
  version::VersionResponse response;
  const absl::Status status = FromGrpc(stub->Version(
      MakeClientContext({}, absl::Seconds(10)).get(), {}, &response));
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(response.version(), "by callback");
  std::vector<std::string> names;
  for (const auto& task :
       std::filesystem::directory_iterator("/proc/self/task")) {
    const absl::StatusOr<std::string> name =
        os::ReadFile(task.path().string() + "/comm", 64);
    if (name.ok()) names.push_back(*name);  // Else it has ended.
  }
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  // With a sanitizer gRPC is a shared library, and keeps its own.
  EXPECT_THAT(names, ::testing::Contains("grpc_callbacks\n"));
  EXPECT_THAT(
      names,
      ::testing::Not(::testing::Contains(::testing::StartsWith("nexting"))));
#endif
}

TEST_F(ServerTest, HealthIsOfTheWhole) {
  namespace health = grpc::health::v1;
  const auto stub = health::Health::NewStub(Connect(path()));
  health::HealthCheckRequest request;
  health::HealthCheckResponse response;
  const auto check = [&] {
    return FromGrpc(stub->Check(MakeClientContext({}, absl::Seconds(10)).get(),
                                request, &response));
  };
  EXPECT_TRUE(check().ok());
  EXPECT_EQ(response.status(), health::HealthCheckResponse::SERVING);
  request.set_service("x");
  EXPECT_TRUE(absl::IsNotFound(check()));
}

TEST_F(ServerTest, ManyAreRemovedInOneCall) {
  RemovalClient without(Connect(path()));
  EXPECT_FALSE(without.Remove("", {"a"}, absl::Seconds(10)).has_value());

  RemovalService service(
      [](const std::string& snapshotter,
         const std::vector<std::string>& names) -> absl::StatusOr<Removed> {
        if (snapshotter == "none") return absl::InvalidArgumentError("none");
        Removed removed;
        for (const std::string& name : names) {
          removed.push_back(name == "missing" ? absl::NotFoundError(name)
                                              : absl::OkStatus());
        }
        return removed;
      });
  absl::StatusOr<os::UniqueFd> listener = os::ListenUnix(dir_ + "/r", {});
  ASSERT_TRUE(listener.ok()) << listener.status();
  absl::StatusOr<std::unique_ptr<Server>> server =
      Server::Start(std::move(*listener), {&service});
  ASSERT_TRUE(server.ok()) << server.status();
  RemovalClient client(Connect(dir_ + "/r"));

  const std::optional<Removed> removed =
      client.Remove("overlayfs", {"a", "missing", "b"}, absl::Seconds(10));
  ASSERT_TRUE(removed.has_value());
  ASSERT_EQ(removed->size(), 3u);
  EXPECT_TRUE((*removed)[0].ok()) << (*removed)[0];
  EXPECT_TRUE(absl::IsNotFound((*removed)[1])) << (*removed)[1];
  EXPECT_TRUE((*removed)[2].ok()) << (*removed)[2];

  const std::optional<Removed> refused =
      client.Remove("none", {"a", "b"}, absl::Seconds(10));
  ASSERT_TRUE(refused.has_value());
  ASSERT_EQ(refused->size(), 2u);
  EXPECT_TRUE(absl::IsInvalidArgument((*refused)[1])) << (*refused)[1];

  const std::optional<Removed> many =
      client.Remove("", std::vector<std::string>(kRemovalNamesMax + 1, "a"),
                    absl::Seconds(10));
  ASSERT_TRUE(many.has_value());
  EXPECT_TRUE(absl::IsInvalidArgument(many->front())) << many->front();
}

TEST_F(ServerTest, CallsAreCounted) {
  EXPECT_TRUE(Call("a").ok());
  const absl::Time start = absl::Now();
  constexpr int kCalls = 2000;
  for (int i = 0; i < kCalls; ++i) ASSERT_TRUE(Call("a").ok());
  RecordProperty("microseconds_per_call",
                 static_cast<int>(absl::ToInt64Microseconds(
                     (absl::Now() - start) / kCalls)));
  std::printf("%ld us a call\n",
              absl::ToInt64Microseconds((absl::Now() - start) / kCalls));
  EXPECT_THAT(
      stats::Text(),
      ::testing::HasSubstr(
          "grpc_server_handled_total{grpc_service=\"containerd.services."
          "version.v1.Version\",grpc_method=\"Version\",grpc_code=\"OK\"}"));
}

TEST(Identifier, FollowsContainerd) {
  for (const char* good : {"a", "default", "k8s.io", "a-b_c.d", "0"}) {
    EXPECT_TRUE(ValidateIdentifier(good).ok()) << good;
  }
  for (const char* bad : {"", "-a", "a-", "a--b", "a/b", "a b", "\xc3\xa4"}) {
    EXPECT_FALSE(ValidateIdentifier(bad).ok()) << bad;
  }
  EXPECT_TRUE(ValidateIdentifier(std::string(76, 'a')).ok());
  EXPECT_THAT(MessageOf(ValidateIdentifier(std::string(77, 'a'))),
              ::testing::HasSubstr("greater than maximum length (76"));
}

}  // namespace
}  // namespace bulkhead::rpc
