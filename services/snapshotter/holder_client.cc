#include "services/snapshotter/holder_client.h"

#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "lib/rpc/channel.h"
#include "lib/rpc/context.h"
#include "lib/rpc/status.h"
#include "proto/containerd/services/containers/v1/containers.grpc.pb.h"
#include "proto/containerd/services/content/v1/content.grpc.pb.h"
#include "proto/containerd/services/images/v1/images.grpc.pb.h"
#include "proto/containerd/services/leases/v1/leases.grpc.pb.h"
#include "proto/containerd/services/snapshots/v1/snapshots.grpc.pb.h"

namespace bulkhead::snapshotter {
namespace {

namespace containers_v1 = containerd::services::containers::v1;
namespace content_v1 = containerd::services::content::v1;
namespace images_v1 = containerd::services::images::v1;
namespace leases_v1 = containerd::services::leases::v1;
namespace snapshots_v1 = containerd::services::snapshots::v1;

constexpr absl::Duration kAskTimeout = absl::Seconds(5);
constexpr char kExpireLabel[] = "containerd.io/gc.expire";

struct Stubs {
  explicit Stubs(const std::shared_ptr<grpc::Channel>& channel)
      : containers(channel),
        content(channel),
        images(channel),
        leases(channel),
        snapshots(channel) {}
  containers_v1::Containers::Stub containers;
  content_v1::Content::Stub content;
  images_v1::Images::Stub images;
  leases_v1::Leases::Stub leases;
  snapshots_v1::Snapshots::Stub snapshots;
};

absl::StatusOr<bool> IsThere(const grpc::Status& status) {
  if (status.ok()) return true;
  if (status.error_code() == grpc::StatusCode::NOT_FOUND) return false;
  return rpc::FromGrpc(status);
}

absl::StatusOr<bool> LeaseIsThere(leases_v1::Leases::Stub& leases,
                                  grpc::ClientContext* context,
                                  const std::string& id) {
  leases_v1::ListRequest request;  // There is no Get.
  leases_v1::ListResponse response;
  const grpc::Status status = leases.List(context, request, &response);
  if (!status.ok()) return rpc::FromGrpc(status);
  for (const leases_v1::Lease& lease : response.leases()) {
    if (lease.id() != id) continue;
    const auto expire = lease.labels().find(kExpireLabel);
    absl::Time at;
    return expire == lease.labels().end() ||
           !absl::ParseTime(absl::RFC3339_full, expire->second, &at, nullptr) ||
           at > absl::Now();
  }
  return false;
}

}  // namespace

MountHolders::Asker AskMetadata(const std::string& socket) {
  return [stubs = std::make_shared<Stubs>(rpc::Connect(socket))](
             const std::string& ns,
             const Holder& holder) -> absl::StatusOr<bool> {
    const auto context = rpc::MakeClientContext({.ns = ns}, kAskTimeout);
    switch (holder.kind) {
      case Holder::Kind::kLease:
        return LeaseIsThere(stubs->leases, context.get(), holder.id);
      case Holder::Kind::kContainer: {
        containers_v1::GetContainerRequest request;
        request.set_id(holder.id);
        containers_v1::GetContainerResponse response;
        return IsThere(
            stubs->containers.Get(context.get(), request, &response));
      }
      case Holder::Kind::kImage: {
        images_v1::GetImageRequest request;
        request.set_name(holder.id);
        images_v1::GetImageResponse response;
        return IsThere(stubs->images.Get(context.get(), request, &response));
      }
      case Holder::Kind::kContent: {
        content_v1::InfoRequest request;
        request.set_digest(holder.id);
        content_v1::InfoResponse response;
        return IsThere(stubs->content.Info(context.get(), request, &response));
      }
      case Holder::Kind::kSnapshot: {
        snapshots_v1::StatSnapshotRequest request;
        request.set_snapshotter(holder.snapshotter);
        request.set_key(holder.id);
        snapshots_v1::StatSnapshotResponse response;
        return IsThere(
            stubs->snapshots.Stat(context.get(), request, &response));
      }
    }
    return absl::InternalError("a holder of no kind");
  };
}

}  // namespace bulkhead::snapshotter
