// containerd.services.diff.v1.Diff, and Mounts, which has nothing to handle.
#ifndef BULKHEAD_SERVICES_SNAPSHOTTER_DIFF_SERVICE_H_
#define BULKHEAD_SERVICES_SNAPSHOTTER_DIFF_SERVICE_H_

#include <memory>
#include <string>

#include "lib/dataplane/dataplane.h"
#include "lib/rpc/context.h"
#include "proto/containerd/services/content/v1/content.grpc.pb.h"
#include "proto/containerd/services/diff/v1/diff.grpc.pb.h"
#include "services/snapshotter/applier.h"

namespace bulkhead::snapshotter {

struct DiffPeers {
  std::string content_data_socket;
  std::string content_socket;  // Where content has no data socket: Read.
  std::string metadata_data_socket;
};

// Thread-safe.
class DiffService final : public containerd::services::diff::v1::Diff::Service {
 public:
  // Borrows `applier`.
  DiffService(Applier& applier, const DiffPeers& peers);

  grpc::Status Apply(
      grpc::ServerContext* context,
      const containerd::services::diff::v1::ApplyRequest* request,
      containerd::services::diff::v1::ApplyResponse* response) override;
  grpc::Status Diff(
      grpc::ServerContext* context,
      const containerd::services::diff::v1::DiffRequest* request,
      containerd::services::diff::v1::DiffResponse* response) override;

 private:
  absl::StatusOr<std::unique_ptr<LayerSource>> OpenBlob(
      const std::string& digest, const std::string& ns) const;

  absl::Status WriteDiffBlob(
      const containerd::services::diff::v1::DiffRequest& request,
      const rpc::CallContext& call,
      containerd::services::diff::v1::DiffResponse* response);

  Applier& applier_;
  const dataplane::Client content_data_;
  const dataplane::Client metadata_data_;
  const std::unique_ptr<
      containerd::services::content::v1::Content::StubInterface>
      content_;
};

}  // namespace bulkhead::snapshotter

#endif  // BULKHEAD_SERVICES_SNAPSHOTTER_DIFF_SERVICE_H_
