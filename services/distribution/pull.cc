#include "services/distribution/pull.h"

#include <algorithm>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "lib/base/status_macros.h"
#include "lib/log/log.h"

namespace bulkhead::distribution {
namespace {

using oci::Descriptor;

constexpr char kBackReferenceLabel[] = "containerd.io/gc.bref.image";
constexpr char kExpireLabel[] = "containerd.io/gc.expire";
constexpr char kSnapshotLabel[] = "containerd.io/gc.ref.snapshot.";

class Puller {
 public:
  Puller(const FetchContext& context, const ImageDestination& image,
         const PullLimits& limits)
      : context_(context), image_(image), limits_(limits) {}

  absl::Status Node(const Descriptor& node, bool wanted,
                    const std::vector<std::string>& parents, int depth) {
    if (++nodes_ > kManifestsMax || depth > kIndexDepthMax) {
      return absl::ResourceExhaustedError(
          "the image's index is too large or too deep");
    }
    if (oci::IsSchema1Type(node.media_type)) {
      return absl::UnimplementedError(
          absl::StrCat(node.digest.str(),
                       ": Docker's schema 1 format is no longer supported"));
    }
    if (node.size_bytes <= 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(node.digest.str(), ": a descriptor of size 0"));
    }
    if (oci::IsIndexType(node.media_type)) {
      return Index(node, wanted, parents, depth);
    }
    if (oci::IsManifestType(node.media_type)) {
      return Manifest(node, wanted, parents);
    }
    // An index may hold what is not an image; it is kept as it is.
    return Blob(node, parents);
  }

  bool found() const { return found_; }

 private:
  static std::vector<std::string> Below(std::vector<std::string> parents,
                                        const Descriptor& node) {
    parents.insert(parents.begin(), oci::RefKey(node));
    return parents;
  }

  // From the store if it is there, else from the registry; verified.
  absl::StatusOr<std::string> Document(
      const Descriptor& node, const std::vector<std::string>& parents) {
    context_.progress->Set(node, "waiting", 0, parents);
    absl::StatusOr<std::string> stored =
        ReadStoredDocument(*context_.store, node);
    if (stored.ok() || context_.registry == nullptr) return stored;
    if (!node.data.empty() || node.size_bytes > oci::kDocumentBytesMax) {
      return context_.registry->FetchDocument(node);
    }
    // By way of an ingest: of many pulls at once only one asks the registry.
    RETURN_IF_ERROR(Blob(node, parents));
    return ReadStoredDocument(*context_.store, node);
  }

  absl::Status Blob(const Descriptor& node,
                    const std::vector<std::string>& parents) {
    BlobFetch fetch(context_, node, parents);
    fetch.Run();
    return fetch.WaitCommitted();
  }

  // The entries to follow: for each platform wanted the best, best first.
  std::vector<Descriptor> Choose(const std::vector<Descriptor>& entries) const {
    std::vector<Descriptor> chosen;
    std::set<size_t> taken;
    for (size_t i = 0; i < entries.size(); ++i) {
      if (image_.platforms.empty() ||
          (entries[i].platform.empty() &&
           oci::IsIndexType(entries[i].media_type))) {
        taken.insert(i);
        chosen.push_back(entries[i]);
      }
    }
    for (const oci::Platform& platform : image_.platforms) {
      int best = -1;
      size_t at = 0;
      for (size_t i = 0; i < entries.size(); ++i) {
        // An entry that does not say may be right: second to any that does.
        const int distance =
            entries[i].platform.empty()
                ? 1 << 30
                : oci::PlatformDistance(platform, entries[i].platform);
        if (distance < 0 || (best >= 0 && best <= distance)) continue;
        best = distance;
        at = i;
      }
      if (best >= 0 && taken.insert(at).second) chosen.push_back(entries[at]);
    }
    if (image_.manifest_limit > 0 && chosen.size() > image_.manifest_limit) {
      chosen.resize(image_.manifest_limit);
    }
    return chosen;
  }

  absl::Status Index(const Descriptor& node, bool wanted,
                     const std::vector<std::string>& parents, int depth) {
    ASSIGN_OR_RETURN(const std::string text, Document(node, parents));
    absl::StatusOr<oci::Index> index = oci::ParseIndex(text);
    if (!index.ok()) return Annotate(index.status(), node.digest.str());
    BlobFetch fetch(context_, node, parents);
    RETURN_IF_ERROR(fetch.Store(text, oci::ChildLabels(index->manifests)));
    const std::vector<std::string> below = Below(parents, node);
    const std::vector<Descriptor> chosen =
        wanted ? Choose(index->manifests) : std::vector<Descriptor>();
    std::set<std::string> done;
    for (const Descriptor& entry : chosen) {
      if (!done.insert(entry.digest.str()).second) continue;
      // An archive need not hold every platform of an index.
      if (context_.registry == nullptr && depth > 0 &&
          absl::IsNotFound(context_.store->Open(entry.digest.str()).status())) {
        continue;
      }
      RETURN_IF_ERROR(Node(entry, true, below, depth + 1));
    }
    if (!image_.all_metadata) return absl::OkStatus();
    for (const Descriptor& entry : index->manifests) {
      if (!done.insert(entry.digest.str()).second) continue;
      RETURN_IF_ERROR(Node(entry, false, below, depth + 1));
    }
    return depth == 0 ? Referrers(node, below) : absl::OkStatus();
  }

  // Signatures, SBOMs and the like: kept with what they are about.
  absl::Status Referrers(const Descriptor& subject,
                         const std::vector<std::string>& below) {
    if (context_.registry == nullptr || !image_.all_metadata) {
      return absl::OkStatus();
    }
    auto found = context_.registry->Referrers(subject.digest, "");
    if (!found.ok()) {
      if (absl::IsCancelled(found.status())) return found.status();
      log::Warn("no list of referrers", {{"manifest", subject.digest.str()},
                                         {"error", MessageOf(found.status())}});
      return absl::OkStatus();
    }
    Labels labels;
    for (const Descriptor& entry : *found) {
      labels[kReferrerLabel + entry.digest.hex().substr(0, 12)] =
          entry.digest.str();
      RETURN_IF_ERROR(Artifact(entry, below));
    }
    if (labels.empty()) return absl::OkStatus();
    return context_.store->SetBlobLabels(subject.digest.str(), labels);
  }

  // A manifest with all its blobs, whatever they are.
  absl::Status Artifact(const Descriptor& node,
                        const std::vector<std::string>& parents) {
    if (++nodes_ > kManifestsMax) {
      return absl::ResourceExhaustedError("the image has too many referrers");
    }
    if (!oci::IsManifestType(node.media_type)) return Blob(node, parents);
    ASSIGN_OR_RETURN(const std::string text, Document(node, parents));
    absl::StatusOr<oci::Manifest> manifest = oci::ParseManifest(text);
    if (!manifest.ok()) return Annotate(manifest.status(), node.digest.str());
    std::vector<Descriptor> children = {manifest->config};
    children.insert(children.end(), manifest->layers.begin(),
                    manifest->layers.end());
    const std::vector<std::string> below = Below(parents, node);
    for (const Descriptor& child : children) {
      RETURN_IF_ERROR(Blob(child, below));
    }
    BlobFetch fetch(context_, node, parents);
    return fetch.Store(text, oci::ChildLabels(children));
  }

  absl::Status Manifest(const Descriptor& node, bool wanted,
                        const std::vector<std::string>& parents) {
    ASSIGN_OR_RETURN(const std::string text, Document(node, parents));
    absl::StatusOr<oci::Manifest> manifest = oci::ParseManifest(text);
    if (!manifest.ok()) return Annotate(manifest.status(), node.digest.str());
    std::vector<Descriptor> children = {manifest->config};
    children.insert(children.end(), manifest->layers.begin(),
                    manifest->layers.end());
    for (const Descriptor& child : children) {
      if (child.size_bytes <= 0) {
        return absl::InvalidArgumentError(
            absl::StrCat(child.digest.str(), ": a descriptor of size 0"));
      }
    }
    const std::vector<std::string> below = Below(parents, node);
    const bool is_image = oci::IsConfigType(manifest->config.media_type);
    oci::ImageConfig config;
    if (is_image) {
      ASSIGN_OR_RETURN(const std::string config_text,
                       Document(manifest->config, below));
      absl::StatusOr<oci::ImageConfig> parsed =
          oci::ParseImageConfig(config_text);
      if (!parsed.ok()) {
        return Annotate(parsed.status(), manifest->config.digest.str());
      }
      config = *std::move(parsed);
      // A single manifest says nothing of its platform; its config does.
      if (node.platform.empty() && wanted && !Wanted(config.platform)) {
        return absl::NotFoundError(
            absl::StrCat("no match for platform ", WantedText(),
                         " in manifest ", node.digest.str(), ", which is for ",
                         oci::FormatPlatform(config.platform)));
      }
      BlobFetch fetch(context_, manifest->config, below);
      RETURN_IF_ERROR(fetch.Store(config_text, {}));
    } else {
      RETURN_IF_ERROR(Blob(manifest->config, below));
    }
    BlobFetch fetch(context_, node, parents);
    RETURN_IF_ERROR(fetch.Store(text, oci::ChildLabels(children)));
    if (!wanted) return absl::OkStatus();
    found_ = true;
    RETURN_IF_ERROR(Referrers(node, below));
    const std::vector<UnpackPlan> plans =
        is_image
            ? Plans(*manifest, config,
                    node.platform.empty() ? config.platform : node.platform)
            : std::vector<UnpackPlan>();
    RETURN_IF_ERROR(FetchLayers(context_, manifest->layers, below,
                                limits_.downloads_max,
                                plans.empty() ? nullptr : &plans[0]));
    for (size_t i = 1; i < plans.size(); ++i) {
      RETURN_IF_ERROR(FetchLayers(context_, manifest->layers, below,
                                  limits_.downloads_max, &plans[i]));
    }
    const std::vector<Digest> chain = oci::ChainIds(config.diff_ids);
    Labels labels;
    for (const UnpackPlan& plan : plans) {
      if (!chain.empty()) {
        labels[kSnapshotLabel + plan.snapshotter] = chain.back().str();
      }
    }
    if (labels.empty()) return absl::OkStatus();
    return context_.store->SetBlobLabels(manifest->config.digest.str(), labels);
  }

  bool Wanted(const oci::Platform& offered) const {
    if (image_.platforms.empty() || offered.empty()) return true;
    return std::any_of(image_.platforms.begin(), image_.platforms.end(),
                       [&](const oci::Platform& wanted) {
                         return oci::PlatformMatches(wanted, offered);
                       });
  }

  std::string WantedText() const {
    return absl::StrJoin(image_.platforms, ", ",
                         [](std::string* out, const oci::Platform& platform) {
                           out->append(oci::FormatPlatform(platform));
                         });
  }

  std::vector<UnpackPlan> Plans(const oci::Manifest& manifest,
                                const oci::ImageConfig& config,
                                const oci::Platform& platform) const {
    std::vector<UnpackPlan> plans;
    if (!platform.os.empty() && platform.os != oci::HostPlatform().os) {
      if (!image_.unpacks.empty()) {
        log::Warn("not unpacked: the image is for another system",
                  {{"platform", oci::FormatPlatform(platform)}});
      }
      return plans;
    }
    for (const Descriptor& layer : manifest.layers) {
      if (!oci::IsLayerType(layer.media_type)) {
        log::Info("not unpacked: a layer is no file system",
                  {{"media_type", layer.media_type.substr(0, 128)}});
        return plans;
      }
    }
    for (const UnpackRequest& unpack : image_.unpacks) {
      if (!unpack.platform.empty() &&
          !oci::PlatformMatches(unpack.platform, platform)) {
        continue;
      }
      UnpackPlan plan;
      plan.snapshotter = unpack.snapshotter;
      plan.diff_ids = config.diff_ids;
      plan.rebase = unpack.rebase;
      plan.remote = unpack.remote;
      plan.unpacks_max = limits_.unpacks_max;
      plans.push_back(std::move(plan));
    }
    return plans;
  }

  const FetchContext& context_;
  const ImageDestination& image_;
  const PullLimits& limits_;
  size_t nodes_ = 0;
  bool found_ = false;
};

}  // namespace

absl::Status FollowImage(const FetchContext& context, const Descriptor& target,
                         const ImageDestination& image,
                         const PullLimits& limits) {
  Puller puller(context, image, limits);
  RETURN_IF_ERROR(puller.Node(target, true, {}, 0));
  if (puller.found()) return absl::OkStatus();
  return absl::NotFoundError(absl::StrCat(
      "no match for platform ",
      absl::StrJoin(image.platforms, ", ",
                    [](std::string* out, const oci::Platform& platform) {
                      out->append(oci::FormatPlatform(platform));
                    }),
      " in ", target.digest.str()));
}

// The main name first, then those of extra references.
std::vector<std::string> RecordNames(const ImageDestination& image,
                                     const std::string& name,
                                     const Descriptor& target) {
  std::vector<std::string> names = {name};
  for (const ExtraReference& extra : image.extra_references) {
    if (extra.is_prefix) continue;
    std::string other = extra.name;
    if (extra.add_digest) absl::StrAppend(&other, "@", target.digest.str());
    if (other != name) names.push_back(std::move(other));
  }
  return names;
}

absl::Status SaveImage(const FetchContext& context,
                       const ImageDestination& image, const std::string& name,
                       const Descriptor& target) {
  RETURN_IF_ERROR(context.store->PutImage({name, image.labels, target}));
  // Further names live as long as the main one.
  Labels labels = image.labels;
  labels[kBackReferenceLabel] = name;
  labels[kExpireLabel] =
      absl::FormatTime(absl::RFC3339_sec, absl::Now(), absl::UTCTimeZone());
  for (const std::string& other : RecordNames(image, name, target)) {
    if (other == name) continue;
    RETURN_IF_ERROR(context.store->PutImage({other, labels, target}));
  }
  return absl::OkStatus();
}

absl::Status Pull(const FetchContext& context, const oci::Reference& reference,
                  const ImageDestination& image, const PullLimits& limits) {
  const std::string source =
      absl::StrCat("OCI Registry (", reference.str(), ")");
  context.progress->Event(absl::StrCat("Resolving from ", source));
  ASSIGN_OR_RETURN(Descriptor target, context.registry->Resolve());
  context.progress->Event(absl::StrCat("Pulling from ", source));
  const std::string name = image.name.empty() ? reference.str() : image.name;
  if (context.approve) {
    std::vector<std::string> names = RecordNames(image, name, target);
    names.insert(names.begin(), reference.str());
    RETURN_IF_ERROR(context.approve(names, target));
  }
  context.progress->Event("fetching image content", name, &target);
  RETURN_IF_ERROR(
      Annotate(FollowImage(context, target, image, limits), reference.str()));
  RETURN_IF_ERROR(SaveImage(context, image, name, target));
  context.progress->Event("saved", name, &target);
  context.progress->Event(absl::StrCat("Completed pull from ", source));
  return absl::OkStatus();
}

}  // namespace bulkhead::distribution
