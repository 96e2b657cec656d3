// A shim for tests: the protocol and nothing behind it. Its tasks are plain
// processes of this machine. Its name says what it speaks:
// containerd-shim-fakegrpc-v1 gRPC, containerd-shim-fakettrpc-v1 ttrpc; both
// serve Task v3 and the sandbox service.
//
// A file "hang-METHOD" in the bundle makes it leave calls of that method
// unanswered.
#include <fcntl.h>
#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/server_builder.h>
#include <signal.h>
#include <spawn.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "lib/os/fd.h"
#include "lib/os/socket.h"
#include "lib/rpc/status.h"
#include "lib/ttrpc/reactor.h"
#include "lib/ttrpc/server.h"
#include "proto/containerd/runtime/sandbox/v1/sandbox.pb.h"
#include "proto/containerd/task/v2/task.pb.h"
#include "proto/containerd/types/introspection.pb.h"

namespace bulkhead::runtime {
namespace {

namespace sandbox_v1 = ::containerd::runtime::sandbox::v1;
namespace shim_v2 = ::containerd::task::v2;
using Json = nlohmann::json;
using Reply = std::function<void(absl::StatusOr<std::string>)>;

struct Process {
  pid_t pid = 0;
  Json spec;
  std::string output;
  bool over = false;
  int status = 0;
  absl::Time at;
};

class Fake {
 public:
  void Call(const std::string& method, const std::string& payload,
            const Reply& reply) {
    if (::access(absl::StrCat("hang-", method).c_str(), F_OK) == 0) return;
    absl::StatusOr<std::string> result = Answer(method, payload, reply);
    // Wait has been answered, or will be.
    if (result.ok() && *result == kLater) return;
    reply(std::move(result));
  }

 private:
  static constexpr char kLater[] = "\x01later";

  template <typename Message>
  static void SetTime(absl::Time at, Message* out) {
    out->set_seconds(absl::ToUnixSeconds(at));
    out->set_nanos(static_cast<int32_t>(absl::ToUnixNanos(at) % 1'000'000'000));
  }

  absl::Status Launch(Process* process) {
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDWR, 0);
    for (const int fd : {1, 2}) {
      posix_spawn_file_actions_addopen(
          &actions, fd,
          process->output.empty() ? "/dev/null" : process->output.c_str(),
          O_WRONLY | O_CREAT | O_APPEND, 0644);
    }
    std::vector<std::string> args = process->spec["process"]["args"];
    std::vector<char*> argv;
    for (std::string& arg : args) argv.push_back(arg.data());
    argv.push_back(nullptr);
    char* env[] = {nullptr};
    const int error = ::posix_spawn(&process->pid, argv[0], &actions, nullptr,
                                    argv.data(), env);
    posix_spawn_file_actions_destroy(&actions);
    return error == 0 ? absl::OkStatus() : os::ErrnoStatus(error, argv[0]);
  }

  void Watch(const std::string& id, pid_t pid) {
    std::thread([this, id, pid] {
      int status = 0;
      ::waitpid(pid, &status, 0);
      std::lock_guard<std::mutex> lock(mutex_);
      Process& process = processes_[id];
      process.over = true;
      process.at = absl::Now();
      process.status =
          WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
      changed_.notify_all();
    }).detach();
  }

  template <typename Response>
  absl::StatusOr<std::string> WaitFor(const std::string& id,
                                      const Reply& reply) {
    std::thread([this, id, reply] {
      std::unique_lock<std::mutex> lock(mutex_);
      changed_.wait(lock, [&] { return processes_[id].over; });
      Response response;
      response.set_exit_status(static_cast<uint32_t>(processes_[id].status));
      SetTime(processes_[id].at, response.mutable_exited_at());
      lock.unlock();
      reply(response.SerializeAsString());
    }).detach();
    return std::string(kLater);
  }

  static void ExitSoon() {
    std::thread([] {
      absl::SleepFor(absl::Milliseconds(20));
      ::_exit(0);
    }).detach();
  }

  template <typename Request>
  static Request Parse(const std::string& payload) {
    Request request;
    (void)request.ParseFromString(payload);
    return request;
  }

  absl::StatusOr<std::string> Answer(const std::string& method,
                                     const std::string& payload,
                                     const Reply& reply) {
    std::unique_lock<std::mutex> lock(mutex_);
    if (method == "Connect") {
      const auto request = Parse<shim_v2::ConnectRequest>(payload);
      shim_v2::ConnectResponse response;
      response.set_shim_pid(static_cast<uint32_t>(::getpid()));
      const auto found = processes_.find(request.id());
      if (found != processes_.end()) {
        response.set_task_pid(static_cast<uint32_t>(found->second.pid));
      }
      response.set_version("fake");
      return response.SerializeAsString();
    }
    if (method == "Create") {
      const auto request = Parse<shim_v2::CreateTaskRequest>(payload);
      Process process;
      process.spec = Json::parse(
          os::ReadFile(request.bundle() + "/config.json", 1 << 20).value_or(""),
          nullptr, false);
      process.output = request.stdout();
      if (absl::StartsWith(process.output, "file://")) {
        process.output.erase(0, 7);
      }
      // Runs from the start: a fake knows no gate before the first command.
      absl::Status launched = Launch(&process);
      if (!launched.ok()) return launched;
      processes_[request.id()] = process;
      Watch(request.id(), process.pid);
      shim_v2::CreateTaskResponse response;
      response.set_pid(static_cast<uint32_t>(process.pid));
      if (!request.checkpoint().empty()) {
        // What was restored from, for the test to see.
        (void)::rename((request.checkpoint() + "/pages-1.img").c_str(),
                       process.output.c_str());
      }
      return response.SerializeAsString();
    }
    if (method == "CreateSandbox") return sandbox_ = payload, std::string();
    if (method == "StartSandbox") {
      Process process;
      process.spec["process"]["args"] = {"/bin/sleep", "1000"};
      absl::Status launched = Launch(&process);
      if (!launched.ok()) return launched;
      processes_[kSandboxKey] = process;
      Watch(kSandboxKey, process.pid);
      sandbox_v1::StartSandboxResponse response;
      response.set_pid(static_cast<uint32_t>(process.pid));
      SetTime(absl::Now(), response.mutable_created_at());
      return response.SerializeAsString();
    }
    if (method == "Platform") {
      sandbox_v1::PlatformResponse response;
      response.mutable_platform()->set_os("linux");
      response.mutable_platform()->set_architecture("fake64");
      return response.SerializeAsString();
    }
    if (method == "SandboxStatus") {
      sandbox_v1::SandboxStatusResponse response;
      const Process& process = processes_[kSandboxKey];
      response.set_sandbox_id(
          Parse<sandbox_v1::SandboxStatusRequest>(payload).sandbox_id());
      response.set_pid(static_cast<uint32_t>(process.pid));
      response.set_state(process.pid != 0 && !process.over
                             ? "SANDBOX_READY"
                             : "SANDBOX_NOTREADY");
      // What CreateSandbox was given, for the test to see.
      const auto created = Parse<sandbox_v1::CreateSandboxRequest>(sandbox_);
      (*response.mutable_info())["netns"] = created.netns_path();
      (*response.mutable_info())["options"] = created.options().type_url();
      return response.SerializeAsString();
    }
    if (method == "SandboxMetrics") {
      sandbox_v1::SandboxMetricsResponse response;
      response.mutable_metrics()->set_id("fake");
      return response.SerializeAsString();
    }
    if (method == "PingSandbox") return std::string();
    if (method == "WaitSandbox") {
      return WaitFor<sandbox_v1::WaitSandboxResponse>(kSandboxKey, reply);
    }
    if (method == "StopSandbox" || method == "ShutdownSandbox") {
      const pid_t pid = processes_[kSandboxKey].pid;
      if (pid > 0 && !processes_[kSandboxKey].over) ::kill(pid, SIGKILL);
      if (method == "ShutdownSandbox") ExitSoon();
      return std::string();
    }
    if (method == "Shutdown") {
      if (processes_.empty()) ExitSoon();
      return std::string();
    }

    // All others name a task first.
    const std::string id = Parse<shim_v2::StateRequest>(payload).id();
    const auto found = processes_.find(id);
    if (found == processes_.end()) {
      return absl::NotFoundError("container not created: not found");
    }
    Process& process = found->second;
    if (method == "Start") {
      shim_v2::StartResponse response;
      response.set_pid(static_cast<uint32_t>(process.pid));
      return response.SerializeAsString();
    }
    if (method == "State") {
      shim_v2::StateResponse response;
      response.set_id(id);
      response.set_pid(static_cast<uint32_t>(process.pid));
      response.set_status(process.over ? containerd::v1::types::STOPPED
                                       : containerd::v1::types::RUNNING);
      response.set_exit_status(static_cast<uint32_t>(process.status));
      return response.SerializeAsString();
    }
    if (method == "Wait") {
      return WaitFor<shim_v2::WaitResponse>(id, reply);
    }
    if (method == "Kill") {
      const auto request = Parse<shim_v2::KillRequest>(payload);
      if (process.over) return absl::NotFoundError("process already finished");
      ::kill(process.pid, static_cast<int>(request.signal()));
      return std::string();
    }
    if (method == "Checkpoint") {
      const auto request = Parse<shim_v2::CheckpointTaskRequest>(payload);
      for (const auto& [name, data] : {std::pair<std::string, std::string>{
                                           "pages-1.img", "memory of " + id},
                                       {"empty.img", ""}}) {
        const absl::Status written = os::WriteFileAtomic(
            absl::StrCat(request.path(), "/", name), data, 0600);
        if (!written.ok()) return written;
      }
      return std::string();
    }
    if (method == "Delete") {
      changed_.wait_for(lock, std::chrono::seconds(2),
                        [&] { return process.over; });
      if (!process.over)
        return absl::UnknownError("cannot delete a running process");
      shim_v2::DeleteResponse response;
      response.set_pid(static_cast<uint32_t>(process.pid));
      response.set_exit_status(static_cast<uint32_t>(process.status));
      SetTime(process.at, response.mutable_exited_at());
      processes_.erase(found);
      return response.SerializeAsString();
    }
    return absl::UnimplementedError(absl::StrCat("method ", method));
  }

  static constexpr char kSandboxKey[] = "\x01sandbox";
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, Process> processes_;
  std::string sandbox_;
};

// One unary call of whatever method.
class GrpcCall : public grpc::ServerGenericBidiReactor {
 public:
  GrpcCall(Fake& fake, std::string method)
      : fake_(fake), method_(std::move(method)) {
    StartRead(&request_);
  }
  void OnReadDone(bool ok) override {
    if (!ok) return Finish({grpc::StatusCode::INTERNAL, "no request"});
    std::vector<grpc::Slice> slices;
    std::string payload;
    (void)request_.Dump(&slices);
    for (const grpc::Slice& slice : slices) {
      payload.append(reinterpret_cast<const char*>(slice.begin()),
                     slice.size());
    }
    fake_.Call(method_, payload, [this](absl::StatusOr<std::string> reply) {
      if (!reply.ok()) return Finish(rpc::ToGrpc(reply.status()));
      const grpc::Slice slice(*reply);
      response_ = grpc::ByteBuffer(&slice, 1);
      StartWriteAndFinish(&response_, grpc::WriteOptions(), grpc::Status::OK);
    });
  }
  void OnDone() override { delete this; }

 private:
  Fake& fake_;
  const std::string method_;
  grpc::ByteBuffer request_;
  grpc::ByteBuffer response_;
};

class GrpcService : public grpc::CallbackGenericService {
 public:
  explicit GrpcService(Fake& fake) : fake_(fake) {}
  grpc::ServerGenericBidiReactor* CreateReactor(
      grpc::GenericCallbackServerContext* context) override {
    const std::string method = context->method();
    return new GrpcCall(fake_, method.substr(method.rfind('/') + 1));
  }

 private:
  Fake& fake_;
};

[[noreturn]] void Serve(bool grpc, const std::string& path,
                        os::UniqueFd listener) {
  static Fake fake;
  if (grpc) {
    GrpcService service(fake);
    grpc::ServerBuilder builder;
    builder.AddListeningPort("unix:" + path, grpc::InsecureServerCredentials());
    builder.RegisterCallbackGenericService(&service);
    std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
    for (;;) ::pause();
  }
  ttrpc::Reactor reactor;
  std::map<std::string, ttrpc::Server::Handler> methods;
  for (const char* service :
       {"containerd.task.v3.Task", "containerd.runtime.sandbox.v1.Sandbox"}) {
    for (const char* method :
         {"Connect", "Create", "Start", "State", "Wait", "Kill", "Delete",
          "Shutdown", "Checkpoint", "CreateSandbox", "StartSandbox", "Platform",
          "StopSandbox", "WaitSandbox", "SandboxStatus", "PingSandbox",
          "ShutdownSandbox", "SandboxMetrics"}) {
      methods[absl::StrCat(service, "/", method)] =
          [](const ttrpc::Request& request, ttrpc::Server::Reply reply) {
            std::thread([request, reply] {
              fake.Call(request.method, request.payload, reply);
            }).detach();
          };
    }
  }
  auto server =
      ttrpc::Server::Start(reactor, std::move(listener), std::move(methods));
  for (;;) ::pause();
}

int Start(bool grpc) {
  char cwd[4096];
  if (::getcwd(cwd, sizeof(cwd)) == nullptr) return 1;
  const std::string path = absl::StrCat(cwd, "/fake.sock");
  // gRPC makes its own.
  absl::StatusOr<os::UniqueFd> listener = os::UniqueFd();
  if (!grpc) listener = os::ListenUnix(path, {});
  if (!listener.ok()) return 1;
  if (::fork() == 0) {
    ::setsid();
    const int null = ::open("/dev/null", O_RDWR);
    for (const int fd : {0, 1, 2}) ::dup2(null, fd);
    Serve(grpc, path, *std::move(listener));
  }
  if (grpc) {
    while (!os::ConnectUnix(path).ok()) absl::SleepFor(absl::Milliseconds(2));
  }
  std::printf(R"({"version":3,"address":"unix://%s","protocol":"%s"})",
              path.c_str(), grpc ? "grpc" : "ttrpc");
  return 0;
}

}  // namespace
}  // namespace bulkhead::runtime

int main(int argc, char** argv) {
  const std::string last = argv[argc - 1];
  if (last == "-info") {
    containerd::types::RuntimeInfo info;
    info.set_name("fake");
    info.mutable_version()->set_version("1.2.3");
    const std::string bytes = info.SerializeAsString();
    return std::fwrite(bytes.data(), 1, bytes.size(), stdout) == bytes.size()
               ? 0
               : 1;
  }
  if (last == "delete") {
    containerd::task::v2::DeleteResponse response;
    response.set_exit_status(137);
    response.mutable_exited_at()->set_seconds(absl::ToUnixSeconds(absl::Now()));
    const std::string bytes = response.SerializeAsString();
    return std::fwrite(bytes.data(), 1, bytes.size(), stdout) == bytes.size()
               ? 0
               : 1;
  }
  if (last != "start") return 1;
  return bulkhead::runtime::Start(std::string(argv[0]).find("fakegrpc") !=
                                  std::string::npos);
}
