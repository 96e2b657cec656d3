// Accepting connections also when no descriptor is free. accept(2) then leaves
// the connection where it is: its client hangs, and the listener stays
// readable, so that a loop around it spins. An Acceptor keeps one descriptor in
// reserve, with which it takes such a connection, lets `refuse` say why, and
// closes it.
#ifndef BULKHEAD_LIB_OS_ACCEPTOR_H_
#define BULKHEAD_LIB_OS_ACCEPTOR_H_

#include <functional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "lib/os/fd.h"

namespace bulkhead::os {

// How long Accept() waits when even the reserve is gone.
constexpr absl::Duration kNoDescriptorWait = absl::Milliseconds(50);

// Not thread-safe.
class Acceptor {
 public:
  // Called with the refused connection; must neither block nor keep it.
  using Refuse = std::function<void(int fd, const absl::Status& why)>;

  // Borrows the listener.
  explicit Acceptor(int listener, Refuse refuse = nullptr);

  // Close-on-exec; `flags` may add SOCK_NONBLOCK. EINTR and ECONNABORTED are
  // retried. Errors:
  //   kUnavailable: a non-blocking listener, and nobody waits.
  //   kResourceExhausted: no descriptor was free. One connection was refused,
  //     or, if there was none in reserve, this has waited a moment: call again.
  //   Others: the listener is closed or shut down.
  absl::StatusOr<UniqueFd> Accept(int flags = 0);

 private:
  void Reserve();

  const int listener_;
  const Refuse refuse_;
  UniqueFd reserve_;
};

}  // namespace bulkhead::os

#endif  // BULKHEAD_LIB_OS_ACCEPTOR_H_
