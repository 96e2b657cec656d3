#include "services/metadata/admin_service.h"

#include <grpcpp/server_context.h>

#include <filesystem>
#include <system_error>
#include <unordered_map>

#include "lib/rpc/context.h"
#include "proto/bulkhead/admin/v1/admin.grpc.pb.h"
#include "services/metadata/fsck.h"
#include "services/metadata/marker.h"
#include "services/metadata/reply.h"

namespace bulkhead::metadata {
namespace {

namespace v1 = bulkhead::admin::v1;
using grpc::ServerContext;
using rpc::ToGrpc;

constexpr int kBatchMax = 100;

v1::Object ToObject(const std::string& key) {
  v1::Object object;
  if (key.empty()) return object;
  const std::vector<std::string> parts = Split(key);
  object.set_namespace_(parts[0]);
  object.set_name(parts.back());
  switch (key[0]) {
    case kind::kNamespace:
      object.set_kind("namespace");
      break;
    case kind::kImage:
      object.set_kind("image");
      break;
    case kind::kContainer:
      object.set_kind("container");
      break;
    case kind::kSandbox:
      object.set_kind("sandbox");
      break;
    case kind::kLease:
      object.set_kind("lease");
      break;
    case kind::kBlob:
      object.set_kind("blob");
      break;
    case kind::kIngest:
      object.set_kind("ingest");
      break;
    case kind::kSnapshot:
      object.set_kind("snapshot");
      object.set_snapshotter(parts[1]);
      break;
    default:
      object.set_kind("record");
      break;
  }
  return object;
}

class AdminService final : public v1::Admin::Service {
 public:
  AdminService(Store& store, Content& content, Snapshots& snapshots,
               Collector& collector)
      : store_(store),
        content_(content),
        snapshots_(snapshots),
        collector_(collector) {}

  grpc::Status Collect(
      ServerContext*, const v1::CollectRequest* request,
      grpc::ServerWriter<v1::CollectResponse>* writer) override {
    v1::CollectResponse response;
    if (!request->dry_run()) {
      ASSIGN_OR_REPLY(const CollectResult result, collector_.CollectNow());
      response.set_done(true);
      response.set_leases(result.leases);
      response.set_images(result.images);
      response.set_blobs(result.blobs);
      response.set_ingests(result.ingests);
      response.set_snapshots(result.snapshots);
      writer->Write(response);
      return grpc::Status::OK;
    }
    ASSIGN_OR_REPLY(const std::vector<std::string> garbage,
                    ListGarbage(store_));
    v1::CollectResponse last;
    for (const std::string& key : garbage) {
      *response.add_garbage() = ToObject(key);
      Add(key, &last);
      if (response.garbage_size() < kBatchMax) continue;
      if (!writer->Write(response)) return grpc::Status::CANCELLED;
      response.Clear();
    }
    last.set_done(true);
    *last.mutable_garbage() = response.garbage();
    writer->Write(last);
    return grpc::Status::OK;
  }

  grpc::Status Why(ServerContext* context, const v1::WhyRequest* request,
                   v1::WhyResponse* response) override {
    ASSIGN_OR_REPLY(const std::string ns, rpc::RequireNamespace(*context));
    REPLY_IF_ERROR(CheckComponent(request->name(), "name"));
    const std::string& name = request->name();
    std::vector<std::string> keys = {
        Key(kind::kBlob, {ns, name}), Key(kind::kImage, {ns, name}),
        Key(kind::kIngest, {ns, name}), Key(kind::kContainer, {ns, name}),
        Key(kind::kSandbox, {ns, name})};
    for (const std::string& snapshotter : snapshots_.names()) {
      keys.push_back(Key(kind::kSnapshot, {ns, snapshotter, name}));
    }
    const std::unique_ptr<Db::View> view = store_.db().TakeView();
    Marker marker(store_, /*explain=*/true);
    bool marked = false;
    for (const std::string& key : keys) {
      ASSIGN_OR_REPLY(const std::optional<std::string> found,
                      store_.db().Get(key, view.get()));
      if (!found.has_value()) continue;
      if (!marked) REPLY_IF_ERROR(marker.MarkAll(view.get()));
      marked = true;
      v1::WhyResponse::Kept* kept = response->add_objects();
      *kept->mutable_object() = ToObject(key);
      for (const Marker::Step& step : marker.PathTo(key)) {
        v1::WhyResponse::Step* out = kept->add_path();
        *out->mutable_object() = ToObject(step.key);
        out->set_by(step.by);
      }
      if (kept->path_size() == 0 && marker.IsLive(key)) {
        v1::WhyResponse::Step* out = kept->add_path();
        *out->mutable_object() = ToObject(key);
        out->set_by("the namespace has damaged records (bulkhead fsck)");
      }
    }
    if (response->objects_size() == 0) {
      return ToGrpc(absl::NotFoundError(absl::StrCat(
          "no image, blob, snapshot, ingest, container or sandbox ",
          Quoted(name), " in namespace ", Quoted(ns))));
    }
    return grpc::Status::OK;
  }

  grpc::Status Check(ServerContext*, const v1::CheckRequest* request,
                     grpc::ServerWriter<v1::CheckResponse>* writer) override {
    CheckOptions options;
    options.repair = request->repair();
    options.bytes = !request->skip_bytes();
    ASSIGN_OR_REPLY(
        const CheckTotals totals,
        CheckAll(store_, content_, snapshots_, options,
                 [writer](const Finding& finding) {
                   v1::CheckResponse response;
                   v1::CheckResponse::Finding* out = response.add_findings();
                   out->set_severity(finding.severity == Severity::kNote
                                         ? v1::CheckResponse::NOTE
                                     : finding.severity == Severity::kLost
                                         ? v1::CheckResponse::LOST
                                         : v1::CheckResponse::DAMAGED);
                   *out->mutable_object() = ToObject(finding.key);
                   out->set_text(finding.text);
                   out->set_repaired(finding.repaired);
                   return writer->Write(response);
                 }));
    v1::CheckResponse last;
    last.set_done(true);
    last.set_records(totals.records);
    last.set_blobs(totals.blobs);
    last.set_bytes(totals.bytes);
    last.set_snapshots(totals.snapshots);
    writer->Write(last);
    return grpc::Status::OK;
  }

  grpc::Status Backup(ServerContext*, const v1::BackupRequest* request,
                      v1::BackupResponse* response) override {
    const std::string& directory = request->directory();
    if (directory.empty() || directory[0] != '/') {
      return ToGrpc(absl::InvalidArgumentError(
          "the directory of a backup must be an absolute path"));
    }
    std::error_code error;
    if (std::filesystem::exists(directory, error)) {
      return ToGrpc(
          absl::AlreadyExistsError(absl::StrCat("directory ", directory)));
    }
    REPLY_IF_ERROR(store_.db().Checkpoint(directory));
    int64_t bytes = 0;
    for (const auto& entry :
         std::filesystem::directory_iterator(directory, error)) {
      const auto size = entry.file_size(error);
      if (!error) bytes += static_cast<int64_t>(size);
    }
    response->set_bytes(bytes);
    return grpc::Status::OK;
  }

 private:
  // Counts one piece of garbage.
  void Add(const std::string& key, v1::CollectResponse* sums) const {
    switch (key[0]) {
      case kind::kLease:
        sums->set_leases(sums->leases() + 1);
        break;
      case kind::kImage:
        sums->set_images(sums->images() + 1);
        break;
      case kind::kIngest:
        sums->set_ingests(sums->ingests() + 1);
        break;
      case kind::kSnapshot:
        sums->set_snapshots(sums->snapshots() + 1);
        break;
      default: {
        sums->set_blobs(sums->blobs() + 1);
        const auto info = store_.Get<content_v1::Info>(key);
        if (info.ok() && info->has_value()) {
          sums->set_bytes(sums->bytes() + (*info)->size());
        }
        break;
      }
    }
  }

  Store& store_;
  Content& content_;
  Snapshots& snapshots_;
  Collector& collector_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeAdminService(Store& store, Content& content,
                                                Snapshots& snapshots,
                                                Collector& collector) {
  return std::make_unique<AdminService>(store, content, snapshots, collector);
}

}  // namespace bulkhead::metadata
