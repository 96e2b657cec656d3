// What this service knows about runtimes, for the gateway's Introspection: it
// forwards PluginInfo of io.containerd.runtime.v2/task here when options name a
// runtime.
#ifndef BULKHEAD_SERVICES_RUNTIME_INTROSPECTION_SERVICE_H_
#define BULKHEAD_SERVICES_RUNTIME_INTROSPECTION_SERVICE_H_

#include <grpcpp/impl/codegen/service_type.h>

#include <memory>
#include <string>

#include "services/runtime/shim_binary.h"

namespace bulkhead::runtime {

// containerd.services.introspection.v1.Introspection with PluginInfo alone:
// options are a containerd.types.RuntimeRequest, `extra` of the answer the
// containerd.types.RuntimeInfo that the shim's -info printed.
// Errors: kNotFound: no such runtime, or another plugin. kInvalidArgument:
// other options. kUnimplemented: the shim knows no -info.
// `shims` must outlive the service.
std::unique_ptr<grpc::Service> MakeIntrospectionService(
    const ShimBinaries& shims, const std::string& default_runtime);

}  // namespace bulkhead::runtime

#endif  // BULKHEAD_SERVICES_RUNTIME_INTROSPECTION_SERVICE_H_
