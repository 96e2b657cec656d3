// gRPC adapter: containerd.services.transfer.v1.
#ifndef BULKHEAD_SERVICES_DISTRIBUTION_TRANSFER_SERVICE_H_
#define BULKHEAD_SERVICES_DISTRIBUTION_TRANSFER_SERVICE_H_

#include <memory>
#include <mutex>
#include <string>

#include "lib/config/config.h"
#include "proto/containerd/services/transfer/v1/transfer.grpc.pb.h"
#include "proto/containerd/types/transfer/registry.pb.h"
#include "services/distribution/grpc_store.h"
#include "services/distribution/http.h"
#include "services/distribution/registry.h"
#include "services/distribution/streams.h"
#include "services/distribution/trust.h"

namespace bulkhead::distribution {

constexpr int kTransfersMax = 64;  // Running at once.

class TransferService final
    : public containerd::services::transfer::v1::Transfer::Service {
 public:
  // All must outlive the service.
  TransferService(const config::Config& config, StreamTable* streams,
                  HttpClient* http);

  grpc::Status Transfer(
      grpc::ServerContext* context,
      const containerd::services::transfer::v1::TransferRequest* request,
      google::protobuf::Empty* response) override;

  // What is wrong with the trust that [distribution] configures, if anything:
  // then every pull and import is refused with it.
  absl::Status TrustStatus();

  // Takes the [distribution] and [proxy_plugins] tables of a reloaded config.
  void Reload(const config::Config& config);

 private:
  struct Call;

  absl::Status Run(Call& call);
  absl::Status PullImage(Call& call);
  absl::Status Tag(Call& call);
  absl::Status PushImage(Call& call);
  absl::Status ImportImages(Call& call);
  absl::Status ExportImages(Call& call);
  absl::Status Echo(Call& call);
  absl::StatusOr<RegistryOptions> OptionsFor(
      Call& call, const containerd::types::transfer::OCIRegistry& registry,
      const config::Config& config);
  absl::StatusOr<RegistryOptions> OriginOptions(Call& call,
                                                const oci::Reference& origin,
                                                const RegistryOptions& like,
                                                const config::Config& config);
  config::Config CurrentConfig();
  void LoadTrust();  // Holds mutex_.
  absl::StatusOr<std::shared_ptr<const Trust>> CurrentTrust();

  std::mutex mutex_;
  config::Config config_;                               // Guarded by mutex_.
  absl::StatusOr<std::shared_ptr<const Trust>> trust_;  // Guarded by mutex_.
  const Peers peers_;
  StreamTable* const streams_;
  HttpClient* const http_;
  std::atomic<int> running_{0};
};

}  // namespace bulkhead::distribution

#endif  // BULKHEAD_SERVICES_DISTRIBUTION_TRANSFER_SERVICE_H_
