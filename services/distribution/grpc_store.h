// Store over the suite's sockets.
#ifndef BULKHEAD_SERVICES_DISTRIBUTION_GRPC_STORE_H_
#define BULKHEAD_SERVICES_DISTRIBUTION_GRPC_STORE_H_

#include <grpcpp/channel.h>

#include <memory>
#include <string>

#include "lib/config/config.h"
#include "lib/rpc/context.h"
#include "services/distribution/store.h"

namespace bulkhead::distribution {

// Where the other services are; shared by all transfers.
struct Peers {
  static Peers For(const config::Config& config);
  std::shared_ptr<grpc::Channel> metadata;  // Also content and snapshots.
  std::shared_ptr<grpc::Channel> diff;
  std::string metadata_data;     // Data sockets.
  std::string snapshotter_data;  // Empty: Diff is somebody else's.
};

// `peers` must outlive the store.
std::unique_ptr<Store> OpenStore(const Peers& peers,
                                 const rpc::CallContext& call);

}  // namespace bulkhead::distribution

#endif  // BULKHEAD_SERVICES_DISTRIBUTION_GRPC_STORE_H_
