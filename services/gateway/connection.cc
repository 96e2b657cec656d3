#include "services/gateway/connection.h"

#include <sys/epoll.h>
#include <sys/socket.h>

#include <cerrno>

#include "services/gateway/proxy.h"

namespace bulkhead::gateway {
namespace {

constexpr size_t kReadBytes = 256 << 10;
constexpr size_t kOutBytesMax = 256 << 10;
// A buffer that grew larger does not keep its memory when it is empty: that
// becomes a spare, as far as these limits go.
constexpr size_t kKeptBytesMax = 64 << 10;
constexpr size_t kSpareBytesMax = 1 << 20;
constexpr size_t kSparesMax = 3;

thread_local std::vector<std::string> t_spares;

}  // namespace

bool HeaderBlock::Add(absl::string_view name, absl::string_view value,
                      uint8_t flags) {
  if (bytes_.size() + name.size() + value.size() > kHeaderBlockBytesMax) {
    return false;
  }
  fields_.push_back({static_cast<uint32_t>(bytes_.size()),
                     static_cast<uint32_t>(name.size()),
                     static_cast<uint32_t>(value.size()), flags});
  bytes_.append(name.data(), name.size());
  bytes_.append(value.data(), value.size());
  return true;
}

absl::string_view HeaderBlock::Find(absl::string_view name) const {
  for (const Field& field : fields_) {
    const char* at = bytes_.data() + field.offset;
    if (absl::string_view(at, field.name_bytes) == name) {
      return absl::string_view(at + field.name_bytes, field.value_bytes);
    }
  }
  return absl::string_view();
}

std::vector<nghttp2_nv> HeaderBlock::ToNv() const {
  std::vector<nghttp2_nv> out;
  out.reserve(fields_.size());
  for (const Field& field : fields_) {
    auto* at = reinterpret_cast<uint8_t*>(
        const_cast<char*>(bytes_.data() + field.offset));
    out.push_back({at, at + field.name_bytes, field.name_bytes,
                   field.value_bytes, field.flags});
  }
  return out;
}

void HeaderBlock::Clear() {
  bytes_.clear();
  fields_.clear();
}

void Buffer::Drop(size_t size) {
  head_ += size;
  if (head_ < bytes_.size()) return;
  head_ = 0;
  bytes_.clear();
  if (bytes_.capacity() <= kKeptBytesMax) return;
  if (t_spares.size() < kSparesMax && bytes_.capacity() <= kSpareBytesMax) {
    t_spares.push_back(std::move(bytes_));
  }
  bytes_ = std::string();
}

void Buffer::Grow(size_t size) {
  const size_t needed = this->size() + size;
  if (needed > kKeptBytesMax && bytes_.capacity() <= kKeptBytesMax &&
      !t_spares.empty()) {
    std::string spare = std::move(t_spares.back());
    t_spares.pop_back();
    spare.assign(data(), this->size());
    bytes_ = std::move(spare);
    head_ = 0;
  } else if (head_ >= this->size()) {  // So that no byte is moved often.
    bytes_.erase(0, head_);
    head_ = 0;
  }
}

void Buffer::ReleaseSpares() { t_spares = {}; }

Connection::Connection(Kind kind, os::UniqueFd fd, int epoll_fd,
                       const nghttp2_session_callbacks* callbacks)
    : kind_(kind), fd_(std::move(fd)), epoll_fd_(epoll_fd) {
  nghttp2_option* option = nullptr;
  nghttp2_option_new(&option);
  // We forward what peers say and check only what we use ourselves.
  nghttp2_option_set_no_http_messaging(option, 1);
  nghttp2_option_set_no_auto_window_update(option, 1);
  nghttp2_option_set_peer_max_concurrent_streams(option,
                                                 kStreamsPerConnectionMax);
  nghttp2_option_set_max_send_header_block_length(option,
                                                  kHeaderBlockBytesMax * 2);
  const nghttp2_settings_entry settings[] = {
      {NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, kStreamsPerConnectionMax},
      {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, kStreamWindowBytes},
      {NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, kHeaderBlockBytesMax},
      {NGHTTP2_SETTINGS_ENABLE_PUSH, 0}};
  if (kind == Kind::kClient) {
    nghttp2_session_server_new2(&session_, callbacks, this, option);
    nghttp2_submit_settings(session_, NGHTTP2_FLAG_NONE, settings, 3);
  } else {
    nghttp2_session_client_new2(&session_, callbacks, this, option);
    nghttp2_submit_settings(session_, NGHTTP2_FLAG_NONE, settings, 4);
  }
  nghttp2_option_del(option);
  nghttp2_session_set_local_window_size(session_, NGHTTP2_FLAG_NONE, 0,
                                        kConnectionWindowBytes);
}

Connection::~Connection() { nghttp2_session_del(session_); }

bool Connection::Register() {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.ptr = this;
  registered_ = ::epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, fd_.get(), &event) == 0;
  return registered_;
}

bool Connection::Arm(bool write) {
  if (write == write_armed_ || !registered_) return true;
  epoll_event event{};
  event.events = EPOLLIN | (write ? static_cast<uint32_t>(EPOLLOUT) : 0u);
  event.data.ptr = this;
  write_armed_ = write;
  return ::epoll_ctl(epoll_fd_, EPOLL_CTL_MOD, fd_.get(), &event) == 0;
}

bool Connection::ReadSome() {
  static thread_local std::vector<uint8_t> buffer(kReadBytes);
  const ssize_t count = ::recv(fd_.get(), buffer.data(), buffer.size(), 0);
  if (count < 0) return errno == EAGAIN || errno == EINTR;
  if (count == 0) return false;
  return nghttp2_session_mem_recv(session_, buffer.data(),
                                  static_cast<size_t>(count)) == count;
}

int Connection::SendData(const uint8_t* frame_header, const char* data,
                         size_t size) {
  if (out_.size() >= kOutBytesMax) return NGHTTP2_ERR_WOULDBLOCK;
  out_.Append(frame_header, 9);
  out_.Append(reinterpret_cast<const uint8_t*>(data), size);
  return 0;
}

bool Connection::Flush() {
  if (connecting) return true;
  for (;;) {
    while (out_.size() < kOutBytesMax) {
      const uint8_t* data = nullptr;
      const ssize_t count = nghttp2_session_mem_send(session_, &data);
      if (count < 0) return false;
      if (count == 0) break;
      out_.Append(data, static_cast<size_t>(count));
    }
    if (out_.size() == 0) break;
    const ssize_t sent =
        ::send(fd_.get(), out_.data(), out_.size(), MSG_NOSIGNAL);
    if (sent < 0) {
      if (errno == EINTR) continue;
      return errno == EAGAIN && Arm(true);
    }
    out_.Drop(static_cast<size_t>(sent));
  }
  return Arm(false) && (nghttp2_session_want_read(session_) != 0 ||
                        nghttp2_session_want_write(session_) != 0);
}

size_t Connection::Buffered(size_t size) {
  buffered_bytes_ += size;
  if (buffered_bytes_ > kConnectionBufferedBytes) return size;
  nghttp2_session_consume_connection(session_, size);
  return 0;
}

void Connection::Forwarded(int32_t stream_id, size_t size, size_t withheld) {
  buffered_bytes_ -= size;
  nghttp2_session_consume_stream(session_, stream_id, size);
  if (withheld > 0) nghttp2_session_consume_connection(session_, withheld);
}

}  // namespace bulkhead::gateway
