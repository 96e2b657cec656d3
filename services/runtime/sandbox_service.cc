#include "services/runtime/sandbox_service.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "lib/rpc/status.h"
#include "proto/containerd/services/sandbox/v1/sandbox.grpc.pb.h"

namespace bulkhead::runtime {
namespace {

namespace sandbox_v1 = ::containerd::services::sandbox::v1;
using grpc::ServerContext;

grpc::Status Refuse(const std::string& sandboxer, const char* method) {
  if (sandboxer.empty()) {
    return rpc::ToGrpc(
        absl::InvalidArgumentError("sandbox controller name is required"));
  }
  if (sandboxer != "shim") {
    return rpc::ToGrpc(absl::NotFoundError(
        absl::StrCat("failed to get sandbox controller by ", sandboxer)));
  }
  return rpc::ToGrpc(absl::UnimplementedError(
      absl::StrCat("sandbox controller method ", method)));
}

class Controller final : public sandbox_v1::Controller::Service {
 public:
  grpc::Status Create(ServerContext*,
                      const sandbox_v1::ControllerCreateRequest* r,
                      sandbox_v1::ControllerCreateResponse*) override {
    return Refuse(r->sandboxer(), "Create");
  }
  grpc::Status Start(ServerContext*,
                     const sandbox_v1::ControllerStartRequest* r,
                     sandbox_v1::ControllerStartResponse*) override {
    return Refuse(r->sandboxer(), "Start");
  }
  grpc::Status Platform(ServerContext*,
                        const sandbox_v1::ControllerPlatformRequest* r,
                        sandbox_v1::ControllerPlatformResponse*) override {
    return Refuse(r->sandboxer(), "Platform");
  }
  grpc::Status Stop(ServerContext*, const sandbox_v1::ControllerStopRequest* r,
                    sandbox_v1::ControllerStopResponse*) override {
    return Refuse(r->sandboxer(), "Stop");
  }
  grpc::Status Wait(ServerContext*, const sandbox_v1::ControllerWaitRequest* r,
                    sandbox_v1::ControllerWaitResponse*) override {
    return Refuse(r->sandboxer(), "Wait");
  }
  grpc::Status Status(ServerContext*,
                      const sandbox_v1::ControllerStatusRequest* r,
                      sandbox_v1::ControllerStatusResponse*) override {
    return Refuse(r->sandboxer(), "Status");
  }
  grpc::Status Shutdown(ServerContext*,
                        const sandbox_v1::ControllerShutdownRequest* r,
                        sandbox_v1::ControllerShutdownResponse*) override {
    return Refuse(r->sandboxer(), "Shutdown");
  }
  grpc::Status Metrics(ServerContext*,
                       const sandbox_v1::ControllerMetricsRequest* r,
                       sandbox_v1::ControllerMetricsResponse*) override {
    return Refuse(r->sandboxer(), "Metrics");
  }
  grpc::Status Update(ServerContext*,
                      const sandbox_v1::ControllerUpdateRequest* r,
                      sandbox_v1::ControllerUpdateResponse*) override {
    return Refuse(r->sandboxer(), "Update");
  }
};

}  // namespace

std::unique_ptr<grpc::Service> MakeSandboxController() {
  return std::make_unique<Controller>();
}

}  // namespace bulkhead::runtime
