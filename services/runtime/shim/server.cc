#include "services/runtime/shim/server.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/os/socket.h"
#include "lib/ttrpc/wire.h"

namespace bulkhead::shim {
namespace {

using ttrpc::DecodeFrameHeader;
using ttrpc::kFrameBodySizeBytesMax;
using ttrpc::kFrameHeaderSizeBytes;

char read_buffer[16 << 10];

}  // namespace

Server::~Server() {
  if (listener_.valid()) loop_->Unwatch(listener_.get());
}

absl::Status Server::Start() {
  (void)::fcntl(listener_.get(), F_SETFL, O_NONBLOCK);
  return loop_->Watch(listener_.get(), EPOLLIN,
                      [this](uint32_t) { AcceptAll(); });
}

void Server::Stop() {
  while (!connections_.empty()) {
    const auto first = connections_.begin();
    Connection* connection = first->second.get();
    if (!connection->out.empty()) {
      (void)::send(connection->fd.get(), connection->out.data(),
                   connection->out.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    }
    Close(first->first);
  }
}

void Server::AcceptAll() {
  for (;;) {
    os::UniqueFd fd(::accept4(listener_.get(), nullptr, nullptr,
                              SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!fd.valid()) return;
    const absl::StatusOr<os::PeerCredentials> peer = os::PeerOf(fd.get());
    if (!peer.ok() || peer->uid != ::geteuid() || peer->gid != ::getegid() ||
        connections_.size() >= kConnectionsMax) {
      continue;
    }
    const uint64_t id = ++last_id_;
    auto connection = std::make_unique<Connection>();
    connection->fd = std::move(fd);
    const int number = connection->fd.get();
    connections_[id] = std::move(connection);
    if (!loop_
             ->Watch(number, EPOLLIN,
                     [this, id](uint32_t events) { OnEvents(id, events); })
             .ok()) {
      connections_.erase(id);
    }
  }
}

void Server::OnEvents(uint64_t id, uint32_t events) {
  const auto found = connections_.find(id);
  if (found == connections_.end()) return;
  Connection* connection = found->second.get();
  if (events & EPOLLOUT) Flush(connection);
  if (connections_.find(id) == connections_.end()) return;
  if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
    if (!ReadAndDispatch(id, connection)) Close(id);
  }
}

bool Server::ReadAndDispatch(uint64_t id, Connection* connection) {
  const ssize_t size =
      ::read(connection->fd.get(), read_buffer, sizeof(read_buffer));
  if (size < 0) return errno == EAGAIN || errno == EINTR;
  if (size == 0) return false;
  connection->in.append(read_buffer, static_cast<size_t>(size));
  size_t used = 0;
  for (;;) {
    const size_t have = connection->in.size() - used;
    if (connection->drain_bytes > 0) {
      const size_t skip = std::min<uint64_t>(have, connection->drain_bytes);
      used += skip;
      connection->drain_bytes -= skip;
      if (connection->drain_bytes > 0) break;
      ++connection->pending;
      Send(id, connection->drain_stream,
           absl::ResourceExhaustedError(connection->drain_text), "");
      if (connections_.find(id) == connections_.end()) return true;
      continue;
    }
    if (have < kFrameHeaderSizeBytes) break;
    const ttrpc::FrameHeader header = DecodeFrameHeader(
        reinterpret_cast<const uint8_t*>(connection->in.data() + used));
    if (header.body_size_bytes > kFrameBodySizeBytesMax) {
      used += kFrameHeaderSizeBytes;
      connection->drain_bytes = header.body_size_bytes;
      connection->drain_stream = header.stream_id;
      connection->drain_text = ttrpc::OversizeText(header.body_size_bytes);
      continue;
    }
    if (have < kFrameHeaderSizeBytes + header.body_size_bytes) break;
    std::string body = connection->in.substr(used + kFrameHeaderSizeBytes,
                                             header.body_size_bytes);
    used += kFrameHeaderSizeBytes + header.body_size_bytes;
    Dispatch(id, header, std::move(body));
    if (connections_.find(id) == connections_.end()) return true;
  }
  connection->in.erase(0, used);
  if (connection->in.empty()) std::string().swap(connection->in);
  return true;
}

void Server::Dispatch(uint64_t id, const ttrpc::FrameHeader& header,
                      std::string body) {
  Connection* connection = connections_[id].get();
  if (header.type != ttrpc::kFrameRequest && header.type != ttrpc::kFrameData) {
    return;
  }
  ++connection->pending;
  const uint32_t stream = header.stream_id;
  const auto refuse = [&](const absl::Status& status) {
    Send(id, stream, status, "");
  };
  if (header.type == ttrpc::kFrameData) {
    return refuse(absl::InvalidArgumentError("stream is not open"));
  }
  if (stream % 2 == 0) {
    return refuse(
        absl::InvalidArgumentError("StreamID must be odd for client "
                                   "initiated streams"));
  }
  if (stream <= connection->last_stream) {
    return refuse(absl::InvalidArgumentError("StreamID cannot be re-used"));
  }
  connection->last_stream = stream;
  if (connection->pending > kPendingCallsMax) {
    return refuse(absl::ResourceExhaustedError("too many calls at once"));
  }
  std::string service;
  std::string method;
  std::string payload;
  ttrpc::WireReader reader(body);
  while (reader.Next()) {
    if (reader.field() == 1) service = reader.str();
    if (reader.field() == 2) method = reader.str();
    if (reader.field() == 3) payload = reader.str();
  }
  if (!reader.ok()) {
    return refuse(absl::InvalidArgumentError("malformed request"));
  }
  handler_(
      service, method, std::move(payload),
      [this, id, stream](const absl::Status& status, const std::string& reply) {
        Send(id, stream, status, reply);
      });
}

void Server::Send(uint64_t id, uint32_t stream, const absl::Status& status,
                  const std::string& payload) {
  const auto found = connections_.find(id);
  if (found == connections_.end()) return;
  Connection* connection = found->second.get();
  --connection->pending;
  ttrpc::WireWriter response;
  if (!status.ok()) {
    ttrpc::WireWriter wire_status;
    wire_status.Int(1, static_cast<int>(status.code()));
    wire_status.Str(2, MessageOf(status));
    response.Message(1, wire_status.str());
  }
  response.Str(2, payload);
  const bool idle = connection->out.empty();
  ttrpc::AppendFrame({.stream_id = stream, .type = ttrpc::kFrameResponse},
                     response.str(), &connection->out);
  if (idle) Flush(connection);
}

void Server::Flush(Connection* connection) {
  while (!connection->out.empty()) {
    const ssize_t size = ::send(connection->fd.get(), connection->out.data(),
                                connection->out.size(), MSG_NOSIGNAL);
    if (size >= 0) {
      connection->out.erase(0, static_cast<size_t>(size));
      continue;
    }
    if (errno == EINTR) continue;
    if (errno == EAGAIN) {
      // A peer that takes no answers gets to ask nothing more.
      loop_->Modify(connection->fd.get(), EPOLLOUT);
    } else {
      // The next event closes it: callers still hold the connection.
      std::string().swap(connection->out);
      (void)::shutdown(connection->fd.get(), SHUT_RDWR);
    }
    return;
  }
  std::string().swap(connection->out);
  loop_->Modify(connection->fd.get(), EPOLLIN);
}

void Server::Close(uint64_t id) {
  const auto found = connections_.find(id);
  if (found == connections_.end()) return;
  loop_->Unwatch(found->second->fd.get());
  connections_.erase(found);
}

}  // namespace bulkhead::shim
