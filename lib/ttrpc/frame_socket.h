// A connected socket that carries ttrpc frames, driven by a Reactor. What
// Client and Server are built on.
#ifndef BULKHEAD_LIB_TTRPC_FRAME_SOCKET_H_
#define BULKHEAD_LIB_TTRPC_FRAME_SOCKET_H_

#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "absl/status/status.h"
#include "lib/os/fd.h"
#include "lib/ttrpc/frame.h"
#include "lib/ttrpc/reactor.h"

namespace bulkhead::ttrpc {

// Bytes waiting for a peer that does not read; past it the connection is lost.
constexpr size_t kSendQueueBytesMax = 16 << 20;

// Thread-safe. The hooks run on the reactor's thread.
class FrameSocket : public std::enable_shared_from_this<FrameSocket> {
 public:
  struct Hooks {
    std::function<void(const FrameHeader&, std::string body)> on_frame;
    // A body that is too long: announced once, then drained.
    std::function<void(const FrameHeader&)> on_oversize;
    std::function<void()> on_close;  // Exactly once.
  };

  // Makes `fd` non-blocking. `reactor` must outlive the connection.
  static std::shared_ptr<FrameSocket> Create(Reactor& reactor, os::UniqueFd fd);
  // Begins to read; the hooks may hold references to what owns this, they are
  // dropped when the connection ends.
  void Start(Hooks hooks);

  // Queues one frame; never blocks.
  // Errors: kResourceExhausted: the body is too long (nothing was sent).
  //   kUnknown "ttrpc: closed": the connection is lost.
  absl::Status Send(uint8_t type, uint32_t stream_id, const std::string& body);
  // Ends the connection; on_close follows.
  void Close();

 private:
  FrameSocket(Reactor& reactor, os::UniqueFd fd)
      : reactor_(reactor), fd_(std::move(fd)) {}
  void OnEvents(uint32_t events);
  void Read();
  // False: not enough bytes for another frame.
  bool TakeFrame();
  bool FlushLocked();  // False: broken.
  void FinishOnReactor();

  Reactor& reactor_;
  std::mutex mutex_;  // fd_'s life, output_, closed_.
  os::UniqueFd fd_;
  std::string output_;
  bool closed_ = false;
  bool finished_ = false;
  // The reactor's thread only:
  Hooks hooks_;
  std::string input_;
  size_t drain_bytes_ = 0;
};

}  // namespace bulkhead::ttrpc

#endif  // BULKHEAD_LIB_TTRPC_FRAME_SOCKET_H_
