// A ttrpc server for unary methods on a Unix socket. One reactor thread serves
// all connections; handlers answer whenever they are ready.
#ifndef BULKHEAD_LIB_TTRPC_SERVER_H_
#define BULKHEAD_LIB_TTRPC_SERVER_H_

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "lib/os/fd.h"
#include "lib/ttrpc/envelope.h"
#include "lib/ttrpc/reactor.h"

namespace bulkhead::ttrpc {

// Past this, new connections are closed at once.
constexpr int kConnectionsMax = 16384;

class Server {
 public:
  // Answers one call; from any thread, at most once. Dropping it unanswered
  // leaves the caller to its deadline.
  using Reply = std::function<void(absl::StatusOr<std::string> payload)>;
  // Runs on the reactor's thread, in the order of arrival for each connection;
  // must not block.
  using Handler = std::function<void(const Request& request, Reply reply)>;

  // Serves `methods` ("package.Service/Method" -> handler) on `listener` until
  // destroyed. Peers must have this process's effective user and group, as
  // containerd's servers demand; others are disconnected. `reactor` must
  // outlive the server and all its replies.
  static std::unique_ptr<Server> Start(Reactor& reactor, os::UniqueFd listener,
                                       std::map<std::string, Handler> methods);
  ~Server();

 private:
  struct State;
  explicit Server(std::shared_ptr<State> state) : state_(std::move(state)) {}
  std::shared_ptr<State> state_;
};

}  // namespace bulkhead::ttrpc

#endif  // BULKHEAD_LIB_TTRPC_SERVER_H_
