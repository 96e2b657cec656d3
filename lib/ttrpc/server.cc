#include "lib/ttrpc/server.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <mutex>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "lib/os/acceptor.h"
#include "lib/os/socket.h"
#include "lib/ttrpc/frame_socket.h"

namespace bulkhead::ttrpc {

struct Server::State : std::enable_shared_from_this<State> {
  explicit State(Reactor& r) : reactor(r) {}

  void Accept();
  void Serve(const std::shared_ptr<FrameSocket>& socket);

  Reactor& reactor;
  os::UniqueFd listener;
  std::optional<os::Acceptor> acceptor;  // Of the listener.
  std::map<std::string, Handler> methods;
  std::set<std::string> services;
  std::mutex mutex;  // The two below.
  bool stopping = false;
  std::set<std::shared_ptr<FrameSocket>> sockets;
};

namespace {

void SendReply(const std::shared_ptr<FrameSocket>& socket, uint32_t stream_id,
               const absl::StatusOr<std::string>& payload) {
  const Response response =
      payload.ok() ? Response{0, "", *payload} : ResponseOf(payload.status());
  const absl::Status sent =
      socket->Send(kFrameResponse, stream_id, Encode(response));
  if (absl::IsResourceExhausted(sent)) {
    (void)socket->Send(kFrameResponse, stream_id,
                       Encode(ResponseOf(sent)));  // Lost: nobody to tell.
  }
}

}  // namespace

std::unique_ptr<Server> Server::Start(Reactor& reactor, os::UniqueFd listener,
                                      std::map<std::string, Handler> methods) {
  auto state = std::make_shared<State>(reactor);
  ::fcntl(listener.get(), F_SETFL,
          ::fcntl(listener.get(), F_GETFL) | O_NONBLOCK);
  state->listener = std::move(listener);
  state->acceptor.emplace(state->listener.get());
  for (const auto& [name, handler] : methods) {
    state->services.insert(name.substr(0, name.find('/')));
  }
  state->methods = std::move(methods);
  reactor.Watch(state->listener.get(), EPOLLIN,
                [state](uint32_t) { state->Accept(); });
  return std::unique_ptr<Server>(new Server(std::move(state)));
}

Server::~Server() {
  std::set<std::shared_ptr<FrameSocket>> sockets;
  {
    std::lock_guard<std::mutex> lock(state_->mutex);
    state_->stopping = true;
    sockets.swap(state_->sockets);
    state_->reactor.Forget(state_->listener.get());
  }
  for (const auto& socket : sockets) socket->Close();
  // The listener is closed by whoever drops the state last: perhaps a hook
  // that is under way.
}

void Server::State::Accept() {
  absl::StatusOr<os::UniqueFd> fd = acceptor->Accept();
  if (!fd.ok()) return;
  absl::StatusOr<os::PeerCredentials> peer = os::PeerOf(fd->get());
  if (!peer.ok() || peer->uid != ::geteuid() || peer->gid != ::getegid()) {
    return;
  }
  auto socket = FrameSocket::Create(reactor, std::move(*fd));
  {
    std::lock_guard<std::mutex> lock(mutex);
    if (stopping || sockets.size() >= kConnectionsMax) return;
    sockets.insert(socket);
  }
  Serve(socket);
}

void Server::State::Serve(const std::shared_ptr<FrameSocket>& socket) {
  auto self = shared_from_this();
  auto last_id = std::make_shared<uint32_t>(0);
  FrameSocket::Hooks hooks;
  hooks.on_frame = [self, socket, last_id](const FrameHeader& header,
                                           std::string body) {
    const uint32_t id = header.stream_id;
    if (header.type == kFrameData) {
      return SendReply(socket, id,
                       absl::InvalidArgumentError("no such stream"));
    }
    if (header.type != kFrameRequest) return;
    if (id % 2 == 0) {
      return SendReply(
          socket, id,
          absl::InvalidArgumentError("StreamID must be odd for client "
                                     "initiated streams"));
    }
    if (id <= *last_id) {
      return SendReply(
          socket, id,
          absl::InvalidArgumentError("StreamID cannot be re-used and must "
                                     "increment"));
    }
    *last_id = id;
    Request request;
    if (!Decode(body, &request)) {
      return SendReply(socket, id,
                       absl::InvalidArgumentError("malformed request"));
    }
    auto it =
        self->methods.find(absl::StrCat(request.service, "/", request.method));
    if (it == self->methods.end()) {
      return SendReply(socket, id,
                       absl::UnimplementedError(
                           self->services.count(request.service) == 0
                               ? absl::StrCat("service ", request.service)
                               : absl::StrCat("method ", request.method)));
    }
    it->second(request, [socket, id](absl::StatusOr<std::string> payload) {
      SendReply(socket, id, payload);
    });
  };
  hooks.on_oversize = [socket, last_id](const FrameHeader& header) {
    if (header.stream_id > *last_id) *last_id = header.stream_id;
    SendReply(
        socket, header.stream_id,
        absl::ResourceExhaustedError(OversizeText(header.body_size_bytes)));
  };
  hooks.on_close = [self, socket] {
    std::lock_guard<std::mutex> lock(self->mutex);
    self->sockets.erase(socket);
  };
  socket->Start(std::move(hooks));
}

}  // namespace bulkhead::ttrpc
