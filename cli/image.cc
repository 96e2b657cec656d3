#include "cli/image.h"

#include <google/protobuf/empty.pb.h>

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cli/names.h"
#include "lib/base/status_macros.h"
#include "lib/oci/reference.h"
#include "proto/containerd/services/content/v1/content.pb.h"
#include "proto/containerd/services/diff/v1/diff.pb.h"
#include "proto/containerd/services/leases/v1/leases.pb.h"
#include "proto/containerd/services/snapshots/v1/snapshots.pb.h"

namespace bulkhead::cli {
namespace {

namespace content = containerd::services::content::v1;
namespace images = containerd::services::images::v1;
namespace leases = containerd::services::leases::v1;
namespace snapshots = containerd::services::snapshots::v1;

constexpr size_t kDigestPrefixMin = 4;
constexpr int kIndexDepthMax = 4;

bool IsHex(const std::string& text) {
  return !text.empty() &&
         text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

absl::StatusOr<oci::Manifest> FindManifest(Client& client,
                                           const std::string& name,
                                           std::string media_type,
                                           std::string digest,
                                           const oci::Platform& platform) {
  for (int depth = 0; depth < kIndexDepthMax; ++depth) {
    ASSIGN_OR_RETURN(const std::string json, ReadBlob(client, digest));
    if (media_type.empty()) media_type = oci::GuessMediaType(json);
    if (!oci::IsIndexType(media_type)) return oci::ParseManifest(json);
    ASSIGN_OR_RETURN(const oci::Index index, oci::ParseIndex(json));
    const oci::Descriptor* best = nullptr;
    int best_distance = 0;
    for (const oci::Descriptor& entry : index.manifests) {
      const int distance =
          entry.platform.empty()
              ? 1000  // Says nothing: better than nothing.
              : oci::PlatformDistance(platform, entry.platform);
      if (distance < 0 || (best != nullptr && distance >= best_distance)) {
        continue;
      }
      best = &entry;
      best_distance = distance;
    }
    if (best == nullptr) {
      return absl::NotFoundError(absl::StrCat(
          "image ", name, " has nothing for ", oci::FormatPlatform(platform)));
    }
    media_type = best->media_type;
    digest = best->digest.str();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("image ", name, ": indexes nested too deeply"));
}

bool SnapshotExists(Client& client, const std::string& snapshotter,
                    const std::string& name, absl::Status* status) {
  snapshots::StatSnapshotRequest request;
  request.set_snapshotter(snapshotter);
  request.set_key(name);
  snapshots::StatSnapshotResponse response;
  *status = client.Call(std::string(kSnapshots) + "Stat", request, &response);
  if (absl::IsNotFound(*status)) *status = absl::OkStatus();
  return !response.info().name().empty();
}

absl::Status UnpackLayer(Client& client, const std::string& snapshotter,
                         const oci::Descriptor& layer,
                         const std::string& parent,
                         const std::string& chain_id) {
  google::protobuf::Empty empty;
  snapshots::PrepareSnapshotRequest prepare;
  prepare.set_snapshotter(snapshotter);
  prepare.set_key(absl::StrCat("extract-", absl::ToUnixNanos(absl::Now()), "-",
                               NewId().substr(0, 4), " ", chain_id));
  prepare.set_parent(parent);
  (*prepare.mutable_labels())["containerd.io/snapshot.ref"] = chain_id;
  snapshots::PrepareSnapshotResponse prepared;
  absl::Status status =
      client.Call(std::string(kSnapshots) + "Prepare", prepare, &prepared);
  if (absl::IsAlreadyExists(status)) return absl::OkStatus();
  RETURN_IF_ERROR(status);

  containerd::services::diff::v1::ApplyRequest apply;
  apply.mutable_diff()->set_media_type(layer.media_type);
  apply.mutable_diff()->set_digest(layer.digest.str());
  apply.mutable_diff()->set_size(layer.size_bytes);
  *apply.mutable_mounts() = prepared.mounts();
  containerd::services::diff::v1::ApplyResponse applied;
  status = client.Call(std::string(kDiff) + "Apply", apply, &applied);
  if (status.ok()) {
    snapshots::CommitSnapshotRequest commit;
    commit.set_snapshotter(snapshotter);
    commit.set_name(chain_id);
    commit.set_key(prepare.key());
    status = client.Call(std::string(kSnapshots) + "Commit", commit, &empty);
    if (status.ok()) return status;
  }
  snapshots::RemoveSnapshotRequest remove;
  remove.set_snapshotter(snapshotter);
  remove.set_key(prepare.key());
  (void)client.Call(std::string(kSnapshots) + "Remove", remove,
                    &empty);  // The first error is the one to report.
  return absl::IsAlreadyExists(status) ? absl::OkStatus() : status;
}

}  // namespace

absl::StatusOr<ImageRecord> FindImage(Client& client, const std::string& text) {
  const auto get = [&](const std::string& name) -> absl::StatusOr<ImageRecord> {
    images::GetImageRequest request;
    request.set_name(name);
    images::GetImageResponse response;
    RETURN_IF_ERROR(
        client.Call(std::string(kImages) + "Get", request, &response));
    return response.image();
  };
  const absl::StatusOr<oci::Reference> reference = oci::ParseNormalized(text);
  const std::string full = reference.ok() ? reference->str() : text;
  absl::StatusOr<ImageRecord> found = get(full);
  if (found.ok() || !absl::IsNotFound(found.status())) return found;
  if (full != text) {
    found = get(text);
    if (found.ok() || !absl::IsNotFound(found.status())) return found;
  }
  std::string digits = text;
  if (absl::StartsWith(digits, "sha256:")) digits = digits.substr(7);
  if (IsHex(digits) && digits.size() >= kDigestPrefixMin) {
    ASSIGN_OR_RETURN(const std::vector<ImageRecord> all, ListImages(client));
    const ImageRecord* match = nullptr;
    for (const ImageRecord& image : all) {
      const std::string& digest = image.target().digest();
      const size_t colon = digest.find(':');
      if (digest.compare(colon + 1, digits.size(), digits) != 0) continue;
      if (match != nullptr && match->target().digest() != digest) {
        return absl::InvalidArgumentError(absl::StrCat(
            "several images begin with '", text, "'; give more digits"));
      }
      match = &image;
    }
    if (match != nullptr) return *match;
  }
  return absl::NotFoundError(absl::StrCat(
      "No such image: ", text, " — pull it with `bulkhead pull ", text, "`"));
}

absl::StatusOr<std::vector<ImageRecord>> ListImages(Client& client) {
  images::ListImagesRequest request;
  images::ListImagesResponse response;
  RETURN_IF_ERROR(
      client.Call(std::string(kImages) + "List", request, &response));
  std::vector<ImageRecord> all(response.images().begin(),
                               response.images().end());
  std::sort(all.begin(), all.end(),
            [](const ImageRecord& a, const ImageRecord& b) {
              return a.name() < b.name();
            });
  return all;
}

namespace {

absl::StatusOr<std::string> ReadBlobOnce(Client& client,
                                         const std::string& digest) {
  content::ReadContentRequest request;
  request.set_digest(digest);
  const std::unique_ptr<Stream> stream =
      client.ServerStream(std::string(kContent) + "Read", request);
  std::string bytes;
  content::ReadContentResponse part;
  while (stream->Read(&part)) {
    bytes += part.data();
    if (bytes.size() > static_cast<size_t>(oci::kDocumentBytesMax)) {
      return absl::ResourceExhaustedError(
          absl::StrCat(digest, " is larger than any manifest may be"));
    }
  }
  RETURN_IF_ERROR(stream->Finish());
  return bytes;
}

}  // namespace

absl::StatusOr<std::string> ReadBlob(Client& client,
                                     const std::string& digest) {
  absl::StatusOr<std::string> bytes;
  RETURN_IF_ERROR(RetryRead(client, [&] {
    bytes = ReadBlobOnce(client, digest);
    return bytes.status();
  }));
  return bytes;
}

absl::StatusOr<ImageInfo> LoadImage(Client& client, const ImageRecord& record,
                                    const oci::Platform& platform) {
  ImageInfo image;
  image.record = record;
  absl::StatusOr<oci::Manifest> manifest =
      FindManifest(client, record.name(), record.target().media_type(),
                   record.target().digest(), platform);
  if (!manifest.ok()) {
    return Annotate(manifest.status(), "image " + record.name());
  }
  image.manifest = *std::move(manifest);
  ASSIGN_OR_RETURN(image.config_json,
                   ReadBlob(client, image.manifest.config.digest.str()));
  ASSIGN_OR_RETURN(image.config, oci::ParseImageConfig(image.config_json));
  for (const Digest& chain_id : oci::ChainIds(image.config.diff_ids)) {
    image.chain_ids.push_back(chain_id.str());
  }
  if (image.chain_ids.size() != image.manifest.layers.size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "image ", record.name(), ": ", image.manifest.layers.size(),
        " layers but ", image.chain_ids.size(), " diff ids"));
  }
  for (const oci::Descriptor& layer : image.manifest.layers) {
    image.compressed_bytes += layer.size_bytes;
  }
  return image;
}

absl::Status EnsureUnpacked(Client& client, const ImageInfo& image,
                            const std::string& snapshotter) {
  if (image.chain_ids.empty()) return absl::OkStatus();
  absl::Status status;
  if (SnapshotExists(client, snapshotter, image.chain_id(), &status)) {
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(status);
  std::string parent;
  for (size_t i = 0; i < image.chain_ids.size(); ++i) {
    if (!SnapshotExists(client, snapshotter, image.chain_ids[i], &status)) {
      RETURN_IF_ERROR(status);
      RETURN_IF_ERROR(
          Annotate(UnpackLayer(client, snapshotter, image.manifest.layers[i],
                               parent, image.chain_ids[i]),
                   "unpacking " + image.manifest.layers[i].digest.str()));
    }
    parent = image.chain_ids[i];
  }
  // The label that keeps the snapshots as long as the image.
  content::UpdateRequest update;
  const std::string label = "containerd.io/gc.ref.snapshot." + snapshotter;
  update.mutable_info()->set_digest(image.manifest.config.digest.str());
  (*update.mutable_info()->mutable_labels())[label] = image.chain_id();
  update.mutable_update_mask()->add_paths("labels." + label);
  content::UpdateResponse updated;
  return client.Call(std::string(kContent) + "Update", update, &updated);
}

int64_t UnpackedBytes(Client& client, const ImageInfo& image,
                      const std::string& snapshotter) {
  int64_t total_bytes = 0;
  for (const std::string& chain_id : image.chain_ids) {
    snapshots::UsageRequest request;
    request.set_snapshotter(snapshotter);
    request.set_key(chain_id);
    snapshots::UsageResponse response;
    if (!client.Call(std::string(kSnapshots) + "Usage", request, &response)
             .ok()) {
      return -1;
    }
    total_bytes += response.size();
  }
  return total_bytes;
}

absl::StatusOr<std::unique_ptr<ScopedLease>> ScopedLease::Create(
    Client& client) {
  leases::CreateRequest request;
  request.set_id("bulkhead-" + NewId().substr(0, 16));
  (*request.mutable_labels())["containerd.io/gc.expire"] = absl::FormatTime(
      absl::RFC3339_sec, absl::Now() + absl::Hours(24), absl::UTCTimeZone());
  leases::CreateResponse response;
  RETURN_IF_ERROR(
      client.Call(std::string(kLeases) + "Create", request, &response));
  return std::make_unique<ScopedLease>(client, response.lease().id());
}

ScopedLease::ScopedLease(Client& client, std::string id)
    : client_(client), id_(std::move(id)) {
  client_.SetLease(id_);
}

ScopedLease::~ScopedLease() {
  client_.SetLease("");
  leases::DeleteRequest request;
  request.set_id(id_);
  google::protobuf::Empty empty;
  // It expires by itself otherwise.
  (void)client_.Call(std::string(kLeases) + "Delete", request, &empty,
                     absl::Seconds(10));
}

}  // namespace bulkhead::cli
