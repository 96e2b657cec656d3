// What travels in gRPC metadata: the namespace and the lease.
#ifndef BULKHEAD_LIB_RPC_CONTEXT_H_
#define BULKHEAD_LIB_RPC_CONTEXT_H_

#include <grpcpp/client_context.h>
#include <grpcpp/server_context.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace bulkhead::rpc {

inline constexpr char kNamespaceHeader[] = "containerd-namespace";
inline constexpr char kLeaseHeader[] = "containerd-lease";

struct CallContext {
  std::string ns;     // Empty: none was sent.
  std::string lease;  // Empty: none was sent.
};

// What the caller sent (the first value of each header).
CallContext ContextOf(const grpc::ServerContextBase& context);

// The caller's namespace. Errors, with containerd's texts:
//   kFailedPrecondition "namespace is required": missing or empty.
//   kInvalidArgument "namespace validation: identifier ...": malformed.
absl::StatusOr<std::string> RequireNamespace(
    const grpc::ServerContextBase& context);

// Adds the headers (empty ones are left out).
void AddContext(const CallContext& call, grpc::ClientContext* context);

// A client context with headers and, unless infinite, a deadline from now.
std::unique_ptr<grpc::ClientContext> MakeClientContext(
    const CallContext& call, absl::Duration timeout = absl::InfiniteDuration());

// The rule for namespaces, container ids, topic components: section 2 of
// facts/core.md. kInvalidArgument with containerd's text.
absl::Status ValidateIdentifier(const std::string& id);

}  // namespace bulkhead::rpc

#endif  // BULKHEAD_LIB_RPC_CONTEXT_H_
