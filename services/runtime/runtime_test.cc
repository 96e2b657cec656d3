// The real service with real shims and runc, and a small metadata of its own:
// tasks from create to delete, and what happens when somebody is killed.
#include <dirent.h>
#include <fcntl.h>
#include <grpcpp/client_context.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <future>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "lib/os/mount.h"
#include "lib/os/socket.h"
#include "lib/rpc/channel.h"
#include "lib/rpc/context.h"
#include "lib/rpc/server.h"
#include "lib/testing/temp_dir.h"
#include "proto/containerd/events/task.pb.h"
#include "proto/containerd/services/containers/v1/containers.grpc.pb.h"
#include "proto/containerd/services/events/v1/events.grpc.pb.h"
#include "proto/containerd/services/tasks/v1/tasks.grpc.pb.h"
#include "services/runtime/restart_monitor.h"

namespace bulkhead::runtime {
namespace {

namespace containers_v1 = ::containerd::services::containers::v1;
namespace events_v1 = ::containerd::services::events::v1;
namespace tasks_v1 = ::containerd::services::tasks::v1;
using ::bulkhead::testing::TempDir;
using Json = nlohmann::json;

constexpr char kNs[] = "test";
constexpr absl::Duration kPatience = absl::Seconds(20);

// Polls a condition that some other process makes true.
bool Eventually(const std::function<bool()>& condition) {
  const absl::Time until = absl::Now() + kPatience;
  while (!condition()) {
    if (absl::Now() > until) return false;
    absl::SleepFor(absl::Milliseconds(5));
  }
  return true;
}

class FakeMetadata : public containers_v1::Containers::Service,
                     public events_v1::Events::Service {
 public:
  grpc::Status Get(grpc::ServerContext* context,
                   const containers_v1::GetContainerRequest* request,
                   containers_v1::GetContainerResponse* response) override {
    const std::string ns = rpc::ContextOf(*context).ns;
    std::lock_guard<std::mutex> lock(mutex);
    auto it = containers.find(ns + "/" + request->id());
    if (it == containers.end()) {
      return {grpc::StatusCode::NOT_FOUND,
              absl::StrCat("container \"", request->id(), "\" in namespace \"",
                           ns, "\": not found")};
    }
    *response->mutable_container() = it->second;
    return grpc::Status::OK;
  }
  grpc::Status Forward(grpc::ServerContext*,
                       const events_v1::ForwardRequest* request,
                       google::protobuf::Empty*) override {
    std::lock_guard<std::mutex> lock(mutex);
    events.push_back(request->envelope());
    return grpc::Status::OK;
  }

  // Topics of one container's events, in order.
  std::vector<std::string> Topics(const std::string& id) {
    std::vector<std::string> out;
    std::lock_guard<std::mutex> lock(mutex);
    for (const auto& event : events) {
      if (absl::StrContains(event.event().value(), id)) {
        out.push_back(event.topic());
      }
    }
    return out;
  }

  std::mutex mutex;
  std::map<std::string, containers_v1::Container> containers;
  std::vector<containerd::types::Envelope> events;
};

// One suite: metadata in this process, the runtime service in its own.
class Suite {
 public:
  explicit Suite(std::string runtime) : runtime_(std::move(runtime)) {
    std::string here = std::filesystem::current_path();
    EXPECT_EQ(::mkdir(dir_.Path("s").c_str(), 0711), 0);
    EXPECT_EQ(::mkdir(dir_.Path("s/metadata").c_str(), 0700), 0);
    testing::WriteFileOrDie(dir_.Path("config.toml"),
                            absl::StrCat("[runtime]\nshim_paths = [\"", here,
                                         "/services/runtime/shim\"]\n"));
    for (const char* folder :
         {"img", "img/bin", "img/proc", "img/dev", "img/sys", "img/tmp"}) {
      EXPECT_EQ(::mkdir(dir_.Path(folder).c_str(), 0755), 0);
    }
    std::filesystem::copy_file("/bin/busybox", dir_.Path("img/bin/busybox"));
    for (const char* name : {"sh", "sleep", "cat", "echo", "kill"}) {
      EXPECT_EQ(::symlink("busybox",
                          dir_.Path(absl::StrCat("img/bin/", name)).c_str()),
                0);
    }
    StartMetadata();
    StartService();
  }

  ~Suite() {
    for (const std::string& id : created_) {
      tasks_v1::KillRequest kill;
      kill.set_container_id(id);
      kill.set_signal(SIGKILL);
      google::protobuf::Empty empty;
      (void)tasks->Kill(Context().get(), kill, &empty);
      tasks_v1::DeleteTaskRequest remove;
      remove.set_container_id(id);
      tasks_v1::DeleteResponse removed;
      Eventually([&] {
        const auto status = tasks->Delete(Context().get(), remove, &removed);
        return status.ok() ||
               status.error_code() == grpc::StatusCode::NOT_FOUND;
      });
    }
    EndService(SIGTERM);
    EXPECT_TRUE(Eventually([&] { return Shims().empty(); }));
    server_->Stop(absl::ZeroDuration());
    EXPECT_TRUE(os::UnmountTree(dir_.path()).ok());
  }

  void StartMetadata() {
    auto listener = os::ListenUnix(dir_.Path("s/metadata/metadata.sock"), {});
    ASSERT_TRUE(listener.ok()) << listener.status();
    auto server = rpc::Server::Start(
        *std::move(listener),
        {static_cast<containers_v1::Containers::Service*>(&metadata),
         static_cast<events_v1::Events::Service*>(&metadata)});
    ASSERT_TRUE(server.ok());
    server_ = *std::move(server);
  }
  void StopMetadata() { server_->Stop(absl::ZeroDuration()); }

  void StartService() {
    int ready[2];
    ASSERT_EQ(::pipe2(ready, O_CLOEXEC), 0);
    const std::string root = dir_.Path("r");
    const std::string state = dir_.Path("s");
    const std::string config = dir_.Path("config.toml");
    const char* binary = "services/runtime/bulkhead-runtime";
    std::vector<const char*> argv = {
        binary,     "--root",       root.c_str(),  "--state", state.c_str(),
        "--config", config.c_str(), "--log-level", "error",   nullptr};
    std::vector<const char*> env = {
        "BULKHEAD_READY_FD=9", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", nullptr};
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ready[1], 9);
    ASSERT_EQ(::posix_spawn(&pid_, binary, &actions, nullptr,
                            const_cast<char**>(argv.data()),
                            const_cast<char**>(env.data())),
              0);
    posix_spawn_file_actions_destroy(&actions);
    ::close(ready[1]);
    char byte;
    ASSERT_EQ(::read(ready[0], &byte, 1), 1) << "the service did not start";
    ::close(ready[0]);
    tasks = tasks_v1::Tasks::NewStub(
        rpc::Connect(dir_.Path("s/runtime/runtime.sock")));
  }
  void EndService(int signal) {
    if (pid_ <= 0) return;
    ::kill(pid_, signal);
    int status = 0;
    EXPECT_EQ(::waitpid(pid_, &status, 0), pid_);
    if (signal == SIGTERM) EXPECT_EQ(status, 0);
    pid_ = -1;
  }

  // Processes of this suite's shims.
  std::vector<pid_t> Shims(const std::string& id = "") {
    std::vector<pid_t> out;
    std::unique_ptr<DIR, int (*)(DIR*)> dir(::opendir("/proc"), ::closedir);
    while (const dirent* entry = ::readdir(dir.get())) {
      std::ifstream file(absl::StrCat("/proc/", entry->d_name, "/cmdline"));
      const std::string line((std::istreambuf_iterator<char>(file)), {});
      if (absl::StrContains(line, "containerd-shim-") &&
          absl::StrContains(line, dir_.path()) &&
          (id.empty() ||
           absl::StrContains(line, std::string("-id") + '\0' + id + '\0'))) {
        out.push_back(std::atoi(entry->d_name));
      }
    }
    return out;
  }

  std::unique_ptr<grpc::ClientContext> Context() {
    return rpc::MakeClientContext({.ns = kNs}, kPatience);
  }
  std::string Output(const std::string& id) { return dir_.Path("out-" + id); }
  std::string BundlePath(const std::string& id) {
    return dir_.Path(
        absl::StrCat("s/io.containerd.runtime.v2.task/", kNs, "/", id));
  }

  void AddContainer(const std::string& id, const std::string& script) {
    Json spec = {
        {"ociVersion", "1.0.2"},
        {"process",
         {{"cwd", "/"},
          {"args", {"/bin/sh", "-c", script}},
          {"env", {"PATH=/bin"}},
          {"user", {{"uid", 0}, {"gid", 0}}}}},
        {"root", {{"path", "rootfs"}}},
        {"mounts",
         {{{"destination", "/proc"}, {"type", "proc"}, {"source", "proc"}}}},
        {"linux",
         {{"cgroupsPath", absl::StrCat("/bht-", ::getpid(), "-",
                                       dir_.path().substr(8), "-", id)},
          {"namespaces",
           {{{"type", "pid"}}, {{"type", "mount"}}, {{"type", "ipc"}}}}}}};
    containers_v1::Container container;
    container.set_id(id);
    container.mutable_runtime()->set_name(runtime_);
    container.mutable_spec()->set_type_url(
        "types.containerd.io/opencontainers/runtime-spec/1/Spec");
    container.mutable_spec()->set_value(spec.dump());
    std::lock_guard<std::mutex> lock(metadata.mutex);
    metadata.containers[absl::StrCat(kNs, "/", id)] = container;
  }

  grpc::Status Create(const std::string& id) {
    tasks_v1::CreateTaskRequest request;
    request.set_container_id(id);
    auto* mount = request.add_rootfs();
    mount->set_type("bind");
    mount->set_source(dir_.Path("img"));
    mount->add_options("rbind");
    mount->add_options("rw");
    // Debian's shim does not stand an output without the other.
    request.set_stdout("file://" + Output(id));
    request.set_stderr("file://" + Output(id));
    tasks_v1::CreateTaskResponse response;
    const grpc::Status status =
        tasks->Create(Context().get(), request, &response);
    if (status.ok()) created_.insert(id);
    init_pid = response.pid();
    return status;
  }
  grpc::Status Start(const std::string& id, const std::string& exec_id = "") {
    tasks_v1::StartRequest request;
    request.set_container_id(id);
    request.set_exec_id(exec_id);
    tasks_v1::StartResponse response;
    return tasks->Start(Context().get(), request, &response);
  }
  void Run(const std::string& id, const std::string& script) {
    AddContainer(id, script);
    grpc::Status status = Create(id);
    ASSERT_TRUE(status.ok()) << status.error_message();
    status = Start(id);
    ASSERT_TRUE(status.ok()) << status.error_message();
  }
  // The exit status, or -code of the error.
  int Wait(const std::string& id, const std::string& exec_id = "") {
    tasks_v1::WaitRequest request;
    request.set_container_id(id);
    request.set_exec_id(exec_id);
    tasks_v1::WaitResponse response;
    const grpc::Status status =
        tasks->Wait(Context().get(), request, &response);
    return status.ok() ? static_cast<int>(response.exit_status())
                       : -static_cast<int>(status.error_code());
  }
  std::future<int> WaitLater(const std::string& id) {
    return std::async(std::launch::async, [this, id] { return Wait(id); });
  }
  grpc::Status Kill(const std::string& id, int signal) {
    tasks_v1::KillRequest request;
    request.set_container_id(id);
    request.set_signal(static_cast<uint32_t>(signal));
    google::protobuf::Empty response;
    return tasks->Kill(Context().get(), request, &response);
  }
  int Delete(const std::string& id) {
    tasks_v1::DeleteTaskRequest request;
    request.set_container_id(id);
    tasks_v1::DeleteResponse response;
    const grpc::Status status =
        tasks->Delete(Context().get(), request, &response);
    if (status.ok()) created_.erase(id);
    return status.ok() ? static_cast<int>(response.exit_status())
                       : -static_cast<int>(status.error_code());
  }
  grpc::Status Get(const std::string& id, tasks_v1::GetResponse* response) {
    tasks_v1::GetRequest request;
    request.set_container_id(id);
    return tasks->Get(Context().get(), request, response);
  }

  FakeMetadata metadata;
  std::unique_ptr<tasks_v1::Tasks::Stub> tasks;
  uint32_t init_pid = 0;

 private:
  TempDir dir_;
  const std::string runtime_;
  std::unique_ptr<rpc::Server> server_;
  std::set<std::string> created_;
  pid_t pid_ = -1;
};

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
  suite_.EndService(SIGKILL);
  // It ends while nobody is there to see it.
  tasks_v1::GetResponse got;
  testing::WriteFileOrDie(
      suite_.Output("").substr(0, suite_.Output("").size() - 4) + "img/tmp/go",
      "");
  suite_.StartService();
  ASSERT_TRUE(suite_.Get("stays", &got).ok());
  EXPECT_EQ(got.process().status(), containerd::v1::types::RUNNING);
  EXPECT_EQ(suite_.Wait("ends"), 5);
  EXPECT_EQ(suite_.Delete("ends"), 5);
  auto exit = suite_.WaitLater("stays");
  ASSERT_TRUE(suite_.Kill("stays", SIGKILL).ok());
  EXPECT_EQ(exit.get(), 137);
  EXPECT_EQ(suite_.Delete("stays"), 137);
  if (std::string(GetParam()) == "io.containerd.runc.v2") {
    // Debian's shim sends an event that found nobody again after a second,
    // unless it is deleted before: what it drops nobody else knows of.
    EXPECT_TRUE(Eventually([&] {
      const Topics topics = suite_.metadata.Topics("ends");
      return !topics.empty() && topics.back() == "/tasks/delete";
    }));
    return;
  }
  EXPECT_TRUE(
      Eventually([&] { return suite_.metadata.Topics("ends").size() >= 4; }));
  // An event whose acknowledgement died with the service comes twice.
  Topics topics = suite_.metadata.Topics("ends");
  topics.erase(std::unique(topics.begin(), topics.end()), topics.end());
  EXPECT_EQ(topics, (Topics{"/tasks/create", "/tasks/start", "/tasks/exit",
                            "/tasks/delete"}));
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
