// The calls that pass through the gateway: pairs a client's stream with one of
// an upstream connection. Internal to the gateway; one thread.
#ifndef BULKHEAD_SERVICES_GATEWAY_FORWARDER_H_
#define BULKHEAD_SERVICES_GATEWAY_FORWARDER_H_

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <unordered_set>

#include "absl/status/statusor.h"
#include "services/gateway/call_stats.h"
#include "services/gateway/connection.h"
#include "services/gateway/proxy.h"

namespace bulkhead::gateway {

struct Client;
struct Upstream;

// One direction of a call.
struct Pipe {
  Buffer buffer;
  size_t withheld = 0;     // Of the receiving connection's window.
  bool eof = false;        // The sender has sent its last byte.
  bool providing = false;  // A data provider is installed at the receiver.
};

// One call. Freed when both its streams are closed.
struct Exchange {
  Client* client = nullptr;
  int32_t client_stream = -1;
  bool client_open = true;
  bool client_ended = false;  // END_STREAM came from the client.
  Upstream* upstream = nullptr;
  int32_t upstream_stream = -1;
  bool upstream_open = false;

  HeaderBlock headers;   // Being collected from the client.
  HeaderBlock incoming;  // Being collected from the upstream.
  HeaderBlock trailers;  // For the client, once `response.eof`.
  bool headers_too_big = false;
  bool request_started = false;
  bool response_started = false;
  bool ending = false;  // What ends the call was handed to the client session.
  Pipe request;
  Pipe response;

  bool local = false;
  std::string service;
  std::string method;
  int code = -1;  // grpc-status; -1: none seen.
  MethodStats* stats = nullptr;
  std::chrono::steady_clock::time_point started_at;
};

struct Client : Connection {
  using Connection::Connection;
  std::unordered_set<Exchange*> exchanges;
  std::map<std::string, Upstream*> upstreams;  // By socket path.
};

struct Upstream : Connection {
  using Connection::Connection;
  std::string path;
  Client* client = nullptr;  // Null: idle in the pool.
  std::unordered_set<Exchange*> exchanges;
  std::chrono::steady_clock::time_point idle_since;
  std::chrono::steady_clock::time_point connect_by;
};

class Forwarder {
 public:
  struct Hooks {
    // An upstream connection to `path` for `client`, connected or connecting.
    std::function<absl::StatusOr<Upstream*>(Client*, const std::string& path)>
        upstream;
    // The connection has something to write.
    std::function<void(Connection*)> dirty;
  };

  Forwarder(Hooks hooks, LocalHandler* local);
  ~Forwarder();

  const nghttp2_session_callbacks* callbacks() const { return callbacks_; }
  void SetRoutes(RouteTable routes) { routes_ = std::move(routes); }

  // The connection is gone: ends its calls on the other side. Afterwards no
  // exchange refers to it.
  void ClientGone(Client* client);
  void UpstreamGone(Upstream* upstream, const std::string& why);

 private:
  static Forwarder* Of(Connection* connection);

  static int OnBeginHeaders(nghttp2_session*, const nghttp2_frame*, void*);
  static int OnHeader(nghttp2_session*, const nghttp2_frame*, const uint8_t*,
                      size_t, const uint8_t*, size_t, uint8_t, void*);
  static int OnFrame(nghttp2_session*, const nghttp2_frame*, void*);
  static int OnData(nghttp2_session*, uint8_t, int32_t, const uint8_t*, size_t,
                    void*);
  static int OnFrameSent(nghttp2_session*, const nghttp2_frame*, void*);
  static int OnStreamClose(nghttp2_session*, int32_t, uint32_t, void*);
  static int OnSendData(nghttp2_session*, nghttp2_frame*, const uint8_t*,
                        size_t, nghttp2_data_source*, void*);
  static ssize_t ReadRequest(nghttp2_session*, int32_t, uint8_t*, size_t,
                             uint32_t*, nghttp2_data_source*, void*);
  static ssize_t ReadResponse(nghttp2_session*, int32_t, uint8_t*, size_t,
                              uint32_t*, nghttp2_data_source*, void*);

  void ClientFrame(Client* client, const nghttp2_frame* frame);
  void UpstreamFrame(Upstream* upstream, const nghttp2_frame* frame);
  void StartRequest(Exchange* exchange);
  // Opens the exchange's stream to the server at `path`; what came so far of
  // the request follows.
  void SendUpstream(Exchange* exchange, const std::string& path);
  void EndRequest(Exchange* exchange);
  void AnswerLocally(Exchange* exchange);
  void StartResponse(Exchange* exchange);
  void EndResponse(Exchange* exchange, HeaderBlock trailers);
  // Ends the call with a status of the gateway's own.
  void Fail(Exchange* exchange, int code, const std::string& message);
  void PushResponse(Exchange* exchange);
  void SendTrailers(Exchange* exchange);
  void ClientStreamClosed(Exchange* exchange, uint32_t error);
  void UpstreamStreamClosed(Exchange* exchange, uint32_t error);
  void ReleaseIfDone(Exchange* exchange);

  Hooks hooks_;
  LocalHandler* local_;
  nghttp2_session_callbacks* callbacks_ = nullptr;
  RouteTable routes_;
  CallStats stats_;
};

}  // namespace bulkhead::gateway

#endif  // BULKHEAD_SERVICES_GATEWAY_FORWARDER_H_
