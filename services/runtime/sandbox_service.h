// containerd.services.sandbox.v1.Controller over a SandboxManager.
#ifndef BULKHEAD_SERVICES_RUNTIME_SANDBOX_SERVICE_H_
#define BULKHEAD_SERVICES_RUNTIME_SANDBOX_SERVICE_H_

#include <grpcpp/impl/codegen/service_type.h>

#include <memory>

#include "services/runtime/sandbox_manager.h"

namespace bulkhead::runtime {

// One controller: sandboxer "shim". Errors of every method: kInvalidArgument:
// no sandboxer named. kNotFound: one that does not exist.
// `sandboxes` must outlive the service.
std::unique_ptr<grpc::Service> MakeSandboxController(SandboxManager& sandboxes);

}  // namespace bulkhead::runtime

#endif  // BULKHEAD_SERVICES_RUNTIME_SANDBOX_SERVICE_H_
