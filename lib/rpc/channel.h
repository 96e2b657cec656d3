// Client channels to services on Unix sockets.
#ifndef BULKHEAD_LIB_RPC_CHANNEL_H_
#define BULKHEAD_LIB_RPC_CHANNEL_H_

#include <grpcpp/channel.h>

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace bulkhead::rpc {

// Lazy: connects at the first call; a missing socket is not an error until
// then. Reconnects within 0.1-3 s. 16 MiB messages, no compression. `address`
// is a path, with or without "unix://".
std::shared_ptr<grpc::Channel> Connect(const std::string& address);

// Sleeps, and moves connections along meanwhile: gRPC does so only while some
// thread waits for a call, and a call on a channel without a connection fails
// at once. For whoever waits between tries.
void SleepWorking(absl::Duration time);

// Runs an idempotent `call` until it returns something other than kUnavailable
// or `timeout` is over, waiting 10 ms, doubling, up to 500 ms between tries.
// For internal calls: a service that is being restarted is back within
// seconds.
absl::Status RetryUnavailable(absl::Duration timeout,
                              const std::function<absl::Status()>& call);

}  // namespace bulkhead::rpc

#endif  // BULKHEAD_LIB_RPC_CHANNEL_H_
