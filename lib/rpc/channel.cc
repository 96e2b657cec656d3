#include "lib/rpc/channel.h"

#include <grpc/grpc.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "lib/rpc/server.h"

namespace bulkhead::rpc {

namespace {
constexpr int kHandshakeMaxMs = 5000;

}  // namespace

void SleepWorking(absl::Duration time) {
  static auto* const queue = new grpc::CompletionQueue;  // Of no calls.
  void* tag = nullptr;
  bool ok = false;
  (void)queue->AsyncNext(&tag, &ok, absl::ToChronoTime(absl::Now() + time));
}

std::shared_ptr<grpc::Channel> Connect(const std::string& address) {
  // Never shut the library down: that may wait 10 s for a poller of its own.
  [[maybe_unused]] static const bool kept = (grpc_init(), true);
  std::string path = address;
  if (absl::StartsWith(path, "unix://")) path = path.substr(7);
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMessageBytesMax);
  arguments.SetMaxSendMessageSize(kMessageBytesMax);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  // Despite its name this is how long a connection may take until the server's
  // SETTINGS are there. A socket without a server refuses at once; one whose
  // server waits for a busy processor must not be given up and tried again,
  // which would only keep it busier.
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, kHandshakeMaxMs);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  // A path in the authority is refused by some servers.
  arguments.SetString(GRPC_ARG_DEFAULT_AUTHORITY, "localhost");
  return grpc::CreateCustomChannel(absl::StrCat("unix:", path),
                                   grpc::InsecureChannelCredentials(),
                                   arguments);
}

absl::Status RetryUnavailable(absl::Duration timeout,
                              const std::function<absl::Status()>& call) {
  const absl::Time deadline = absl::Now() + timeout;
  absl::Duration wait = absl::Milliseconds(10);
  for (;;) {
    absl::Status status = call();
    if (!absl::IsUnavailable(status) || absl::Now() + wait > deadline) {
      return status;
    }
    SleepWorking(wait);
    wait = std::min(wait * 2, absl::Milliseconds(500));
  }
}

}  // namespace bulkhead::rpc
