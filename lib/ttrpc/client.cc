#include "lib/ttrpc/client.h"

#include <sys/socket.h>
#include <sys/un.h>

#include <condition_variable>
#include <cstddef>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"

namespace bulkhead::ttrpc {
namespace {
constexpr uint32_t kStreamIdMax = 0xffffffff - 2;
constexpr char kScheme[] = "unix://";
}  // namespace

absl::StatusOr<os::UniqueFd> Dial(const std::string& path) {
  std::string name = path;
  if (name.rfind(kScheme, 0) == 0) name.erase(0, sizeof(kScheme) - 1);
  if (!name.empty() && name[0] == '@') name[0] = '\0';
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (name.empty() || name.size() >= sizeof(address.sun_path)) {
    return absl::InvalidArgumentError(
        absl::StrCat("bad socket path '", path, "'"));
  }
  std::memcpy(address.sun_path, name.data(), name.size());
  // An abstract name has no terminator that counts.
  const socklen_t size = static_cast<socklen_t>(
      offsetof(sockaddr_un, sun_path) + name.size() + (name[0] != '\0'));
  os::UniqueFd fd(
      ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return os::ErrnoStatus(errno, "socket");
  if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), size) != 0) {
    return absl::UnavailableError(
        absl::StrCat("dial ", path, ": ", std::strerror(errno)));
  }
  return fd;
}

bool IsClosed(const absl::Status& status) {
  return absl::IsUnknown(status) &&
         absl::EndsWith(MessageOf(status), kClosedText);
}

Client::Result Await(
    const std::function<void(Client::Callback callback)>& start) {
  struct Slot {
    std::mutex mutex;
    std::condition_variable ready;
    std::optional<Client::Result> result;
  };
  auto slot = std::make_shared<Slot>();
  start([slot](Client::Result result) {
    std::lock_guard<std::mutex> lock(slot->mutex);
    slot->result = std::move(result);
    slot->ready.notify_one();
  });
  std::unique_lock<std::mutex> lock(slot->mutex);
  slot->ready.wait(lock, [&] { return slot->result.has_value(); });
  return std::move(*slot->result);
}

std::shared_ptr<Client> Client::Create(Reactor& reactor, os::UniqueFd socket,
                                       std::function<void()> on_close) {
  std::shared_ptr<Client> client(new Client(reactor));
  client->on_close_ = std::move(on_close);
  client->socket_ = FrameSocket::Create(reactor, std::move(socket));
  std::weak_ptr<Client> weak = client;
  client->socket_->Start(
      {.on_frame =
           [weak](const FrameHeader& header, std::string body) {
             if (auto self = weak.lock()) self->OnFrame(header, body);
           },
       .on_oversize =
           [weak](const FrameHeader& header) {
             if (auto self = weak.lock()) {
               self->Finish(header.stream_id,
                            absl::ResourceExhaustedError(
                                OversizeText(header.body_size_bytes)));
             }
           },
       .on_close =
           [weak] {
             if (auto self = weak.lock()) self->OnClose();
           }});
  return client;
}

Client::~Client() {
  socket_->Close();
  for (auto& [id, call] : pending_) {
    if (call.timer != 0) reactor_.Cancel(call.timer);
    call.callback(absl::UnknownError(kClosedText));
  }
}

Client::CallId Client::Start(const std::string& service,
                             const std::string& method,
                             const std::string& payload,
                             const Metadata& metadata, absl::Time deadline,
                             Callback callback) {
  Request request{service, method, payload, 0, metadata};
  if (deadline != absl::InfiniteFuture()) {
    request.timeout_nano = absl::ToInt64Nanoseconds(deadline - absl::Now());
    if (request.timeout_nano <= 0) {
      callback(absl::DeadlineExceededError("context deadline exceeded"));
      return 0;
    }
  }
  const std::string body = Encode(request);
  absl::Status status;
  uint32_t id = 0;
  {
    // Ids must reach the wire in order, so the frame is sent under the lock.
    std::lock_guard<std::mutex> lock(mutex_);
    if (closed_ || next_id_ > kStreamIdMax) {
      status = absl::UnknownError(kClosedText);
    } else {
      id = next_id_;
      Pending& call = pending_[id];
      call.callback = std::move(callback);
      if (deadline != absl::InfiniteFuture()) {
        call.timer = reactor_.At(deadline, [weak = weak_from_this(), id] {
          if (auto self = weak.lock()) {
            self->Finish(
                id, absl::DeadlineExceededError("context deadline exceeded"));
          }
        });
      }
      status = socket_->Send(kFrameRequest, id, body);
      if (status.ok()) {
        next_id_ += 2;
        return id;
      }
      if (call.timer != 0) reactor_.Cancel(call.timer);
      callback = std::move(call.callback);
      pending_.erase(id);
    }
  }
  callback(status);
  return 0;
}

void Client::Cancel(CallId id) {
  Callback dropped;
  std::lock_guard<std::mutex> lock(mutex_);
  auto it = pending_.find(static_cast<uint32_t>(id));
  if (it == pending_.end()) return;
  if (it->second.timer != 0) reactor_.Cancel(it->second.timer);
  dropped = std::move(it->second.callback);
  pending_.erase(it);
}

Client::Result Client::Call(const std::string& service,
                            const std::string& method,
                            const std::string& payload,
                            const Metadata& metadata, absl::Duration timeout) {
  return Await([&](Callback callback) {
    Start(service, method, payload, metadata, absl::Now() + timeout,
          std::move(callback));
  });
}

void Client::Close() { socket_->Close(); }

bool Client::closed() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return closed_;
}

size_t Client::pending() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return pending_.size();
}

void Client::OnFrame(const FrameHeader& header, const std::string& body) {
  if (header.type != kFrameResponse) return;
  Response response;
  if (!Decode(body, &response)) {
    return Finish(header.stream_id,
                  absl::InternalError("ttrpc: malformed response"));
  }
  if (response.code != 0) return Finish(header.stream_id, StatusOf(response));
  Finish(header.stream_id, std::move(response.payload));
}

void Client::Finish(uint32_t stream_id, Result result) {
  Callback callback;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    auto it = pending_.find(stream_id);
    if (it == pending_.end()) return;  // Given up, or never ours.
    if (it->second.timer != 0) reactor_.Cancel(it->second.timer);
    callback = std::move(it->second.callback);
    pending_.erase(it);
  }
  callback(std::move(result));
}

void Client::OnClose() {
  std::unordered_map<uint32_t, Pending> failed;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
    failed.swap(pending_);
  }
  for (auto& [id, call] : failed) {
    if (call.timer != 0) reactor_.Cancel(call.timer);
    call.callback(absl::UnknownError(kClosedText));
  }
  if (on_close_) on_close_();
}

}  // namespace bulkhead::ttrpc
