// Measures a small call (Namespaces.Get of a name without labels, so that
// no disk takes part) on each of the given sockets in turn, for example
// metadata's own and the gateway's:
//   latency_tool STATE/metadata/metadata.sock STATE/bulkhead.sock
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

#include "lib/rpc/channel.h"
#include "proto/containerd/services/namespaces/v1/namespaces.grpc.pb.h"

namespace {

namespace v1 = ::containerd::services::namespaces::v1;
using Clock = std::chrono::steady_clock;

constexpr int kCalls = 5000;
constexpr int kRounds = 3;

double MedianMicros(const std::string& socket) {
  auto stub = v1::Namespaces::NewStub(bulkhead::rpc::Connect(socket));
  std::vector<double> micros;
  for (int i = 0; i < kCalls; ++i) {
    grpc::ClientContext context;
    v1::GetNamespaceRequest request;
    request.set_name("nobody");
    v1::GetNamespaceResponse response;
    const auto start = Clock::now();
    const grpc::Status status = stub->Get(&context, request, &response);
    micros.push_back(
        std::chrono::duration<double, std::micro>(Clock::now() - start)
            .count());
    if (!status.ok()) {
      std::fprintf(stderr, "%s: %s\n", socket.c_str(),
                   status.error_message().c_str());
      return -1;
    }
  }
  std::nth_element(micros.begin(), micros.begin() + kCalls / 2, micros.end());
  return micros[kCalls / 2];
}

}  // namespace

int main(int argc, char** argv) {
  for (int round = 0; round < kRounds; ++round) {
    for (int i = 1; i < argc; ++i) {
      std::printf("%s: p50 %.0f us\n", argv[i], MedianMicros(argv[i]));
    }
  }
  return 0;
}
