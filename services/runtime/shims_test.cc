// Shims of every kind that keep to the protocol, and some that hang: tasks
// over gRPC and ttrpc, sandboxes, checkpoints, what runtimes say of themselves.
#include <gtest/gtest.h>
#include <signal.h>

#include "proto/containerd/runc/v1/options.pb.h"
#include "proto/containerd/services/introspection/v1/introspection.grpc.pb.h"
#include "proto/containerd/types/introspection.pb.h"
#include "services/runtime/cgroup_end.h"
#include "services/runtime/checkpoint_store.h"
#include "services/runtime/shim_binary.h"
#include "services/runtime/testing/suite.h"

namespace bulkhead::runtime {
namespace {

using Topics = std::vector<std::string>;

TEST(Bootstrap, KnowsBothProtocols) {
  const auto parse = [](const std::string& text) {
    return ParseBootstrap(text);
  };
  EXPECT_EQ(parse("unix:///s")->version, 2);
  EXPECT_EQ(parse(R"({"version":3,"address":"unix:///s","protocol":"grpc"})")
                ->protocol,
            "grpc");
  EXPECT_EQ(parse(R"({"version":2,"address":"unix:///s","protocol":"grpc"})")
                .status()
                .code(),
            absl::StatusCode::kUnimplemented);
  EXPECT_EQ(parse(R"({"version":3,"address":"unix:///s","protocol":"http"})")
                .status()
                .code(),
            absl::StatusCode::kUnimplemented);
  EXPECT_EQ(parse(R"({"version":4,"address":"unix:///s"})").status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(CgroupPath, OnlyPlainPathsOfTheirOwn) {
  const auto path = [](const std::string& text) {
    return CgroupPathOf(Json{{"linux", {{"cgroupsPath", text}}}}.dump());
  };
  EXPECT_EQ(path("/ns/id"), "/ns/id");
  EXPECT_EQ(path("/"), "");
  EXPECT_EQ(path("//"), "");
  EXPECT_EQ(path("/a/../b"), "");
  EXPECT_EQ(path("relative"), "");
  EXPECT_EQ(path("system.slice:cri:id"), "");
  EXPECT_EQ(CgroupPathOf("{}"), "");
  EXPECT_EQ(CgroupPathOf("not JSON"), "");
}

TEST(Cgroup, EndsItsProcessesInEveryHierarchy) {
  TempDir dir;
  const pid_t victim = ::fork();
  if (victim == 0) {
    for (;;) ::pause();
  }
  for (const char* folder : {"memory", "memory/a", "memory/a/b", "memory/a/b/c",
                             "pids", "pids/a", "pids/a/b", "a"}) {
    ASSERT_EQ(::mkdir(dir.Path(folder).c_str(), 0755), 0);
  }
  const std::string line = absl::StrCat(victim, "\n");
  testing::WriteFileOrDie(dir.Path("memory/a/b/cgroup.procs"), "");
  testing::WriteFileOrDie(dir.Path("memory/a/b/c/cgroup.procs"), line);
  testing::WriteFileOrDie(dir.Path("pids/a/b/cgroup.procs"), line);
  EXPECT_EQ(CgroupFolders("/a/b", dir.path()).size(), 2u);
  EXPECT_TRUE(SignalCgroup("/a/b", SIGTERM, dir.path()));
  int status = 0;
  EXPECT_EQ(::waitpid(victim, &status, 0), victim);
  EXPECT_EQ(WTERMSIG(status), SIGTERM);
  EXPECT_FALSE(SignalCgroup("", SIGTERM, dir.path()));
}

TEST(CheckpointArchive, GoesThereAndBack) {
  TempDir dir;
  ASSERT_EQ(::mkdir(dir.Path("in").c_str(), 0700), 0);
  ASSERT_EQ(::mkdir(dir.Path("in/sub").c_str(), 0700), 0);
  ASSERT_EQ(::mkdir(dir.Path("out").c_str(), 0700), 0);
  testing::WriteFileOrDie(dir.Path("in/empty"), "");
  testing::WriteFileOrDie(dir.Path("in/block"), std::string(512, 'b'));
  testing::WriteFileOrDie(dir.Path("in/sub/more"), std::string(70'000, 'm'));
  auto file = os::Open(dir.Path("tar"), O_RDWR | O_CREAT, 0600);
  ASSERT_TRUE(file.ok());
  const absl::StatusOr<int64_t> size = PackFolder(dir.Path("in"), file->get());
  ASSERT_TRUE(size.ok()) << size.status();
  // tar reads it, too.
  EXPECT_EQ(
      ::system(absl::StrCat("tar tf ", dir.Path("tar"), " >", dir.Path("list"))
                   .c_str()),
      0);
  EXPECT_EQ(testing::ReadFileOrDie(dir.Path("list")),
            "block\nempty\nsub/\nsub/more\n");
  ASSERT_TRUE(UnpackFolder(file->get(), *size, dir.Path("out")).ok());
  EXPECT_EQ(testing::ReadFileOrDie(dir.Path("out/sub/more")),
            std::string(70'000, 'm'));
  EXPECT_EQ(testing::ReadFileOrDie(dir.Path("out/block")),
            std::string(512, 'b'));
  // Cut off, or no archive at all.
  for (const int64_t cut : {int64_t{512}, int64_t{1000}, *size - 1024}) {
    TempDir other;
    EXPECT_TRUE(
        absl::IsInvalidArgument(UnpackFolder(file->get(), cut, other.path())))
        << cut;
  }
  ASSERT_EQ(::symlink("/etc", dir.Path("in/link").c_str()), 0);
  EXPECT_TRUE(absl::IsInvalidArgument(
      PackFolder(dir.Path("in"), file->get()).status()));
}

TEST(CheckpointArchive, StaysInItsFolder) {
  TempDir dir;
  ASSERT_EQ(::mkdir(dir.Path("out").c_str(), 0700), 0);
  testing::WriteFileOrDie(dir.Path("evil"), "x");
  ASSERT_EQ(::system(absl::StrCat("cd ", dir.Path("out"), " && tar -P -cf ",
                                  dir.Path("tar"), " ../evil")
                         .c_str()),
            0);
  auto file = os::Open(dir.Path("tar"), O_RDONLY);
  ASSERT_TRUE(file.ok());
  EXPECT_TRUE(absl::IsInvalidArgument(
      UnpackFolder(file->get(), 10240, dir.Path("out"))));
}

class FakeShims : public ::testing::TestWithParam<const char*> {
 protected:
  Suite suite_{GetParam()};
};

TEST_P(FakeShims, RunTasks) {
  suite_.Run("one", "echo hello; exit 7");
  EXPECT_EQ(suite_.Wait("one"), 7);
  tasks_v1::GetResponse got;
  ASSERT_TRUE(suite_.Get("one", &got).ok());
  EXPECT_EQ(got.process().status(), containerd::v1::types::STOPPED);
  EXPECT_EQ(suite_.Delete("one"), 7);
  EXPECT_EQ(testing::ReadFileOrDie(suite_.Output("one")), "hello\n");
  EXPECT_TRUE(Eventually([&] { return suite_.Shims("one").empty(); }));
  EXPECT_NE(::access(suite_.BundlePath("one").c_str(), F_OK), 0);
}

TEST_P(FakeShims, AreFoundAgain) {
  suite_.Run("stays", "exec sleep 1000");
  suite_.EndService(SIGKILL);
  suite_.StartService();
  tasks_v1::GetResponse got;
  ASSERT_TRUE(suite_.Get("stays", &got).ok());
  EXPECT_EQ(got.process().status(), containerd::v1::types::RUNNING);
  auto exit = suite_.WaitLater("stays");
  ASSERT_TRUE(suite_.Kill("stays", SIGKILL).ok());
  EXPECT_EQ(exit.get(), 137);
  EXPECT_EQ(suite_.Delete("stays"), 137);
}

TEST_P(FakeShims, DeathIsNoticed) {
  suite_.Run("orphan", "exec sleep 1000");
  const pid_t init = static_cast<pid_t>(suite_.init_pid);
  auto exit = suite_.WaitLater("orphan");
  const std::vector<pid_t> shims = suite_.Shims("orphan");
  ASSERT_EQ(shims.size(), 1u);
  ::kill(shims[0], SIGKILL);
  EXPECT_EQ(exit.get(), 137);
  EXPECT_TRUE(Eventually([&] { return ::kill(init, 0) != 0; }));
  EXPECT_TRUE(Eventually([&] {
    return suite_.metadata.Topics("orphan") ==
           Topics{"/tasks/exit", "/tasks/delete"};
  }));
}

// Leaves calls of `method` to the shim of `id` unanswered.
void Hang(Suite& suite, const std::string& id, const std::string& method) {
  testing::WriteFileOrDie(absl::StrCat(suite.BundlePath(id), "/hang-", method),
                          "");
}

TEST_P(FakeShims, OneThatHangsIsEndedByTheKernel) {
  suite_.Run("hung", "exec sleep 1000");
  for (const char* method : {"Connect", "Kill", "Delete", "State"}) {
    Hang(suite_, "hung", method);
  }
  const absl::Time start = absl::Now();
  auto exit = suite_.WaitLater("hung");
  EXPECT_TRUE(suite_.Kill("hung", SIGKILL).ok());
  EXPECT_EQ(exit.get(), 137);
  tasks_v1::GetResponse got;
  EXPECT_TRUE(Eventually([&] {
    return suite_.Get("hung", &got).error_code() == grpc::StatusCode::NOT_FOUND;
  }));
  EXPECT_LT(absl::Now() - start, absl::Seconds(15));
  EXPECT_EQ(suite_.Delete("hung"), -grpc::StatusCode::NOT_FOUND);
  EXPECT_TRUE(Eventually([&] { return suite_.Shims("hung").empty(); }));
  EXPECT_TRUE(Eventually([&] {
    return suite_.metadata.Topics("hung") ==
           Topics{"/tasks/exit", "/tasks/delete"};
  }));
}

TEST_P(FakeShims, DeleteOfAHungOneEnds) {
  suite_.Run("hung", "exit 3");
  EXPECT_EQ(suite_.Wait("hung"), 3);
  Hang(suite_, "hung", "Connect");
  Hang(suite_, "hung", "Delete");
  const absl::Time start = absl::Now();
  EXPECT_EQ(suite_.Delete("hung"), 137);  // Nobody is left who would know.
  EXPECT_LT(absl::Now() - start, absl::Seconds(15));
  EXPECT_TRUE(Eventually([&] { return suite_.Shims("hung").empty(); }));
}

TEST_P(FakeShims, SlowIsNotHung) {
  suite_.Run("slow", "exec sleep 1000");
  Hang(suite_, "slow", "State");
  tasks_v1::GetResponse got;
  // It answers the probe but not this; what the kernel knows has to do.
  ASSERT_TRUE(suite_.Get("slow", &got).ok());
  EXPECT_EQ(got.process().status(), containerd::v1::types::RUNNING);
  EXPECT_EQ(suite_.Shims("slow").size(), 1u);
  ASSERT_TRUE(suite_.Kill("slow", SIGKILL).ok());
  EXPECT_EQ(suite_.Wait("slow"), 137);
}

TEST_P(FakeShims, HungOnesDelayNoListAfterARestart) {
  suite_.Run("fine", "exec sleep 1000");
  for (int i = 0; i < 3; ++i) {
    suite_.Run(absl::StrCat("hung", i), "exec sleep 1000");
    for (const char* method : {"Connect", "State"}) {
      Hang(suite_, absl::StrCat("hung", i), method);
    }
  }
  suite_.EndService(SIGKILL);
  suite_.StartService();
  absl::Time start = absl::Now();
  tasks_v1::GetResponse got;
  ASSERT_TRUE(suite_.Get("fine", &got).ok());
  EXPECT_LT(absl::Now() - start, absl::Seconds(2));
  start = absl::Now();
  tasks_v1::ListTasksResponse list;
  ASSERT_TRUE(suite_.tasks->List(suite_.Context().get(), {}, &list).ok());
  EXPECT_LT(absl::Now() - start, absl::Seconds(5));
  bool found = false;
  for (const auto& task : list.tasks()) found |= task.id() == "fine";
  EXPECT_TRUE(found);
  for (int i = 0; i < 3; ++i) {
    for (const char* method : {"Connect", "State"}) {
      ::unlink(absl::StrCat(suite_.BundlePath(absl::StrCat("hung", i)),
                            "/hang-", method)
                   .c_str());
    }
  }
}

TEST_P(FakeShims, CheckpointIntoAFolder) {
  suite_.Run("saved", "exec sleep 1000");
  TempDir dir;
  containerd::runc::v1::CheckpointOptions options;
  options.set_image_path(dir.path());
  tasks_v1::CheckpointTaskRequest request;
  request.set_container_id("saved");
  request.mutable_options()->set_type_url(options.GetTypeName());
  request.mutable_options()->set_value(options.SerializeAsString());
  tasks_v1::CheckpointTaskResponse response;
  const grpc::Status status =
      suite_.tasks->Checkpoint(suite_.Context().get(), request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response.descriptors_size(), 0);
  EXPECT_EQ(testing::ReadFileOrDie(dir.Path("pages-1.img")), "memory of saved");
}

TEST_P(FakeShims, SayWhatTheyAre) {
  namespace introspection_v1 = ::containerd::services::introspection::v1;
  auto stub = introspection_v1::Introspection::NewStub(suite_.channel);
  introspection_v1::PluginInfoRequest request;
  request.set_type("io.containerd.runtime.v2");
  request.set_id("task");
  containerd::types::RuntimeRequest runtime;
  runtime.set_runtime_path(GetParam());
  request.mutable_options()->set_type_url(runtime.GetTypeName());
  request.mutable_options()->set_value(runtime.SerializeAsString());
  introspection_v1::PluginInfoResponse response;
  grpc::Status status =
      stub->PluginInfo(suite_.Context().get(), request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  containerd::types::RuntimeInfo info;
  EXPECT_EQ(response.extra().type_url(), info.GetTypeName());
  ASSERT_TRUE(info.ParseFromString(response.extra().value()));
  EXPECT_EQ(info.name(), "fake");
  EXPECT_EQ(info.version().version(), "1.2.3");
  runtime.set_runtime_path("io.containerd.nosuch.v9");
  request.mutable_options()->set_value(runtime.SerializeAsString());
  status = stub->PluginInfo(suite_.Context().get(), request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
}

class FakeSandboxes : public FakeShims {
 protected:
  template <typename Request>
  Request For(const std::string& id) {
    Request request;
    request.set_sandbox_id(id);
    request.set_sandboxer("shim");
    return request;
  }
  grpc::Status Create(const std::string& id) {
    auto request = For<sandboxes_v1::ControllerCreateRequest>(id);
    request.set_netns_path("/some/netns");
    request.mutable_options()->set_type_url("test.PodConfig");
    sandboxes_v1::ControllerCreateResponse response;
    return controller_->Create(suite_.Context().get(), request, &response);
  }
  grpc::Status Start(const std::string& id) {
    return controller_->Start(suite_.Context().get(),
                              For<sandboxes_v1::ControllerStartRequest>(id),
                              &started_);
  }
  std::future<int> WaitLater(const std::string& id) {
    return std::async(std::launch::async, [this, id] {
      sandboxes_v1::ControllerWaitResponse response;
      const grpc::Status status = controller_->Wait(
          suite_.Context().get(), For<sandboxes_v1::ControllerWaitRequest>(id),
          &response);
      return status.ok() ? static_cast<int>(response.exit_status())
                         : -static_cast<int>(status.error_code());
    });
  }
  sandboxes_v1::ControllerStatusResponse Status(const std::string& id) {
    sandboxes_v1::ControllerStatusResponse response;
    const grpc::Status status = controller_->Status(
        suite_.Context().get(), For<sandboxes_v1::ControllerStatusRequest>(id),
        &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }
  grpc::Status Stop(const std::string& id) {
    sandboxes_v1::ControllerStopResponse response;
    return controller_->Stop(suite_.Context().get(),
                             For<sandboxes_v1::ControllerStopRequest>(id),
                             &response);
  }
  grpc::Status Shutdown(const std::string& id) {
    sandboxes_v1::ControllerShutdownResponse response;
    return controller_->Shutdown(
        suite_.Context().get(),
        For<sandboxes_v1::ControllerShutdownRequest>(id), &response);
  }
  void AddRecord(const std::string& id) {
    containerd::types::Sandbox sandbox;
    sandbox.set_sandbox_id(id);
    sandbox.mutable_runtime()->set_name(GetParam());
    std::lock_guard<std::mutex> lock(suite_.metadata.mutex);
    suite_.metadata.sandboxes[id] = sandbox;
  }
  void Connect() {
    controller_ = sandboxes_v1::Controller::NewStub(suite_.channel);
  }
  void SetUp() override { Connect(); }

  std::unique_ptr<sandboxes_v1::Controller::Stub> controller_;
  sandboxes_v1::ControllerStartResponse started_;
};

TEST_P(FakeSandboxes, LiveAndEnd) {
  EXPECT_EQ(Create("pod").error_code(), grpc::StatusCode::NOT_FOUND);
  AddRecord("pod");
  grpc::Status status = Create("pod");
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(Create("pod").error_code(), grpc::StatusCode::ALREADY_EXISTS);
  status = Start("pod");
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_GT(started_.pid(), 1u);
  EXPECT_EQ(started_.version(), 3u);
  EXPECT_TRUE(absl::StrContains(started_.address(), "+unix://"));
  auto got = Status("pod");
  EXPECT_EQ(got.state(), "SANDBOX_READY");
  EXPECT_EQ(got.pid(), started_.pid());
  EXPECT_EQ(got.info().at("netns"), "/some/netns");
  EXPECT_EQ(got.info().at("options"), "test.PodConfig");
  sandboxes_v1::ControllerPlatformResponse platform;
  ASSERT_TRUE(
      controller_
          ->Platform(suite_.Context().get(),
                     For<sandboxes_v1::ControllerPlatformRequest>("pod"),
                     &platform)
          .ok());
  EXPECT_EQ(platform.platform().architecture(), "fake64");
  sandboxes_v1::ControllerMetricsResponse metrics;
  ASSERT_TRUE(controller_
                  ->Metrics(suite_.Context().get(),
                            For<sandboxes_v1::ControllerMetricsRequest>("pod"),
                            &metrics)
                  .ok());
  EXPECT_EQ(metrics.metrics().id(), "fake");
  auto first = WaitLater("pod");
  auto second = WaitLater("pod");
  ASSERT_TRUE(Stop("pod").ok());
  EXPECT_EQ(first.get(), 137);
  EXPECT_EQ(second.get(), 137);
  EXPECT_EQ(WaitLater("pod").get(), 137);
  EXPECT_EQ(Status("pod").state(), "SANDBOX_NOTREADY");
  ASSERT_TRUE(Shutdown("pod").ok());
  EXPECT_TRUE(Eventually([&] { return suite_.Shims("pod").empty(); }));
  EXPECT_TRUE(
      Eventually([&] { return suite_.metadata.Topics("pod").size() >= 3; }));
  EXPECT_EQ(
      suite_.metadata.Topics("pod"),
      (Topics{"/sandboxes/create", "/sandboxes/start", "/sandboxes/exit"}));
  // What is not there any more is stopped, and shut down.
  EXPECT_TRUE(Stop("pod").ok());
  EXPECT_TRUE(Shutdown("pod").ok());
  EXPECT_TRUE(Status("pod").has_exited_at());
  EXPECT_EQ(Start("pod").error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_P(FakeSandboxes, ContainersJoin) {
  AddRecord("pod");
  ASSERT_TRUE(Create("pod").ok());
  ASSERT_TRUE(Start("pod").ok());
  const std::vector<pid_t> shims = suite_.Shims();
  ASSERT_EQ(shims.size(), 1u);
  // By the record, and by the address that Start gave.
  suite_.AddContainer("byrecord", "exit 4");
  {
    std::lock_guard<std::mutex> lock(suite_.metadata.mutex);
    suite_.metadata.containers["test/byrecord"].set_sandbox("pod");
  }
  grpc::Status status = suite_.Create("byrecord");
  ASSERT_TRUE(status.ok()) << status.error_message();
  ASSERT_TRUE(suite_.Start("byrecord").ok());
  EXPECT_EQ(suite_.Wait("byrecord"), 4);
  EXPECT_EQ(suite_.Shims(), shims);
  EXPECT_EQ(suite_.Delete("byrecord"), 4);
  suite_.AddContainer("byaddress", "exec sleep 1000");
  tasks_v1::CreateTaskRequest request;
  request.set_container_id("byaddress");
  request.set_task_api_address(started_.address());
  request.set_task_api_version(started_.version());
  tasks_v1::CreateTaskResponse response;
  status = suite_.tasks->Create(suite_.Context().get(), request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(suite_.Shims(), shims);
  // Both are found again.
  suite_.EndService(SIGKILL);
  suite_.StartService();
  Connect();
  EXPECT_EQ(Status("pod").state(), "SANDBOX_READY");
  tasks_v1::GetResponse got;
  ASSERT_TRUE(suite_.Get("byaddress", &got).ok());
  EXPECT_EQ(got.process().status(), containerd::v1::types::RUNNING);
  ASSERT_TRUE(suite_.Kill("byaddress", SIGKILL).ok());
  EXPECT_EQ(suite_.Wait("byaddress"), 137);
  EXPECT_EQ(suite_.Delete("byaddress"), 137);
  // The sandbox outlives its containers.
  EXPECT_EQ(suite_.Shims(), shims);
  EXPECT_EQ(Status("pod").state(), "SANDBOX_READY");
  ASSERT_TRUE(Shutdown("pod").ok());
}

TEST_P(FakeSandboxes, DeadShimIsReportedOnce) {
  AddRecord("pod");
  ASSERT_TRUE(Create("pod").ok());
  ASSERT_TRUE(Start("pod").ok());
  auto exit = WaitLater("pod");
  const std::vector<pid_t> shims = suite_.Shims();
  ASSERT_EQ(shims.size(), 1u);
  ::kill(shims[0], SIGKILL);
  ::kill(static_cast<pid_t>(started_.pid()), SIGKILL);
  EXPECT_EQ(exit.get(), 255);
  EXPECT_TRUE(Eventually([&] { return Status("pod").state().empty(); }));
  suite_.EndService(SIGKILL);
  suite_.StartService();
  Connect();
  EXPECT_EQ(
      suite_.metadata.Topics("pod"),
      (Topics{"/sandboxes/create", "/sandboxes/start", "/sandboxes/exit"}));
}

TEST_P(FakeSandboxes, RefusesOtherControllers) {
  sandboxes_v1::ControllerCreateRequest request;
  sandboxes_v1::ControllerCreateResponse response;
  request.set_sandbox_id("x");
  EXPECT_EQ(controller_->Create(suite_.Context().get(), request, &response)
                .error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
  request.set_sandboxer("podsandbox");
  EXPECT_EQ(controller_->Create(suite_.Context().get(), request, &response)
                .error_code(),
            grpc::StatusCode::NOT_FOUND);
}

std::string NameOf(const ::testing::TestParamInfo<const char*>& info) {
  return absl::StrContains(info.param, "grpc") ? "Grpc" : "Ttrpc";
}
INSTANTIATE_TEST_SUITE_P(Protocols, FakeShims,
                         ::testing::Values("io.containerd.fakegrpc.v1",
                                           "io.containerd.fakettrpc.v1"),
                         NameOf);
INSTANTIATE_TEST_SUITE_P(Protocols, FakeSandboxes,
                         ::testing::Values("io.containerd.fakegrpc.v1",
                                           "io.containerd.fakettrpc.v1"),
                         NameOf);

}  // namespace
}  // namespace bulkhead::runtime
