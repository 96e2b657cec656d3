// The client side of the suite's API: calls by method path on one connection.
// gRPC stays inside client.cc; commands see protobuf messages only.
#ifndef BULKHEAD_CLI_CLIENT_H_
#define BULKHEAD_CLI_CLIENT_H_

#include <google/protobuf/message_lite.h>

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace bulkhead::cli {

// Method paths are these plus the method's name: `std::string(kTasks) + "Get"`.
inline constexpr char kContainers[] =
    "/containerd.services.containers.v1.Containers/";
inline constexpr char kContent[] = "/containerd.services.content.v1.Content/";
inline constexpr char kDiff[] = "/containerd.services.diff.v1.Diff/";
inline constexpr char kEvents[] = "/containerd.services.events.v1.Events/";
inline constexpr char kImages[] = "/containerd.services.images.v1.Images/";
inline constexpr char kIntrospection[] =
    "/containerd.services.introspection.v1.Introspection/";
inline constexpr char kLeases[] = "/containerd.services.leases.v1.Leases/";
inline constexpr char kNamespaces[] =
    "/containerd.services.namespaces.v1.Namespaces/";
inline constexpr char kSnapshots[] =
    "/containerd.services.snapshots.v1.Snapshots/";
inline constexpr char kStreaming[] =
    "/containerd.services.streaming.v1.Streaming/";
inline constexpr char kTasks[] = "/containerd.services.tasks.v1.Tasks/";
inline constexpr char kTransfer[] =
    "/containerd.services.transfer.v1.Transfer/";
inline constexpr char kVersion[] = "/containerd.services.version.v1.Version/";

// One streaming call. One reader and one writer thread at a time; Cancel()
// from any thread.
class Stream {
 public:
  virtual ~Stream() = default;
  // False at the end of the stream, or when it broke: Finish() says which.
  virtual bool Read(google::protobuf::MessageLite* message) = 0;
  // False when the peer went away.
  virtual bool Write(const google::protobuf::MessageLite& message) = 0;
  virtual void WritesDone() = 0;
  virtual void Cancel() = 0;
  // After Read() said false (or Cancel()): how the call ended.
  virtual absl::Status Finish() = 0;
};

// Thread-safe. Errors are the server's and say their class ("not found") at
// least once; kUnavailable names the socket and says how to start the suite.
class Client {
 public:
  // Lazy: connects at the first call. `address` is a socket path.
  static std::unique_ptr<Client> Open(const std::string& address,
                                      const std::string& ns);
  virtual ~Client() = default;

  const std::string& address() const { return address_; }
  const std::string& ns() const { return ns_; }

  // The lease that later calls of this client carry; empty for none.
  virtual void SetLease(const std::string& lease) = 0;
  // A request header that later calls carry as well.
  virtual void AddHeader(const std::string& name, const std::string& value) = 0;

  // Waits up to five seconds for a service that is being restarted if the call
  // can be repeated or was never sent; kUnavailable otherwise.
  virtual absl::Status Call(
      const std::string& method, const google::protobuf::MessageLite& request,
      google::protobuf::MessageLite* response,
      absl::Duration timeout = absl::InfiniteDuration()) = 0;

  // The same, repeated for up to `patience` while the service is away.
  // For idempotent calls only.
  virtual absl::Status CallPatiently(
      const std::string& method, const google::protobuf::MessageLite& request,
      google::protobuf::MessageLite* response, absl::Duration patience) = 0;

  // A call that answers with a stream. Never null.
  virtual std::unique_ptr<Stream> ServerStream(
      const std::string& method,
      const google::protobuf::MessageLite& request) = 0;
  // A call with a stream each way. Never null.
  virtual std::unique_ptr<Stream> BidiStream(const std::string& method) = 0;

 protected:
  Client(std::string address, std::string ns)
      : address_(std::move(address)), ns_(std::move(ns)) {}

 private:
  std::string address_;
  std::string ns_;
};

// Runs `read` (a whole stream of answers, from the start) until it returns
// something other than kUnavailable, as Client::Call() does.
absl::Status RetryRead(Client& client,
                       const std::function<absl::Status()>& read);

}  // namespace bulkhead::cli

#endif  // BULKHEAD_CLI_CLIENT_H_
