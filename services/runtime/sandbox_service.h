// containerd.services.sandbox.v1.Controller: for now it checks `sandboxer` and
// implements nothing (docs/api-coverage.md).
#ifndef BULKHEAD_SERVICES_RUNTIME_SANDBOX_SERVICE_H_
#define BULKHEAD_SERVICES_RUNTIME_SANDBOX_SERVICE_H_

#include <grpcpp/impl/codegen/service_type.h>

#include <memory>

namespace bulkhead::runtime {

// Errors of every method: kInvalidArgument: no sandboxer named. kNotFound: one
// that does not exist. kUnimplemented.
std::unique_ptr<grpc::Service> MakeSandboxController();

}  // namespace bulkhead::runtime

#endif  // BULKHEAD_SERVICES_RUNTIME_SANDBOX_SERVICE_H_
