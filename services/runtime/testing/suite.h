// The real runtime service in a process of its own, with real shims, and a
// small metadata in the test's process.
#ifndef BULKHEAD_SERVICES_RUNTIME_TESTING_SUITE_H_
#define BULKHEAD_SERVICES_RUNTIME_TESTING_SUITE_H_

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
#include <condition_variable>
#include <filesystem>
#include <future>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "lib/os/fd.h"
#include "lib/os/mount.h"
#include "lib/os/socket.h"
#include "lib/rpc/channel.h"
#include "lib/rpc/context.h"
#include "lib/rpc/server.h"
#include "lib/testing/temp_dir.h"
#include "lib/ttrpc/client.h"
#include "lib/ttrpc/reactor.h"
#include "proto/containerd/events/task.pb.h"
#include "proto/containerd/services/containers/v1/containers.grpc.pb.h"
#include "proto/containerd/services/events/ttrpc/v1/events.pb.h"
#include "proto/containerd/services/events/v1/events.grpc.pb.h"
#include "proto/containerd/services/sandbox/v1/sandbox.grpc.pb.h"
#include "proto/containerd/services/tasks/v1/tasks.grpc.pb.h"

namespace bulkhead::runtime {

namespace containers_v1 = ::containerd::services::containers::v1;
namespace events_v1 = ::containerd::services::events::v1;
namespace sandboxes_v1 = ::containerd::services::sandbox::v1;
namespace tasks_v1 = ::containerd::services::tasks::v1;
using ::bulkhead::testing::TempDir;
using Json = nlohmann::json;

constexpr char kNs[] = "test";
constexpr absl::Duration kPatience = absl::Seconds(20);

// Polls a condition that some other process makes true.
inline bool Eventually(const std::function<bool()>& condition) {
  const absl::Time until = absl::Now() + kPatience;
  while (!condition()) {
    if (absl::Now() > until) return false;
    absl::SleepFor(absl::Milliseconds(5));
  }
  return true;
}

class FakeMetadata : public containers_v1::Containers::Service,
                     public sandboxes_v1::Store::Service,
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
  grpc::Status Get(grpc::ServerContext*,
                   const sandboxes_v1::StoreGetRequest* request,
                   sandboxes_v1::StoreGetResponse* response) override {
    std::lock_guard<std::mutex> lock(mutex);
    auto it = sandboxes.find(request->sandbox_id());
    if (it == sandboxes.end()) {
      return {grpc::StatusCode::NOT_FOUND, "sandbox: not found"};
    }
    *response->mutable_sandbox() = it->second;
    return grpc::Status::OK;
  }
  grpc::Status Forward(grpc::ServerContext*,
                       const events_v1::ForwardRequest* request,
                       google::protobuf::Empty*) override {
    std::unique_lock<std::mutex> lock(mutex);
    events.push_back(request->envelope());
    // A call that never answers, as far as its caller can tell.
    changed.wait(lock, [&] {
      return hold_topic.empty() || hold_topic != request->envelope().topic();
    });
    return grpc::Status::OK;
  }
  // Answers no event of `topic` any more, and again if it is empty.
  void Hold(const std::string& topic) {
    std::lock_guard<std::mutex> lock(mutex);
    hold_topic = topic;
    changed.notify_all();
  }

  // The ends of one container that events of `topic` tell of. The same one told
  // again is one: metadata's event bus sees to that.
  template <typename Event>
  std::set<std::string> Ends(const std::string& id, const std::string& topic) {
    std::set<std::string> out;
    std::lock_guard<std::mutex> lock(mutex);
    for (const auto& envelope : events) {
      Event event;
      if (envelope.topic() != topic ||
          !event.ParseFromString(envelope.event().value()) ||
          event.container_id() != id) {
        continue;
      }
      out.insert(absl::StrCat(event.exit_status(), " of ", event.pid(), " at ",
                              event.exited_at().seconds(), ".",
                              event.exited_at().nanos()));
    }
    return out;
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
  std::condition_variable changed;  // hold_topic
  std::string hold_topic;
  std::map<std::string, containers_v1::Container> containers;
  std::map<std::string, containerd::types::Sandbox> sandboxes;
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
                                         "/services/runtime/shim\", \"",
                                         dir_.Path("shims"), "\"]\n"));
    // Fake shims, told apart by their names.
    EXPECT_EQ(::mkdir(dir_.Path("shims").c_str(), 0755), 0);
    for (const char* name : {"fakegrpc", "fakettrpc"}) {
      EXPECT_EQ(::symlink(absl::StrCat(here,
                                       "/services/runtime/testing/"
                                       "fake_shim")
                              .c_str(),
                          dir_.Path(absl::StrCat("shims/containerd-shim-", name,
                                                 "-v1"))
                              .c_str()),
                0);
    }
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
         static_cast<sandboxes_v1::Store::Service*>(&metadata),
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
    channel = rpc::Connect(dir_.Path("s/runtime/runtime.sock"));
    tasks = tasks_v1::Tasks::NewStub(channel);
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
      // It may end meanwhile.
      const std::string line =
          os::ReadFile(absl::StrCat("/proc/", entry->d_name, "/cmdline"),
                       1 << 20)
              .value_or("");
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
  // Makes io.containerd.slow.v1 a shim that starts once `go` is there.
  void AddSlowShim(const std::string& go) {
    const std::string script = dir_.Path("shims/containerd-shim-slow-v1");
    testing::WriteFileOrDie(
        script, absl::StrCat("#!/bin/sh\nwhile [ ! -e ", go,
                             " ]; do sleep 0.01; done\nexec ",
                             std::filesystem::current_path().string(),
                             "/services/runtime/shim/"
                             "containerd-shim-bulkhead-v1 \"$@\"\n"));
    EXPECT_EQ(::chmod(script.c_str(), 0755), 0);
  }
  // Where a file of all containers is.
  std::string InContainers(const std::string& path) {
    return dir_.Path("img" + path);
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

  // An exit event as a shim sends it.
  absl::Status ForwardExit(const std::string& id, uint32_t pid,
                           uint32_t exit_status, absl::Time now = absl::Now()) {
    containerd::events::TaskExit exit;
    exit.set_container_id(id);
    exit.set_id(id);
    exit.set_pid(pid);
    exit.set_exit_status(exit_status);
    exit.mutable_exited_at()->set_seconds(absl::ToUnixSeconds(now));
    containerd::services::events::ttrpc::v1::ForwardRequest request;
    auto* envelope = request.mutable_envelope();
    envelope->mutable_timestamp()->set_seconds(absl::ToUnixSeconds(now));
    envelope->set_namespace_(kNs);
    envelope->set_topic("/tasks/exit");
    envelope->mutable_event()->set_type_url(exit.GetTypeName());
    envelope->mutable_event()->set_value(exit.SerializeAsString());
    ttrpc::Reactor reactor;
    absl::StatusOr<os::UniqueFd> socket =
        ttrpc::Dial(dir_.Path("s/bulkhead.sock.ttrpc"));
    if (!socket.ok()) return socket.status();
    return ttrpc::Client::Create(reactor, *std::move(socket), nullptr)
        ->Call("containerd.services.events.ttrpc.v1.Events", "Forward",
               request.SerializeAsString(), {}, kPatience)
        .status();
  }

  FakeMetadata metadata;
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<tasks_v1::Tasks::Stub> tasks;
  uint32_t init_pid = 0;

 private:
  TempDir dir_;
  const std::string runtime_;
  std::unique_ptr<rpc::Server> server_;
  std::set<std::string> created_;
  pid_t pid_ = -1;
};

}  // namespace bulkhead::runtime

#endif  // BULKHEAD_SERVICES_RUNTIME_TESTING_SUITE_H_
