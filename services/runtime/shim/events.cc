#include "services/runtime/shim/events.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/match.h"
#include "lib/os/socket.h"
#include "lib/ttrpc/frame.h"
#include "lib/ttrpc/wire.h"

namespace bulkhead::shim {
namespace {

constexpr int64_t kAnswerTimeoutMs = 5000;
constexpr int64_t kRetryDelayMsMax = 5000;
// A daemon that is being replaced may be away for some minutes.
constexpr int kFailuresMax = 120;

}  // namespace

EventPublisher::EventPublisher(Loop* loop, std::string address,
                               std::string name_space)
    : loop_(loop),
      address_(std::move(address)),
      name_space_(std::move(name_space)) {
  if (absl::StartsWith(address_, "unix://")) address_ = address_.substr(7);
}

void EventPublisher::Publish(const std::string& topic,
                             const std::string& type_name,
                             const std::string& event) {
  if (address_.empty()) return;
  const timespec now = Now();
  ttrpc::WireWriter timestamp;
  timestamp.Int(1, now.tv_sec).Int(2, now.tv_nsec);
  ttrpc::WireWriter any;
  any.Str(1, type_name).Str(2, event);
  ttrpc::WireWriter envelope;
  envelope.Message(1, timestamp.str()).Str(2, name_space_).Str(3, topic);
  envelope.Message(4, any.str());
  ttrpc::WireWriter forward;
  forward.Message(1, envelope.str());
  ttrpc::WireWriter name_header;
  name_header.Str(1, "containerd-namespace-ttrpc").Str(2, name_space_);
  ttrpc::WireWriter request;
  request.Str(1, "containerd.services.events.ttrpc.v1.Events");
  request.Str(2, "Forward").Str(3, forward.str());
  request.Int(4, kAnswerTimeoutMs * 1000000);
  request.Message(5, name_header.str());
  if (queue_.size() >= kEventsQueuedMax) {
    // Never the one in flight.
    queue_.erase(queue_.begin() + (in_flight_ ? 1 : 0));
  }
  queue_.push_back({request.Take(), 0});
  if (!in_flight_ && timer_ == 0) SendFirst();
}

void EventPublisher::SendFirst() {
  if (queue_.empty() || in_flight_) return;
  if (!socket_.valid()) {
    absl::StatusOr<os::UniqueFd> socket = os::ConnectUnix(address_);
    if (!socket.ok()) return Failed();
    socket_ = std::move(*socket);
    (void)::fcntl(socket_.get(), F_SETFL, O_NONBLOCK);
    next_stream_ = 1;
    if (!loop_
             ->Watch(socket_.get(), EPOLLIN, [this](uint32_t) { OnReadable(); })
             .ok()) {
      return Failed();
    }
  }
  std::string frame;
  ttrpc::AppendFrame({.stream_id = next_stream_, .type = ttrpc::kFrameRequest},
                     queue_.front().request, &frame);
  next_stream_ += 2;
  // Events are small and one is in flight: a full socket means a sick peer.
  const ssize_t size =
      ::send(socket_.get(), frame.data(), frame.size(), MSG_NOSIGNAL);
  if (size != static_cast<ssize_t>(frame.size())) return Failed();
  in_flight_ = true;
  timer_ = loop_->After(kAnswerTimeoutMs, [this] {
    timer_ = 0;
    Failed();
  });
}

void EventPublisher::OnReadable() {
  char buffer[4096];
  const ssize_t size = ::read(socket_.get(), buffer, sizeof(buffer));
  if (size < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (size <= 0) {
    if (in_flight_) return Failed();
    return Disconnect();
  }
  in_.append(buffer, static_cast<size_t>(size));
  while (in_.size() >= ttrpc::kFrameHeaderSizeBytes) {
    const ttrpc::FrameHeader header =
        ttrpc::DecodeFrameHeader(reinterpret_cast<const uint8_t*>(in_.data()));
    if (header.body_size_bytes > ttrpc::kFrameBodySizeBytesMax) {
      return Failed();
    }
    const size_t total = ttrpc::kFrameHeaderSizeBytes + header.body_size_bytes;
    if (in_.size() < total) return;
    uint64_t code = 0;
    ttrpc::WireReader response(std::string_view(in_).substr(
        ttrpc::kFrameHeaderSizeBytes, header.body_size_bytes));
    while (response.Next()) {
      if (response.field() != 1) continue;
      ttrpc::WireReader status(response.bytes());
      while (status.Next()) {
        if (status.field() == 1) code = status.value();
      }
    }
    in_.erase(0, total);
    if (header.type == ttrpc::kFrameResponse && in_flight_ &&
        header.stream_id == next_stream_ - 2) {
      // A refusal of the event itself will not change by repeating it.
      constexpr uint64_t kUnavailable = 14;
      Answered(code != kUnavailable);
    }
  }
}

void EventPublisher::Answered(bool delivered) {
  if (!delivered) return Failed();
  loop_->Cancel(timer_);
  timer_ = 0;
  in_flight_ = false;
  queue_.pop_front();
  if (queue_.empty()) {
    CheckDrained();
  } else {
    SendFirst();
  }
}

void EventPublisher::Failed() {
  loop_->Cancel(timer_);
  Disconnect();
  in_flight_ = false;
  if (queue_.empty()) return;
  Item& item = queue_.front();
  // A connection that died while idle is found out here: try again at once.
  const int64_t delay_ms =
      item.failures == 0
          ? 0
          : std::min<int64_t>(item.failures * 250, kRetryDelayMsMax);
  if (++item.failures > kFailuresMax) queue_.pop_front();
  timer_ = loop_->After(delay_ms, [this] {
    timer_ = 0;
    SendFirst();
    CheckDrained();
  });
}

void EventPublisher::Disconnect() {
  if (socket_.valid()) loop_->Unwatch(socket_.get());
  socket_.Reset();
  in_.clear();
}

void EventPublisher::Drain(int64_t timeout_ms, std::function<void()> done) {
  if (drained_) return;
  drained_ = std::move(done);
  drain_timer_ = loop_->After(timeout_ms, [this] {
    if (drained_) std::exchange(drained_, nullptr)();
  });
  CheckDrained();
}

void EventPublisher::CheckDrained() {
  if (!drained_ || !queue_.empty()) return;
  loop_->Cancel(drain_timer_);
  std::exchange(drained_, nullptr)();
}

}  // namespace bulkhead::shim
