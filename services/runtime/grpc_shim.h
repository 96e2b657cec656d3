// Shims that speak gRPC instead of ttrpc (protocol "grpc", version 3).
#ifndef BULKHEAD_SERVICES_RUNTIME_GRPC_SHIM_H_
#define BULKHEAD_SERVICES_RUNTIME_GRPC_SHIM_H_

#include "services/runtime/shim_connection.h"

namespace bulkhead::runtime {

// As a ShimDialer, for protocol "grpc". gRPC connects again by itself, so the
// shim's process decides whether the connection is lost: see Identify().
// `reactor` must outlive the connection.
absl::StatusOr<std::shared_ptr<ShimConnection>> DialGrpcShim(
    ttrpc::Reactor& reactor, const Bootstrap& bootstrap,
    std::function<void()> on_close);

// For each protocol the right one of the two.
ShimDialer MakeShimDialer(ttrpc::Reactor& reactor);

}  // namespace bulkhead::runtime

#endif  // BULKHEAD_SERVICES_RUNTIME_GRPC_SHIM_H_
