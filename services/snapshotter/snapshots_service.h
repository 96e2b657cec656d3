// containerd.services.snapshots.v1.Snapshots as a backend: no namespaces; the
// request's `snapshotter` chooses among several. A process that serves only
// one answers to any name: as a proxy plugin it is called what the foreign
// containerd's configuration calls it.
#ifndef BULKHEAD_SERVICES_SNAPSHOTTER_SNAPSHOTS_SERVICE_H_
#define BULKHEAD_SERVICES_SNAPSHOTTER_SNAPSHOTS_SERVICE_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "proto/containerd/services/snapshots/v1/snapshots.grpc.pb.h"
#include "services/snapshotter/snapshotter.h"

namespace bulkhead::snapshotter {

// Thread-safe.
class SnapshotsService final
    : public containerd::services::snapshots::v1::Snapshots::Service {
 public:
  // Borrows the snapshotters.
  explicit SnapshotsService(std::vector<Snapshotter*> snapshotters)
      : snapshotters_(std::move(snapshotters)) {}

  // The only one answers to any name. Errors: kInvalidArgument: none has it.
  absl::StatusOr<Snapshotter*> Named(const std::string& name) const;

  grpc::Status Prepare(
      grpc::ServerContext* context,
      const containerd::services::snapshots::v1::PrepareSnapshotRequest*
          request,
      containerd::services::snapshots::v1::PrepareSnapshotResponse* response)
      override;
  grpc::Status View(
      grpc::ServerContext* context,
      const containerd::services::snapshots::v1::ViewSnapshotRequest* request,
      containerd::services::snapshots::v1::ViewSnapshotResponse* response)
      override;
  grpc::Status Mounts(
      grpc::ServerContext* context,
      const containerd::services::snapshots::v1::MountsRequest* request,
      containerd::services::snapshots::v1::MountsResponse* response) override;
  grpc::Status Commit(
      grpc::ServerContext* context,
      const containerd::services::snapshots::v1::CommitSnapshotRequest* request,
      google::protobuf::Empty* response) override;
  grpc::Status Remove(
      grpc::ServerContext* context,
      const containerd::services::snapshots::v1::RemoveSnapshotRequest* request,
      google::protobuf::Empty* response) override;
  grpc::Status Stat(
      grpc::ServerContext* context,
      const containerd::services::snapshots::v1::StatSnapshotRequest* request,
      containerd::services::snapshots::v1::StatSnapshotResponse* response)
      override;
  grpc::Status Update(
      grpc::ServerContext* context,
      const containerd::services::snapshots::v1::UpdateSnapshotRequest* request,
      containerd::services::snapshots::v1::UpdateSnapshotResponse* response)
      override;
  grpc::Status List(
      grpc::ServerContext* context,
      const containerd::services::snapshots::v1::ListSnapshotsRequest* request,
      grpc::ServerWriter<
          containerd::services::snapshots::v1::ListSnapshotsResponse>* writer)
      override;
  grpc::Status Usage(
      grpc::ServerContext* context,
      const containerd::services::snapshots::v1::UsageRequest* request,
      containerd::services::snapshots::v1::UsageResponse* response) override;
  grpc::Status Cleanup(
      grpc::ServerContext* context,
      const containerd::services::snapshots::v1::CleanupRequest* request,
      google::protobuf::Empty* response) override;

 private:
  const std::vector<Snapshotter*> snapshotters_;
};

}  // namespace bulkhead::snapshotter

#endif  // BULKHEAD_SERVICES_SNAPSHOTTER_SNAPSHOTS_SERVICE_H_
