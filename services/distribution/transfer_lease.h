// The lease that keeps what a transfer fetches until an image names it.
#ifndef BULKHEAD_SERVICES_DISTRIBUTION_TRANSFER_LEASE_H_
#define BULKHEAD_SERVICES_DISTRIBUTION_TRANSFER_LEASE_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "services/distribution/grpc_store.h"

namespace bulkhead::distribution {

// The caller's lease, if there is one: it is left alone. Else one that expires
// after 24 h, for the transfer of `source` ("host/repository:tag"; may be
// empty): it is deleted at the end, but for Keep(). Blocks on metadata.
class TransferLease {
 public:
  // `peers` must outlive the lease.
  static absl::StatusOr<std::unique_ptr<TransferLease>> Take(
      const Peers& peers, const std::string& ns, const std::string& callers,
      const std::string& source);
  // Best effort: what cannot be deleted expires.
  ~TransferLease();

  const std::string& id() const { return id_; }

  // The transfer has failed and left what another can go on with: the lease
  // stays until that one has succeeded (DropKept()), or it expires.
  void Keep() { keep_ = true; }
  // Deletes the leases that earlier transfers of the same source have kept, or
  // left when the process was killed; none of one that is running.
  void DropKept();

 private:
  TransferLease(const Peers& peers, const std::string& ns)
      : peers_(peers), ns_(ns) {}

  const Peers& peers_;
  const std::string ns_;
  std::string id_;
  std::string source_;
  bool own_ = false;
  bool keep_ = false;
};

}  // namespace bulkhead::distribution

#endif  // BULKHEAD_SERVICES_DISTRIBUTION_TRANSFER_LEASE_H_
