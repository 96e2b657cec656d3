// The real service with real shims and runc, and a small metadata of its own:
// tasks from create to delete, and what happens when somebody is killed.
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_join.h"
#include "services/runtime/restart_monitor.h"
#include "services/runtime/testing/suite.h"

namespace bulkhead::runtime {
namespace {

class RuntimeTest : public ::testing::TestWithParam<const char*> {
 protected:
  Suite suite_{GetParam()};
};

using Topics = std::vector<std::string>;

TEST(RestartPolicy, FollowsTheLabels) {
  using Labels = std::map<std::string, std::string>;
  const auto should = [](const std::string& policy, uint32_t exit_status,
                         Labels more) {
    more[kRestartPolicyLabel] = policy;
    more.emplace(kRestartStatusLabel, "running");
    return ShouldRestart(more, exit_status);
  };
  const Labels stopped = {{kRestartStoppedLabel, "true"}};
  const Labels twice = {{kRestartCountLabel, "2"}};
  EXPECT_FALSE(ShouldRestart({}, 1));
  EXPECT_FALSE(should("always", 1, {{kRestartStatusLabel, "stopped"}}));
  for (const char* policy : {"", "always", "unless-stopped"}) {
    EXPECT_TRUE(should(policy, 0, {})) << policy;
  }
  EXPECT_TRUE(should("always", 0, stopped));
  EXPECT_FALSE(should("unless-stopped", 1, stopped));
  EXPECT_FALSE(should("no", 1, {}));
  EXPECT_FALSE(should("on-failure", 0, {}));
  EXPECT_TRUE(should("on-failure", 1, twice));
  EXPECT_TRUE(should("on-failure:0", 1, twice));
  EXPECT_TRUE(should("on-failure:3", 1, twice));
  EXPECT_FALSE(should("on-failure:2", 1, twice));
  for (const char* policy : {"on-failure:", "on-failure:x", "on-failures"}) {
    EXPECT_FALSE(should(policy, 1, {})) << policy;
  }
}

TEST(RestartPolicy, PausesGrowToALimit) {
  EXPECT_EQ(RestartDelay(0), absl::Milliseconds(100));
  EXPECT_EQ(RestartDelay(3), absl::Milliseconds(800));
  EXPECT_EQ(RestartDelay(32), absl::Minutes(1));
}

TEST_P(RuntimeTest, RunsAndReportsTheExitCode) {
  suite_.AddContainer("one", "echo hello; exit 7");
  grpc::Status status = suite_.Create("one");
  ASSERT_TRUE(status.ok()) << status.error_message();
  tasks_v1::GetResponse got;
  ASSERT_TRUE(suite_.Get("one", &got).ok());
  EXPECT_EQ(got.process().id(), "one");
  EXPECT_EQ(got.process().container_id(), "");
  EXPECT_EQ(got.process().status(), containerd::v1::types::CREATED);
  auto exit = suite_.WaitLater("one");
  status = suite_.Start("one");
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(exit.get(), 7);
  ASSERT_TRUE(suite_.Get("one", &got).ok());
  EXPECT_EQ(got.process().status(), containerd::v1::types::STOPPED);
  EXPECT_EQ(got.process().exit_status(), 7u);
  EXPECT_EQ(suite_.Delete("one"), 7);
  EXPECT_EQ(testing::ReadFileOrDie(suite_.Output("one")), "hello\n");
  EXPECT_TRUE(Eventually(
      [&] { return ::access(suite_.BundlePath("one").c_str(), 0) != 0; }));
  EXPECT_EQ(suite_.Delete("one"), -grpc::StatusCode::NOT_FOUND);
  EXPECT_TRUE(
      Eventually([&] { return suite_.metadata.Topics("one").size() >= 4; }));
  EXPECT_EQ(suite_.metadata.Topics("one"),
            (Topics{"/tasks/create", "/tasks/start", "/tasks/exit",
                    "/tasks/delete"}));
}

TEST_P(RuntimeTest, ExecPidsMetricsAndKill) {
  suite_.Run("two", "exec sleep 1000");
  tasks_v1::ExecProcessRequest exec;
  exec.set_container_id("two");
  exec.mutable_spec()->set_type_url(
      "types.containerd.io/opencontainers/runtime-spec/1/Process");
  exec.mutable_spec()->set_value(
      R"({"cwd":"/","args":["/bin/sh","-c","exit 3"],"env":["PATH=/bin"],)"
      R"("user":{"uid":0,"gid":0}})");
  google::protobuf::Empty empty;
  grpc::Status status =
      suite_.tasks->Exec(suite_.Context().get(), exec, &empty);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(status.error_message(),
            "exec id cannot be empty: invalid argument");
  exec.set_exec_id("e1");
  status = suite_.tasks->Exec(suite_.Context().get(), exec, &empty);
  ASSERT_TRUE(status.ok()) << status.error_message();
  status = suite_.Start("two", "e1");
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(suite_.Wait("two", "e1"), 3);
  tasks_v1::DeleteProcessRequest remove;
  remove.set_container_id("two");
  remove.set_exec_id("e1");
  tasks_v1::DeleteResponse removed;
  ASSERT_TRUE(
      suite_.tasks->DeleteProcess(suite_.Context().get(), remove, &removed)
          .ok());
  EXPECT_EQ(removed.exit_status(), 3u);
  EXPECT_EQ(removed.id(), "e1");

  tasks_v1::ListPidsRequest list;
  list.set_container_id("two");
  tasks_v1::ListPidsResponse pids;
  ASSERT_TRUE(suite_.tasks->ListPids(suite_.Context().get(), list, &pids).ok());
  ASSERT_EQ(pids.processes_size(), 1);
  EXPECT_EQ(pids.processes(0).pid(), suite_.init_pid);

  tasks_v1::MetricsRequest metrics;
  tasks_v1::MetricsResponse sample;
  ASSERT_TRUE(
      suite_.tasks->Metrics(suite_.Context().get(), metrics, &sample).ok());
  ASSERT_EQ(sample.metrics_size(), 1);
  EXPECT_EQ(sample.metrics(0).data().type_url(),
            "io.containerd.cgroups.v1.Metrics");
  metrics.add_filters("id==other");
  sample.Clear();
  ASSERT_TRUE(
      suite_.tasks->Metrics(suite_.Context().get(), metrics, &sample).ok());
  EXPECT_EQ(sample.metrics_size(), 0);

  tasks_v1::ListTasksResponse tasks;
  ASSERT_TRUE(suite_.tasks->List(suite_.Context().get(), {}, &tasks).ok());
  ASSERT_EQ(tasks.tasks_size(), 1);
  EXPECT_EQ(tasks.tasks(0).status(), containerd::v1::types::RUNNING);

  ASSERT_TRUE(suite_.Kill("two", SIGKILL).ok());
  EXPECT_EQ(suite_.Wait("two"), 137);
  EXPECT_EQ(suite_.Kill("two", SIGKILL).error_code(),
            grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(suite_.Delete("two"), 137);
}

TEST_P(RuntimeTest, TasksSurviveTheServicesDeath) {
  suite_.Run("stays", "exec sleep 1000");
  suite_.Run("ends",
             "cat /dev/null; while [ ! -e /tmp/go ]; do sleep 0.01; "
             "done; exit 5");
  // What a shim has not sent yet it sends again later, in whatever order.
  for (const char* id : {"stays", "ends"}) {
    ASSERT_TRUE(
        Eventually([&] { return suite_.metadata.Topics(id).size() >= 2; }));
  }
  suite_.EndService(SIGKILL);
  // It ends while nobody is there to see it.
  tasks_v1::GetResponse got;
  testing::WriteFileOrDie(suite_.InContainers("/tmp/go"), "");
  suite_.StartService();
  ASSERT_TRUE(suite_.Get("stays", &got).ok());
  EXPECT_EQ(got.process().status(), containerd::v1::types::RUNNING);
  EXPECT_EQ(suite_.Wait("ends"), 5);
  EXPECT_EQ(suite_.Delete("ends"), 5);
  auto exit = suite_.WaitLater("stays");
  ASSERT_TRUE(suite_.Kill("stays", SIGKILL).ok());
  EXPECT_EQ(exit.get(), 137);
  EXPECT_EQ(suite_.Delete("stays"), 137);
  for (const char* id : {"ends", "stays"}) {
    EXPECT_TRUE(Eventually([&] {
      const Topics topics = suite_.metadata.Topics(id);
      return !topics.empty() && topics.back() == "/tasks/delete";
    }));
    // An event whose acknowledgement died with the service comes twice; an exit
    // or a delete never does.
    Topics topics = suite_.metadata.Topics(id);
    for (const char* once : {"/tasks/exit", "/tasks/delete"}) {
      EXPECT_EQ(std::count(topics.begin(), topics.end(), once), 1)
          << id << ": " << once;
    }
    topics.erase(std::unique(topics.begin(), topics.end()), topics.end());
    EXPECT_EQ(topics, (Topics{"/tasks/create", "/tasks/start", "/tasks/exit",
                              "/tasks/delete"}))
        << id;
  }
}

TEST_P(RuntimeTest, ExitToldWhileItsShimIsFoundAgainIsToldOnce) {
  suite_.Run("early", "exec sleep 1000");
  ASSERT_TRUE(
      Eventually([&] { return suite_.metadata.Topics("early").size() >= 2; }));
  const std::vector<pid_t> shims = suite_.Shims("early");
  ASSERT_EQ(shims.size(), 1u);
  suite_.EndService(SIGKILL);
  // One that does not answer is being found again for some seconds.
  ::kill(shims[0], SIGSTOP);
  ::kill(static_cast<pid_t>(suite_.init_pid), SIGKILL);
  suite_.StartService();
  ASSERT_TRUE(suite_.ForwardExit("early", suite_.init_pid, 137).ok());
  const auto exits = [&] {
    const Topics topics = suite_.metadata.Topics("early");
    return std::count(topics.begin(), topics.end(), "/tasks/exit");
  };
  ASSERT_TRUE(Eventually([&] { return exits() == 1; }));
  // What the shim says itself is the same again, also to the next service.
  ::kill(shims[0], SIGCONT);
  EXPECT_EQ(suite_.Wait("early"), 137);
  suite_.EndService(SIGKILL);
  suite_.StartService();
  EXPECT_EQ(suite_.Delete("early"), 137);
  EXPECT_TRUE(Eventually([&] {
    const Topics topics = suite_.metadata.Topics("early");
    return topics.back() == "/tasks/delete";
  }));
  EXPECT_EQ(exits(), 1);
}

// Metadata has an exit, and this service dies before it can know; then the
// shim, too, so that nobody is left who would say the same again.
TEST_P(RuntimeTest, ExitWithoutAnAnswerIsToldInTheSameWords) {
  suite_.Run("unsure", "while [ ! -e /tmp/go ]; do sleep 0.01; done; exit 7");
  ASSERT_TRUE(
      Eventually([&] { return suite_.metadata.Topics("unsure").size() >= 2; }));
  const std::vector<pid_t> shims = suite_.Shims("unsure");
  ASSERT_EQ(shims.size(), 1u);
  suite_.metadata.Hold("/tasks/exit");
  testing::WriteFileOrDie(suite_.InContainers("/tmp/go"), "");
  const auto exits = [&] {
    return suite_.metadata.Ends<containerd::events::TaskExit>("unsure",
                                                              "/tasks/exit");
  };
  ASSERT_TRUE(Eventually([&] { return exits().size() == 1; }));
  suite_.EndService(SIGKILL);
  ::kill(shims[0], SIGKILL);
  suite_.metadata.Hold("");
  suite_.StartService();
  const auto deletes = [&] {
    return suite_.metadata.Ends<containerd::events::TaskDelete>(
        "unsure", "/tasks/delete");
  };
  ASSERT_TRUE(Eventually([&] { return deletes().size() == 1; }));
  EXPECT_EQ(exits().size(), 1u) << absl::StrJoin(exits(), ", ");
  EXPECT_EQ(deletes(), exits());
  EXPECT_TRUE(absl::StartsWith(*exits().begin(), "7 of "));
}

// The shim died, and so does this service, before metadata could be told.
TEST_P(RuntimeTest, EndOfADeadShimOutlivesTheService) {
  suite_.Run("both", "exec sleep 1000");
  ASSERT_TRUE(
      Eventually([&] { return suite_.metadata.Topics("both").size() >= 2; }));
  const std::vector<pid_t> shims = suite_.Shims("both");
  ASSERT_EQ(shims.size(), 1u);
  suite_.StopMetadata();
  ::kill(shims[0], SIGKILL);
  ASSERT_TRUE(Eventually(
      [&] { return ::access(suite_.BundlePath("both").c_str(), F_OK) != 0; }));
  suite_.EndService(SIGKILL);
  suite_.StartMetadata();
  suite_.StartService();
  EXPECT_TRUE(Eventually([&] {
    const Topics topics = suite_.metadata.Topics("both");
    return !topics.empty() && topics.back() == "/tasks/delete";
  }));
  EXPECT_EQ(suite_.metadata.Topics("both"),
            (Topics{"/tasks/create", "/tasks/start", "/tasks/exit",
                    "/tasks/delete"}));
}

// The exit of an earlier task of the same name, repeated by its shim.
TEST_P(RuntimeTest, ExitOfAPredecessorIsNotTheNewTasks) {
  const absl::Time before = absl::Now();
  const std::string go = suite_.InContainers("/tmp/go");
  suite_.AddSlowShim(go);
  suite_.AddContainer("again", "exec sleep 1000");
  {
    std::lock_guard<std::mutex> lock(suite_.metadata.mutex);
    suite_.metadata.containers["test/again"].mutable_runtime()->set_name(
        "io.containerd.slow.v1");
  }
  auto created = std::async(std::launch::async, [&] {
    return suite_.Create("again").ok() && suite_.Start("again").ok();
  });
  ASSERT_TRUE(Eventually(
      [&] { return ::access(suite_.BundlePath("again").c_str(), F_OK) == 0; }));
  EXPECT_TRUE(suite_.ForwardExit("again", 4242, 99, before).ok());
  testing::WriteFileOrDie(go, "");
  ASSERT_TRUE(created.get());
  ASSERT_TRUE(suite_.Kill("again", SIGKILL).ok());
  EXPECT_EQ(suite_.Wait("again"), 137);
  EXPECT_TRUE(Eventually([&] {
    return suite_.metadata
               .Ends<containerd::events::TaskExit>("again", "/tasks/exit")
               .size() == 2;
  }));
  EXPECT_EQ(suite_.Delete("again"), 137);
}

TEST_P(RuntimeTest, DeadShimEndsItsTask) {
  suite_.Run("orphan", "exec sleep 1000");
  const pid_t init = static_cast<pid_t>(suite_.init_pid);
  auto exit = suite_.WaitLater("orphan");
  std::vector<pid_t> shims = suite_.Shims("orphan");
  ASSERT_EQ(shims.size(), 1u);
  // What Debian's shim has not sent yet dies with it.
  ASSERT_TRUE(
      Eventually([&] { return suite_.metadata.Topics("orphan").size() >= 2; }));
  ::kill(shims[0], SIGKILL);
  EXPECT_EQ(exit.get(), 137);
  tasks_v1::GetResponse got;
  EXPECT_TRUE(Eventually([&] {
    return suite_.Get("orphan", &got).error_code() ==
           grpc::StatusCode::NOT_FOUND;
  }));
  EXPECT_NE(::access(suite_.BundlePath("orphan").c_str(), F_OK), 0);
  EXPECT_TRUE(Eventually([&] { return ::kill(init, 0) != 0; }));
  EXPECT_TRUE(
      Eventually([&] { return suite_.metadata.Topics("orphan").size() >= 4; }));
  EXPECT_EQ(suite_.metadata.Topics("orphan"),
            (Topics{"/tasks/create", "/tasks/start", "/tasks/exit",
                    "/tasks/delete"}));
  suite_.Run("orphan", "exit 0");
  EXPECT_EQ(suite_.Wait("orphan"), 0);
  EXPECT_EQ(suite_.Delete("orphan"), 0);
}

TEST_P(RuntimeTest, ShimThatDiedMeanwhileIsFoundDead) {
  suite_.Run("lost", "exec sleep 1000");
  // What the shim has not sent yet would die with it.
  ASSERT_TRUE(
      Eventually([&] { return suite_.metadata.Topics("lost").size() == 2; }));
  suite_.EndService(SIGKILL);
  std::vector<pid_t> shims = suite_.Shims("lost");
  ASSERT_EQ(shims.size(), 1u);
  ::kill(shims[0], SIGKILL);
  EXPECT_TRUE(Eventually([&] { return suite_.Shims("lost").empty(); }));
  suite_.StartService();
  tasks_v1::GetResponse got;
  EXPECT_EQ(suite_.Get("lost", &got).error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_TRUE(Eventually([&] {
    return suite_.metadata.Topics("lost") ==
           Topics{"/tasks/create", "/tasks/start", "/tasks/exit",
                  "/tasks/delete"};
  }));
}

TEST_P(RuntimeTest, HungShimDelaysNobody) {
  suite_.Run("hung", "exec sleep 1000");
  suite_.Run("fine", "exec sleep 1000");
  std::vector<pid_t> shims = suite_.Shims("hung");
  ASSERT_EQ(shims.size(), 1u);
  ::kill(shims[0], SIGSTOP);
  tasks_v1::GetResponse got;
  grpc::Status status = suite_.Get("hung", &got);
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(got.process().status(), containerd::v1::types::RUNNING);
  suite_.EndService(SIGKILL);
  suite_.StartService();
  const absl::Time start = absl::Now();
  ASSERT_TRUE(suite_.Get("fine", &got).ok());
  EXPECT_LT(absl::Now() - start, absl::Seconds(2));
  ::kill(shims[0], SIGCONT);
  ASSERT_TRUE(suite_.Get("hung", &got).ok());
  EXPECT_EQ(got.process().status(), containerd::v1::types::RUNNING);
}

TEST_P(RuntimeTest, EventsOutliveMetadatasRestart) {
  suite_.Run("quiet", "exec sleep 1000");
  suite_.StopMetadata();
  ASSERT_TRUE(suite_.Kill("quiet", SIGKILL).ok());
  EXPECT_EQ(suite_.Wait("quiet"), 137);
  EXPECT_EQ(suite_.Delete("quiet"), 137);
  suite_.StartMetadata();
  EXPECT_TRUE(
      Eventually([&] { return suite_.metadata.Topics("quiet").size() >= 4; }));
  EXPECT_EQ(suite_.metadata.Topics("quiet"),
            (Topics{"/tasks/create", "/tasks/start", "/tasks/exit",
                    "/tasks/delete"}));
}

TEST_P(RuntimeTest, SuitesShareAMachine) {
  Suite other(GetParam());
  suite_.Run("same", "exec sleep 1000");
  other.Run("same", "exec sleep 1000");
  ASSERT_TRUE(other.Kill("same", SIGKILL).ok());
  EXPECT_EQ(other.Wait("same"), 137);
  EXPECT_EQ(other.Delete("same"), 137);
  tasks_v1::GetResponse got;
  ASSERT_TRUE(suite_.Get("same", &got).ok());
  EXPECT_EQ(got.process().status(), containerd::v1::types::RUNNING);
}

TEST_P(RuntimeTest, RefusesAndCleansUp) {
  grpc::Status status = suite_.Create("nobody");
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_TRUE(absl::StrContains(status.error_message(), "nobody"));

  suite_.Run("twice", "exec sleep 1000");
  status = suite_.Create("twice");
  EXPECT_EQ(status.error_code(), grpc::StatusCode::ALREADY_EXISTS);
  EXPECT_EQ(status.error_message(), "task twice: already exists");

  suite_.AddContainer("bad", "true");
  {
    std::lock_guard<std::mutex> lock(suite_.metadata.mutex);
    auto& container = suite_.metadata.containers["test/bad"];
    Json spec = Json::parse(container.spec().value());
    spec["process"]["args"] = {"/bin/nonsense"};
    container.mutable_spec()->set_value(spec.dump());
  }
  status = suite_.Create("bad");
  EXPECT_FALSE(status.ok());
  EXPECT_TRUE(absl::StrContains(status.error_message(), "/bin/nonsense"))
      << status.error_message();
  EXPECT_NE(::access(suite_.BundlePath("bad").c_str(), F_OK), 0);
  EXPECT_TRUE(Eventually([&] { return suite_.Shims("bad").empty(); }));

  suite_.AddContainer("odd", "true");
  {
    std::lock_guard<std::mutex> lock(suite_.metadata.mutex);
    suite_.metadata.containers["test/odd"].mutable_runtime()->set_name(
        "io.containerd.nosuch.v9");
  }
  status = suite_.Create("odd");
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_TRUE(
      absl::StrContains(status.error_message(), "containerd-shim-nosuch-v9"))
      << status.error_message();

  auto context = rpc::MakeClientContext({}, kPatience);
  tasks_v1::GetResponse got;
  EXPECT_EQ(suite_.tasks->Get(context.get(), {}, &got).error_message(),
            "namespace is required: failed precondition");
}

TEST_P(RuntimeTest, CancelledWaitHarmsNobody) {
  suite_.Run("waited", "exec sleep 1000");
  tasks_v1::WaitRequest request;
  request.set_container_id("waited");
  for (int i = 0; i < 20; ++i) {
    tasks_v1::WaitResponse response;
    auto context = rpc::MakeClientContext({.ns = kNs}, absl::Milliseconds(i));
    EXPECT_FALSE(suite_.tasks->Wait(context.get(), request, &response).ok());
  }
  auto exit = suite_.WaitLater("waited");
  ASSERT_TRUE(suite_.Kill("waited", SIGTERM).ok() &&
              suite_.Kill("waited", SIGKILL).ok());
  EXPECT_EQ(exit.get(), 137);
}

INSTANTIATE_TEST_SUITE_P(Shims, RuntimeTest,
                         ::testing::Values("io.containerd.runc.v2",
                                           "io.containerd.bulkhead.v1"),
                         [](const auto& info) {
                           return absl::StrContains(info.param, "runc")
                                      ? "Debian"
                                      : "Ours";
                         });

}  // namespace
}  // namespace bulkhead::runtime
