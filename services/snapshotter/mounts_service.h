// containerd.services.mounts.v1.Mounts on a MountManager. Update answers
// UNIMPLEMENTED, as containerd's does.
#ifndef BULKHEAD_SERVICES_SNAPSHOTTER_MOUNTS_SERVICE_H_
#define BULKHEAD_SERVICES_SNAPSHOTTER_MOUNTS_SERVICE_H_

#include <functional>
#include <utility>

#include "proto/containerd/services/mounts/v1/mounts.grpc.pb.h"
#include "services/snapshotter/mount_manager.h"

namespace bulkhead::snapshotter {

// Thread-safe. Borrows the manager. `activated`, if given, is called after each
// activation.
class MountsService final
    : public containerd::services::mounts::v1::Mounts::Service {
 public:
  explicit MountsService(MountManager& manager,
                         std::function<void()> activated = nullptr)
      : manager_(manager), activated_(std::move(activated)) {}

  grpc::Status Activate(
      grpc::ServerContext* context,
      const containerd::services::mounts::v1::ActivateRequest* request,
      containerd::services::mounts::v1::ActivateResponse* response) override;
  grpc::Status Deactivate(
      grpc::ServerContext* context,
      const containerd::services::mounts::v1::DeactivateRequest* request,
      google::protobuf::Empty* response) override;
  grpc::Status Info(
      grpc::ServerContext* context,
      const containerd::services::mounts::v1::InfoRequest* request,
      containerd::services::mounts::v1::InfoResponse* response) override;
  grpc::Status Update(
      grpc::ServerContext* context,
      const containerd::services::mounts::v1::UpdateRequest* request,
      containerd::services::mounts::v1::UpdateResponse* response) override;
  grpc::Status List(
      grpc::ServerContext* context,
      const containerd::services::mounts::v1::ListRequest* request,
      grpc::ServerWriter<containerd::services::mounts::v1::ListMessage>* writer)
      override;

 private:
  MountManager& manager_;
  const std::function<void()> activated_;
};

}  // namespace bulkhead::snapshotter

#endif  // BULKHEAD_SERVICES_SNAPSHOTTER_MOUNTS_SERVICE_H_
