#include "services/distribution/grpc_store.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "lib/base/status_macros.h"
#include "lib/log/log.h"
#include "lib/rpc/channel.h"
#include "lib/rpc/status.h"
#include "proto/containerd/services/content/v1/content.grpc.pb.h"
#include "proto/containerd/services/diff/v1/diff.grpc.pb.h"
#include "proto/containerd/services/images/v1/images.grpc.pb.h"
#include "proto/containerd/services/snapshots/v1/snapshots.grpc.pb.h"

namespace bulkhead::distribution {
namespace {

namespace content = containerd::services::content::v1;
namespace diff = containerd::services::diff::v1;
namespace images = containerd::services::images::v1;
namespace snapshots = containerd::services::snapshots::v1;

// A service that is being restarted is back within this.
constexpr absl::Duration kRetryFor = absl::Seconds(15);
constexpr absl::Duration kCallTimeout = absl::Minutes(2);
constexpr absl::Duration kApplyTimeout = absl::Hours(2);

void ToProto(const oci::Descriptor& from, containerd::types::Descriptor* out) {
  out->set_media_type(from.media_type);
  out->set_digest(from.digest.str());
  out->set_size(from.size_bytes);
  for (const auto& [key, value] : from.annotations) {
    (*out->mutable_annotations())[key] = value;
  }
}

template <typename Map>
void Fill(const Labels& labels, Map* out) {
  for (const auto& [key, value] : labels) (*out)[key] = value;
}

std::vector<dataplane::Mount> MountsFromProto(
    const google::protobuf::RepeatedPtrField<containerd::types::Mount>& list) {
  std::vector<dataplane::Mount> out;
  for (const auto& mount : list) {
    out.push_back({mount.type(),
                   mount.source(),
                   mount.target(),
                   {mount.options().begin(), mount.options().end()}});
  }
  return out;
}

class GrpcStore : public Store {
 public:
  GrpcStore(const Peers& peers, const rpc::CallContext& call)
      : peers_(peers),
        call_(call),
        data_(peers.metadata_data),
        content_(content::Content::NewStub(peers.metadata)),
        snapshots_(snapshots::Snapshots::NewStub(peers.metadata)),
        images_(images::Images::NewStub(peers.metadata)),
        diff_(diff::Diff::NewStub(peers.diff)) {}

  absl::StatusOr<std::unique_ptr<dataplane::Ingest>> OpenIngest(
      const std::string& ref, int64_t total_bytes,
      const std::string& expected) override {
    absl::StatusOr<std::unique_ptr<dataplane::Ingest>> ingest;
    bool locked = false;
    absl::Status status = rpc::RetryUnavailable(kRetryFor, [&]() {
      ingest =
          data_.OpenIngest({ref, total_bytes, expected, call_.ns, call_.lease});
      locked = absl::StartsWith(MessageOf(ingest.status()), "ref ");
      return locked ? absl::OkStatus() : ingest.status();
    });
    if (!locked && !status.ok()) return status;
    return ingest;
  }

  absl::StatusOr<dataplane::OpenedBlob> Open(
      const std::string& digest) override {
    absl::StatusOr<dataplane::OpenedBlob> blob;
    RETURN_IF_ERROR(rpc::RetryUnavailable(kRetryFor, [&]() {
      blob = data_.Open(digest, call_.ns);
      return blob.status();
    }));
    return blob;
  }

  absl::StatusOr<Labels> BlobLabels(const std::string& digest) override {
    content::InfoRequest request;
    request.set_digest(digest);
    content::InfoResponse response;
    RETURN_IF_ERROR(Call([&](grpc::ClientContext* context) {
      return content_->Info(context, request, &response);
    }));
    return Labels(response.info().labels().begin(),
                  response.info().labels().end());
  }

  absl::StatusOr<std::map<std::string, Digest>> FindByLabel(
      const std::string& key, const std::vector<std::string>& values) override {
    std::map<std::string, Digest> found;
    if (values.empty()) return found;
    content::ListContentRequest request;
    for (const std::string& value : values) {
      request.add_filters(
          absl::StrCat("labels.\"", key, "\"==\"", value, "\""));
    }
    RETURN_IF_ERROR(Call([&](grpc::ClientContext* context) {
      found.clear();
      const auto reader = content_->List(context, request);
      content::ListContentResponse response;
      while (reader->Read(&response)) {
        for (const content::Info& info : response.info()) {
          const auto label = info.labels().find(key);
          absl::StatusOr<Digest> digest = Digest::Parse(info.digest());
          if (label == info.labels().end() || !digest.ok()) continue;
          found.emplace(label->second, *std::move(digest));
        }
      }
      return reader->Finish();
    }));
    return found;
  }

  absl::Status SetBlobLabels(const std::string& digest,
                             const Labels& labels) override {
    content::UpdateRequest request;
    request.mutable_info()->set_digest(digest);
    for (const auto& [key, value] : labels) {
      (*request.mutable_info()->mutable_labels())[key] = value;
      request.mutable_update_mask()->add_paths("labels." + key);
    }
    content::UpdateResponse response;
    return Call([&](grpc::ClientContext* context) {
      return content_->Update(context, request, &response);
    });
  }

  absl::Status StatSnapshot(const std::string& snapshotter,
                            const std::string& name) override {
    snapshots::StatSnapshotRequest request;
    request.set_snapshotter(snapshotter);
    request.set_key(name);
    snapshots::StatSnapshotResponse response;
    return Call([&](grpc::ClientContext* context) {
      return snapshots_->Stat(context, request, &response);
    });
  }

  absl::StatusOr<std::vector<dataplane::Mount>> Prepare(
      const std::string& snapshotter, const std::string& key,
      const std::string& parent, const Labels& labels) override {
    snapshots::PrepareSnapshotRequest request;
    request.set_snapshotter(snapshotter);
    request.set_key(key);
    request.set_parent(parent);
    Fill(labels, request.mutable_labels());
    snapshots::PrepareSnapshotResponse response;
    RETURN_IF_ERROR(Call([&](grpc::ClientContext* context) {
      return snapshots_->Prepare(context, request, &response);
    }));
    return MountsFromProto(response.mounts());
  }

  absl::Status Commit(const std::string& snapshotter, const std::string& name,
                      const std::string& key, const std::string& parent,
                      const Labels& labels) override {
    snapshots::CommitSnapshotRequest request;
    request.set_snapshotter(snapshotter);
    request.set_name(name);
    request.set_key(key);
    request.set_parent(parent);
    Fill(labels, request.mutable_labels());
    google::protobuf::Empty response;
    return Call([&](grpc::ClientContext* context) {
      return snapshots_->Commit(context, request, &response);
    });
  }

  absl::Status RemoveSnapshot(const std::string& snapshotter,
                              const std::string& key) override {
    snapshots::RemoveSnapshotRequest request;
    request.set_snapshotter(snapshotter);
    request.set_key(key);
    google::protobuf::Empty response;
    return Call([&](grpc::ClientContext* context) {
      return snapshots_->Remove(context, request, &response);
    });
  }

  absl::StatusOr<std::unique_ptr<dataplane::ApplySession>> StartApply(
      const dataplane::ApplyRequest& request, int layer_fd) override {
    if (peers_.snapshotter_data.empty()) {
      return absl::UnavailableError("the differ has no data socket");
    }
    return dataplane::StartApply(peers_.snapshotter_data, request, layer_fd);
  }

  absl::StatusOr<dataplane::Applied> Apply(
      const oci::Descriptor& layer,
      const std::vector<dataplane::Mount>& mounts) override {
    diff::ApplyRequest request;
    ToProto(layer, request.mutable_diff());
    for (const dataplane::Mount& mount : mounts) {
      containerd::types::Mount* out = request.add_mounts();
      out->set_type(mount.type);
      out->set_source(mount.source);
      out->set_target(mount.target);
      for (const std::string& option : mount.options) out->add_options(option);
    }
    diff::ApplyResponse response;
    const auto context = rpc::MakeClientContext(call_, kApplyTimeout);
    RETURN_IF_ERROR(
        rpc::FromGrpc(diff_->Apply(context.get(), request, &response)));
    return dataplane::Applied{response.applied().digest(),
                              response.applied().size()};
  }

  absl::StatusOr<ImageRecord> GetImage(const std::string& name) override {
    images::GetImageRequest request;
    request.set_name(name);
    images::GetImageResponse response;
    RETURN_IF_ERROR(Call([&](grpc::ClientContext* context) {
      return images_->Get(context, request, &response);
    }));
    return FromProto(response.image());
  }

  absl::StatusOr<std::vector<ImageRecord>> ListImages(
      const std::string& prefix) override {
    images::ListImagesResponse response;
    RETURN_IF_ERROR(Call([&](grpc::ClientContext* context) {
      return images_->List(context, images::ListImagesRequest(), &response);
    }));
    std::vector<ImageRecord> out;
    for (const images::Image& image : response.images()) {
      if (!HasNamePrefix(image.name(), prefix)) continue;
      ASSIGN_OR_RETURN(ImageRecord record, FromProto(image));
      out.push_back(std::move(record));
    }
    std::sort(out.begin(), out.end(),
              [](const ImageRecord& a, const ImageRecord& b) {
                return a.name < b.name;
              });
    return out;
  }

  absl::Status PutImage(const ImageRecord& record) override {
    images::Image image;
    image.set_name(record.name);
    Fill(record.labels, image.mutable_labels());
    ToProto(record.target, image.mutable_target());
    // Somebody else may create or delete it between the two calls.
    absl::Status status;
    for (int attempt = 0; attempt < 10; ++attempt) {
      images::CreateImageRequest create;
      *create.mutable_image() = image;
      images::CreateImageResponse created;
      status = Call([&](grpc::ClientContext* context) {
        return images_->Create(context, create, &created);
      });
      if (!absl::IsAlreadyExists(status)) return status;
      images::UpdateImageRequest update;
      *update.mutable_image() = image;
      images::UpdateImageResponse updated;
      status = Call([&](grpc::ClientContext* context) {
        return images_->Update(context, update, &updated);
      });
      if (!absl::IsNotFound(status)) return status;
    }
    return status;
  }

 private:
  static absl::StatusOr<ImageRecord> FromProto(const images::Image& image) {
    ImageRecord out{
        image.name(), {image.labels().begin(), image.labels().end()}, {}};
    out.target.media_type = image.target().media_type();
    ASSIGN_OR_RETURN(out.target.digest, Digest::Parse(image.target().digest()));
    out.target.size_bytes = image.target().size();
    out.target.annotations = {image.target().annotations().begin(),
                              image.target().annotations().end()};
    return out;
  }

  absl::Status Call(
      const std::function<grpc::Status(grpc::ClientContext*)>& call) {
    return rpc::RetryUnavailable(kRetryFor, [&]() {
      const auto context = rpc::MakeClientContext(call_, kCallTimeout);
      return rpc::FromGrpc(call(context.get()));
    });
  }

  const Peers& peers_;
  const rpc::CallContext call_;
  const dataplane::Client data_;
  std::unique_ptr<content::Content::Stub> content_;
  std::unique_ptr<snapshots::Snapshots::Stub> snapshots_;
  std::unique_ptr<images::Images::Stub> images_;
  std::unique_ptr<diff::Diff::Stub> diff_;
};

}  // namespace

Peers Peers::For(const config::Config& config) {
  const auto routes = config::Routes(config);
  const auto diff = routes.find("containerd.services.diff.v1.Diff");
  Peers peers;
  peers.metadata = rpc::Connect(config.Socket("metadata"));
  peers.metadata_data = config.DataSocket("metadata");
  const std::string ours = config.Socket("snapshotter");
  const std::string address = diff == routes.end() ? ours : diff->second;
  peers.diff = rpc::Connect(address);
  if (address == ours)
    peers.snapshotter_data = config.DataSocket("snapshotter");
  return peers;
}

std::unique_ptr<Store> OpenStore(const Peers& peers,
                                 const rpc::CallContext& call) {
  return std::make_unique<GrpcStore>(peers, call);
}

}  // namespace bulkhead::distribution
