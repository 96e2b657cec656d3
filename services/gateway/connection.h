// One HTTP/2 connection on a non-blocking socket: moves bytes between the
// socket and an nghttp2 session. Internal to the gateway; one thread.
#ifndef BULKHEAD_SERVICES_GATEWAY_CONNECTION_H_
#define BULKHEAD_SERVICES_GATEWAY_CONNECTION_H_

#include <nghttp2/nghttp2.h>

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "lib/os/fd.h"

namespace bulkhead::gateway {

class Forwarder;

// Header fields in the order they came, in one buffer.
class HeaderBlock {
 public:
  // False, and nothing added, past kHeaderBlockBytesMax.
  bool Add(absl::string_view name, absl::string_view value, uint8_t flags = 0);
  // The value of the first field `name`, or an empty view.
  absl::string_view Find(absl::string_view name) const;
  // Points into this block.
  std::vector<nghttp2_nv> ToNv() const;
  void Clear();
  bool empty() const { return fields_.empty(); }

 private:
  struct Field {
    uint32_t offset;
    uint32_t name_bytes;
    uint32_t value_bytes;
    uint8_t flags;
  };
  std::string bytes_;
  std::vector<Field> fields_;
};

// Bytes that wait to be forwarded.
class Buffer {
 public:
  size_t size() const { return bytes_.size() - head_; }
  const char* data() const { return bytes_.data() + head_; }
  void Append(const uint8_t* data, size_t size) {
    if (bytes_.size() + size > bytes_.capacity()) Grow(size);
    bytes_.append(reinterpret_cast<const char*>(data), size);
  }
  void Drop(size_t size);

  // Large buffers that became empty are kept for the next that grows, as fresh
  // memory costs a page fault every 4 KiB. Gives this thread's back.
  static void ReleaseSpares();

 private:
  // Makes room for `size` bytes more, if not behind the others then elsewhere.
  void Grow(size_t size);

  std::string bytes_;
  size_t head_ = 0;
};

class Connection {
 public:
  enum class Kind { kClient, kUpstream };

  // `callbacks` get `this` as user data.
  Connection(Kind kind, os::UniqueFd fd, int epoll_fd,
             const nghttp2_session_callbacks* callbacks);
  virtual ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  // Takes what the socket has, once. False: the connection is over.
  bool ReadSome();
  // Writes what the session has, until it has no more or the socket is full.
  // False: the connection is over.
  bool Flush();

  // Registers with epoll; the data pointer is this object.
  bool Register();
  // Sends DATA from a nghttp2 send_data_callback: 0 or WOULDBLOCK.
  int SendData(const uint8_t* frame_header, const char* data, size_t size);

  // `size` bytes of DATA came in for a stream. Gives the connection's window
  // back at once, or returns how much of it must be given back later by
  // Forwarded() because too much is waiting.
  size_t Buffered(size_t size);
  // `size` bytes of `stream_id` (which may have gone) were passed on;
  // `withheld` of them had not been given back by Buffered().
  void Forwarded(int32_t stream_id, size_t size, size_t withheld);

  Kind kind() const { return kind_; }
  nghttp2_session* session() const { return session_; }
  int fd() const { return fd_.get(); }

  Forwarder* forwarder = nullptr;  // Set before the first byte.
  bool dead = false;               // To be closed at the end of the round.
  bool dirty = false;              // In the list of connections to flush.
  bool connecting = false;  // Not connected yet: nothing is read or written.
  bool draining = false;    // The peer or we said GOAWAY: no new streams.

 private:
  bool Arm(bool write);

  Kind kind_;
  os::UniqueFd fd_;
  int epoll_fd_;
  nghttp2_session* session_ = nullptr;
  Buffer out_;
  size_t buffered_bytes_ = 0;
  bool registered_ = false;
  bool write_armed_ = false;
};

}  // namespace bulkhead::gateway

#endif  // BULKHEAD_SERVICES_GATEWAY_CONNECTION_H_
