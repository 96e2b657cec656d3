#include "services/runtime/shim/sandbox_service.h"

#include <sys/utsname.h>

#include <csignal>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "lib/base/status_macros.h"
#include "lib/ttrpc/wire.h"
#include "services/runtime/shim/cgroup.h"
#include "services/runtime/shim/json_scan.h"
#include "services/runtime/shim/task_wire.h"

namespace bulkhead::shim {
namespace {

using ttrpc::WireReader;
using ttrpc::WireWriter;

// The names that Go gives to processors.
std::string Architecture() {
  utsname names{};
  (void)::uname(&names);  // Cannot fail with a valid address.
  const std::string machine = names.machine;
  if (machine == "x86_64") return "amd64";
  if (machine == "aarch64") return "arm64";
  return machine;
}

// Where a folder of every hierarchy is, as /proc/<pid>/cgroup would say it.
Cgroup CgroupAt(const std::string& path) {
  const bool unified = IsUnified();
  std::string text = unified ? absl::StrCat("0::", path) : "";
  if (!unified) {
    for (const char* controller :
         {"memory", "pids", "cpu", "cpuacct", "blkio", "devices"}) {
      absl::StrAppend(&text, "1:", controller, ":", path, "\n");
    }
  }
  return Cgroup::Parse(kCgroupRoot, unified, text);
}

}  // namespace

void SandboxService::Handle(const std::string& method,
                            const std::string& payload, Reply reply) {
  constexpr const char* kMethods[] = {
      "CreateSandbox", "StartSandbox",    "Platform",
      "StopSandbox",   "WaitSandbox",     "SandboxStatus",
      "PingSandbox",   "ShutdownSandbox", "SandboxMetrics"};
  bool known = false;
  for (const char* name : kMethods) known = known || method == name;
  if (!known) {
    return reply(absl::UnimplementedError(absl::StrCat("method ", method)), "");
  }
  std::string id;
  uint64_t second = 0;
  WireReader reader(payload);
  while (reader.Next()) {
    if (reader.field() == 1) id = reader.str();
    if (reader.field() == 2) second = reader.value();
  }
  if (!reader.ok()) {
    return reply(absl::InvalidArgumentError("malformed request"), "");
  }
  if (method == "CreateSandbox") return Create(payload, reply);
  if (method == "Platform") {
    // Of the machine: the same before there is a pod.
    WireWriter platform;
    platform.Str(1, "linux").Str(2, Architecture());
    WireWriter out;
    out.Message(1, platform.str());
    return reply(absl::OkStatus(), out.Take());
  }
  if (pod_ == nullptr || pod_->id != id) {
    return reply(absl::NotFoundError(absl::StrCat("sandbox ", id)), "");
  }
  const PodRef pod = pod_;
  if (method == "StartSandbox") return Start(pod, reply);
  if (method == "StopSandbox") return Stop(pod, reply);
  if (method == "WaitSandbox") return Wait(pod, reply);
  if (method == "SandboxStatus") return Status(pod, second != 0, reply);
  if (method == "SandboxMetrics") return Metrics(pod, reply);
  if (method == "ShutdownSandbox") return Shutdown(pod, reply);
  reply(absl::OkStatus(), "");  // PingSandbox.
}

void SandboxService::Create(const std::string& payload, const Reply& reply) {
  auto pod = std::make_shared<Pod>();
  std::string options;
  std::string netns_path;
  WireReader reader(payload);
  while (reader.Next()) {
    if (reader.field() == 1) pod->id = reader.str();
    if (reader.field() == 4) options = reader.str();
    if (reader.field() == 5) netns_path = reader.str();
    if (reader.field() == 6) {
      std::string key;
      WireReader entry(reader.bytes());
      while (entry.Next()) {
        if (entry.field() == 1) key = entry.str();
        if (entry.field() == 2) pod->annotations[key] = entry.str();
      }
    }
  }
  if (pod->id.empty()) {
    return reply(absl::InvalidArgumentError("create needs a sandbox id"), "");
  }
  if (pod_ != nullptr) {
    return reply(absl::AlreadyExistsError(absl::StrCat("sandbox ", pod_->id)),
                 "");
  }
  absl::StatusOr<PodConfig> config = ParsePodConfig(options);
  if (!config.ok()) return reply(config.status(), "");
  pod->config = *std::move(config);
  pod->config.netns_path = netns_path;
  pod_ = std::move(pod);
  reply(absl::OkStatus(), "");
}

void SandboxService::Start(const PodRef& pod, const Reply& reply) {
  if (pod->state != State::kCreated) {
    return reply(absl::FailedPreconditionError(
                     absl::StrCat("sandbox ", pod->id, " was started already")),
                 "");
  }
  pod->state = State::kStarting;
  StartPod(
      loop_, pod->config, [this, pod, reply](const absl::StatusOr<pid_t>& pid) {
        if (!pid.ok()) {
          Stopped(pod, {128 + SIGKILL, Now()});
          return reply(pid.status(), "");
        }
        pod->pid = *pid;
        pod->state = State::kReady;
        pod->created_at = Now();
        loop_->OnExit(
            *pid, [this, pod](const ExitInfo& exit) { Stopped(pod, exit); });
        if (pod->stop_wanted) (void)::kill(pod->pid, SIGKILL);
        WireWriter out;
        out.Uint(1, static_cast<uint64_t>(*pid));
        out.Message(2, Timestamp(pod->created_at));
        reply(absl::OkStatus(), out.Take());
      });
}

void SandboxService::Stopped(const PodRef& pod, const ExitInfo& exit) {
  pod->state = State::kStopped;
  pod->exit = exit;
  for (const auto& call : std::exchange(pod->on_stopped, {})) call();
}

void SandboxService::Stop(const PodRef& pod, const Reply& reply) {
  // A pod has no life without its sandbox.
  tasks_->KillAll();
  if (pod->state == State::kCreated) Stopped(pod, {128 + SIGKILL, Now()});
  if (pod->state == State::kStopped) return reply(absl::OkStatus(), "");
  pod->on_stopped.push_back([reply] { reply(absl::OkStatus(), ""); });
  pod->stop_wanted = true;
  // Our own child and not reaped: the number cannot be another's.
  if (pod->state == State::kReady) (void)::kill(pod->pid, SIGKILL);
}

void SandboxService::Wait(const PodRef& pod, const Reply& reply) {
  const auto answer = [pod, reply] {
    WireWriter out;
    AddExit(1, pod->exit, &out);
    reply(absl::OkStatus(), out.Take());
  };
  if (pod->state == State::kStopped) return answer();
  pod->on_stopped.push_back(answer);
}

void SandboxService::Status(const PodRef& pod, bool verbose,
                            const Reply& reply) {
  const bool ready = pod->state == State::kReady;
  WireWriter out;
  out.Str(1, pod->id).Uint(2, static_cast<uint64_t>(pod->pid));
  out.Str(3, ready ? "SANDBOX_READY" : "SANDBOX_NOTREADY");
  if (verbose) {
    const auto add = [&out](const char* key, const std::string& value) {
      WireWriter entry;
      entry.Str(1, key).Str(2, value);
      out.Message(4, entry.str());
    };
    add("netnsPath", pod->config.netns_path);
    add("hostname", pod->config.hostname);
    add("ownNamespaces", absl::StrCat(pod->config.new_ipc ? "ipc " : "",
                                      pod->config.new_uts ? "uts " : "",
                                      pod->config.new_pid ? "pid" : ""));
    add("containers", absl::StrJoin(tasks_->Ids(), " "));
  }
  if (pod->created_at.tv_sec != 0) {
    out.Message(5, Timestamp(pod->created_at));
  }
  if (pod->state == State::kStopped) out.Message(6, Timestamp(pod->exit.at));
  reply(absl::OkStatus(), out.Take());
}

void SandboxService::Metrics(const PodRef& pod, const Reply& reply) {
  absl::StatusOr<std::string> any =
      absl::NotFoundError("cgroup does not exist");
  if (!pod->config.cgroup_parent.empty()) {
    any = CgroupAt(pod->config.cgroup_parent).Metrics();
  } else if (pod->state == State::kReady) {
    const absl::StatusOr<Cgroup> cgroup = Cgroup::OfPid(pod->pid);
    if (cgroup.ok()) any = cgroup->Metrics();
  }
  if (!any.ok()) return reply(any.status(), "");
  WireWriter metric;
  metric.Message(1, Timestamp(Now())).Str(2, pod->id).Message(3, *any);
  WireWriter out;
  out.Message(1, metric.str());
  reply(absl::OkStatus(), out.Take());
}

void SandboxService::Shutdown(const PodRef& pod, const Reply& reply) {
  if (!tasks_->empty()) {
    return reply(absl::FailedPreconditionError(absl::StrCat(
                     "sandbox ", pod->id, " still has containers: ",
                     absl::StrJoin(tasks_->Ids(), ", "))),
                 "");
  }
  const auto finish = [this, pod](const absl::Status&, const std::string&) {
    // The answers go out first.
    loop_->After(0, [this] {
      pod_ = nullptr;
      shut_down_();
    });
  };
  Stop(pod,
       [reply, finish](const absl::Status& status, const std::string& payload) {
         reply(status, payload);
         finish(status, payload);
       });
}

}  // namespace bulkhead::shim
