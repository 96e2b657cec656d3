#include "services/gateway/forwarder.h"

#include <algorithm>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"

namespace bulkhead::gateway {
namespace {

constexpr int kCanceled = 1;
constexpr int kResourceExhausted = 8;
constexpr int kUnimplemented = 12;
constexpr int kInternal = 13;
constexpr int kUnavailable = 14;

absl::string_view View(const uint8_t* data, size_t size) {
  return absl::string_view(reinterpret_cast<const char*>(data), size);
}

// gRPC's percent-encoding of grpc-message.
std::string EncodeMessage(const std::string& message) {
  std::string out;
  for (const char c : message) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte > 0x7e || byte == '%') {
      absl::StrAppend(&out, "%", absl::Hex(byte, absl::kZeroPad2));
    } else {
      out.push_back(c);
    }
  }
  return out;
}

HeaderBlock StatusBlock(bool whole, int code, const std::string& message) {
  HeaderBlock block;
  if (whole) {
    block.Add(":status", "200");
    block.Add("content-type", "application/grpc");
  }
  block.Add("grpc-status", absl::StrCat(code));
  if (!message.empty()) {
    block.Add("grpc-message", EncodeMessage(message).substr(0, 4096));
  }
  return block;
}

int CodeOf(const HeaderBlock& block) {
  int code = -1;
  if (!absl::SimpleAtoi(block.Find("grpc-status"), &code)) return -1;
  return code;
}

Exchange* ExchangeOf(nghttp2_session* session, int32_t stream) {
  return static_cast<Exchange*>(
      nghttp2_session_get_stream_user_data(session, stream));
}

// Passes `size` bytes of `pipe` on, or gives them up: either way the
// connection they came from may receive that much more.
void Drain(Pipe* pipe, size_t size, Connection* from, int32_t stream) {
  pipe->buffer.Drop(size);
  const size_t withheld = std::min(size, pipe->withheld);
  pipe->withheld -= withheld;
  if (from != nullptr) from->Forwarded(stream, size, withheld);
}

ssize_t Provide(Pipe* pipe, size_t length, uint32_t* flags, bool* last) {
  const size_t available = pipe->buffer.size();
  const size_t size = std::min(available, length);
  if (size == 0 && !pipe->eof) return NGHTTP2_ERR_DEFERRED;
  *flags |= NGHTTP2_DATA_FLAG_NO_COPY;
  *last = pipe->eof && size == available;
  if (*last) {
    *flags |= NGHTTP2_DATA_FLAG_EOF;
    pipe->providing = false;
  }
  return static_cast<ssize_t>(size);
}

}  // namespace

Forwarder::Forwarder(Hooks hooks, LocalHandler* local)
    : hooks_(std::move(hooks)), local_(local) {
  nghttp2_session_callbacks_new(&callbacks_);
  nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks_,
                                                          OnBeginHeaders);
  nghttp2_session_callbacks_set_on_header_callback(callbacks_, OnHeader);
  nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks_, OnFrame);
  nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks_, OnData);
  nghttp2_session_callbacks_set_on_frame_send_callback(callbacks_, OnFrameSent);
  nghttp2_session_callbacks_set_on_stream_close_callback(callbacks_,
                                                         OnStreamClose);
  nghttp2_session_callbacks_set_send_data_callback(callbacks_, OnSendData);
}

Forwarder::~Forwarder() { nghttp2_session_callbacks_del(callbacks_); }

Forwarder* Forwarder::Of(Connection* connection) {
  return connection->forwarder;
}

int Forwarder::OnBeginHeaders(nghttp2_session* session,
                              const nghttp2_frame* frame, void* user) {
  auto* connection = static_cast<Connection*>(user);
  if (connection->kind() == Connection::Kind::kUpstream) {
    Exchange* exchange = ExchangeOf(session, frame->hd.stream_id);
    if (exchange != nullptr) exchange->incoming.Clear();
    return 0;
  }
  if (frame->headers.cat != NGHTTP2_HCAT_REQUEST) return 0;
  auto* client = static_cast<Client*>(connection);
  auto* exchange = new Exchange;
  exchange->client = client;
  exchange->client_stream = frame->hd.stream_id;
  exchange->started_at = std::chrono::steady_clock::now();
  client->exchanges.insert(exchange);
  nghttp2_session_set_stream_user_data(session, frame->hd.stream_id, exchange);
  return 0;
}

int Forwarder::OnHeader(nghttp2_session* session, const nghttp2_frame* frame,
                        const uint8_t* name, size_t name_size,
                        const uint8_t* value, size_t value_size, uint8_t flags,
                        void* user) {
  Exchange* exchange = ExchangeOf(session, frame->hd.stream_id);
  if (exchange == nullptr) return 0;
  const bool from_client =
      static_cast<Connection*>(user)->kind() == Connection::Kind::kClient;
  if (from_client && exchange->request_started) return 0;
  HeaderBlock& block = from_client ? exchange->headers : exchange->incoming;
  if (!block.Add(View(name, name_size), View(value, value_size),
                 flags & NGHTTP2_NV_FLAG_NO_INDEX)) {
    exchange->headers_too_big = true;
  }
  return 0;
}

int Forwarder::OnFrame(nghttp2_session*, const nghttp2_frame* frame,
                       void* user) {
  auto* connection = static_cast<Connection*>(user);
  if (connection->kind() == Connection::Kind::kClient) {
    Of(connection)->ClientFrame(static_cast<Client*>(connection), frame);
  } else {
    Of(connection)->UpstreamFrame(static_cast<Upstream*>(connection), frame);
  }
  return 0;
}

void Forwarder::ClientFrame(Client* client, const nghttp2_frame* frame) {
  if (frame->hd.type != NGHTTP2_HEADERS && frame->hd.type != NGHTTP2_DATA) {
    return;
  }
  Exchange* exchange = ExchangeOf(client->session(), frame->hd.stream_id);
  if (exchange == nullptr) return;
  const bool end = (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) != 0;
  if (frame->hd.type == NGHTTP2_HEADERS && !exchange->request_started) {
    exchange->request_started = true;
    exchange->client_ended = exchange->request.eof = end;
    StartRequest(exchange);
    // A local answer may still turn out to be somebody else's.
    if (!exchange->local) exchange->headers.Clear();
    if (end && exchange->local) AnswerLocally(exchange);
  } else if (end && !exchange->client_ended) {
    EndRequest(exchange);
  }
}

void Forwarder::StartRequest(Exchange* exchange) {
  const absl::string_view found = exchange->headers.Find(":path");
  const std::string path(found.data(), found.size());
  const size_t slash = path.rfind('/');
  if (slash != std::string::npos && slash > 0 && path[0] == '/') {
    exchange->service = path.substr(1, slash - 1);
    exchange->method = path.substr(slash + 1);
  }
  const auto route = routes_.find(exchange->service);
  exchange->local = route == routes_.end() && local_ != nullptr &&
                    local_->Serves(exchange->service);
  const bool known = exchange->local || route != routes_.end();
  exchange->stats = stats_.Of(path, exchange->service, exchange->method, known);
  exchange->stats->Started();

  if (exchange->headers_too_big) {
    return Fail(exchange, kResourceExhausted,
                absl::StrCat("received metadata size exceeds limit of ",
                             kHeaderBlockBytesMax, " bytes"));
  }
  if (exchange->service.empty()) {
    return Fail(exchange, kUnimplemented,
                absl::StrCat("malformed method name: \"", path, "\""));
  }
  if (exchange->local) return;
  if (route == routes_.end()) {
    return Fail(exchange, kUnimplemented,
                absl::StrCat("unknown service ", exchange->service));
  }
  SendUpstream(exchange, route->second);
}

void Forwarder::SendUpstream(Exchange* exchange, const std::string& path) {
  const absl::StatusOr<Upstream*> upstream =
      hooks_.upstream(exchange->client, path);
  if (!upstream.ok()) {
    return Fail(exchange, kUnavailable,
                absl::StrCat("service ", exchange->service,
                             " is down: ", MessageOf(upstream.status())));
  }
  const std::vector<nghttp2_nv> fields = exchange->headers.ToNv();
  nghttp2_data_provider provider;
  provider.source.ptr = exchange;
  provider.read_callback = ReadRequest;
  const bool has_body =
      !exchange->client_ended || exchange->request.buffer.size() > 0;
  exchange->request.providing = has_body;
  const int32_t stream = nghttp2_submit_request(
      (*upstream)->session(), nullptr, fields.data(), fields.size(),
      has_body ? &provider : nullptr, exchange);
  if (stream < 0) {
    // Out of stream numbers: the next call gets a new connection.
    (*upstream)->draining = true;
    return Fail(exchange, kUnavailable,
                absl::StrCat("service ", exchange->service, ": ",
                             nghttp2_strerror(stream)));
  }
  exchange->upstream = *upstream;
  exchange->upstream_stream = stream;
  exchange->upstream_open = true;
  (*upstream)->exchanges.insert(exchange);
  hooks_.dirty(*upstream);
}

void Forwarder::EndRequest(Exchange* exchange) {
  exchange->client_ended = true;
  exchange->request.eof = true;
  if (exchange->local) return AnswerLocally(exchange);
  if (!exchange->upstream_open) return;
  nghttp2_session_resume_data(exchange->upstream->session(),
                              exchange->upstream_stream);
  hooks_.dirty(exchange->upstream);
}

void Forwarder::AnswerLocally(Exchange* exchange) {
  if (exchange->ending) return;
  const std::string raw(exchange->request.buffer.data(),
                        exchange->request.buffer.size());
  const auto drain = [&] {
    Drain(&exchange->request, raw.size(), exchange->client,
          exchange->client_stream);
  };
  const auto byte = [&](size_t i) {
    return static_cast<size_t>(static_cast<unsigned char>(raw[i]));
  };
  if (raw.size() < 5 || raw.size() - 5 != ((byte(1) << 24) | (byte(2) << 16) |
                                           (byte(3) << 8) | byte(4))) {
    drain();
    return Fail(exchange, kInternal, "one whole message was expected");
  }
  if (raw[0] != 0) {
    drain();
    return Fail(exchange, kUnimplemented, "compressed messages are not taken");
  }
  const LocalReply reply =
      local_->Call(exchange->service, exchange->method, raw.substr(5), routes_);
  if (!reply.forward_to.empty()) {
    exchange->local = false;
    SendUpstream(exchange, reply.forward_to);
    return exchange->headers.Clear();
  }
  drain();
  if (reply.code != 0) return Fail(exchange, reply.code, reply.message);
  exchange->incoming.Clear();
  exchange->incoming.Add(":status", "200");
  exchange->incoming.Add("content-type", "application/grpc");
  StartResponse(exchange);
  const size_t size = reply.body.size();
  const uint8_t prefix[5] = {
      0, static_cast<uint8_t>(size >> 24), static_cast<uint8_t>(size >> 16),
      static_cast<uint8_t>(size >> 8), static_cast<uint8_t>(size)};
  exchange->response.buffer.Append(prefix, sizeof(prefix));
  exchange->response.buffer.Append(
      reinterpret_cast<const uint8_t*>(reply.body.data()), size);
  EndResponse(exchange, StatusBlock(false, 0, ""));
}

int Forwarder::OnData(nghttp2_session* session, uint8_t, int32_t stream,
                      const uint8_t* data, size_t size, void* user) {
  auto* connection = static_cast<Connection*>(user);
  Forwarder* self = Of(connection);
  Exchange* exchange = ExchangeOf(session, stream);
  const bool from_client = connection->kind() == Connection::Kind::kClient;
  const bool wanted =
      exchange != nullptr &&
      (from_client
           ? (exchange->upstream_open || exchange->local) && !exchange->ending
           : exchange->client_open && exchange->response_started &&
                 !exchange->ending);
  if (!wanted) {
    nghttp2_session_consume(session, stream, size);
    return 0;
  }
  Pipe& pipe = from_client ? exchange->request : exchange->response;
  pipe.buffer.Append(data, size);
  pipe.withheld += connection->Buffered(size);
  if (!from_client) {
    self->PushResponse(exchange);
  } else if (!exchange->local) {
    nghttp2_session_resume_data(exchange->upstream->session(),
                                exchange->upstream_stream);
    self->hooks_.dirty(exchange->upstream);
  } else if (pipe.buffer.size() > kLocalRequestBytesMax) {
    self->Fail(exchange, kResourceExhausted, "the request is too large");
    Drain(&pipe, pipe.buffer.size(), connection, stream);
  }
  return 0;
}

void Forwarder::UpstreamFrame(Upstream* upstream, const nghttp2_frame* frame) {
  if (frame->hd.type == NGHTTP2_GOAWAY) {
    upstream->draining = true;
    return;
  }
  if (frame->hd.type != NGHTTP2_HEADERS && frame->hd.type != NGHTTP2_DATA) {
    return;
  }
  Exchange* exchange = ExchangeOf(upstream->session(), frame->hd.stream_id);
  if (exchange == nullptr || !exchange->client_open || exchange->ending ||
      exchange->response.eof) {
    return;
  }
  const bool end = (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) != 0;
  if (frame->hd.type == NGHTTP2_DATA) {
    if (end) EndResponse(exchange, HeaderBlock());
    return;
  }
  if (exchange->headers_too_big) {
    return Fail(exchange, kResourceExhausted, "too much metadata in the reply");
  }
  if (exchange->response_started) {
    EndResponse(exchange, std::move(exchange->incoming));
    exchange->incoming = HeaderBlock();
    return;
  }
  const absl::string_view status = exchange->incoming.Find(":status");
  if (!status.empty() && status[0] == '1') return;  // Informational.
  if (!end) return StartResponse(exchange);
  exchange->code = CodeOf(exchange->incoming);
  exchange->response_started = exchange->response.eof = exchange->ending = true;
  const std::vector<nghttp2_nv> fields = exchange->incoming.ToNv();
  nghttp2_submit_headers(exchange->client->session(), NGHTTP2_FLAG_END_STREAM,
                         exchange->client_stream, nullptr, fields.data(),
                         fields.size(), nullptr);
  hooks_.dirty(exchange->client);
}

void Forwarder::StartResponse(Exchange* exchange) {
  exchange->response_started = true;
  const std::vector<nghttp2_nv> fields = exchange->incoming.ToNv();
  nghttp2_submit_headers(exchange->client->session(), NGHTTP2_FLAG_NONE,
                         exchange->client_stream, nullptr, fields.data(),
                         fields.size(), nullptr);
  hooks_.dirty(exchange->client);
}

void Forwarder::EndResponse(Exchange* exchange, HeaderBlock trailers) {
  if (exchange->response.eof) return;
  exchange->code = CodeOf(trailers);
  exchange->trailers = std::move(trailers);
  exchange->response.eof = true;
  PushResponse(exchange);
}

void Forwarder::PushResponse(Exchange* exchange) {
  if (!exchange->client_open || exchange->ending) return;
  nghttp2_session* session = exchange->client->session();
  hooks_.dirty(exchange->client);
  if (exchange->response.providing) {
    nghttp2_session_resume_data(session, exchange->client_stream);
    return;
  }
  if (exchange->response.eof && exchange->response.buffer.size() == 0 &&
      !exchange->trailers.empty()) {
    return SendTrailers(exchange);
  }
  nghttp2_data_provider provider;
  provider.source.ptr = exchange;
  provider.read_callback = ReadResponse;
  exchange->response.providing =
      nghttp2_submit_data(session, NGHTTP2_FLAG_END_STREAM,
                          exchange->client_stream, &provider) == 0;
}

void Forwarder::SendTrailers(Exchange* exchange) {
  exchange->ending = true;
  const std::vector<nghttp2_nv> fields = exchange->trailers.ToNv();
  nghttp2_submit_trailer(exchange->client->session(), exchange->client_stream,
                         fields.data(), fields.size());
}

void Forwarder::Fail(Exchange* exchange, int code, const std::string& message) {
  if (exchange->upstream_open) {
    nghttp2_submit_rst_stream(exchange->upstream->session(), NGHTTP2_FLAG_NONE,
                              exchange->upstream_stream, NGHTTP2_CANCEL);
    hooks_.dirty(exchange->upstream);
  }
  if (!exchange->client_open || exchange->ending || exchange->response.eof) {
    return;
  }
  if (exchange->response_started) {
    return EndResponse(exchange, StatusBlock(false, code, message));
  }
  exchange->code = code;
  exchange->response_started = exchange->response.eof = exchange->ending = true;
  const HeaderBlock block = StatusBlock(true, code, message);
  const std::vector<nghttp2_nv> fields = block.ToNv();
  nghttp2_submit_headers(exchange->client->session(), NGHTTP2_FLAG_END_STREAM,
                         exchange->client_stream, nullptr, fields.data(),
                         fields.size(), nullptr);
  hooks_.dirty(exchange->client);
}

ssize_t Forwarder::ReadRequest(nghttp2_session*, int32_t, uint8_t*,
                               size_t length, uint32_t* flags,
                               nghttp2_data_source* source, void*) {
  bool last = false;
  return Provide(&static_cast<Exchange*>(source->ptr)->request, length, flags,
                 &last);
}

ssize_t Forwarder::ReadResponse(nghttp2_session*, int32_t, uint8_t*,
                                size_t length, uint32_t* flags,
                                nghttp2_data_source* source, void* user) {
  auto* exchange = static_cast<Exchange*>(source->ptr);
  bool last = false;
  const ssize_t size = Provide(&exchange->response, length, flags, &last);
  if (!last) return size;
  if (exchange->trailers.empty()) {
    exchange->ending = true;
  } else {
    *flags |= NGHTTP2_DATA_FLAG_NO_END_STREAM;
    Of(static_cast<Connection*>(user))->SendTrailers(exchange);
  }
  return size;
}

int Forwarder::OnSendData(nghttp2_session*, nghttp2_frame*,
                          const uint8_t* frame_header, size_t size,
                          nghttp2_data_source* source, void* user) {
  auto* connection = static_cast<Connection*>(user);
  auto* exchange = static_cast<Exchange*>(source->ptr);
  const bool to_client = connection->kind() == Connection::Kind::kClient;
  Pipe& pipe = to_client ? exchange->response : exchange->request;
  if (pipe.buffer.size() < size) return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
  const int result =
      connection->SendData(frame_header, pipe.buffer.data(), size);
  if (result != 0) return result;
  Connection* from = to_client ? static_cast<Connection*>(exchange->upstream)
                               : static_cast<Connection*>(exchange->client);
  Drain(&pipe, size, from,
        to_client ? exchange->upstream_stream : exchange->client_stream);
  if (from != nullptr) Of(connection)->hooks_.dirty(from);
  return 0;
}

int Forwarder::OnFrameSent(nghttp2_session* session, const nghttp2_frame* frame,
                           void* user) {
  if (static_cast<Connection*>(user)->kind() != Connection::Kind::kClient) {
    return 0;
  }
  if ((frame->hd.type != NGHTTP2_HEADERS && frame->hd.type != NGHTTP2_DATA) ||
      (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) == 0) {
    return 0;
  }
  // The call is over, though the client might have had more to say.
  const Exchange* exchange = ExchangeOf(session, frame->hd.stream_id);
  if (exchange != nullptr && !exchange->client_ended) {
    nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, frame->hd.stream_id,
                              NGHTTP2_NO_ERROR);
  }
  return 0;
}

int Forwarder::OnStreamClose(nghttp2_session* session, int32_t stream,
                             uint32_t error, void* user) {
  auto* connection = static_cast<Connection*>(user);
  Exchange* exchange = ExchangeOf(session, stream);
  if (exchange == nullptr) return 0;
  if (connection->kind() == Connection::Kind::kClient) {
    Of(connection)->ClientStreamClosed(exchange, error);
  } else {
    Of(connection)->UpstreamStreamClosed(exchange, error);
  }
  return 0;
}

void Forwarder::ClientStreamClosed(Exchange* exchange, uint32_t error) {
  exchange->client_open = false;
  exchange->client->exchanges.erase(exchange);
  if (exchange->stats != nullptr) {
    const bool whole = exchange->ending && exchange->code >= 0;
    exchange->stats->Handled(
        whole ? exchange->code : kCanceled,
        std::chrono::duration_cast<std::chrono::microseconds>(
            std::chrono::steady_clock::now() - exchange->started_at)
            .count());
  }
  Drain(&exchange->request, exchange->request.buffer.size(), exchange->client,
        exchange->client_stream);
  exchange->client = nullptr;
  if (exchange->upstream_open) {
    Drain(&exchange->response, exchange->response.buffer.size(),
          exchange->upstream, exchange->upstream_stream);
    nghttp2_submit_rst_stream(exchange->upstream->session(), NGHTTP2_FLAG_NONE,
                              exchange->upstream_stream,
                              error == NGHTTP2_NO_ERROR
                                  ? static_cast<uint32_t>(NGHTTP2_CANCEL)
                                  : error);
    hooks_.dirty(exchange->upstream);
  }
  ReleaseIfDone(exchange);
}

void Forwarder::UpstreamStreamClosed(Exchange* exchange, uint32_t error) {
  exchange->upstream_open = false;
  if (exchange->client_open) {
    // What the client still sends goes nowhere.
    Drain(&exchange->request, exchange->request.buffer.size(), exchange->client,
          exchange->client_stream);
    hooks_.dirty(exchange->client);
    if (!exchange->response.eof) {
      if (error == NGHTTP2_NO_ERROR) {
        Fail(exchange, kInternal,
             absl::StrCat("service ", exchange->service,
                          " closed the stream without a status"));
      } else {
        // A request that a draining upstream never took may be repeated.
        const bool refused = exchange->upstream->draining &&
                             error == NGHTTP2_INTERNAL_ERROR &&
                             !exchange->response_started;
        nghttp2_submit_rst_stream(
            exchange->client->session(), NGHTTP2_FLAG_NONE,
            exchange->client_stream,
            refused ? static_cast<uint32_t>(NGHTTP2_REFUSED_STREAM) : error);
      }
    }
  }
  ReleaseIfDone(exchange);
}

void Forwarder::ReleaseIfDone(Exchange* exchange) {
  if (exchange->client_open || exchange->upstream_open) return;
  if (exchange->upstream != nullptr) {
    exchange->upstream->exchanges.erase(exchange);
  }
  delete exchange;
}

void Forwarder::ClientGone(Client* client) {
  const auto exchanges = client->exchanges;
  for (Exchange* exchange : exchanges) {
    ClientStreamClosed(exchange, NGHTTP2_CANCEL);
  }
}

void Forwarder::UpstreamGone(Upstream* upstream, const std::string& why) {
  const auto exchanges = upstream->exchanges;
  upstream->exchanges.clear();
  for (Exchange* exchange : exchanges) {
    exchange->upstream_open = false;
    exchange->upstream = nullptr;
    if (exchange->client_open) {
      Drain(&exchange->request, exchange->request.buffer.size(),
            exchange->client, exchange->client_stream);
      exchange->response.withheld = 0;
      Fail(exchange, kUnavailable,
           absl::StrCat("service ", exchange->service, " is down: ", why));
    }
    ReleaseIfDone(exchange);
  }
}

}  // namespace bulkhead::gateway
