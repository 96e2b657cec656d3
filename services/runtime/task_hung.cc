// The part of TaskManager for shims that do not answer: what the kernel knows
// decides then, so that no caller hangs and nothing is left.
#include <signal.h>
#include <unistd.h>

#include <condition_variable>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/log/log.h"
#include "lib/os/fd.h"
#include "lib/ttrpc/client.h"
#include "services/runtime/cgroup_end.h"
#include "services/runtime/process.h"
#include "services/runtime/task.h"
#include "services/runtime/task_manager.h"

namespace bulkhead::runtime {
namespace {

// A call that takes longer than the first is no reason to worry if the shim
// answers another within the second. Asked again at the third's pace.
constexpr absl::Duration kProbeAfter = absl::Seconds(1);
constexpr absl::Duration kProbeMax = absl::Seconds(3);
constexpr absl::Duration kProbeEvery = absl::Seconds(3);
constexpr absl::Duration kKillMax = absl::Seconds(2);
constexpr char kInitPidFile[] = "init.pid";

// The parent of a process, 0 if it cannot be known.
pid_t ParentOf(pid_t pid) {
  const std::string stat =
      os::ReadFile(absl::StrCat("/proc/", pid, "/stat"), 4096).value_or("");
  const size_t name_end = stat.rfind(')');
  char state = 0;
  int parent = 0;
  if (name_end == std::string::npos ||
      ::sscanf(stat.c_str() + name_end + 1, " %c %d", &state, &parent) != 2) {
    return 0;
  }
  return parent;
}

bool Runs(pid_t pid, const std::string& program) {
  char path[4096];
  const ssize_t size = ::readlink(absl::StrCat("/proc/", pid, "/exe").c_str(),
                                  path, sizeof(path));
  char* real = ::realpath(program.c_str(), nullptr);
  const bool same =
      size > 0 && real != nullptr &&
      std::string(path, static_cast<size_t>(size)) == std::string(real);
  ::free(real);
  return same;
}

}  // namespace

absl::StatusOr<std::string> TaskManager::InvokeProbed(
    const TaskPtr& task, const std::string& method, const std::string& payload,
    absl::Duration timeout) {
  std::shared_ptr<ShimConnection> client;
  std::string service;
  {
    std::lock_guard<std::mutex> lock(task->mutex);
    client = task->client;
    service =
        absl::StrCat("containerd.task.v", task->bootstrap.version, ".Task");
  }
  if (client == nullptr) return absl::UnknownError(ttrpc::kClosedText);
  struct Slot {
    std::mutex mutex;
    std::condition_variable ready;
    std::optional<absl::StatusOr<std::string>> result;
  };
  auto slot = std::make_shared<Slot>();
  const ShimConnection::CallId call =
      client->Start(service, method, payload, task->ns, absl::Now() + timeout,
                    [slot](absl::StatusOr<std::string> result) {
                      std::lock_guard<std::mutex> lock(slot->mutex);
                      slot->result = std::move(result);
                      slot->ready.notify_one();
                    });
  shim_v2::ConnectRequest probe;
  probe.set_id(task->id);
  absl::Duration wait = kProbeAfter;
  for (;;) {
    {
      std::unique_lock<std::mutex> lock(slot->mutex);
      slot->ready.wait_for(lock, absl::ToChronoNanoseconds(wait),
                           [&] { return slot->result.has_value(); });
      if (slot->result.has_value()) return std::move(*slot->result);
    }
    const absl::Status alive =
        client
            ->Call(service, "Connect", probe.SerializeAsString(), task->ns,
                   kProbeMax)
            .status();
    if (absl::IsDeadlineExceeded(alive)) {
      client->Cancel(call);
      std::lock_guard<std::mutex> lock(slot->mutex);
      if (slot->result.has_value()) return std::move(*slot->result);
      log::Warn("shim does not answer",
                {{"ns", task->ns}, {"id", task->id}, {"method", method}});
      return absl::DeadlineExceededError(
          absl::StrCat("the shim of task ", task->id, " does not answer"));
    }
    wait = kProbeEvery;
  }
}

void TaskManager::IdentifyFromKernel(const TaskPtr& task) {
  const absl::StatusOr<std::string> text =
      options_.bundles.Read(task->ns, task->id, kInitPidFile);
  pid_t pid = 0;
  if (!text.ok() || !absl::SimpleAtoi(*text, &pid) || pid <= 0) return;
  // A subreaper is its containers' parent.
  const pid_t parent = ParentOf(pid);
  if (parent <= 1 || !Runs(parent, task->shim_binary)) return;
  std::lock_guard<std::mutex> lock(task->mutex);
  if (task->shim.valid()) return;
  task->shim_pid = parent;
  task->shim = OpenProcess(parent);
  task->pid = static_cast<uint32_t>(pid);
  task->init = OpenProcess(pid, parent);
}

absl::StatusOr<shim_v2::StateResponse> TaskManager::StateFromKernel(
    const TaskPtr& task, const std::string& exec_id,
    const absl::Status& error) {
  std::lock_guard<std::mutex> lock(task->mutex);
  shim_v2::StateResponse state;
  state.set_id(task->id);
  state.set_bundle(task->bundle);
  if (!exec_id.empty()) {
    const auto found = task->execs.find(exec_id);
    if (found == task->execs.end() || !IsAlive(found->second.process)) {
      return error;
    }
    state.set_exec_id(exec_id);
    state.set_pid(found->second.pid);
    state.set_status(containerd::v1::types::RUNNING);
    return state;
  }
  if (!task->init.valid()) return error;
  state.set_pid(task->pid);
  if (IsAlive(task->init)) {
    state.set_status(containerd::v1::types::RUNNING);
    return state;
  }
  state.set_status(containerd::v1::types::STOPPED);
  if (task->exit) {
    state.set_exit_status(task->exit->status);
    state.mutable_exited_at()->set_seconds(task->exit->at_seconds);
    state.mutable_exited_at()->set_nanos(task->exit->at_nanos);
  }
  return state;
}

absl::Status TaskManager::KillByKernel(const TaskPtr& task,
                                       const shim_v2::KillRequest& kill,
                                       const absl::Status& error) {
  const int signal = static_cast<int>(kill.signal());
  if (!kill.exec_id().empty()) {
    std::lock_guard<std::mutex> lock(task->mutex);
    const auto found = task->execs.find(kill.exec_id());
    if (found == task->execs.end() || !found->second.process.valid()) {
      return error;
    }
    if (!IsAlive(found->second.process)) {
      return absl::NotFoundError("process already finished");
    }
    SendSignal(found->second.process, signal);
    return absl::OkStatus();
  }
  if (kill.all()) SignalCgroup(CgroupOf(task), signal);
  {
    std::lock_guard<std::mutex> lock(task->mutex);
    if (!task->init.valid()) return error;
    SendSignal(task->init, signal);
  }
  // Nobody is left to report the end, so the shim goes too.
  if (signal == SIGKILL) {
    workers_.Post([this, task] { EndHungShim(task); });
  }
  return absl::OkStatus();
}

void TaskManager::EndHungShim(const TaskPtr& task) {
  std::lock_guard<std::mutex> lock(task->mutex);
  if (task->phase != Task::Phase::kLive || task->joined) return;
  if (!AwaitExit(task->init, kKillMax)) return;
  // Its connection ends with it, and that is taken from there.
  SendSignal(task->shim, SIGKILL);
}

std::string TaskManager::CgroupOf(const TaskPtr& task) const {
  return CgroupPathOf(
      options_.bundles.Read(task->ns, task->id, "config.json").value_or(""));
}

}  // namespace bulkhead::runtime
