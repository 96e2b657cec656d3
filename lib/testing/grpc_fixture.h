// gRPC services behind a real Unix socket, for tests.
#ifndef BULKHEAD_LIB_TESTING_GRPC_FIXTURE_H_
#define BULKHEAD_LIB_TESTING_GRPC_FIXTURE_H_

#include <grpcpp/channel.h>
#include <grpcpp/impl/codegen/service_type.h>

#include <memory>
#include <string>
#include <vector>

#include "lib/rpc/server.h"
#include "lib/testing/temp_dir.h"

namespace bulkhead::testing {

// Serves `services` (borrowed) on a socket of its own until destroyed. Crashes
// the test if that fails.
class GrpcServer {
 public:
  explicit GrpcServer(const std::vector<grpc::Service*>& services);
  ~GrpcServer();

  const std::string& socket_path() const { return socket_path_; }
  // A new channel, sharing no connection with others.
  std::shared_ptr<grpc::Channel> Connect() const;
  // Ends all calls; the socket stays dead. Idempotent.
  void Stop();

 private:
  TempDir dir_;
  std::string socket_path_;
  std::unique_ptr<rpc::Server> server_;
};

}  // namespace bulkhead::testing

#endif  // BULKHEAD_LIB_TESTING_GRPC_FIXTURE_H_
