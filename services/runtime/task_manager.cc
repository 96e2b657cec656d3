#include "services/runtime/task_manager.h"

#include <signal.h>

#include <condition_variable>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/log/log.h"
#include "lib/os/socket.h"
#include "lib/ttrpc/client.h"
#include "proto/containerd/runc/v1/options.pb.h"
#include "services/runtime/process.h"
#include "services/runtime/task.h"

namespace bulkhead::runtime {
namespace {

constexpr int kWorkersMax = 32;
constexpr absl::Duration kSettleMax = absl::Seconds(15);
constexpr char kRuncOptions[] = "containerd.runc.v1.Options";

// A sandbox's older shim takes its containers through a start of its own.
constexpr int kJoinVersionMin = 3;

std::chrono::nanoseconds Chrono(absl::Duration duration) {
  return absl::ToChronoNanoseconds(duration);
}

// "ttrpc+unix:///path" or "grpc+unix:///path", as clients hand it on.
absl::StatusOr<Bootstrap> BootstrapOf(std::string address, int version) {
  Bootstrap out;
  out.version = version > 0 ? version : 2;
  const size_t plus = address.find('+');
  if (plus != std::string::npos && plus < address.find(':')) {
    out.protocol = address.substr(0, plus);
    address.erase(0, plus + 1);
  }
  out.address = address;
  if (out.protocol != "ttrpc" && out.protocol != "grpc") {
    return absl::InvalidArgumentError(absl::StrCat(
        "task API address with unknown protocol \"", out.protocol, "\""));
  }
  return out;
}

absl::Status NoTask(const std::string& id) {
  return absl::NotFoundError(absl::StrCat("task ", id, " not found"));
}

template <typename Response>
Exit ExitOf(const Response& response) {
  Exit exit;
  exit.status = response.exit_status();
  exit.at_seconds = response.exited_at().seconds();
  exit.at_nanos = response.exited_at().nanos();
  return exit;
}

// A type URL without "type.googleapis.com/".
std::string BareUrl(const std::string& url) {
  return url.substr(url.rfind('/') + 1);
}

class Handle : public WaitHandle {
 public:
  explicit Handle(std::shared_ptr<WaitCall> call) : call_(std::move(call)) {}
  ~Handle() override {
    std::shared_ptr<ShimConnection> client;
    std::function<void(absl::StatusOr<Exit>)> dropped;
    ShimConnection::CallId call;
    {
      std::lock_guard<std::mutex> lock(call_->mutex);
      dropped = std::exchange(call_->done, nullptr);
      client = call_->client.lock();
      call = call_->call;
    }
    if (dropped && client != nullptr && call != 0) client->Cancel(call);
  }

 private:
  std::shared_ptr<WaitCall> call_;
};

}  // namespace

TaskManager::TaskManager(Options options, ttrpc::Reactor& reactor,
                         ShimBinaries& shims, EventForwarder& events,
                         ContainerSource containers)
    : options_(std::move(options)),
      reactor_(reactor),
      shims_(shims),
      events_(events),
      containers_(std::move(containers)),
      workers_(kWorkersMax) {}

TaskManager::TaskPtr TaskManager::Peek(const Key& key) {
  std::lock_guard<std::mutex> lock(mutex_);
  auto it = tasks_.find(key);
  return it == tasks_.end() ? nullptr : it->second;
}

absl::StatusOr<TaskManager::TaskPtr> TaskManager::Find(const std::string& ns,
                                                       const std::string& id) {
  if (id.empty()) return absl::InvalidArgumentError("id must not be empty");
  TaskPtr task = Peek({ns, id});
  if (task == nullptr) return NoTask(id);
  std::unique_lock<std::mutex> lock(task->mutex);
  task->changed.wait_for(lock, Chrono(kSettleMax),
                         [&] { return task->phase != Task::Phase::kLoading; });
  if (task->phase == Task::Phase::kLoading) {
    return absl::UnavailableError(
        absl::StrCat("task ", id, " is being loaded"));
  }
  if (task->phase != Task::Phase::kLive) return NoTask(id);
  return task;
}

std::vector<TaskManager::TaskPtr> TaskManager::InNamespace(
    const std::string& ns) {
  std::vector<std::string> ids;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto it = tasks_.lower_bound({ns, ""});
         it != tasks_.end() && it->first.first == ns; ++it) {
      ids.push_back(it->first.second);
    }
  }
  // One that takes long to be found again delays nobody: see StateFromKernel().
  const absl::Time until = absl::Now() + options_.deadlines.state;
  std::vector<TaskPtr> out;
  for (const std::string& id : ids) {
    TaskPtr task = Peek({ns, id});
    if (task == nullptr) continue;
    std::unique_lock<std::mutex> lock(task->mutex);
    task->changed.wait_for(lock, Chrono(until - absl::Now()), [&] {
      return task->phase != Task::Phase::kLoading;
    });
    if (task->phase == Task::Phase::kLive ||
        task->phase == Task::Phase::kLoading) {
      out.push_back(task);
    }
  }
  return out;
}

absl::StatusOr<TaskManager::TaskPtr> TaskManager::Reserve(
    const std::string& ns, const std::string& id) {
  const absl::Time until = absl::Now() + kSettleMax;
  for (;;) {
    TaskPtr old;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      TaskPtr& slot = tasks_[{ns, id}];
      if (slot == nullptr) {
        slot = std::make_shared<Task>(ns, id, Task::Phase::kCreating);
        slot->created_at = absl::Now();
        slot->bundle = options_.bundles.Path(ns, id);
        return slot;
      }
      old = slot;
    }
    // One that is going away is waited for, so that nothing of it races with
    // its successor.
    std::unique_lock<std::mutex> lock(old->mutex);
    const bool gone =
        old->changed.wait_for(lock, Chrono(until - absl::Now()), [&] {
          return old->phase != Task::Phase::kEnding &&
                 old->phase != Task::Phase::kLoading;
        });
    if (!gone || old->phase != Task::Phase::kGone) {
      return absl::AlreadyExistsError(absl::StrCat("task ", id));
    }
  }
}

void TaskManager::Drop(const TaskPtr& task) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    auto it = tasks_.find({task->ns, task->id});
    if (it != tasks_.end() && it->second == task) tasks_.erase(it);
  }
  std::lock_guard<std::mutex> lock(task->mutex);
  task->phase = Task::Phase::kGone;
  if (task->log != nullptr) {
    reactor_.Forget(task->log->get());
    task->log = nullptr;
  }
  task->changed.notify_all();
}

absl::StatusOr<std::string> TaskManager::Invoke(const TaskPtr& task,
                                                const std::string& method,
                                                const std::string& payload,
                                                absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  for (int attempt = 0;; ++attempt) {
    std::shared_ptr<ShimConnection> client;
    int version;
    {
      std::lock_guard<std::mutex> lock(task->mutex);
      client = task->client;
      version = task->bootstrap.version;
    }
    if (client == nullptr) return absl::UnknownError(ttrpc::kClosedText);
    absl::StatusOr<std::string> reply =
        client->Call(absl::StrCat("containerd.task.v", version, ".Task"),
                     method, payload, task->ns, deadline - absl::Now());
    // A shim may announce version 3 and yet have only 2.
    if (attempt == 0 && version == 3 && absl::IsUnimplemented(reply.status()) &&
        (method == "Create" || method == "Connect")) {
      std::lock_guard<std::mutex> lock(task->mutex);
      task->bootstrap.version = 2;
      (void)options_.bundles.Write(
          task->ns, task->id, kBootstrapFile,
          ToJson(task->bootstrap));  // Only saves the same retry later.
      continue;
    }
    return reply;
  }
}

std::vector<absl::StatusOr<std::string>> TaskManager::FanOut(
    const std::vector<TaskPtr>& tasks, const std::string& method,
    const std::vector<std::string>& payloads, absl::Duration timeout) {
  struct Gather {
    std::mutex mutex;
    std::condition_variable done;
    size_t left;
    std::vector<absl::StatusOr<std::string>> results;
  };
  auto gather = std::make_shared<Gather>();
  gather->left = tasks.size();
  gather->results.assign(tasks.size(), absl::UnknownError(ttrpc::kClosedText));
  const absl::Time deadline = absl::Now() + timeout;
  for (size_t i = 0; i < tasks.size(); ++i) {
    std::shared_ptr<ShimConnection> client;
    int version;
    {
      std::lock_guard<std::mutex> lock(tasks[i]->mutex);
      client = tasks[i]->client;
      version = tasks[i]->bootstrap.version;
    }
    auto finish = [gather, i](absl::StatusOr<std::string> result) {
      std::lock_guard<std::mutex> lock(gather->mutex);
      gather->results[i] = std::move(result);
      if (--gather->left == 0) gather->done.notify_all();
    };
    if (client == nullptr) {
      finish(absl::UnknownError(ttrpc::kClosedText));
    } else {
      client->Start(absl::StrCat("containerd.task.v", version, ".Task"), method,
                    payloads[i], tasks[i]->ns, deadline, finish);
    }
  }
  std::unique_lock<std::mutex> lock(gather->mutex);
  gather->done.wait(lock, [&] { return gather->left == 0; });
  return std::move(gather->results);
}

absl::StatusOr<uint32_t> TaskManager::Create(const std::string& ns,
                                             const CreateTask& request) {
  RETURN_IF_ERROR(ValidateId(request.id));
  warmer_.Warm();
  ASSIGN_OR_RETURN(ContainerRecord record, containers_(ns, request.id));
  if (!request.options.type_url.empty() &&
      BareUrl(request.options.type_url) != kRuncOptions) {
    return absl::UnknownError(
        absl::StrCat("invalid task create option for ", record.runtime));
  }
  ASSIGN_OR_RETURN(TaskPtr task, Reserve(ns, request.id));
  absl::StatusOr<uint32_t> pid = CreateIn(task, request, record);
  if (!pid.ok()) Forget(task, request);
  return pid;
}

absl::StatusOr<uint32_t> TaskManager::CreateIn(const TaskPtr& task,
                                               const CreateTask& request,
                                               const ContainerRecord& record) {
  std::string runtime =
      record.runtime.empty() ? options_.default_runtime : record.runtime;
  if (!request.runtime_path.empty()) runtime = request.runtime_path;
  absl::StatusOr<std::string> binary = shims_.Resolve(runtime);
  if (!binary.ok()) return binary.status();
  task->shim_binary = *binary;

  // Options with a type and no value mean "unset".
  Any options =
      request.options.value.empty() ? record.options : request.options;
  options.type_url = BareUrl(options.type_url);
  if (IsRuncShim(task->shim_binary) &&
      (options.type_url.empty() || options.type_url == kRuncOptions)) {
    containerd::runc::v1::Options runc;
    if (!runc.ParseFromString(options.value)) {
      return absl::InvalidArgumentError("malformed runc options");
    }
    if (runc.root().empty()) {
      runc.set_root(shims_.environment().oci_root);
      options = {kRuncOptions, runc.SerializeAsString()};
    }
  }
  RETURN_IF_ERROR(
      options_.bundles.Create(task->ns, task->id, record.spec.value));
  std::string checkpoint = request.checkpoint;
  if (request.fetch_checkpoint) {
    checkpoint = absl::StrCat(task->bundle, "/checkpoint");
    RETURN_IF_ERROR(request.fetch_checkpoint(checkpoint));
  }
  std::vector<containerd::types::Mount> rootfs = request.rootfs;
  if (options_.rootfs_mounts != nullptr && NeedActivation(rootfs)) {
    // First, so that whatever comes in between it is deactivated with the end
    // of the bundle.
    RETURN_IF_ERROR(
        options_.bundles.Write(task->ns, task->id, kActivatedFile, ""));
    const absl::Status activated =
        options_.rootfs_mounts->Activate(task->ns, task->id, &rootfs);
    if (absl::IsAlreadyExists(activated)) {
      RETURN_IF_ERROR(
          options_.bundles.Write(task->ns, task->id, kActivatedFile, kNotOurs));
    }
    RETURN_IF_ERROR(activated);
  }
  RETURN_IF_ERROR(StartShim(task, request, record, options));

  shim_v2::CreateTaskRequest create;
  create.set_id(task->id);
  create.set_bundle(task->bundle);
  for (const auto& mount : rootfs) *create.add_rootfs() = mount;
  create.set_terminal(request.terminal);
  create.set_stdin(request.stdin_path);
  create.set_stdout(request.stdout_path);
  create.set_stderr(request.stderr_path);
  create.set_checkpoint(checkpoint);
  if (!options.type_url.empty()) {
    create.mutable_options()->set_type_url(options.type_url);
    create.mutable_options()->set_value(options.value);
  }
  absl::StatusOr<shim_v2::CreateTaskResponse> created =
      Call<shim_v2::CreateTaskResponse>(task, "Create", create,
                                        options_.deadlines.call);
  if (!created.ok()) {
    return absl::Status(created.status().code(),
                        absl::StrCat("failed to create shim task: ",
                                     MessageOf(created.status())));
  }
  bool lost;
  {
    std::lock_guard<std::mutex> lock(task->mutex);
    task->pid = created->pid();
    task->init =
        OpenProcess(static_cast<pid_t>(created->pid()), task->shim_pid);
    task->phase = Task::Phase::kLive;
    task->changed.notify_all();
    lost = !task->connected;
  }
  // It died between its answer and here: nobody has been told yet.
  if (lost) OnDisconnect(task);
  return created->pid();
}

absl::Status TaskManager::StartShim(const TaskPtr& task,
                                    const CreateTask& request,
                                    const ContainerRecord& record,
                                    const Any& options) {
  RETURN_IF_ERROR(options_.bundles.Write(task->ns, task->id, kShimBinaryFile,
                                         task->shim_binary));
  OpenLog(task);
  absl::StatusOr<Bootstrap> sandbox = absl::NotFoundError("");
  if (!request.task_api_address.empty()) {
    sandbox = BootstrapOf(request.task_api_address, request.task_api_version);
    RETURN_IF_ERROR(sandbox.status());
  } else if (!record.sandbox.empty() && options_.sandboxes) {
    sandbox = options_.sandboxes(task->ns, record.sandbox);
  }
  if (sandbox.ok() && (sandbox->version >= kJoinVersionMin ||
                       !request.task_api_address.empty())) {
    task->joined = true;
    SetBootstrap(task, *std::move(sandbox));
    RETURN_IF_ERROR(options_.bundles.Write(task->ns, task->id, kSandboxFile,
                                           record.sandbox));
  } else {
    ASSIGN_OR_RETURN(
        Bootstrap started,
        shims_.Start({task->shim_binary, task->ns, task->id, task->bundle},
                     options));
    SetBootstrap(task, std::move(started));
  }
  RETURN_IF_ERROR(options_.bundles.Write(task->ns, task->id, kBootstrapFile,
                                         ToJson(task->bootstrap)));
  return Attach(task);
}

void TaskManager::SetBootstrap(const TaskPtr& task, Bootstrap bootstrap) {
  std::lock_guard<std::mutex> lock(mutex_);
  task->bootstrap = std::move(bootstrap);
}

// Undoes a Create that failed, as far as it came.
void TaskManager::Forget(const TaskPtr& task, const CreateTask& request) {
  const Deadlines& deadlines = options_.deadlines;
  std::shared_ptr<ShimConnection> client;
  {
    std::lock_guard<std::mutex> lock(task->mutex);
    task->phase = Task::Phase::kEnding;
    client = task->client;
  }
  if (client != nullptr) {
    shim_v2::DeleteRequest remove;
    remove.set_id(task->id);
    absl::StatusOr<std::string> removed =
        Invoke(task, "Delete", remove.SerializeAsString(), deadlines.cleanup);
    EndShim(task, removed.ok());
  }
  RemoveBundle(*task);
  Drop(task);
}

void TaskManager::RemoveBundle(const Task& task) {
  const bool activated = HasActivation(task);
  const absl::Status removed = options_.bundles.Remove(task.ns, task.id);
  if (!removed.ok()) {
    log::Warn(
        "bundle stays",
        {{"ns", task.ns}, {"id", task.id}, {"error", MessageOf(removed)}});
  }
  if (activated) Deactivate(task);
}

bool TaskManager::HasActivation(const Task& task) const {
  return options_.rootfs_mounts != nullptr &&
         options_.bundles.Read(task.ns, task.id, kActivatedFile)
                 .value_or(kNotOurs) != kNotOurs;
}

void TaskManager::Deactivate(const Task& task) {
  const absl::Status status =
      options_.rootfs_mounts->Deactivate(task.ns, task.id);
  if (!status.ok()) {  // They go with the container.
    log::Warn("mounts below the root file system stay",
              {{"ns", task.ns}, {"id", task.id}, {"error", MessageOf(status)}});
  }
}

absl::StatusOr<uint32_t> TaskManager::Start(const std::string& ns,
                                            const std::string& id,
                                            const std::string& exec_id) {
  ASSIGN_OR_RETURN(TaskPtr task, Find(ns, id));
  shim_v2::StartRequest start;
  start.set_id(id);
  start.set_exec_id(exec_id);
  ASSIGN_OR_RETURN(shim_v2::StartResponse started,
                   Call<shim_v2::StartResponse>(task, "Start", start,
                                                options_.deadlines.call));
  std::lock_guard<std::mutex> lock(task->mutex);
  if (!exec_id.empty()) {
    task->execs[exec_id] = {
        started.pid(),
        OpenProcess(static_cast<pid_t>(started.pid()), task->shim_pid)};
  } else {
    // A restored container has its process only now.
    if (!task->init.valid() && started.pid() != task->pid) {
      task->pid = started.pid();
      task->init =
          OpenProcess(static_cast<pid_t>(started.pid()), task->shim_pid);
    }
  }
  return started.pid();
}

absl::StatusOr<Exit> TaskManager::Delete(const std::string& ns,
                                         const std::string& id) {
  ASSIGN_OR_RETURN(TaskPtr task, Find(ns, id));
  AwaitExitEvent(task);
  shim_v2::DeleteRequest remove;
  remove.set_id(id);
  absl::StatusOr<shim_v2::DeleteResponse> removed =
      Parse<shim_v2::DeleteResponse>(
          "Delete", InvokeProbed(task, "Delete", remove.SerializeAsString(),
                                 options_.deadlines.remove));
  bool lost = ttrpc::IsClosed(removed.status());
  if (absl::IsDeadlineExceeded(removed.status())) {
    // The shim hangs. Its process decides whether there is still something to
    // keep.
    std::lock_guard<std::mutex> lock(task->mutex);
    if (IsAlive(task->init)) return removed.status();
    SendSignal(task->shim, SIGKILL);
    lost = true;
  }
  std::unique_lock<std::mutex> lock(task->mutex);
  if (lost) {
    task->changed.wait_for(lock, Chrono(kSettleMax),
                           [&] { return task->phase == Task::Phase::kGone; });
    if (task->phase == Task::Phase::kGone && task->exit) return *task->exit;
    return removed.status();
  }
  if (!removed.ok() && !absl::IsNotFound(removed.status())) {
    return removed.status();
  }
  if (task->phase != Task::Phase::kLive) return NoTask(id);
  task->phase = Task::Phase::kEnding;
  // Should this service die now, its next life knows that all was reported.
  (void)options_.bundles.Write(ns, id, kDeletedFile, "");
  Exit exit;
  if (removed.ok()) {
    exit = ExitOf(*removed);
    exit.pid = removed->pid();
  } else if (task->exit) {
    exit = *task->exit;
  }
  lock.unlock();
  EndShim(task, removed.ok());
  // Deleting files may wait for the disk: nobody has to wait for that.
  std::vector<std::string> left;
  const bool activated = HasActivation(*task);
  const absl::Status cleaned = options_.bundles.Hide(ns, id, &left);
  workers_.Post([left = std::move(left)] {
    // What stays is tried again at the next start.
    for (const std::string& path : left) (void)os::RemoveAll(path);
  });
  if (activated) Deactivate(*task);
  Finish(task, exit);
  if (!removed.ok()) return removed.status();
  if (!cleaned.ok()) {
    log::Warn("bundle stays",
              {{"ns", ns}, {"id", id}, {"error", MessageOf(cleaned)}});
  }
  return exit;
}

absl::StatusOr<Exit> TaskManager::DeleteProcess(const std::string& ns,
                                                const std::string& id,
                                                const std::string& exec_id) {
  ASSIGN_OR_RETURN(TaskPtr task, Find(ns, id));
  shim_v2::DeleteRequest remove;
  remove.set_id(id);
  remove.set_exec_id(exec_id);
  absl::StatusOr<shim_v2::DeleteResponse> reply =
      Parse<shim_v2::DeleteResponse>(
          "Delete", InvokeProbed(task, "Delete", remove.SerializeAsString(),
                                 options_.deadlines.remove));
  if (reply.ok() || absl::IsNotFound(reply.status())) {
    std::lock_guard<std::mutex> lock(task->mutex);
    task->execs.erase(exec_id);
  }
  ASSIGN_OR_RETURN(const shim_v2::DeleteResponse removed, std::move(reply));
  Exit exit = ExitOf(removed);
  exit.pid = removed.pid();
  return exit;
}

absl::StatusOr<shim_v2::StateResponse> TaskManager::State(
    const std::string& ns, const std::string& id, const std::string& exec_id) {
  ASSIGN_OR_RETURN(TaskPtr task, Find(ns, id));
  shim_v2::StateRequest request;
  request.set_id(id);
  request.set_exec_id(exec_id);
  absl::StatusOr<shim_v2::StateResponse> state = Call<shim_v2::StateResponse>(
      task, "State", request, options_.deadlines.state);
  if (ttrpc::IsClosed(state.status())) return NoTask(id);
  if (absl::IsDeadlineExceeded(state.status())) {
    return StateFromKernel(task, exec_id, state.status());
  }
  return state;
}

bool TaskManager::StillLoads(const TaskPtr& task) {
  std::lock_guard<std::mutex> lock(task->mutex);
  return task->phase == Task::Phase::kLoading;
}

std::vector<shim_v2::StateResponse> TaskManager::List(const std::string& ns) {
  const std::vector<TaskPtr> tasks = InNamespace(ns);
  std::vector<std::string> payloads;
  for (const TaskPtr& task : tasks) {
    shim_v2::StateRequest request;
    request.set_id(task->id);
    payloads.push_back(request.SerializeAsString());
  }
  std::vector<absl::StatusOr<std::string>> replies =
      FanOut(tasks, "State", payloads, options_.deadlines.state);
  std::vector<shim_v2::StateResponse> out;
  for (size_t i = 0; i < tasks.size(); ++i) {
    shim_v2::StateResponse state;
    if (replies[i].ok() && state.ParseFromString(*replies[i])) {
      out.push_back(std::move(state));
    } else if (absl::IsDeadlineExceeded(replies[i].status()) ||
               StillLoads(tasks[i])) {
      absl::StatusOr<shim_v2::StateResponse> known =
          StateFromKernel(tasks[i], "", replies[i].status());
      if (known.ok()) out.push_back(*std::move(known));
    }
  }
  return out;
}

absl::Status TaskManager::Kill(const std::string& ns,
                               const shim_v2::KillRequest& kill) {
  ASSIGN_OR_RETURN(TaskPtr task, Find(ns, kill.id()));
  const absl::Status status =
      InvokeProbed(task, "Kill", kill.SerializeAsString(),
                   options_.deadlines.kill)
          .status();
  return absl::IsDeadlineExceeded(status) ? KillByKernel(task, kill, status)
                                          : status;
}

absl::Status TaskManager::Checkpoint(const std::string& ns,
                                     const std::string& id,
                                     const std::string& path,
                                     const Any& options) {
  shim_v2::CheckpointTaskRequest request;
  request.set_id(id);
  request.set_path(path);
  if (!options.type_url.empty()) {
    request.mutable_options()->set_type_url(BareUrl(options.type_url));
    request.mutable_options()->set_value(options.value);
  }
  return Forward(ns, id, "Checkpoint", request);
}

absl::Status TaskManager::Exec(const std::string& ns,
                               const shim_v2::ExecProcessRequest& exec) {
  if (exec.exec_id().empty()) {
    return absl::InvalidArgumentError("exec id cannot be empty");
  }
  RETURN_IF_ERROR(ValidateId(exec.exec_id()));
  if (const TaskPtr task = Peek({ns, exec.id()}); task != nullptr) {
    std::unique_lock<std::mutex> lock(task->mutex);
    const pid_t pid = static_cast<pid_t>(task->pid);
    lock.unlock();
    if (HasRoomForRuntime(pid)) warmer_.Warm();
  }
  return Forward(ns, exec.id(), "Exec", exec);
}

absl::StatusOr<shim_v2::PidsResponse> TaskManager::Pids(const std::string& ns,
                                                        const std::string& id) {
  ASSIGN_OR_RETURN(TaskPtr task, Find(ns, id));
  shim_v2::PidsRequest request;
  request.set_id(id);
  return Call<shim_v2::PidsResponse>(task, "Pids", request,
                                     options_.deadlines.kill);
}

std::vector<std::string> TaskManager::Ids(const std::string& ns) {
  std::vector<std::string> out;
  for (const TaskPtr& task : InNamespace(ns)) out.push_back(task->id);
  return out;
}

std::vector<std::pair<std::string, Any>> TaskManager::Stats(
    const std::string& ns, const std::vector<std::string>& ids) {
  std::vector<TaskPtr> tasks;
  std::vector<std::string> payloads;
  for (const std::string& id : ids) {
    TaskPtr task = Peek({ns, id});
    if (task == nullptr) continue;
    shim_v2::StatsRequest request;
    request.set_id(id);
    tasks.push_back(std::move(task));
    payloads.push_back(request.SerializeAsString());
  }
  std::vector<absl::StatusOr<std::string>> replies =
      FanOut(tasks, "Stats", payloads, options_.deadlines.stats);
  std::vector<std::pair<std::string, Any>> out;
  for (size_t i = 0; i < tasks.size(); ++i) {
    shim_v2::StatsResponse stats;
    if (!replies[i].ok() || !stats.ParseFromString(*replies[i])) {
      log::Debug("no stats", {{"ns", ns}, {"id", tasks[i]->id}});
      continue;
    }
    out.emplace_back(tasks[i]->id,
                     Any{stats.stats().type_url(), stats.stats().value()});
  }
  return out;
}

absl::Status TaskManager::Forward(
    const std::string& ns, const std::string& id, const std::string& method,
    const google::protobuf::MessageLite& request) {
  ASSIGN_OR_RETURN(TaskPtr task, Find(ns, id));
  return Invoke(task, method, request.SerializeAsString(),
                options_.deadlines.call)
      .status();
}

std::unique_ptr<WaitHandle> TaskManager::Wait(
    const std::string& ns, const std::string& id, const std::string& exec_id,
    std::function<void(absl::StatusOr<Exit>)> done) {
  auto wait = std::make_shared<WaitCall>();
  wait->exec_id = exec_id;
  wait->done = std::move(done);
  TaskPtr task = Peek({ns, id});
  if (task == nullptr) {
    wait->Complete(NoTask(id));
    return nullptr;
  }
  {
    std::lock_guard<std::mutex> lock(task->mutex);
    if (task->phase == Task::Phase::kLoading ||
        task->phase == Task::Phase::kEnding) {
      // Answered at the end, or passed on once the shim is found.
      task->parked.push_back(wait);
      return std::make_unique<Handle>(wait);
    }
    if (task->phase != Task::Phase::kLive) {
      task = nullptr;
    }
  }
  if (task == nullptr) {
    wait->Complete(NoTask(id));
    return nullptr;
  }
  IssueWait(task, exec_id, wait);
  return std::make_unique<Handle>(wait);
}

void TaskManager::IssueWait(const TaskPtr& task, const std::string& exec_id,
                            const std::shared_ptr<WaitCall>& wait) {
  shim_v2::WaitRequest request;
  request.set_id(task->id);
  request.set_exec_id(exec_id);
  std::shared_ptr<ShimConnection> client;
  int version;
  {
    std::lock_guard<std::mutex> lock(task->mutex);
    client = task->client;
    version = task->bootstrap.version;
  }
  auto finished = [weak = std::weak_ptr<Task>(task),
                   wait](absl::StatusOr<std::string> reply) {
    if (ttrpc::IsClosed(reply.status())) {
      // The task's end, or its shim's return, will answer.
      TaskPtr task = weak.lock();
      if (task != nullptr) {
        std::unique_lock<std::mutex> lock(task->mutex);
        if (task->phase != Task::Phase::kGone) {
          task->parked.remove_if(
              [](const auto& old) { return old->answered(); });
          task->parked.push_back(wait);
          return;
        }
        if (task->exit) {
          const Exit exit = *task->exit;
          lock.unlock();
          return wait->Complete(exit);
        }
      }
      return wait->Complete(reply.status());
    }
    shim_v2::WaitResponse response;
    if (!reply.ok()) return wait->Complete(reply.status());
    if (!response.ParseFromString(*reply)) {
      return wait->Complete(absl::InternalError("malformed answer to Wait"));
    }
    wait->Complete(ExitOf(response));
  };
  const ShimConnection::CallId call = client->Start(
      absl::StrCat("containerd.task.v", version, ".Task"), "Wait",
      request.SerializeAsString(), task->ns, absl::InfiniteFuture(), finished);
  std::lock_guard<std::mutex> lock(wait->mutex);
  wait->client = client;
  wait->call = call;
}

}  // namespace bulkhead::runtime
