#include "services/runtime/tasks_service.h"

#include <cstdlib>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/filters/filters.h"
#include "lib/os/fd.h"
#include "lib/rpc/context.h"
#include "lib/rpc/status.h"
#include "proto/containerd/runc/v1/options.pb.h"
#include "proto/containerd/services/tasks/v1/tasks.grpc.pb.h"

namespace bulkhead::runtime {
namespace {

namespace tasks_v1 = ::containerd::services::tasks::v1;
using google::protobuf::Empty;
using grpc::ServerContext;
using grpc::Status;

constexpr char kCheckpointType[] =
    "application/vnd.containerd.container.criu.checkpoint.criu.tar";
constexpr char kCheckpointConfigType[] =
    "application/vnd.containerd.container.checkpoint.config.v1+proto";

// Whether `any` is of the type of `*out`, which then has its value.
template <typename Message>
bool IsOf(const Any& any, Message& out) {
  return any.type_url.substr(any.type_url.rfind('/') + 1) ==
             out.GetTypeName() &&
         out.ParseFromString(any.value);
}

void AddDescriptor(const StoredBlob& blob, const std::string& media_type,
                   tasks_v1::CheckpointTaskResponse* response) {
  auto* descriptor = response->add_descriptors();
  descriptor->set_media_type(media_type);
  descriptor->set_digest(blob.digest);
  descriptor->set_size(blob.size_bytes);
}

// Containers of ours carry the id in `id`; container_id stays empty, as
// clients expect.
void ToProcess(const shim_v2::StateResponse& state,
               containerd::v1::types::Process* out) {
  out->set_id(state.exec_id().empty() ? state.id() : state.exec_id());
  out->set_pid(state.pid());
  out->set_status(state.status());
  out->set_stdin(state.stdin());
  out->set_stdout(state.stdout());
  out->set_stderr(state.stderr());
  out->set_terminal(state.terminal());
  out->set_exit_status(state.exit_status());
  if (state.has_exited_at()) *out->mutable_exited_at() = state.exited_at();
}

void ToDelete(const Exit& exit, const std::string& id,
              tasks_v1::DeleteResponse* out) {
  out->set_id(id);
  out->set_pid(exit.pid);
  out->set_exit_status(exit.status);
  out->mutable_exited_at()->set_seconds(exit.at_seconds);
  out->mutable_exited_at()->set_nanos(exit.at_nanos);
}

// Waits without a thread; lives until gRPC is done with the call.
class WaitReactor : public grpc::ServerUnaryReactor {
 public:
  void Begin(TaskManager& tasks, const std::string& ns,
             const tasks_v1::WaitRequest& request,
             tasks_v1::WaitResponse* response) {
    // Held back until the handle is stored: `done` may run at once, and gRPC
    // deletes this after Finish.
    auto state = state_;
    std::unique_ptr<WaitHandle> handle = tasks.Wait(
        ns, request.container_id(), request.exec_id(),
        [state, this, response](absl::StatusOr<Exit> exit) {
          {
            std::lock_guard<std::mutex> lock(state->mutex);
            if (std::exchange(state->finished, true)) return;
          }
          if (exit.ok()) {
            response->set_exit_status(exit->status);
            response->mutable_exited_at()->set_seconds(exit->at_seconds);
            response->mutable_exited_at()->set_nanos(exit->at_nanos);
          }
          Finish(rpc::ToGrpc(exit.status()));
        });
    std::lock_guard<std::mutex> lock(state->mutex);
    if (!state->finished) state->handle = std::move(handle);
  }

  void OnCancel() override {
    std::unique_ptr<WaitHandle> handle;
    {
      std::lock_guard<std::mutex> lock(state_->mutex);
      if (std::exchange(state_->finished, true)) return;
      handle = std::move(state_->handle);
    }
    Finish(Status(grpc::StatusCode::CANCELLED, "context canceled"));
  }
  void OnDone() override { delete this; }

 private:
  struct State {
    std::mutex mutex;
    bool finished = false;
    std::unique_ptr<WaitHandle> handle;
  };
  std::shared_ptr<State> state_ = std::make_shared<State>();
};

class TasksService final : public tasks_v1::Tasks::WithCallbackMethod_Wait<
                               tasks_v1::Tasks::Service> {
 public:
  TasksService(TaskManager& tasks, const CheckpointStore& checkpoints,
               ContainerSource containers)
      : tasks_(tasks),
        checkpoints_(checkpoints),
        containers_(std::move(containers)) {}

  Status Create(ServerContext* context,
                const tasks_v1::CreateTaskRequest* request,
                tasks_v1::CreateTaskResponse* response) override {
    return rpc::ToGrpc([&]() -> absl::Status {
      ASSIGN_OR_RETURN(std::string ns, rpc::RequireNamespace(*context));
      CreateTask create;
      RETURN_IF_ERROR(SetCheckpoint(ns, *request, &create));
      create.id = request->container_id();
      create.rootfs.assign(request->rootfs().begin(), request->rootfs().end());
      create.stdin_path = request->stdin();
      create.stdout_path = request->stdout();
      create.stderr_path = request->stderr();
      create.terminal = request->terminal();
      create.options = {request->options().type_url(),
                        request->options().value()};
      create.runtime_path = request->runtime_path();
      create.task_api_address = request->task_api_address();
      create.task_api_version = static_cast<int>(request->task_api_version());
      ASSIGN_OR_RETURN(uint32_t pid, tasks_.Create(ns, create));
      response->set_container_id(create.id);
      response->set_pid(pid);
      return absl::OkStatus();
    }());
  }

  Status Start(ServerContext* context, const tasks_v1::StartRequest* request,
               tasks_v1::StartResponse* response) override {
    return rpc::ToGrpc([&]() -> absl::Status {
      ASSIGN_OR_RETURN(std::string ns, rpc::RequireNamespace(*context));
      ASSIGN_OR_RETURN(uint32_t pid, tasks_.Start(ns, request->container_id(),
                                                  request->exec_id()));
      response->set_pid(pid);
      return absl::OkStatus();
    }());
  }

  Status Delete(ServerContext* context,
                const tasks_v1::DeleteTaskRequest* request,
                tasks_v1::DeleteResponse* response) override {
    return rpc::ToGrpc([&]() -> absl::Status {
      ASSIGN_OR_RETURN(std::string ns, rpc::RequireNamespace(*context));
      ASSIGN_OR_RETURN(Exit exit, tasks_.Delete(ns, request->container_id()));
      ToDelete(exit, request->container_id(), response);
      return absl::OkStatus();
    }());
  }

  Status DeleteProcess(ServerContext* context,
                       const tasks_v1::DeleteProcessRequest* request,
                       tasks_v1::DeleteResponse* response) override {
    return rpc::ToGrpc([&]() -> absl::Status {
      ASSIGN_OR_RETURN(std::string ns, rpc::RequireNamespace(*context));
      if (request->exec_id().empty()) {
        return absl::InvalidArgumentError("exec id cannot be empty");
      }
      ASSIGN_OR_RETURN(Exit exit,
                       tasks_.DeleteProcess(ns, request->container_id(),
                                            request->exec_id()));
      ToDelete(exit, request->exec_id(), response);
      return absl::OkStatus();
    }());
  }

  Status Get(ServerContext* context, const tasks_v1::GetRequest* request,
             tasks_v1::GetResponse* response) override {
    return rpc::ToGrpc([&]() -> absl::Status {
      ASSIGN_OR_RETURN(std::string ns, rpc::RequireNamespace(*context));
      ASSIGN_OR_RETURN(
          shim_v2::StateResponse state,
          tasks_.State(ns, request->container_id(), request->exec_id()));
      ToProcess(state, response->mutable_process());
      return absl::OkStatus();
    }());
  }

  // `filter` is part of the message and of nothing else: no daemon heeds it.
  Status List(ServerContext* context, const tasks_v1::ListTasksRequest*,
              tasks_v1::ListTasksResponse* response) override {
    return rpc::ToGrpc([&]() -> absl::Status {
      ASSIGN_OR_RETURN(std::string ns, rpc::RequireNamespace(*context));
      for (const shim_v2::StateResponse& state : tasks_.List(ns)) {
        ToProcess(state, response->add_tasks());
      }
      return absl::OkStatus();
    }());
  }

  Status Kill(ServerContext* context, const tasks_v1::KillRequest* request,
              Empty*) override {
    return rpc::ToGrpc([&]() -> absl::Status {
      ASSIGN_OR_RETURN(std::string ns, rpc::RequireNamespace(*context));
      shim_v2::KillRequest kill;
      kill.set_id(request->container_id());
      kill.set_exec_id(request->exec_id());
      kill.set_signal(request->signal());
      kill.set_all(request->all());
      return tasks_.Kill(ns, kill);
    }());
  }

  Status Exec(ServerContext* context,
              const tasks_v1::ExecProcessRequest* request, Empty*) override {
    return rpc::ToGrpc([&]() -> absl::Status {
      ASSIGN_OR_RETURN(std::string ns, rpc::RequireNamespace(*context));
      shim_v2::ExecProcessRequest exec;
      exec.set_id(request->container_id());
      exec.set_exec_id(request->exec_id());
      exec.set_terminal(request->terminal());
      exec.set_stdin(request->stdin());
      exec.set_stdout(request->stdout());
      exec.set_stderr(request->stderr());
      if (request->has_spec()) *exec.mutable_spec() = request->spec();
      return tasks_.Exec(ns, exec);
    }());
  }

  Status ResizePty(ServerContext* context,
                   const tasks_v1::ResizePtyRequest* request, Empty*) override {
    shim_v2::ResizePtyRequest resize;
    resize.set_id(request->container_id());
    resize.set_exec_id(request->exec_id());
    resize.set_width(request->width());
    resize.set_height(request->height());
    return Forward(*context, request->container_id(), "ResizePty", resize);
  }

  Status CloseIO(ServerContext* context,
                 const tasks_v1::CloseIORequest* request, Empty*) override {
    shim_v2::CloseIORequest close;
    close.set_id(request->container_id());
    close.set_exec_id(request->exec_id());
    close.set_stdin(request->stdin());
    return Forward(*context, request->container_id(), "CloseIO", close);
  }

  Status Pause(ServerContext* context,
               const tasks_v1::PauseTaskRequest* request, Empty*) override {
    shim_v2::PauseRequest pause;
    pause.set_id(request->container_id());
    return Forward(*context, request->container_id(), "Pause", pause);
  }

  Status Resume(ServerContext* context,
                const tasks_v1::ResumeTaskRequest* request, Empty*) override {
    shim_v2::ResumeRequest resume;
    resume.set_id(request->container_id());
    return Forward(*context, request->container_id(), "Resume", resume);
  }

  Status ListPids(ServerContext* context,
                  const tasks_v1::ListPidsRequest* request,
                  tasks_v1::ListPidsResponse* response) override {
    return rpc::ToGrpc([&]() -> absl::Status {
      ASSIGN_OR_RETURN(std::string ns, rpc::RequireNamespace(*context));
      ASSIGN_OR_RETURN(shim_v2::PidsResponse pids,
                       tasks_.Pids(ns, request->container_id()));
      response->mutable_processes()->Swap(pids.mutable_processes());
      return absl::OkStatus();
    }());
  }

  Status Update(ServerContext* context,
                const tasks_v1::UpdateTaskRequest* request, Empty*) override {
    shim_v2::UpdateTaskRequest update;
    update.set_id(request->container_id());
    if (request->has_resources()) {
      *update.mutable_resources() = request->resources();
    }
    *update.mutable_annotations() = request->annotations();
    return Forward(*context, request->container_id(), "Update", update);
  }

  Status Metrics(ServerContext* context,
                 const tasks_v1::MetricsRequest* request,
                 tasks_v1::MetricsResponse* response) override {
    return rpc::ToGrpc([&]() -> absl::Status {
      ASSIGN_OR_RETURN(std::string ns, rpc::RequireNamespace(*context));
      ASSIGN_OR_RETURN(filters::Filter filter,
                       filters::Filter::Parse(request->filters()));
      std::vector<std::string> ids;
      for (const std::string& id : tasks_.Ids(ns)) {
        const bool wanted = filter.Match(
            [&](const filters::FieldPath& path) -> std::optional<std::string> {
              if (path.size() != 1) return std::nullopt;
              if (path[0] == "id") return id;
              if (path[0] == "namespace") return ns;
              return std::nullopt;
            });
        if (wanted) ids.push_back(id);
      }
      for (auto& [id, data] : tasks_.Stats(ns, ids)) {
        containerd::types::Metric* metric = response->add_metrics();
        const int64_t now = absl::ToUnixNanos(absl::Now());
        metric->mutable_timestamp()->set_seconds(now / 1'000'000'000);
        metric->mutable_timestamp()->set_nanos(
            static_cast<int32_t>(now % 1'000'000'000));
        metric->set_id(id);
        metric->mutable_data()->set_type_url(data.type_url);
        metric->mutable_data()->set_value(data.value);
      }
      return absl::OkStatus();
    }());
  }

  grpc::ServerUnaryReactor* Wait(grpc::CallbackServerContext* context,
                                 const tasks_v1::WaitRequest* request,
                                 tasks_v1::WaitResponse* response) override {
    absl::StatusOr<std::string> ns = rpc::RequireNamespace(*context);
    if (!ns.ok()) {
      grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
      reactor->Finish(rpc::ToGrpc(ns.status()));
      return reactor;
    }
    auto* reactor = new WaitReactor;  // Deletes itself in OnDone().
    reactor->Begin(tasks_, *ns, *request, response);
    return reactor;
  }

  Status Checkpoint(ServerContext* context,
                    const tasks_v1::CheckpointTaskRequest* request,
                    tasks_v1::CheckpointTaskResponse* response) override {
    return rpc::ToGrpc([&]() -> absl::Status {
      ASSIGN_OR_RETURN(std::string ns, rpc::RequireNamespace(*context));
      const std::string& id = request->container_id();
      const Any options = {request->options().type_url(),
                           request->options().value()};
      containerd::runc::v1::CheckpointOptions runc;
      if (IsOf(options, runc) && !runc.image_path().empty()) {
        // The caller keeps the files itself.
        return tasks_.Checkpoint(ns, id, runc.image_path(), options);
      }
      ASSIGN_OR_RETURN(const ContainerRecord record, containers_(ns, id));
      char folder[] = "/tmp/bulkhead-checkpoint-XXXXXX";
      if (::mkdtemp(folder) == nullptr) {
        return os::ErrnoStatus(errno, "mkdtemp");
      }
      const std::string lease = rpc::ContextOf(*context).lease;
      absl::Status status = tasks_.Checkpoint(ns, id, folder, options);
      absl::StatusOr<StoredBlob> image = status;
      if (status.ok()) image = checkpoints_.SaveFolder(ns, lease, folder);
      (void)os::RemoveAll(folder);  // Left in /tmp at worst.
      RETURN_IF_ERROR(image.status());
      AddDescriptor(*image, kCheckpointType, response);
      google::protobuf::Any spec;
      spec.set_type_url(record.spec.type_url);
      spec.set_value(record.spec.value);
      ASSIGN_OR_RETURN(
          const StoredBlob config,
          checkpoints_.SaveBytes(ns, lease, spec.SerializeAsString()));
      AddDescriptor(config, kCheckpointConfigType, response);
      return absl::OkStatus();
    }());
  }

 private:
  // Where a task is to be restored from, if it is.
  absl::Status SetCheckpoint(const std::string& ns,
                             const tasks_v1::CreateTaskRequest& request,
                             CreateTask* create) const {
    containerd::runc::v1::Options runc;
    if (IsOf({request.options().type_url(), request.options().value()}, runc)) {
      create->checkpoint = runc.criu_image_path();
    }
    const auto& descriptor = request.checkpoint();
    if (descriptor.digest().empty()) return absl::OkStatus();
    if (descriptor.media_type() != kCheckpointType) {
      return absl::InvalidArgumentError(absl::StrCat(
          "unsupported checkpoint type \"", descriptor.media_type(), "\""));
    }
    create->fetch_checkpoint =
        [this, ns, digest = descriptor.digest()](const std::string& folder) {
          return checkpoints_.Load(ns, digest, folder);
        };
    return absl::OkStatus();
  }

  Status Forward(const ServerContext& context, const std::string& id,
                 const std::string& method,
                 const google::protobuf::MessageLite& message) {
    return rpc::ToGrpc([&]() -> absl::Status {
      ASSIGN_OR_RETURN(std::string ns, rpc::RequireNamespace(context));
      return tasks_.Forward(ns, id, method, message);
    }());
  }

  TaskManager& tasks_;
  const CheckpointStore& checkpoints_;
  const ContainerSource containers_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeTasksService(
    TaskManager& tasks, const CheckpointStore& checkpoints,
    ContainerSource containers) {
  return std::make_unique<TasksService>(tasks, checkpoints,
                                        std::move(containers));
}

}  // namespace bulkhead::runtime
