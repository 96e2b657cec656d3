#include "services/distribution/push.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <set>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "lib/base/status_macros.h"
#include "services/distribution/origin.h"
#include "services/distribution/pull.h"

namespace bulkhead::distribution {
namespace {

using oci::Descriptor;

bool IsForeign(const Descriptor& layer) {
  return absl::StrContains(layer.media_type, "foreign") ||
         absl::StrContains(layer.media_type, "nondistributable");
}

struct Document {
  Descriptor desc;
  std::string text;
};

// All that belongs to an image, in the order to push.
class Plan {
 public:
  Plan(const FetchContext& context, const PushRequest& request,
       const std::string& repository)
      : context_(context), request_(request), repository_(repository) {}

  absl::Status Node(const Descriptor& node, std::set<std::string> sources,
                    int depth) {
    if (documents_.size() > kManifestsMax || depth > kIndexDepthMax) {
      return absl::ResourceExhaustedError(
          "the image's index is too large or too deep");
    }
    const bool is_index = oci::IsIndexType(node.media_type);
    if (!is_index && !oci::IsManifestType(node.media_type)) {
      return Blob(node, sources, {});
    }
    if (!seen_.insert(node.digest.str()).second) return absl::OkStatus();
    absl::StatusOr<std::string> text =
        ReadStoredDocument(*context_.store, node);
    if (!text.ok()) return text.status();
    ASSIGN_OR_RETURN(const Labels labels,
                     context_.store->BlobLabels(node.digest.str()));
    AddSources(labels, &sources);
    for (const auto& [key, value] : labels) {
      if (absl::StartsWith(key, kReferrerLabel)) referrers_.insert(value);
    }
    if (is_index) {
      ASSIGN_OR_RETURN(const oci::Index index, oci::ParseIndex(*text));
      const bool some = !request_.platforms.empty() && AnyHere(index);
      for (const Descriptor& child : index.manifests) {
        if (!Wanted(child)) {
          complete_ = false;
          continue;
        }
        const absl::Status there =
            context_.store->Open(child.digest.str()).status();
        if (absl::IsNotFound(there) && some) {
          complete_ = false;  // Another version of the same platform.
          continue;
        }
        if (absl::IsNotFound(there)) {
          return absl::NotFoundError(absl::StrCat(
              "manifest ", child.digest.str(), " for ",
              oci::FormatPlatform(child.platform),
              " is not here: pull all platforms, or push one of those that "
              "are here with --platform"));
        }
        RETURN_IF_ERROR(there);
        RETURN_IF_ERROR(Node(child, sources, depth + 1));
        chosen_.push_back(child);
      }
    } else {
      ASSIGN_OR_RETURN(const oci::Manifest manifest, oci::ParseManifest(*text));
      RETURN_IF_ERROR(Blob(manifest.config, sources, labels));
      for (const Descriptor& layer : manifest.layers) {
        // Layers that must not be distributed stay where their URLs say.
        if (IsForeign(layer) && !layer.urls.empty()) continue;
        const absl::Status status = Blob(layer, sources, labels);
        if (absl::IsNotFound(status) && !layer.urls.empty()) continue;
        RETURN_IF_ERROR(status);
      }
    }
    documents_.push_back({node, *std::move(text)});
    return absl::OkStatus();
  }

  // What refers to the manifests of the plan so far, as they are labelled.
  absl::Status Referrers() {
    const std::vector<std::string> referrers(referrers_.begin(),
                                             referrers_.end());
    for (const std::string& digest : referrers) {
      Descriptor node;
      ASSIGN_OR_RETURN(node.digest, Digest::Parse(digest));
      absl::StatusOr<std::string> text =
          ReadStoredDocument(*context_.store, node);
      if (absl::IsNotFound(text.status())) continue;
      RETURN_IF_ERROR(text.status());
      node.media_type = oci::GuessMediaType(*text);
      node.size_bytes = static_cast<int64_t>(text->size());
      RETURN_IF_ERROR(Node(node, {}, 1));
    }
    return absl::OkStatus();
  }

  struct BlobPlan {
    Descriptor desc;
    bool here = true;  // False: a layer to bring, if the registry lacks it.
    Labels manifest_labels;  // If not here: say where it came from.
    std::vector<std::string> mount_from;  // Best first.
  };
  std::vector<BlobPlan>& blobs() { return blobs_; }
  std::vector<Document>& documents() { return documents_; }
  // Every manifest of every index is among them.
  bool complete() const { return complete_; }
  const std::vector<Descriptor>& chosen() const { return chosen_; }

 private:
  bool AnyHere(const oci::Index& index) const {
    return std::any_of(index.manifests.begin(), index.manifests.end(),
                       [&](const Descriptor& child) {
                         return Wanted(child) &&
                                context_.store->Open(child.digest.str()).ok();
                       });
  }

  bool Wanted(const Descriptor& child) const {
    if (request_.platforms.empty() || child.platform.empty()) return true;
    return std::any_of(request_.platforms.begin(), request_.platforms.end(),
                       [&](const oci::Platform& wanted) {
                         return oci::PlatformMatches(wanted, child.platform);
                       });
  }

  void AddSources(const Labels& labels, std::set<std::string>* sources) const {
    const auto found = labels.find(request_.source_label);
    if (found == labels.end()) return;
    const std::vector<std::string> names =
        absl::StrSplit(found->second, ',', absl::SkipEmpty());
    for (const std::string& name : names) {
      if (name != repository_) sources->insert(name);
    }
  }

  // How many components two repositories share from the front.
  static size_t Shared(const std::string& a, const std::string& b) {
    const std::vector<std::string> left = absl::StrSplit(a, '/');
    const std::vector<std::string> right = absl::StrSplit(b, '/');
    size_t n = 0;
    while (n < left.size() && n < right.size() && left[n] == right[n]) ++n;
    return n;
  }

  absl::Status Blob(const Descriptor& desc, std::set<std::string> sources,
                    const Labels& manifest_labels) {
    const absl::StatusOr<Labels> labels =
        context_.store->BlobLabels(desc.digest.str());
    const bool here = labels.ok();
    if (!here && (!absl::IsNotFound(labels.status()) ||
                  !oci::IsLayerType(desc.media_type) || !desc.urls.empty())) {
      return labels.status();
    }
    if (!seen_.insert(desc.digest.str()).second) return absl::OkStatus();
    if (here) AddSources(*labels, &sources);
    BlobPlan plan{desc,
                  here,
                  here ? Labels() : manifest_labels,
                  {sources.begin(), sources.end()}};
    std::stable_sort(plan.mount_from.begin(), plan.mount_from.end(),
                     [&](const std::string& a, const std::string& b) {
                       return Shared(a, repository_) > Shared(b, repository_);
                     });
    if (plan.mount_from.size() > 1) plan.mount_from.resize(1);
    blobs_.push_back(std::move(plan));
    return absl::OkStatus();
  }

  const FetchContext& context_;
  const PushRequest& request_;
  const std::string repository_;
  std::set<std::string> seen_;
  bool complete_ = true;
  std::vector<BlobPlan> blobs_;
  std::vector<Document> documents_;  // Children before parents.
  std::vector<Descriptor> chosen_;   // Of indexes.
  std::set<std::string> referrers_;  // Digests.
};

absl::Status PushBlob(const FetchContext& context, Registry& registry,
                      const std::string& image_name,
                      const Plan::BlobPlan& plan) {
  const Descriptor& desc = plan.desc;
  ASSIGN_OR_RETURN(const bool there, registry.Has(desc, ""));
  if (there) {
    context.progress->Set(desc, "already exists", desc.size_bytes);
    return absl::OkStatus();
  }
  if (!plan.here) {
    RETURN_IF_ERROR(
        BringLayer(context, image_name, plan.manifest_labels, desc));
  }
  ASSIGN_OR_RETURN(const dataplane::OpenedBlob blob,
                   context.store->Open(desc.digest.str()));
  if (blob.size_bytes != desc.size_bytes) {
    return absl::DataLossError(
        absl::StrCat(desc.digest.str(), " has ", blob.size_bytes,
                     " bytes, but the manifest says ", desc.size_bytes));
  }
  context.progress->Set(desc, "uploading", 0);
  ASSIGN_OR_RETURN(const bool mounted,
                   registry.PushBlob(desc, blob.fd.get(), plan.mount_from,
                                     [&](int64_t sent) {
                                       context.progress->Bytes(desc, sent);
                                     }));
  context.progress->Set(desc, mounted ? "mounted" : "complete",
                        desc.size_bytes);
  return absl::OkStatus();
}

// An artifact about another manifest goes on that one's list, where the
// registry does not keep it by itself.
absl::Status LinkToSubject(Registry& registry, const Document& document) {
  Descriptor entry = document.desc;
  Digest subject;
  if (oci::IsManifestType(entry.media_type)) {
    ASSIGN_OR_RETURN(const oci::Manifest manifest,
                     oci::ParseManifest(document.text));
    subject = manifest.subject;
    entry.artifact_type = manifest.artifact_type.empty()
                              ? manifest.config.media_type
                              : manifest.artifact_type;
    entry.annotations = manifest.annotations;
  } else {
    ASSIGN_OR_RETURN(const oci::Index index, oci::ParseIndex(document.text));
    subject = index.subject;
    entry.artifact_type = index.artifact_type;
    entry.annotations = index.annotations;
  }
  if (subject.empty()) return absl::OkStatus();
  entry.urls.clear();
  entry.platform = oci::Platform();
  entry.data.clear();
  return registry.LinkReferrer(entry, subject);
}

absl::Status PushBlobs(const FetchContext& context, Registry& registry,
                       const std::string& image_name,
                       const std::vector<Plan::BlobPlan>& blobs,
                       int uploads_max) {
  std::mutex mutex;
  absl::Status failed;
  std::atomic<size_t> next{0};
  std::vector<std::thread> threads;
  const size_t count = std::min<size_t>(std::max(1, uploads_max), blobs.size());
  for (size_t t = 0; t < count; ++t) {
    threads.emplace_back([&] {
      for (size_t i; (i = next++) < blobs.size();) {
        if (context.stop->Stopped()) return;
        const absl::Status status =
            PushBlob(context, registry, image_name, blobs[i]);
        if (status.ok()) continue;
        std::lock_guard<std::mutex> lock(mutex);
        if (failed.ok()) failed = status;
        context.stop->failed = true;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  if (failed.ok() && context.stop->Stopped()) {
    return absl::CancelledError("the transfer was cancelled");
  }
  return failed;
}

}  // namespace

absl::Status Push(const FetchContext& context, RegistryOptions options,
                  const PushRequest& request) {
  const oci::Reference reference = options.reference;
  const std::string where =
      absl::StrCat("OCI Registry (", reference.str(), ")");
  ASSIGN_OR_RETURN(const ImageRecord image,
                   context.store->GetImage(request.image_name));
  Descriptor root = image.target;
  auto plan = std::make_unique<Plan>(context, request, reference.repository);
  RETURN_IF_ERROR(Annotate(plan->Node(root, {}, 0), image.name));
  if (oci::IsIndexType(root.media_type) && plan->chosen().empty()) {
    return absl::NotFoundError(
        absl::StrCat(image.name, ": no manifest for the platform asked for"));
  }
  if (!plan->complete() && plan->chosen().size() == 1) {
    root = plan->chosen()[0];
    plan = std::make_unique<Plan>(context, request, reference.repository);
    RETURN_IF_ERROR(Annotate(plan->Node(root, {}, 0), image.name));
  }
  RETURN_IF_ERROR(Annotate(plan->Referrers(), image.name));
  std::set<std::string> mount_from;
  for (const auto& blob : plan->blobs()) {
    if (mount_from.size() < kMountSourcesMax) {
      mount_from.insert(blob.mount_from.begin(), blob.mount_from.end());
    }
  }
  options.push = true;
  options.mount_from = {mount_from.begin(), mount_from.end()};
  Registry registry(std::move(options));
  context.progress->Event(absl::StrCat("Pushing to ", where));
  context.progress->Event("pushing content", image.name, &root);
  for (const auto& blob : plan->blobs()) {
    context.progress->Set(blob.desc, "waiting", 0);
  }
  RETURN_IF_ERROR(PushBlobs(context, registry, image.name, plan->blobs(),
                            request.uploads_max));
  for (const Document& document : plan->documents()) {
    if (context.stop->Stopped()) {
      return absl::CancelledError("the transfer was cancelled");
    }
    const bool is_root = document.desc.digest == root.digest;
    // A tag beside a digest names only the manifest with that digest.
    const std::string tag =
        is_root && (reference.digest.empty() ||
                    reference.digest == document.desc.digest)
            ? reference.tag
            : "";
    ASSIGN_OR_RETURN(const bool there, registry.Has(document.desc, tag));
    const auto size = static_cast<int64_t>(document.text.size());
    if (!there) {
      context.progress->Set(document.desc, "uploading", 0);
      ASSIGN_OR_RETURN(
          const bool listed,
          registry.PushDocument(document.desc, document.text, tag));
      if (!listed) RETURN_IF_ERROR(LinkToSubject(registry, document));
    }
    context.progress->Set(document.desc, there ? "already exists" : "complete",
                          size);
  }
  context.progress->Event("pushed content", image.name, &root);
  context.progress->Event(absl::StrCat("Completed push to ", where));
  return absl::OkStatus();
}

}  // namespace bulkhead::distribution
