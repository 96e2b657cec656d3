#include "lib/ttrpc/frame_socket.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

namespace bulkhead::ttrpc {
namespace {
constexpr size_t kReadBytes = 64 << 10;
}  // namespace

std::shared_ptr<FrameSocket> FrameSocket::Create(Reactor& reactor,
                                                 os::UniqueFd fd) {
  ::fcntl(fd.get(), F_SETFL, ::fcntl(fd.get(), F_GETFL) | O_NONBLOCK);
  return std::shared_ptr<FrameSocket>(new FrameSocket(reactor, std::move(fd)));
}

void FrameSocket::Start(Hooks hooks) {
  hooks_ = std::move(hooks);
  std::lock_guard<std::mutex> lock(mutex_);
  reactor_.Watch(
      fd_.get(), EPOLLIN,
      [self = shared_from_this()](uint32_t events) { self->OnEvents(events); });
}

absl::Status FrameSocket::Send(uint8_t type, uint32_t stream_id,
                               const std::string& body) {
  if (body.size() > kFrameBodySizeBytesMax) {
    return absl::ResourceExhaustedError(
        OversizeText(static_cast<uint32_t>(body.size())));
  }
  FrameHeader header;
  header.stream_id = stream_id;
  header.type = type;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (closed_) return absl::UnknownError(kClosedText);
    const bool was_empty = output_.empty();
    AppendFrame(header, body, &output_);
    if (output_.size() <= kSendQueueBytesMax && FlushLocked()) {
      if (was_empty && !output_.empty()) {
        reactor_.Change(fd_.get(), EPOLLIN | EPOLLOUT);
      }
      return absl::OkStatus();
    }
  }
  Close();
  return absl::UnknownError(kClosedText);
}

bool FrameSocket::FlushLocked() {
  size_t done = 0;
  bool fine = true;
  while (done < output_.size()) {
    const ssize_t n =
        ::send(fd_.get(), output_.data() + done, output_.size() - done,
               MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0) {
      if (errno == EINTR) continue;
      fine = errno == EAGAIN || errno == EWOULDBLOCK;
      break;
    }
    done += static_cast<size_t>(n);
  }
  output_.erase(0, done);
  return fine;
}

void FrameSocket::Close() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (closed_) return;
    closed_ = true;
    ::shutdown(fd_.get(), SHUT_RDWR);
  }
  reactor_.Post([self = shared_from_this()] { self->FinishOnReactor(); });
}

void FrameSocket::FinishOnReactor() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (finished_) return;
    finished_ = true;
    closed_ = true;
    reactor_.Forget(fd_.get());
    fd_.Reset();
  }
  Hooks hooks = std::move(hooks_);
  hooks_ = {};
  if (hooks.on_close) hooks.on_close();
}

void FrameSocket::OnEvents(uint32_t events) {
  if (events & EPOLLOUT) {
    bool fine;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (closed_) return;
      fine = FlushLocked();
      if (fine && output_.empty()) reactor_.Change(fd_.get(), EPOLLIN);
    }
    if (!fine) return FinishOnReactor();
  }
  if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) Read();
}

void FrameSocket::Read() {
  int fd;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (finished_) return;
    fd = fd_.get();  // Closed only by this thread.
  }
  const size_t old_size = input_.size();
  input_.resize(old_size + kReadBytes);
  ssize_t n;
  do {
    n = ::recv(fd, input_.data() + old_size, kReadBytes, MSG_DONTWAIT);
  } while (n < 0 && errno == EINTR);
  const int error = errno;
  input_.resize(old_size + static_cast<size_t>(std::max<ssize_t>(n, 0)));
  if (n < 0 && (error == EAGAIN || error == EWOULDBLOCK)) return;
  while (!input_.empty() && TakeFrame()) {
  }
  if (n <= 0) FinishOnReactor();
}

bool FrameSocket::TakeFrame() {
  if (drain_bytes_ > 0) {
    const size_t part = std::min(drain_bytes_, input_.size());
    input_.erase(0, part);
    drain_bytes_ -= part;
    return drain_bytes_ == 0;
  }
  if (input_.size() < kFrameHeaderSizeBytes) return false;
  const FrameHeader header =
      DecodeFrameHeader(reinterpret_cast<const uint8_t*>(input_.data()));
  if (header.body_size_bytes > kFrameBodySizeBytesMax) {
    input_.erase(0, kFrameHeaderSizeBytes);
    drain_bytes_ = header.body_size_bytes;
    if (hooks_.on_oversize) hooks_.on_oversize(header);
    return true;
  }
  const size_t whole = kFrameHeaderSizeBytes + header.body_size_bytes;
  if (input_.size() < whole) return false;
  std::string body =
      input_.substr(kFrameHeaderSizeBytes, header.body_size_bytes);
  input_.erase(0, whole);
  if (hooks_.on_frame) hooks_.on_frame(header, std::move(body));
  return true;
}

}  // namespace bulkhead::ttrpc
