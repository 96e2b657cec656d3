#include "lib/testing/grpc_fixture.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <stdlib.h>

#include <cstdio>

#include "lib/os/socket.h"

namespace bulkhead::testing {

GrpcServer::GrpcServer(const std::vector<grpc::Service*>& services)
    : socket_path_(dir_.Path("grpc.sock")) {
  auto listener = os::ListenUnix(socket_path_, {});
  if (!listener.ok()) {
    fprintf(stderr, "%s\n", listener.status().ToString().c_str());
    abort();
  }
  auto server = rpc::Server::Start(*std::move(listener), services);
  if (!server.ok()) {
    fprintf(stderr, "%s\n", server.status().ToString().c_str());
    abort();
  }
  server_ = *std::move(server);
}

GrpcServer::~GrpcServer() { Stop(); }

std::shared_ptr<grpc::Channel> GrpcServer::Connect() const {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetMaxReceiveMessageSize(rpc::kMessageBytesMax);
  arguments.SetMaxSendMessageSize(rpc::kMessageBytesMax);
  return grpc::CreateCustomChannel(
      "unix://" + socket_path_, grpc::InsecureChannelCredentials(), arguments);
}

void GrpcServer::Stop() {
  if (server_ == nullptr) return;
  server_->Stop(absl::ZeroDuration());
  server_ = nullptr;
}

}  // namespace bulkhead::testing
