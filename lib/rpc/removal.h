// Many removals in one call: both ends of bulkhead.removal.v1.Removal.
#ifndef BULKHEAD_LIB_RPC_REMOVAL_H_
#define BULKHEAD_LIB_RPC_REMOVAL_H_

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/bulkhead/removal/v1/removal.grpc.pb.h"

namespace bulkhead::rpc {

inline constexpr size_t kRemovalNamesMax = 1024;

// One result for each name, in the same order.
using Removed = std::vector<absl::Status>;

// Thread-safe if `remove` is.
class RemovalService final : public ::bulkhead::removal::v1::Removal::Service {
 public:
  // `remove` is called on the threads of calls; an error fails the whole call.
  using Remover = std::function<absl::StatusOr<Removed>(
      const std::string& snapshotter, const std::vector<std::string>& names)>;

  explicit RemovalService(Remover remove) : remove_(std::move(remove)) {}

  // Errors: kInvalidArgument: more than kRemovalNamesMax names.
  grpc::Status Remove(
      grpc::ServerContext* context,
      const ::bulkhead::removal::v1::RemoveRequest* request,
      ::bulkhead::removal::v1::RemoveResponse* response) override;

 private:
  const Remover remove_;
};

// Thread-safe.
class RemovalClient {
 public:
  // `ns` is sent with each call, unless empty: some peers refuse calls without.
  explicit RemovalClient(const std::shared_ptr<grpc::Channel>& channel,
                         std::string ns = "");

  // Blocks for the call, at most `timeout`, and some seconds more while the
  // peer is being restarted. Nullopt: the peer hasn't the service; it is not
  // asked again. If the call fails, its error is each name's, and any of them
  // may be gone.
  std::optional<Removed> Remove(const std::string& snapshotter,
                                const std::vector<std::string>& names,
                                absl::Duration timeout);

 private:
  const std::unique_ptr<::bulkhead::removal::v1::Removal::Stub> stub_;
  const std::string ns_;
  std::atomic<bool> absent_{false};
};

}  // namespace bulkhead::rpc

#endif  // BULKHEAD_LIB_RPC_REMOVAL_H_
