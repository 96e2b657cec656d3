#include "services/snapshotter/snapshots_service.h"

#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/filters/filters.h"
#include "lib/rpc/status.h"

namespace bulkhead::snapshotter {
namespace {

namespace v1 = containerd::services::snapshots::v1;
using grpc::ServerContext;
using MountList = std::vector<os::MountSpec>;

constexpr int kListBatchMax = 100;
constexpr int64_t kNs = 1000000000;

template <typename Map>
Labels LabelsOf(const Map& map) {
  return Labels(map.begin(), map.end());
}

template <typename Proto>
void FillMounts(const MountList& mounts, Proto* out) {
  for (const os::MountSpec& mount : mounts) {
    auto* proto = out->add_mounts();
    proto->set_type(mount.type);
    proto->set_source(mount.source);
    proto->set_target(mount.target);
    for (const std::string& option : mount.options) proto->add_options(option);
  }
}

void FillInfo(const SnapshotInfo& info, v1::Info* out) {
  out->set_name(info.name);
  out->set_parent(info.parent);
  out->set_kind(static_cast<v1::Kind>(info.kind));
  out->mutable_created_at()->set_seconds(info.created_at_ns / kNs);
  out->mutable_created_at()->set_nanos(info.created_at_ns % kNs);
  out->mutable_updated_at()->set_seconds(info.updated_at_ns / kNs);
  out->mutable_updated_at()->set_nanos(info.updated_at_ns % kNs);
  out->mutable_labels()->insert(info.labels.begin(), info.labels.end());
}

std::optional<std::string> Field(const SnapshotInfo& info,
                                 const filters::FieldPath& path) {
  if (path.empty()) return std::nullopt;
  if (path[0] == "kind") return KindName(info.kind);
  if (path[0] == "name") return info.name;
  if (path[0] == "parent") return info.parent;
  if (path[0] == "labels") return filters::MapField(info.labels, path);
  return std::nullopt;
}

}  // namespace

absl::StatusOr<Snapshotter*> SnapshotsService::Named(
    const std::string& name) const {
  if (name.empty()) {
    return absl::InvalidArgumentError("snapshotter argument missing");
  }
  for (Snapshotter* snapshotter : snapshotters_) {
    if (snapshotter->name() == name) return snapshotter;
  }
  if (snapshotters_.size() == 1) return snapshotters_[0];
  return absl::InvalidArgumentError(
      absl::StrCat("snapshotter not loaded: ", name));
}

grpc::Status SnapshotsService::Prepare(
    ServerContext*, const v1::PrepareSnapshotRequest* request,
    v1::PrepareSnapshotResponse* response) {
  const auto snapshotter = Named(request->snapshotter());
  if (!snapshotter.ok()) return rpc::ToGrpc(snapshotter.status());
  const absl::StatusOr<MountList> mounts =
      (*snapshotter)
          ->Prepare(request->key(), request->parent(),
                    LabelsOf(request->labels()));
  if (mounts.ok()) FillMounts(*mounts, response);
  return rpc::ToGrpc(mounts.status());
}

grpc::Status SnapshotsService::View(ServerContext*,
                                    const v1::ViewSnapshotRequest* request,
                                    v1::ViewSnapshotResponse* response) {
  const auto snapshotter = Named(request->snapshotter());
  if (!snapshotter.ok()) return rpc::ToGrpc(snapshotter.status());
  const absl::StatusOr<MountList> mounts =
      (*snapshotter)
          ->View(request->key(), request->parent(),
                 LabelsOf(request->labels()));
  if (mounts.ok()) FillMounts(*mounts, response);
  return rpc::ToGrpc(mounts.status());
}

grpc::Status SnapshotsService::Mounts(ServerContext*,
                                      const v1::MountsRequest* request,
                                      v1::MountsResponse* response) {
  const auto snapshotter = Named(request->snapshotter());
  if (!snapshotter.ok()) return rpc::ToGrpc(snapshotter.status());
  const absl::StatusOr<MountList> mounts =
      (*snapshotter)->Mounts(request->key());
  if (mounts.ok()) FillMounts(*mounts, response);
  return rpc::ToGrpc(mounts.status());
}

grpc::Status SnapshotsService::Commit(ServerContext*,
                                      const v1::CommitSnapshotRequest* request,
                                      google::protobuf::Empty*) {
  const auto snapshotter = Named(request->snapshotter());
  if (!snapshotter.ok()) return rpc::ToGrpc(snapshotter.status());
  return rpc::ToGrpc((*snapshotter)
                         ->Commit(request->name(), request->key(),
                                  LabelsOf(request->labels()),
                                  request->parent()));
}

grpc::Status SnapshotsService::Remove(ServerContext*,
                                      const v1::RemoveSnapshotRequest* request,
                                      google::protobuf::Empty*) {
  const auto snapshotter = Named(request->snapshotter());
  if (!snapshotter.ok()) return rpc::ToGrpc(snapshotter.status());
  return rpc::ToGrpc((*snapshotter)->Remove(request->key()));
}

grpc::Status SnapshotsService::Stat(ServerContext*,
                                    const v1::StatSnapshotRequest* request,
                                    v1::StatSnapshotResponse* response) {
  const auto snapshotter = Named(request->snapshotter());
  if (!snapshotter.ok()) return rpc::ToGrpc(snapshotter.status());
  const auto info = (*snapshotter)->Stat(request->key());
  if (info.ok()) FillInfo(*info, response->mutable_info());
  return rpc::ToGrpc(info.status());
}

grpc::Status SnapshotsService::Update(ServerContext*,
                                      const v1::UpdateSnapshotRequest* request,
                                      v1::UpdateSnapshotResponse* response) {
  const auto snapshotter = Named(request->snapshotter());
  if (!snapshotter.ok()) return rpc::ToGrpc(snapshotter.status());
  const auto& paths = request->update_mask().paths();
  const auto info =
      (*snapshotter)
          ->Update(request->info().name(), LabelsOf(request->info().labels()),
                   {paths.begin(), paths.end()});
  if (info.ok()) FillInfo(*info, response->mutable_info());
  return rpc::ToGrpc(info.status());
}

grpc::Status SnapshotsService::List(
    ServerContext*, const v1::ListSnapshotsRequest* request,
    grpc::ServerWriter<v1::ListSnapshotsResponse>* writer) {
  const auto snapshotter = Named(request->snapshotter());
  if (!snapshotter.ok()) return rpc::ToGrpc(snapshotter.status());
  const absl::StatusOr<filters::Filter> filter =
      filters::Filter::Parse(request->filters());
  if (!filter.ok()) {  // This stream's errors come unmapped, as containerd's.
    return rpc::ToGrpc(absl::UnknownError(
        absl::StrCat(MessageOf(filter.status()), ": ",
                     rpc::ClassText(filter.status().code()))));
  }
  v1::ListSnapshotsResponse batch;
  const absl::Status status =
      (*snapshotter)->Walk([&](const SnapshotInfo& info) -> absl::Status {
        if (!filter->Match([&](const filters::FieldPath& path) {
              return Field(info, path);
            })) {
          return absl::OkStatus();
        }
        FillInfo(info, batch.add_info());
        if (batch.info_size() < kListBatchMax) return absl::OkStatus();
        if (!writer->Write(batch)) {
          return absl::CancelledError("the client went away");
        }
        batch.Clear();
        return absl::OkStatus();
      });
  if (status.ok() && batch.info_size() > 0) (void)writer->Write(batch);
  return rpc::ToGrpc(status);
}

grpc::Status SnapshotsService::Usage(ServerContext*,
                                     const v1::UsageRequest* request,
                                     v1::UsageResponse* response) {
  const auto snapshotter = Named(request->snapshotter());
  if (!snapshotter.ok()) return rpc::ToGrpc(snapshotter.status());
  const absl::StatusOr<DiskUsage> usage = (*snapshotter)->Usage(request->key());
  if (usage.ok()) {
    response->set_size(usage->size_bytes);
    response->set_inodes(usage->inodes);
  }
  return rpc::ToGrpc(usage.status());
}

grpc::Status SnapshotsService::Cleanup(ServerContext*,
                                       const v1::CleanupRequest* request,
                                       google::protobuf::Empty*) {
  const auto snapshotter = Named(request->snapshotter());
  if (!snapshotter.ok()) return rpc::ToGrpc(snapshotter.status());
  return rpc::ToGrpc((*snapshotter)->Cleanup());
}

}  // namespace bulkhead::snapshotter
