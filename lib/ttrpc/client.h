// A ttrpc client connection: concurrent unary calls, deadlines, calls that
// wait for ever without a thread each.
#ifndef BULKHEAD_LIB_TTRPC_CLIENT_H_
#define BULKHEAD_LIB_TTRPC_CLIENT_H_

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "lib/ttrpc/envelope.h"
#include "lib/ttrpc/frame_socket.h"
#include "lib/ttrpc/reactor.h"

namespace bulkhead::ttrpc {

// Connects to `path` ("unix://" allowed before it; a name that starts with
// "@" or "\0" is abstract) without ever blocking.
// Errors: kUnavailable: nobody listens, or the backlog is full.
absl::StatusOr<os::UniqueFd> Dial(const std::string& path);

// Whether `status` says that the connection was lost under the call.
bool IsClosed(const absl::Status& status);

// Thread-safe. The connection ends when the last reference goes, when the peer
// closes it, or by Close().
class Client : public std::enable_shared_from_this<Client> {
 public:
  // The payload of the reply. Errors: what the peer answered (code and
  // message); kDeadlineExceeded; kUnknown "ttrpc: closed": connection lost;
  // kResourceExhausted: the request is over 4 MiB.
  using Result = absl::StatusOr<std::string>;
  // Runs on the reactor's thread (or, for an error found at once, in the
  // calling one), exactly once unless the call was cancelled. Must not block.
  using Callback = std::function<void(Result)>;
  using CallId = uint64_t;

  // `on_close` (may be null) runs once on the reactor's thread, after every
  // pending call has failed; not when the destructor ends the connection.
  static std::shared_ptr<Client> Create(Reactor& reactor, os::UniqueFd socket,
                                        std::function<void()> on_close);
  ~Client();

  // Starts a call. `deadline` may be absl::InfiniteFuture().
  CallId Start(const std::string& service, const std::string& method,
               const std::string& payload, const Metadata& metadata,
               absl::Time deadline, Callback callback);
  // Forgets a call: its callback will not start after this returns (it may be
  // running). The peer goes on; its reply is discarded.
  void Cancel(CallId id);

  // Blocks for the reply. Never call it on the reactor's thread.
  Result Call(const std::string& service, const std::string& method,
              const std::string& payload, const Metadata& metadata,
              absl::Duration timeout);

  void Close();
  bool closed() const;
  // Calls that wait for a reply.
  size_t pending() const;

 private:
  struct Pending {
    Callback callback;
    Reactor::TimerId timer = 0;
  };
  explicit Client(Reactor& reactor) : reactor_(reactor) {}
  void OnFrame(const FrameHeader& header, const std::string& body);
  void Finish(uint32_t stream_id, Result result);
  void OnClose();

  Reactor& reactor_;
  std::shared_ptr<FrameSocket> socket_;
  std::function<void()> on_close_;
  mutable std::mutex mutex_;
  uint32_t next_id_ = 1;
  bool closed_ = false;
  std::unordered_map<uint32_t, Pending> pending_;
};

// Blocks until what `start` started has called back, and returns its result.
// Never call it on the thread that calls back.
Client::Result Await(
    const std::function<void(Client::Callback callback)>& start);

}  // namespace bulkhead::ttrpc

#endif  // BULKHEAD_LIB_TTRPC_CLIENT_H_
