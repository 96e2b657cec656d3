// The part of TaskManager that deals with shims coming and going: attaching,
// finding them again after a restart, burying the dead.
#include <fcntl.h>
#include <signal.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <condition_variable>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/log/log.h"
#include "proto/containerd/events/task.pb.h"
#include "services/runtime/cgroup_end.h"
#include "services/runtime/process.h"
#include "services/runtime/publish.h"
#include "services/runtime/shim_log.h"
#include "services/runtime/task.h"
#include "services/runtime/task_manager.h"

namespace bulkhead::runtime {
namespace {

namespace events_v1 = ::containerd::events;
using Json = nlohmann::json;

constexpr uint32_t kUnknownExitStatus = 255;
// How long a process takes at most to go once it got SIGKILL.
constexpr absl::Duration kKillMax = absl::Seconds(2);
// How long a shim that lost its connection may take to exit.
constexpr absl::Duration kLastBreath = absl::Milliseconds(500);
// Shims repeat an event that was not taken for 15 s.
constexpr absl::Duration kMissedExit = absl::Seconds(16);
// How long a delete waits for the exit event of a process that ended while this
// service was away; shims try again after a second.
constexpr absl::Duration kExitEventMax = absl::Seconds(3);
constexpr char kLeaked[] = "the shim has no task";

void SetNow(Exit* exit) {
  const absl::Time now = absl::Now();
  exit->at_seconds = absl::ToUnixSeconds(now);
  exit->at_nanos = static_cast<int32_t>(absl::ToUnixNanos(now) % 1'000'000'000);
}

absl::Time TimeOf(const Exit& exit) {
  return absl::FromUnixSeconds(exit.at_seconds) +
         absl::Nanoseconds(exit.at_nanos);
}

// What the next life of this service has to know about an exit: each time it is
// told in the same words, metadata takes it as the same one.
struct Memo {
  Exit exit;
  bool told = false;  // Metadata has it for certain.
};

std::string MemoToJson(const Memo& memo) {
  return Json{{"pid", memo.exit.pid},
              {"status", memo.exit.status},
              {"seconds", memo.exit.at_seconds},
              {"nanos", memo.exit.at_nanos},
              {"told", memo.told}}
      .dump();
}

std::optional<Memo> MemoFromJson(const std::string& text) {
  const Json parsed = Json::parse(text, nullptr, false);
  if (!parsed.is_object()) return std::nullopt;
  const auto number = [&](const char* key) -> int64_t {
    auto it = parsed.find(key);
    return it != parsed.end() && it->is_number_integer() ? it->get<int64_t>()
                                                         : 0;
  };
  const Exit exit{static_cast<uint32_t>(number("pid")),
                  static_cast<uint32_t>(number("status")), number("seconds"),
                  static_cast<int32_t>(number("nanos"))};
  auto told = parsed.find("told");
  // Earlier versions wrote it only once it was told.
  return Memo{exit, told == parsed.end() || *told != false};
}

}  // namespace

TaskManager::~TaskManager() {
  std::map<Key, TaskPtr> tasks;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    tasks = tasks_;
  }
  for (auto& [key, task] : tasks) {
    std::shared_ptr<ShimConnection> client;
    std::lock_guard<std::mutex> lock(task->mutex);
    task->phase = Task::Phase::kGone;
    client = std::move(task->client);
    if (task->log != nullptr) reactor_.Forget(task->log->get());
    task->changed.notify_all();
  }
  // Hooks that were under way are over after one round of the reactor; on its
  // own thread there are none.
  if (reactor_.OnThread()) return;
  std::mutex mutex;
  std::condition_variable passed;
  bool done = false;
  reactor_.Post([&] {
    std::lock_guard<std::mutex> lock(mutex);
    done = true;
    passed.notify_all();
  });
  std::unique_lock<std::mutex> lock(mutex);
  passed.wait(lock, [&] { return done; });
}

absl::Status TaskManager::Recover() {
  RETURN_IF_ERROR(options_.bundles.Init());
  std::vector<TaskPtr> found;
  for (const auto& [ns, id] : options_.bundles.List()) {
    auto task = std::make_shared<Task>(ns, id, Task::Phase::kLoading);
    task->bundle = options_.bundles.Path(ns, id);
    std::lock_guard<std::mutex> lock(mutex_);
    tasks_[{ns, id}] = task;
    found.push_back(task);
  }
  options_.bundles.RemoveOrphanedWork();
  for (const TaskPtr& task : found) {
    workers_.Post([this, task] { Load(task); });
  }
  if (!found.empty()) {
    log::Info("looking for shims", {{"bundles", absl::StrCat(found.size())}});
  }
  return absl::OkStatus();
}

absl::Status TaskManager::Attach(const TaskPtr& task) {
  ASSIGN_OR_RETURN(std::shared_ptr<ShimConnection> client,
                   options_.dialer(task->bootstrap,
                                   [this, weak = std::weak_ptr<Task>(task)] {
                                     if (TaskPtr task = weak.lock())
                                       OnDisconnect(task);
                                   }));
  std::shared_ptr<ShimConnection> old;
  {
    std::lock_guard<std::mutex> lock(task->mutex);
    old = std::exchange(task->client, client);
    task->connected = !client->closed();
  }
  // The socket's peer credentials name whoever called listen(): often the
  // `start` command, long gone. The shim itself knows its pid.
  shim_v2::ConnectRequest request;
  request.set_id(task->id);
  absl::StatusOr<shim_v2::ConnectResponse> connect =
      Call<shim_v2::ConnectResponse>(task, "Connect", request,
                                     options_.deadlines.load);
  RETURN_IF_ERROR(connect.status());
  client->Identify(static_cast<pid_t>(connect->shim_pid()));
  std::lock_guard<std::mutex> lock(task->mutex);
  task->shim_pid = static_cast<pid_t>(connect->shim_pid());
  task->shim = OpenProcess(task->shim_pid);
  if (connect->task_pid() != 0) {
    task->pid = connect->task_pid();
    task->init = OpenProcess(static_cast<pid_t>(task->pid), task->shim_pid);
  }
  return absl::OkStatus();
}

void TaskManager::OpenLog(const TaskPtr& task) {
  task->log = CopyShimLog(reactor_, task->bundle, task->ns, task->id);
}

absl::Status TaskManager::LoadShim(const TaskPtr& task) {
  const Bundles& bundles = options_.bundles;
  const std::string& ns = task->ns;
  const std::string& id = task->id;
  absl::StatusOr<std::string> binary = bundles.Read(ns, id, kShimBinaryFile);
  if (binary.ok()) {
    task->shim_binary = *binary;
  } else {
    ASSIGN_OR_RETURN(ContainerRecord record, containers_(ns, id));
    ASSIGN_OR_RETURN(
        task->shim_binary,
        shims_.Resolve(record.runtime.empty() ? options_.default_runtime
                                              : record.runtime));
  }
  task->joined = bundles.Read(ns, id, kSandboxFile).ok();
  absl::StatusOr<std::string> exit = bundles.Read(ns, id, kExitFile);
  if (exit.ok()) {
    std::lock_guard<std::mutex> lock(task->mutex);
    // Its shim may have told it again meanwhile.
    const std::optional<Memo> memo = MemoFromJson(*exit);
    if (memo.has_value() && !task->exit_published) {
      task->exit = memo->exit;
      task->exit_published = task->exit_told = memo->told;
    }
  }
  absl::StatusOr<std::string> json = bundles.Read(ns, id, kBootstrapFile);
  if (json.ok()) {
    ASSIGN_OR_RETURN(Bootstrap bootstrap, BootstrapFromJson(*json));
    SetBootstrap(task, std::move(bootstrap));
  } else {
    absl::StatusOr<std::string> address = bundles.Read(ns, id, kAddressFile);
    if (!address.ok()) {
      return absl::FailedPreconditionError(kLeaked);  // Its start was cut off.
    }
    ASSIGN_OR_RETURN(Bootstrap bootstrap, ParseBootstrap(*address));
    SetBootstrap(task, std::move(bootstrap));
    RETURN_IF_ERROR(
        bundles.Write(ns, id, kBootstrapFile, ToJson(task->bootstrap)));
  }
  OpenLog(task);
  RETURN_IF_ERROR(Attach(task));
  shim_v2::StateRequest request;
  request.set_id(id);
  absl::StatusOr<shim_v2::StateResponse> state = Call<shim_v2::StateResponse>(
      task, "State", request, options_.deadlines.load);
  if (absl::IsNotFound(state.status())) {
    return absl::FailedPreconditionError(kLeaked);
  }
  RETURN_IF_ERROR(state.status());
  if (state->status() == containerd::v1::types::STOPPED) {
    std::lock_guard<std::mutex> lock(task->mutex);
    // Its pid may be somebody else's by now.
    task->init.Reset();
    if (!task->exit) {
      task->exit =
          Exit{state->pid(), state->exit_status(), state->exited_at().seconds(),
               state->exited_at().nanos()};
    }
    if (!task->exit_published) {
      task->exit_event_due = true;
      reactor_.At(absl::Now() + kMissedExit,
                  [this, weak = std::weak_ptr<Task>(task)] {
                    if (TaskPtr task = weak.lock()) CheckMissedExit(task);
                  });
    }
  }
  return absl::OkStatus();
}

void TaskManager::Load(const TaskPtr& task) {
  const absl::Status status = LoadShim(task);
  if (status.ok() || absl::IsDeadlineExceeded(status)) {
    // A shim that lives and does not answer keeps its task: calls to it have
    // deadlines of their own.
    if (!status.ok()) {
      IdentifyFromKernel(task);
      log::Warn("shim does not answer", {{"ns", task->ns}, {"id", task->id}});
    }
    bool lost;
    {
      std::lock_guard<std::mutex> lock(task->mutex);
      if (task->phase != Task::Phase::kLoading) return;
      task->phase = Task::Phase::kLive;
      lost = !task->connected;
      task->changed.notify_all();
    }
    if (lost) return HandleLostShim(task);
    return ResumeWaits(task);
  }
  log::Warn("shim is lost",
            {{"ns", task->ns}, {"id", task->id}, {"error", MessageOf(status)}});
  {
    std::lock_guard<std::mutex> lock(task->mutex);
    if (task->phase != Task::Phase::kLoading) return;
    task->phase = Task::Phase::kEnding;
    task->changed.notify_all();
  }
  const bool leaked =
      (absl::IsFailedPrecondition(status) && MessageOf(status) == kLeaked) ||
      options_.bundles.Read(task->ns, task->id, kDeletedFile).ok();
  if (leaked && task->client != nullptr) EndShim(task, /*deleted=*/false);
  Bury(task, /*known=*/!leaked);
}

void TaskManager::ResumeWaits(const TaskPtr& task) {
  std::list<std::shared_ptr<WaitCall>> parked;
  {
    std::lock_guard<std::mutex> lock(task->mutex);
    parked.swap(task->parked);
  }
  for (const auto& wait : parked) {
    if (!wait->answered()) IssueWait(task, wait->exec_id, wait);
  }
}

void TaskManager::OnDisconnect(const TaskPtr& task) {
  {
    std::lock_guard<std::mutex> lock(task->mutex);
    if (task->client == nullptr || !task->client->closed()) return;
    task->connected = false;
    task->changed.notify_all();
    if (task->phase != Task::Phase::kLive) return;
  }
  workers_.Post([this, task] { HandleLostShim(task); });
}

void TaskManager::HandleLostShim(const TaskPtr& task) {
  bool lives;
  {
    std::lock_guard<std::mutex> lock(task->mutex);
    if (task->phase != Task::Phase::kLive || task->connected) return;
    lives = !AwaitExit(task->shim, kLastBreath);
  }
  if (lives && Attach(task).ok()) return ResumeWaits(task);
  {
    std::lock_guard<std::mutex> lock(task->mutex);
    if (task->phase != Task::Phase::kLive) return;
    task->phase = Task::Phase::kEnding;
    task->changed.notify_all();
  }
  log::Warn("shim died", {{"ns", task->ns}, {"id", task->id}});
  Bury(task, /*known=*/true);
}

void TaskManager::Bury(const TaskPtr& task, bool known) {
  const bool own_shim = !task->joined;
  if (own_shim && IsAlive(task->shim)) {
    SendSignal(task->shim, SIGKILL);
    AwaitExit(task->shim, kKillMax);
  }
  Exit exit;
  SetNow(&exit);
  exit.status = kUnknownExitStatus;
  bool cleaned = false;
  const std::string cgroup = CgroupOf(task);
  if (!task->shim_binary.empty()) {
    absl::StatusOr<ShimDeleteResult> result =
        shims_.Delete({task->shim_binary, task->ns, task->id, task->bundle},
                      options_.deadlines.cleanup);
    cleaned = result.ok();
    if (result.ok()) {
      exit = {result->pid, result->exit_status, result->exited_at_seconds,
              result->exited_at_nanos};
    } else {
      log::Warn("shim delete failed", {{"ns", task->ns},
                                       {"id", task->id},
                                       {"error", MessageOf(result.status())}});
    }
  }
  if (IsAlive(task->init)) {
    SendSignal(task->init, SIGKILL);
    AwaitExit(task->init, kKillMax);
  }
  if (!cleaned && !EndCgroup(cgroup, kKillMax)) {
    log::Warn("cgroup stays",
              {{"ns", task->ns}, {"id", task->id}, {"cgroup", cgroup}});
  }
  bool publish_exit, publish_delete;
  {
    std::lock_guard<std::mutex> lock(task->mutex);
    if (task->exit) {
      exit = *task->exit;
    } else if (task->pid != 0) {
      exit.pid = task->pid;
    }
    // What is only on its way would die with this service, as its shim is dead.
    publish_exit = known && !task->exit_told;
    publish_delete = known && !task->delete_told;
  }
  // In this order: should this service die in between, its next life comes here
  // again, or finds the events in the spool.
  if (known) WriteExit(*task, exit, /*told=*/!publish_exit);
  if (publish_exit) PublishExit(*task, exit);
  if (publish_delete) PublishDelete(*task, exit);
  RemoveBundle(*task);
  Finish(task, exit);
}

// Shutdown, the end of the connection, and the `delete` command that shims
// count on after every task. Ours needs no such call after a clean Delete.
void TaskManager::EndShim(const TaskPtr& task, bool deleted) {
  std::shared_ptr<ShimConnection> client;
  {
    std::lock_guard<std::mutex> lock(task->mutex);
    client = task->client;
  }
  if (!task->joined && client != nullptr) {
    bool shared = false;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      for (const auto& [key, other] : tasks_) {
        shared |= other != task &&
                  other->bootstrap.address == task->bootstrap.address;
      }
    }
    shim_v2::ShutdownRequest request;
    request.set_id(task->id);
    (void)Invoke(
        task, "Shutdown", request.SerializeAsString(),
        options_.deadlines.shutdown);  // A closed connection is as good.
    if (!shared) {
      // So that a successor of the same name cannot join a shim that is about
      // to exit.
      std::unique_lock<std::mutex> lock(task->mutex);
      task->changed.wait_for(
          lock, absl::ToChronoNanoseconds(options_.deadlines.shutdown),
          [&] { return !task->connected; });
    }
  }
  if (client != nullptr) client->Close();
  if (task->joined || task->shim_binary.empty() ||
      (deleted && IsOwnShim(task->shim_binary))) {
    return;
  }
  absl::StatusOr<ShimDeleteResult> result =
      shims_.Delete({task->shim_binary, task->ns, task->id, task->bundle},
                    options_.deadlines.cleanup);
  if (!result.ok()) {
    log::Warn("shim delete failed", {{"ns", task->ns},
                                     {"id", task->id},
                                     {"error", MessageOf(result.status())}});
  }
}

void TaskManager::Finish(const TaskPtr& task, const Exit& exit) {
  std::list<std::shared_ptr<WaitCall>> parked;
  std::shared_ptr<ShimConnection> client;
  {
    std::lock_guard<std::mutex> lock(task->mutex);
    task->exit = exit;
  }
  Drop(task);
  {
    std::lock_guard<std::mutex> lock(task->mutex);
    parked.swap(task->parked);
    client = std::move(task->client);
  }
  for (const auto& wait : parked) wait->Complete(exit);
}

void TaskManager::PublishExit(const Task& task, const Exit& exit) {
  events_v1::TaskExit event;
  event.set_container_id(task.id);
  event.set_id(task.id);
  event.set_pid(exit.pid);
  event.set_exit_status(exit.status);
  event.mutable_exited_at()->set_seconds(exit.at_seconds);
  event.mutable_exited_at()->set_nanos(exit.at_nanos);
  events_.PublishSafely(MakeEnvelope(task.ns, "/tasks/exit", event));
}

void TaskManager::PublishDelete(const Task& task, const Exit& exit) {
  events_v1::TaskDelete event;
  event.set_container_id(task.id);
  event.set_pid(exit.pid);
  event.set_exit_status(exit.status);
  event.mutable_exited_at()->set_seconds(exit.at_seconds);
  event.mutable_exited_at()->set_nanos(exit.at_nanos);
  events_.PublishSafely(MakeEnvelope(task.ns, "/tasks/delete", event));
}

void TaskManager::CheckMissedExit(const TaskPtr& task) {
  std::lock_guard<std::mutex> lock(task->mutex);
  if (task->phase != Task::Phase::kLive || task->exit_published ||
      !task->exit) {
    return;
  }
  task->exit_published = task->exit_told = true;
  PublishExit(*task, *task->exit);
  WriteExit(*task, *task->exit, /*told=*/true);
}

void TaskManager::WriteExit(const Task& task, const Exit& exit, bool told) {
  // Without it an exit may be told twice, no more.
  (void)options_.bundles.Write(task.ns, task.id, kExitFile,
                               MemoToJson({exit, told}));
}

void TaskManager::AwaitExitEvent(const TaskPtr& task) {
  {
    std::unique_lock<std::mutex> lock(task->mutex);
    if (!task->exit_event_due) return;
    task->changed.wait_for(lock, absl::ToChronoNanoseconds(kExitEventMax),
                           [&] { return task->exit_published; });
    task->exit_event_due = false;
  }
  CheckMissedExit(task);
}

bool TaskManager::Observe(const containerd::types::Envelope& envelope,
                          EventStage stage) {
  const bool is_exit = envelope.topic() == "/tasks/exit";
  if (!is_exit && envelope.topic() != "/tasks/delete") return true;
  Exit exit;
  std::string id;
  if (is_exit) {
    events_v1::TaskExit event;
    if (!event.ParseFromString(envelope.event().value()) ||
        event.id() != event.container_id()) {
      return true;
    }
    id = event.container_id();
    exit = {event.pid(), event.exit_status(), event.exited_at().seconds(),
            event.exited_at().nanos()};
  } else {
    events_v1::TaskDelete event;
    if (!event.ParseFromString(envelope.event().value()) ||
        (!event.id().empty() && event.id() != event.container_id())) {
      return true;
    }
    id = event.container_id();
    exit = {event.pid(), event.exit_status(), event.exited_at().seconds(),
            event.exited_at().nanos()};
  }
  TaskPtr task = Peek({envelope.namespace_(), id});
  if (task == nullptr) return true;
  std::lock_guard<std::mutex> lock(task->mutex);
  // A late event of an earlier task of this name says nothing about this.
  if (task->pid != 0 ? exit.pid != task->pid
                     : TimeOf(exit) < task->created_at) {
    return true;
  }
  // Also while it is created or found again: the next life of this service has
  // nobody else to ask.
  const bool has_bundle =
      task->phase != Task::Phase::kEnding && task->phase != Task::Phase::kGone;
  bool& published = is_exit ? task->exit_published : task->delete_published;
  switch (stage) {
    case EventStage::kArrived:
      if (published) return false;
      published = true;
      if (is_exit) {
        task->exit = exit;
        // Before metadata hears of it: its answer may find nobody here.
        if (has_bundle) WriteExit(*task, exit, /*told=*/false);
      }
      task->changed.notify_all();
      break;
    case EventStage::kRefused:
      published = false;  // The shim will send it again.
      break;
    case EventStage::kSent:
      (is_exit ? task->exit_told : task->delete_told) = true;
      if (is_exit && has_bundle) WriteExit(*task, exit, /*told=*/true);
      break;
  }
  return true;
}

}  // namespace bulkhead::runtime
