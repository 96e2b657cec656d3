// A connection to a shim, whatever it speaks.
#ifndef BULKHEAD_SERVICES_RUNTIME_SHIM_CONNECTION_H_
#define BULKHEAD_SERVICES_RUNTIME_SHIM_CONNECTION_H_

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "lib/ttrpc/reactor.h"
#include "services/runtime/shim_binary.h"

namespace bulkhead::runtime {

// Thread-safe. The connection ends when the last reference goes, when the shim
// closes it, or by Close().
class ShimConnection {
 public:
  // The serialised reply. Errors: what the shim answered (code and message);
  // kDeadlineExceeded; one for which ttrpc::IsClosed() holds: connection lost.
  using Result = absl::StatusOr<std::string>;
  using Callback = std::function<void(Result)>;
  using CallId = uint64_t;

  virtual ~ShimConnection() = default;

  // Starts a call for namespace `ns`. `callback` runs exactly once, on a thread
  // of the connection or (for an error found at once) in the calling one,
  // unless the call was cancelled. It must not block.
  virtual CallId Start(const std::string& service, const std::string& method,
                       const std::string& payload, const std::string& ns,
                       absl::Time deadline, Callback callback) = 0;
  // Forgets a call: its callback will not start after this returns (it may be
  // running). 0 is no call.
  virtual void Cancel(CallId id) = 0;
  virtual void Close() = 0;
  virtual bool closed() const = 0;
  // Tells the connection which process is behind it. One whose transport does
  // not notice a death watches that process from then on.
  virtual void Identify(pid_t /*pid*/) {}

  // Blocks for the reply; not on a thread of the connection.
  Result Call(const std::string& service, const std::string& method,
              const std::string& payload, const std::string& ns,
              absl::Duration timeout);
};

// Connects to what a shim's start said; `on_close` (may be null) runs once when
// the connection is lost or closed, not when its destructor ends it.
// Errors: kUnavailable: nobody listens. kUnimplemented: unknown protocol.
using ShimDialer =
    std::function<absl::StatusOr<std::shared_ptr<ShimConnection>>(
        const Bootstrap& bootstrap, std::function<void()> on_close)>;

// For protocol "ttrpc". `reactor` must outlive the connection.
absl::StatusOr<std::shared_ptr<ShimConnection>> DialTtrpcShim(
    ttrpc::Reactor& reactor, const Bootstrap& bootstrap,
    std::function<void()> on_close);

}  // namespace bulkhead::runtime

#endif  // BULKHEAD_SERVICES_RUNTIME_SHIM_CONNECTION_H_
