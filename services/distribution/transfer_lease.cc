#include "services/distribution/transfer_lease.h"

#include <mutex>
#include <random>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "lib/base/status_macros.h"
#include "lib/log/log.h"
#include "lib/rpc/channel.h"
#include "lib/rpc/status.h"
#include "proto/containerd/services/leases/v1/leases.grpc.pb.h"

namespace bulkhead::distribution {
namespace {

namespace leases = containerd::services::leases::v1;

constexpr absl::Duration kCallTimeout = absl::Minutes(2);
constexpr absl::Duration kRetryFor = absl::Seconds(15);
constexpr absl::Duration kLeaseLife = absl::Hours(24);
constexpr char kExpireLabel[] = "containerd.io/gc.expire";
constexpr char kSourceLabelOfLease[] = "bulkhead.io/transfer.source";
constexpr size_t kSourceBytesMax = 1024;

// Of the transfers that run in this process, which is the only one.
class Running {
 public:
  static void Add(const std::string& id) {
    std::lock_guard<std::mutex> lock(Instance().mutex_);
    Instance().ids_.insert(id);
  }
  static void Remove(const std::string& id) {
    std::lock_guard<std::mutex> lock(Instance().mutex_);
    Instance().ids_.erase(id);
  }
  static bool Has(const std::string& id) {
    std::lock_guard<std::mutex> lock(Instance().mutex_);
    return Instance().ids_.count(id) > 0;
  }

 private:
  static Running& Instance() {
    static Running* const instance = new Running;
    return *instance;
  }
  std::mutex mutex_;
  std::set<std::string> ids_;
};

void Delete(const Peers& peers, const std::string& ns, const std::string& id) {
  leases::DeleteRequest request;
  request.set_id(id);
  google::protobuf::Empty response;
  const auto stub = leases::Leases::NewStub(peers.metadata);
  const absl::Status status = rpc::RetryUnavailable(kRetryFor, [&]() {
    const auto context = rpc::MakeClientContext({ns, ""}, kCallTimeout);
    return rpc::FromGrpc(stub->Delete(context.get(), request, &response));
  });
  if (!status.ok() && !absl::IsNotFound(status)) {
    log::Warn("lease not deleted; it expires by itself",
              {{"lease", id}, {"error", MessageOf(status)}});
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<TransferLease>> TransferLease::Take(
    const Peers& peers, const std::string& ns, const std::string& callers,
    const std::string& source) {
  std::unique_ptr<TransferLease> lease(new TransferLease(peers, ns));
  lease->id_ = callers;
  // The filter in DropKept() knows no quoting; names of images need none.
  if (source.size() <= kSourceBytesMax &&
      source.find_first_of("\"\\\n") == std::string::npos) {
    lease->source_ = source;
  }
  if (!callers.empty()) return lease;
  std::random_device random;
  leases::CreateRequest request;
  request.set_id(absl::StrCat(absl::ToUnixNanos(absl::Now()), "-",
                              absl::Hex(random(), absl::kZeroPad8)));
  auto& labels = *request.mutable_labels();
  labels[kExpireLabel] = absl::FormatTime(
      absl::RFC3339_sec, absl::Now() + kLeaseLife, absl::UTCTimeZone());
  if (!lease->source_.empty()) labels[kSourceLabelOfLease] = lease->source_;
  leases::CreateResponse response;
  const auto stub = leases::Leases::NewStub(peers.metadata);
  Running::Add(request.id());
  const absl::Status status = rpc::RetryUnavailable(kRetryFor, [&]() {
    const auto context = rpc::MakeClientContext({ns, ""}, kCallTimeout);
    return rpc::FromGrpc(stub->Create(context.get(), request, &response));
  });
  // A retry may find what the lost reply's call has made.
  if (!status.ok() && !absl::IsAlreadyExists(status)) {
    Running::Remove(request.id());
    return Annotate(status, "creating a lease");
  }
  lease->id_ = request.id();
  lease->own_ = true;
  return lease;
}

TransferLease::~TransferLease() {
  if (!own_) return;
  if (!keep_) Delete(peers_, ns_, id_);
  Running::Remove(id_);
}

void TransferLease::DropKept() {
  if (source_.empty()) return;
  leases::ListRequest request;
  request.add_filters(
      absl::StrCat("labels.\"", kSourceLabelOfLease, "\"==\"", source_, "\""));
  leases::ListResponse response;
  const auto stub = leases::Leases::NewStub(peers_.metadata);
  const auto context = rpc::MakeClientContext({ns_, ""}, kCallTimeout);
  if (!stub->List(context.get(), request, &response).ok()) return;
  for (const leases::Lease& lease : response.leases()) {
    const auto source = lease.labels().find(kSourceLabelOfLease);
    if (source == lease.labels().end() || source->second != source_ ||
        Running::Has(lease.id())) {
      continue;
    }
    Delete(peers_, ns_, lease.id());
  }
}

}  // namespace bulkhead::distribution
