#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/oci/reference.h"
#include "services/distribution/import.h"
#include "services/distribution/origin.h"

namespace bulkhead::distribution {
namespace {

using nlohmann::ordered_json;
using oci::Descriptor;

constexpr char kNameAnnotation[] = "io.containerd.image.name";
constexpr char kRefAnnotation[] = "org.opencontainers.image.ref.name";

std::string BlobPath(const Digest& digest) {
  return absl::StrCat("blobs/", AlgorithmName(digest.algorithm()), "/",
                      digest.hex());
}

// What comes behind the repository: "tag", "tag@digest" or the whole name.
std::string ObjectOf(const std::string& name) {
  absl::StatusOr<oci::Reference> reference = oci::ParseFull(name);
  if (!reference.ok()) return name;
  if (reference->digest.empty()) return reference->tag;
  return reference->tag + "@" + reference->digest.str();
}

class Exporter {
 public:
  Exporter(const FetchContext& context, const ExportRequest& request)
      : context_(context), request_(request), platforms_(request.platforms) {
    if (platforms_.empty()) platforms_ = {oci::HostPlatform()};
  }

  absl::Status Add(const ImageRecord& image) {
    best_ = -1;
    best_manifest_ = Descriptor();
    name_ = image.name;
    RETURN_IF_ERROR(
        Annotate(Node(image.target, 0), absl::StrCat("image ", image.name)));
    if (best_manifest_.digest.empty() && !request_.all_platforms) {
      return absl::NotFoundError(absl::StrCat(
          "image ", image.name, ": no manifest found for platform ",
          oci::FormatPlatform(platforms_[0])));
    }
    Descriptor entry = image.target;
    entry.annotations[kNameAnnotation] = image.name;
    const std::string object = ObjectOf(image.name);
    if (!object.empty()) entry.annotations[kRefAnnotation] = object;
    index_.manifests.push_back(std::move(entry));
    if (!best_manifest_.digest.empty()) {
      docker_[best_manifest_.digest.str()].push_back(image.name);
    }
    return absl::OkStatus();
  }

  absl::Status Write(const ByteSink& sink) {
    ArchiveWriter tar(sink);
    index_.media_type = oci::kOciIndex;
    std::map<std::string, std::string> texts;
    texts["index.json"] = oci::WriteIndex(index_);
    texts["oci-layout"] = R"({"imageLayoutVersion":"1.0.0"})";
    if (!request_.skip_docker_manifest && !docker_.empty()) {
      ASSIGN_OR_RETURN(texts["manifest.json"], DockerManifest());
    }
    // All names in order: blobs/... come before index.json.
    RETURN_IF_ERROR(tar.Directory("blobs"));
    std::string folder;
    for (const auto& [path, desc] : blobs_) {
      const std::string parent = path.substr(0, path.rfind('/'));
      if (parent != folder) RETURN_IF_ERROR(tar.Directory(parent));
      folder = parent;
      if (context_.stop->Stopped()) {
        return absl::CancelledError("the transfer was cancelled");
      }
      ASSIGN_OR_RETURN(const dataplane::OpenedBlob blob,
                       context_.store->Open(desc.digest.str()));
      context_.progress->Set(desc, "exporting", 0);
      RETURN_IF_ERROR(tar.FileOf(path, blob.fd.get(), blob.size_bytes));
      context_.progress->Set(desc, "complete", blob.size_bytes);
    }
    for (const auto& [name, text] : texts) {
      RETURN_IF_ERROR(tar.File(name, text));
    }
    return tar.Finish();
  }

 private:
  // -1: not wanted; else the smaller the better.
  int Suits(const oci::Platform& offered) const {
    int best = -1;
    for (size_t i = 0; i < platforms_.size(); ++i) {
      const int distance = oci::PlatformDistance(platforms_[i], offered);
      if (distance < 0) continue;
      const int rank = static_cast<int>(i) * 1000 + distance;
      if (best < 0 || rank < best) best = rank;
    }
    return best;
  }

  absl::Status Node(const Descriptor& node, int depth) {
    if (++nodes_ > kManifestsMax || depth > kIndexDepthMax) {
      return absl::ResourceExhaustedError(
          "the image's index is too large or too deep");
    }
    const bool is_index = oci::IsIndexType(node.media_type);
    const bool is_manifest = oci::IsManifestType(node.media_type);
    if (!is_index && !is_manifest) return Blob(node);
    ASSIGN_OR_RETURN(const std::string text,
                     ReadStoredDocument(*context_.store, node));
    blobs_[BlobPath(node.digest)] = node;
    if (is_index) {
      ASSIGN_OR_RETURN(const oci::Index index, oci::ParseIndex(text));
      absl::Status missing;
      bool some = false;
      for (const Descriptor& child : index.manifests) {
        if (!request_.all_platforms && !child.platform.empty() &&
            Suits(child.platform) < 0) {
          continue;
        }
        const absl::Status there =
            context_.store->Open(child.digest.str()).status();
        if (!request_.all_platforms && absl::IsNotFound(there)) {
          // Maybe only another version of the same platform.
          missing = Annotate(there, "manifest");
          continue;
        }
        RETURN_IF_ERROR(Node(child, depth + 1));
        some = true;
      }
      return some ? absl::OkStatus() : missing;
    }
    ASSIGN_OR_RETURN(const oci::Manifest manifest, oci::ParseManifest(text));
    RETURN_IF_ERROR(Blob(manifest.config));
    ASSIGN_OR_RETURN(const Labels labels,
                     context_.store->BlobLabels(node.digest.str()));
    for (const Descriptor& layer : manifest.layers) {
      const bool foreign =
          absl::StrContains(layer.media_type, "foreign") ||
          absl::StrContains(layer.media_type, "nondistributable");
      if (foreign && request_.skip_non_distributable) continue;
      absl::Status status = Blob(layer);
      if (absl::IsNotFound(status) && !foreign &&
          oci::IsLayerType(layer.media_type)) {
        RETURN_IF_ERROR(BringLayer(context_, name_, labels, layer));
        status = Blob(layer);
      }
      if (foreign && absl::IsNotFound(status)) continue;
      RETURN_IF_ERROR(status);
    }
    if (!oci::IsConfigType(manifest.config.media_type)) {
      if (best_manifest_.digest.empty()) best_manifest_ = node;
      return absl::OkStatus();
    }
    oci::Platform platform = node.platform;
    if (platform.empty()) {
      ASSIGN_OR_RETURN(const std::string config_text,
                       ReadStoredDocument(*context_.store, manifest.config));
      ASSIGN_OR_RETURN(const oci::ImageConfig config,
                       oci::ParseImageConfig(config_text));
      platform = config.platform;
    }
    int rank = Suits(platform);
    // The image itself is one manifest: whatever it is for.
    if (rank < 0 && (depth == 0 || request_.all_platforms)) rank = 1 << 30;
    if (rank >= 0 && (best_ < 0 || rank < best_)) {
      best_ = rank;
      best_manifest_ = node;
    }
    return absl::OkStatus();
  }

  absl::Status Blob(const Descriptor& desc) {
    const std::string path = BlobPath(desc.digest);
    if (blobs_.count(path) > 0) return absl::OkStatus();
    const absl::Status there = context_.store->Open(desc.digest.str()).status();
    RETURN_IF_ERROR(there);
    blobs_[path] = desc;
    return absl::OkStatus();
  }

  absl::StatusOr<std::string> DockerManifest() {
    ordered_json list = ordered_json::array();
    for (const auto& [digest, names] : docker_) {
      Descriptor node;
      ASSIGN_OR_RETURN(node.digest, Digest::Parse(digest));
      ASSIGN_OR_RETURN(const std::string text,
                       ReadStoredDocument(*context_.store, node));
      ASSIGN_OR_RETURN(const oci::Manifest manifest, oci::ParseManifest(text));
      if (!oci::IsConfigType(manifest.config.media_type)) continue;
      ordered_json item;
      item["Config"] = BlobPath(manifest.config.digest);
      ordered_json tags = ordered_json::array();
      for (const std::string& name : names) {
        absl::StatusOr<oci::Reference> reference = oci::ParseFull(name);
        if (reference.ok() && !reference->tag.empty()) {
          reference->digest = Digest();
          tags.push_back(oci::Familiar(*reference));
        }
      }
      item["RepoTags"] = tags;
      ordered_json layers = ordered_json::array();
      for (const Descriptor& layer : manifest.layers) {
        layers.push_back(BlobPath(layer.digest));
      }
      item["Layers"] = layers;
      list.push_back(std::move(item));
    }
    return list.dump();
  }

  const FetchContext& context_;
  const ExportRequest& request_;
  std::vector<oci::Platform> platforms_;
  size_t nodes_ = 0;
  std::string name_;  // Of the image being added.
  int best_ = -1;
  Descriptor best_manifest_;
  oci::Index index_;
  std::map<std::string, Descriptor> blobs_;                 // By path.
  std::map<std::string, std::vector<std::string>> docker_;  // Digest -> names.
};

}  // namespace

absl::Status Export(const FetchContext& context, const ExportRequest& request,
                    const ByteSink& archive) {
  context.progress->Event("Exporting");
  if (request.names.empty() && request.prefixes.empty()) {
    return absl::InvalidArgumentError("an export needs the name of an image");
  }
  std::vector<ImageRecord> images;
  for (const std::string& name : request.names) {
    ASSIGN_OR_RETURN(ImageRecord image, context.store->GetImage(name));
    images.push_back(std::move(image));
  }
  for (const std::string& prefix : request.prefixes) {
    ASSIGN_OR_RETURN(std::vector<ImageRecord> found,
                     context.store->ListImages(prefix));
    if (found.empty()) {
      return absl::NotFoundError(
          absl::StrCat("no image whose name starts with ", prefix));
    }
    for (ImageRecord& image : found) images.push_back(std::move(image));
  }
  Exporter exporter(context, request);
  std::set<std::string> seen;
  for (const ImageRecord& image : images) {
    if (seen.insert(image.name).second) RETURN_IF_ERROR(exporter.Add(image));
  }
  RETURN_IF_ERROR(exporter.Write(archive));
  context.progress->Event("Completed export");
  return absl::OkStatus();
}

}  // namespace bulkhead::distribution
