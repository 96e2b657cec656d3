// A ttrpc server for unary calls, on the loop.
#ifndef BULKHEAD_SERVICES_RUNTIME_SHIM_SERVER_H_
#define BULKHEAD_SERVICES_RUNTIME_SHIM_SERVER_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "lib/os/fd.h"
#include "lib/ttrpc/frame.h"
#include "services/runtime/shim/loop.h"

namespace bulkhead::shim {

constexpr size_t kConnectionsMax = 128;
constexpr size_t kPendingCallsMax = 4096;  // Of one connection.

// Answers one call, once; late answers to lost connections go nowhere.
using Reply = std::function<void(const absl::Status&, std::string payload)>;
using CallHandler =
    std::function<void(const std::string& service, const std::string& method,
                       std::string payload, Reply reply)>;

// Only peers with our own user and group may speak.
class Server {
 public:
  Server(Loop* loop, os::UniqueFd listener, CallHandler handler)
      : loop_(loop),
        listener_(std::move(listener)),
        handler_(std::move(handler)) {}
  ~Server();
  absl::Status Start();
  // Writes what is queued as far as it goes, then closes everything.
  void Stop();

 private:
  struct Connection {
    os::UniqueFd fd;
    std::string in;
    std::string out;
    uint32_t last_stream = 0;
    uint64_t drain_bytes = 0;  // Of a body that is too long.
    uint32_t drain_stream = 0;
    std::string drain_text;
    size_t pending = 0;
  };

  void AcceptAll();
  void OnEvents(uint64_t id, uint32_t events);
  bool ReadAndDispatch(uint64_t id, Connection* connection);
  void Dispatch(uint64_t id, const ttrpc::FrameHeader& header,
                std::string body);
  void Send(uint64_t id, uint32_t stream, const absl::Status& status,
            const std::string& payload);
  void Flush(Connection* connection);
  void Close(uint64_t id);

  Loop* loop_;
  os::UniqueFd listener_;
  CallHandler handler_;
  std::map<uint64_t, std::unique_ptr<Connection>> connections_;
  uint64_t last_id_ = 0;
};

}  // namespace bulkhead::shim

#endif  // BULKHEAD_SERVICES_RUNTIME_SHIM_SERVER_H_
