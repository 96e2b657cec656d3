// A gRPC server on Unix sockets, set up as every service of ours needs it.
//
// Threads: the synchronous API runs each call in a pooled thread. What may wait
// for long and often (the runtime's Wait) is served with gRPC's callback API
// (WithCallbackMethod_X), which needs no thread while it waits; its threads do
// not poll (callback_queue.cc, docs/adr/0014). Every call is
// counted in lib/stats by method and code, with its latency, and a failed one
// is logged at debug level (at error level if INTERNAL, UNKNOWN or DATA_LOSS).
#ifndef BULKHEAD_LIB_RPC_SERVER_H_
#define BULKHEAD_LIB_RPC_SERVER_H_

#include <grpcpp/impl/codegen/service_type.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "lib/os/fd.h"

namespace bulkhead::rpc {

// Largest message either way, as containerd's.
constexpr int kMessageBytesMax = 16 << 20;

class Server {
 public:
  // Serves `services` (borrowed; must outlive the server) on an already
  // listening socket. grpc.health.v1.Health (Check) is served too.
  static absl::StatusOr<std::unique_ptr<Server>> Start(
      os::UniqueFd listener, const std::vector<grpc::Service*>& services);

  // Stops accepting, lets calls finish for at most `grace`, cancels the rest.
  // Blocks. Idempotent.
  virtual void Stop(absl::Duration grace) = 0;
  virtual ~Server() = default;
};

}  // namespace bulkhead::rpc

#endif  // BULKHEAD_LIB_RPC_SERVER_H_
