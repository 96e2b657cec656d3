// Forwards gRPC calls by service name, HTTP/2 frame by frame. No body is
// parsed, except those of the few services that the gateway answers itself.
#ifndef BULKHEAD_SERVICES_GATEWAY_PROXY_H_
#define BULKHEAD_SERVICES_GATEWAY_PROXY_H_

#include <map>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "lib/os/fd.h"

namespace bulkhead::gateway {

// Streams open at once on one client connection; more wait at the client.
constexpr int kStreamsPerConnectionMax = 10000;
// Client connections open at once; more are closed at once.
constexpr int kClientsMax = 4096;
// Bytes of one direction of one stream that may wait for a slow reader.
constexpr int kStreamWindowBytes = 512 << 10;
// What may be in flight on one connection before anything is forwarded ...
constexpr int kConnectionWindowBytes = 32 << 20;
// ... and how many of its bytes may wait for slow readers before the
// connection's window stays shut for them. So a connection never holds more
// than the two together.
constexpr int kConnectionBufferedBytes = 32 << 20;
// All header fields of one block, names and values.
constexpr int kHeaderBlockBytesMax = 64 << 10;
// A request to a service that the gateway answers itself; below the window.
constexpr int kLocalRequestBytesMax = 256 << 10;
// Idle upstream connections kept for the next client, per backend, and for
// how long.
constexpr int kIdleUpstreamsMax = 4;
constexpr absl::Duration kIdleUpstreamTime = absl::Seconds(60);
// Methods with statistics of their own; more are counted as "other".
constexpr int kMethodsMax = 1000;

// Full gRPC service name -> path of the Unix socket that serves it.
using RouteTable = std::map<std::string, std::string>;

struct LocalReply {
  int code = 0;         // gRPC status code.
  std::string message;  // Of a failure.
  std::string body;     // The serialised reply of a success.
  // The path of a socket whose server answers instead; empty: this does.
  std::string forward_to;
};

// Services that the gateway answers itself, unary only. Called on the proxy's
// thread: must not block.
class LocalHandler {
 public:
  virtual ~LocalHandler() = default;
  virtual bool Serves(const std::string& service) const = 0;
  // `routes` is the table in force.
  virtual LocalReply Call(const std::string& service, const std::string& method,
                          const std::string& request,
                          const RouteTable& routes) = 0;
};

// Runs one thread. Its methods are thread-safe.
class Proxy {
 public:
  struct Options {
    // How long a connect may wait on a backend whose backlog is full.
    absl::Duration connect_timeout = absl::Seconds(1);
  };

  // `listener` is a listening stream socket. `local` is borrowed and must
  // outlive the proxy; null answers nothing locally.
  static absl::StatusOr<std::unique_ptr<Proxy>> Start(os::UniqueFd listener,
                                                      RouteTable routes,
                                                      const Options& options,
                                                      LocalHandler* local);
  virtual ~Proxy() = default;  // Stop(0).

  // Calls that begin from now on use `routes`; running ones are not touched.
  virtual void SetRoutes(RouteTable routes) = 0;

  // Stops accepting, sends GOAWAY, lets calls finish for at most `grace`, then
  // closes everything. Blocks. Idempotent.
  virtual void Stop(absl::Duration grace) = 0;
};

}  // namespace bulkhead::gateway

#endif  // BULKHEAD_SERVICES_GATEWAY_PROXY_H_
