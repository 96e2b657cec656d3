#include "services/metadata/snapshot_service.h"

#include <grpcpp/server_context.h>

#include "lib/rpc/context.h"
#include "proto/containerd/services/snapshots/v1/snapshots.grpc.pb.h"
#include "services/metadata/reply.h"

namespace bulkhead::metadata {
namespace {

namespace v1 = snapshots_v1;
using google::protobuf::Empty;
using grpc::ServerContext;
using rpc::ToGrpc;

constexpr int kListBatchMax = 100;

template <typename Request>
absl::StatusOr<SnapshotCall> CallOf(const ServerContext& context,
                                    const Request& request) {
  SnapshotCall call;
  if (request.snapshotter().empty()) {
    return absl::InvalidArgumentError("snapshotter argument missing");
  }
  ASSIGN_OR_RETURN(call.ns, rpc::RequireNamespace(context));
  call.lease = rpc::ContextOf(context).lease;
  call.snapshotter = request.snapshotter();
  return call;
}

// containerd leaves List's errors unmapped.
grpc::Status Unmapped(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return {grpc::StatusCode::UNKNOWN, ToGrpc(status).error_message()};
}

class SnapshotService final : public v1::Snapshots::Service {
 public:
  explicit SnapshotService(Snapshots& core) : core_(core) {}

  grpc::Status Prepare(ServerContext* context,
                       const v1::PrepareSnapshotRequest* request,
                       v1::PrepareSnapshotResponse* response) override {
    ASSIGN_OR_REPLY(const SnapshotCall call, CallOf(*context, *request));
    ASSIGN_OR_REPLY(auto mounts,
                    core_.Prepare(call, false, request->key(),
                                  request->parent(), request->labels()));
    for (auto& mount : mounts) *response->add_mounts() = std::move(mount);
    return grpc::Status::OK;
  }
  grpc::Status View(ServerContext* context,
                    const v1::ViewSnapshotRequest* request,
                    v1::ViewSnapshotResponse* response) override {
    ASSIGN_OR_REPLY(const SnapshotCall call, CallOf(*context, *request));
    ASSIGN_OR_REPLY(auto mounts,
                    core_.Prepare(call, true, request->key(), request->parent(),
                                  request->labels()));
    for (auto& mount : mounts) *response->add_mounts() = std::move(mount);
    return grpc::Status::OK;
  }
  grpc::Status Mounts(ServerContext* context, const v1::MountsRequest* request,
                      v1::MountsResponse* response) override {
    ASSIGN_OR_REPLY(const SnapshotCall call, CallOf(*context, *request));
    ASSIGN_OR_REPLY(auto mounts, core_.MountsOf(call, request->key()));
    for (auto& mount : mounts) *response->add_mounts() = std::move(mount);
    return grpc::Status::OK;
  }
  grpc::Status Commit(ServerContext* context,
                      const v1::CommitSnapshotRequest* request,
                      Empty*) override {
    ASSIGN_OR_REPLY(const SnapshotCall call, CallOf(*context, *request));
    return ToGrpc(core_.Commit(call, request->name(), request->key(),
                               request->parent(), request->labels()));
  }
  grpc::Status Remove(ServerContext* context,
                      const v1::RemoveSnapshotRequest* request,
                      Empty*) override {
    ASSIGN_OR_REPLY(const SnapshotCall call, CallOf(*context, *request));
    return ToGrpc(core_.Remove(call, request->key()));
  }
  grpc::Status Stat(ServerContext* context,
                    const v1::StatSnapshotRequest* request,
                    v1::StatSnapshotResponse* response) override {
    ASSIGN_OR_REPLY(const SnapshotCall call, CallOf(*context, *request));
    ASSIGN_OR_REPLY(*response->mutable_info(),
                    core_.Stat(call, request->key()));
    return grpc::Status::OK;
  }
  grpc::Status Update(ServerContext* context,
                      const v1::UpdateSnapshotRequest* request,
                      v1::UpdateSnapshotResponse* response) override {
    ASSIGN_OR_REPLY(const SnapshotCall call, CallOf(*context, *request));
    const std::vector<std::string> mask(request->update_mask().paths().begin(),
                                        request->update_mask().paths().end());
    ASSIGN_OR_REPLY(*response->mutable_info(),
                    core_.Update(call, request->info(), mask));
    return grpc::Status::OK;
  }
  grpc::Status List(
      ServerContext* context, const v1::ListSnapshotsRequest* request,
      grpc::ServerWriter<v1::ListSnapshotsResponse>* writer) override {
    if (request->snapshotter().empty()) {
      return ToGrpc(absl::InvalidArgumentError("snapshotter argument missing"));
    }
    const absl::StatusOr<SnapshotCall> call = CallOf(*context, *request);
    if (!call.ok()) return Unmapped(call.status());
    const absl::StatusOr<filters::Filter> filter =
        filters::Filter::Parse(request->filters());
    if (!filter.ok()) return Unmapped(filter.status());
    v1::ListSnapshotsResponse batch;
    bool open = true;
    REPLY_IF_ERROR(core_.List(*call, *filter, [&](v1::Info& info) {
      *batch.add_info() = std::move(info);
      if (batch.info_size() < kListBatchMax) return true;
      open = writer->Write(batch);
      batch.Clear();
      return open;
    }));
    if (open && batch.info_size() > 0) writer->Write(batch);
    return grpc::Status::OK;
  }
  grpc::Status Usage(ServerContext* context, const v1::UsageRequest* request,
                     v1::UsageResponse* response) override {
    ASSIGN_OR_REPLY(const SnapshotCall call, CallOf(*context, *request));
    ASSIGN_OR_REPLY(*response, core_.Usage(call, request->key()));
    return grpc::Status::OK;
  }
  grpc::Status Cleanup(ServerContext*, const v1::CleanupRequest*,
                       Empty*) override {
    return ToGrpc(absl::UnimplementedError("cleanup"));
  }

 private:
  Snapshots& core_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeSnapshotService(Snapshots& snapshots) {
  return std::make_unique<SnapshotService>(snapshots);
}

}  // namespace bulkhead::metadata
