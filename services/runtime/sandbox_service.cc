#include "services/runtime/sandbox_service.h"

#include <mutex>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/rpc/context.h"
#include "lib/rpc/status.h"
#include "proto/containerd/services/sandbox/v1/sandbox.grpc.pb.h"
#include "services/runtime/publish.h"

namespace bulkhead::runtime {
namespace {

namespace services_v1 = ::containerd::services::sandbox::v1;
using grpc::ServerContext;

constexpr char kShimSandboxer[] = "shim";

// The caller's namespace, if it named a controller that there is.
template <typename Request>
absl::StatusOr<std::string> Check(const grpc::ServerContextBase& context,
                                  const Request& request) {
  if (request.sandboxer().empty()) {
    return absl::InvalidArgumentError("sandbox controller name is required");
  }
  if (request.sandboxer() != kShimSandboxer) {
    return absl::NotFoundError(absl::StrCat(
        "failed to get sandbox controller by ", request.sandboxer()));
  }
  return rpc::RequireNamespace(context);
}

// As CRI hands it on to containers' task_api_address.
std::string AddressOf(const Bootstrap& bootstrap) {
  const bool has_scheme = bootstrap.address.find("://") != std::string::npos;
  return absl::StrCat(bootstrap.protocol, "+", has_scheme ? "" : "unix://",
                      bootstrap.address);
}

// Waits without a thread; lives until gRPC is done with the call.
class WaitReactor : public grpc::ServerUnaryReactor {
 public:
  WaitReactor(SandboxManager& sandboxes, std::string ns, std::string id)
      : sandboxes_(sandboxes), ns_(std::move(ns)), id_(std::move(id)) {}

  void Begin(services_v1::ControllerWaitResponse* response) {
    auto state = state_;
    const SandboxManager::WaitId wait = sandboxes_.Wait(
        ns_, id_, [state, this, response](absl::StatusOr<SandboxExit> exit) {
          {
            std::lock_guard<std::mutex> lock(state->mutex);
            if (std::exchange(state->finished, true)) return;
          }
          if (exit.ok()) {
            response->set_exit_status(exit->status);
            SetTimestamp(exit->at, response->mutable_exited_at());
          }
          Finish(rpc::ToGrpc(exit.status()));
        });
    std::lock_guard<std::mutex> lock(state->mutex);
    state->wait = wait;
  }

  void OnCancel() override {
    SandboxManager::WaitId wait;
    {
      std::lock_guard<std::mutex> lock(state_->mutex);
      if (std::exchange(state_->finished, true)) return;
      wait = state_->wait;
    }
    sandboxes_.CancelWait(ns_, id_, wait);
    Finish(grpc::Status(grpc::StatusCode::CANCELLED, "context canceled"));
  }
  void OnDone() override { delete this; }

 private:
  struct State {
    std::mutex mutex;
    bool finished = false;
    SandboxManager::WaitId wait = 0;
  };
  SandboxManager& sandboxes_;
  const std::string ns_;
  const std::string id_;
  std::shared_ptr<State> state_ = std::make_shared<State>();
};

class Controller final
    : public services_v1::Controller::WithCallbackMethod_Wait<
          services_v1::Controller::Service> {
 public:
  explicit Controller(SandboxManager& sandboxes) : sandboxes_(sandboxes) {}

  grpc::Status Create(
      ServerContext* context,
      const services_v1::ControllerCreateRequest* request,
      services_v1::ControllerCreateResponse* response) override {
    return rpc::ToGrpc([&]() -> absl::Status {
      ASSIGN_OR_RETURN(const std::string ns, Check(*context, *request));
      CreateSandbox create;
      create.id = request->sandbox_id();
      if (create.id.empty()) create.id = request->sandbox().sandbox_id();
      const auto& record = request->sandbox();
      create.record = {record.runtime().name(),
                       {record.runtime().options().type_url(),
                        record.runtime().options().value()},
                       {record.spec().type_url(), record.spec().value()}};
      *create.request.mutable_rootfs() = request->rootfs();
      if (request->has_options()) {
        *create.request.mutable_options() = request->options();
      }
      create.request.set_netns_path(request->netns_path());
      *create.request.mutable_annotations() = request->annotations();
      RETURN_IF_ERROR(sandboxes_.Create(ns, create));
      response->set_sandbox_id(create.id);
      return absl::OkStatus();
    }());
  }

  grpc::Status Start(ServerContext* context,
                     const services_v1::ControllerStartRequest* request,
                     services_v1::ControllerStartResponse* response) override {
    return rpc::ToGrpc([&]() -> absl::Status {
      ASSIGN_OR_RETURN(const std::string ns, Check(*context, *request));
      ASSIGN_OR_RETURN(StartedSandbox started,
                       sandboxes_.Start(ns, request->sandbox_id()));
      response->set_sandbox_id(request->sandbox_id());
      response->set_pid(started.response.pid());
      response->mutable_created_at()->Swap(
          started.response.mutable_created_at());
      response->set_address(AddressOf(started.bootstrap));
      response->set_version(static_cast<uint32_t>(started.bootstrap.version));
      if (started.response.has_spec()) {
        response->mutable_spec()->Swap(started.response.mutable_spec());
      }
      return absl::OkStatus();
    }());
  }

  grpc::Status Platform(
      ServerContext* context,
      const services_v1::ControllerPlatformRequest* request,
      services_v1::ControllerPlatformResponse* response) override {
    return rpc::ToGrpc([&]() -> absl::Status {
      ASSIGN_OR_RETURN(const std::string ns, Check(*context, *request));
      ASSIGN_OR_RETURN(sandbox_v1::PlatformResponse platform,
                       sandboxes_.Platform(ns, request->sandbox_id()));
      response->mutable_platform()->Swap(platform.mutable_platform());
      return absl::OkStatus();
    }());
  }

  grpc::Status Stop(ServerContext* context,
                    const services_v1::ControllerStopRequest* request,
                    services_v1::ControllerStopResponse*) override {
    return rpc::ToGrpc([&]() -> absl::Status {
      ASSIGN_OR_RETURN(const std::string ns, Check(*context, *request));
      return sandboxes_.Stop(ns, request->sandbox_id(),
                             request->timeout_secs());
    }());
  }

  grpc::ServerUnaryReactor* Wait(
      grpc::CallbackServerContext* context,
      const services_v1::ControllerWaitRequest* request,
      services_v1::ControllerWaitResponse* response) override {
    absl::StatusOr<std::string> ns = Check(*context, *request);
    if (!ns.ok()) {
      grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
      reactor->Finish(rpc::ToGrpc(ns.status()));
      return reactor;
    }
    // Deletes itself in OnDone().
    auto* reactor = new WaitReactor(sandboxes_, *ns, request->sandbox_id());
    reactor->Begin(response);
    return reactor;
  }

  grpc::Status Status(
      ServerContext* context,
      const services_v1::ControllerStatusRequest* request,
      services_v1::ControllerStatusResponse* response) override {
    return rpc::ToGrpc([&]() -> absl::Status {
      ASSIGN_OR_RETURN(const std::string ns, Check(*context, *request));
      ASSIGN_OR_RETURN(
          sandbox_v1::SandboxStatusResponse status,
          sandboxes_.Status(ns, request->sandbox_id(), request->verbose()));
      response->set_sandbox_id(request->sandbox_id());
      response->set_pid(status.pid());
      response->set_state(status.state());
      response->mutable_info()->swap(*status.mutable_info());
      if (status.has_created_at()) {
        response->mutable_created_at()->Swap(status.mutable_created_at());
      }
      if (status.has_exited_at()) {
        response->mutable_exited_at()->Swap(status.mutable_exited_at());
      }
      if (status.has_extra()) {
        response->mutable_extra()->Swap(status.mutable_extra());
      }
      const absl::StatusOr<Bootstrap> bootstrap =
          sandboxes_.BootstrapOf(ns, request->sandbox_id());
      if (bootstrap.ok()) {
        response->set_address(AddressOf(*bootstrap));
        response->set_version(static_cast<uint32_t>(bootstrap->version));
      }
      return absl::OkStatus();
    }());
  }

  grpc::Status Shutdown(ServerContext* context,
                        const services_v1::ControllerShutdownRequest* request,
                        services_v1::ControllerShutdownResponse*) override {
    return rpc::ToGrpc([&]() -> absl::Status {
      ASSIGN_OR_RETURN(const std::string ns, Check(*context, *request));
      return sandboxes_.Shutdown(ns, request->sandbox_id());
    }());
  }

  grpc::Status Metrics(
      ServerContext* context,
      const services_v1::ControllerMetricsRequest* request,
      services_v1::ControllerMetricsResponse* response) override {
    return rpc::ToGrpc([&]() -> absl::Status {
      ASSIGN_OR_RETURN(const std::string ns, Check(*context, *request));
      ASSIGN_OR_RETURN(sandbox_v1::SandboxMetricsResponse metrics,
                       sandboxes_.Metrics(ns, request->sandbox_id()));
      response->mutable_metrics()->Swap(metrics.mutable_metrics());
      return absl::OkStatus();
    }());
  }

  // Shims have no such method: as containerd's, it accepts and does nothing.
  grpc::Status Update(ServerContext* context,
                      const services_v1::ControllerUpdateRequest* request,
                      services_v1::ControllerUpdateResponse*) override {
    return rpc::ToGrpc(Check(*context, *request).status());
  }

 private:
  SandboxManager& sandboxes_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeSandboxController(
    SandboxManager& sandboxes) {
  return std::make_unique<Controller>(sandboxes);
}

}  // namespace bulkhead::runtime
