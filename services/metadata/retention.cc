#include "services/metadata/retention.h"

#include <algorithm>
#include <map>

#include "absl/strings/match.h"
#include "lib/log/log.h"
#include "lib/stats/stats.h"
#include "proto/containerd/events/image.pb.h"
#include "proto/containerd/services/containers/v1/containers.pb.h"
#include "proto/containerd/services/content/v1/content.pb.h"
#include "proto/containerd/services/images/v1/images.pb.h"
#include "proto/containerd/types/sandbox.pb.h"
#include "services/metadata/index.h"
#include "services/metadata/records.pb.h"
#include "services/metadata/util.h"

namespace bulkhead::metadata {
namespace {

using containerd::services::containers::v1::Container;
using containerd::services::images::v1::Image;
using containerd::types::Sandbox;
using BlobInfo = containerd::services::content::v1::Info;

constexpr absl::Duration kIntervalMax = absl::Minutes(5);
constexpr absl::Duration kIntervalMin = absl::Seconds(1);
constexpr absl::Duration kFreeInterval = absl::Minutes(1);
constexpr absl::Duration kSettleStep = absl::Milliseconds(250);
// How often the time of an image in use is written.
constexpr absl::Duration kNoteInterval = absl::Seconds(30);
constexpr size_t kBlobsOfImageMax = 10000;

constexpr char kRefContent[] = "containerd.io/gc.ref.content";
constexpr char kRefSnapshot[] = "containerd.io/gc.ref.snapshot.";
constexpr char kRefImage[] = "containerd.io/gc.ref.image";

bool IsPinned(const LabelMap& labels) {
  return labels.contains(kLabelPinned) || labels.contains(kLabelCriPinned);
}

// What containers, sandboxes and leases of one namespace use.
class Users {
 public:
  Users(const Store& store, std::string ns)
      : store_(store), ns_(std::move(ns)) {}

  absl::Status Gather() {
    absl::Status error;
    RETURN_IF_ERROR(store_.Scan<Container>(
        Prefix(kind::kContainer, {ns_}),
        [&](const std::vector<std::string>&, Container& container) {
          if (!container.image().empty()) names_.insert(container.image());
          AddLabels(container.labels());
          error =
              AddSnapshots(container.snapshotter(), container.snapshot_key());
          return error.ok();
        }));
    RETURN_IF_ERROR(error);
    RETURN_IF_ERROR(store_.Scan<Sandbox>(
        Prefix(kind::kSandbox, {ns_}),
        [&](const std::vector<std::string>&, Sandbox& sandbox) {
          AddLabels(sandbox.labels());
          return true;
        }));
    RETURN_IF_ERROR(
        store_.db().Scan(Prefix(kind::kLeaseResource, {ns_}),
                         [&](std::string_view key, std::string_view) {
                           const std::vector<std::string> parts = Split(key);
                           if (parts[2] == "images") names_.insert(parts[3]);
                           return true;
                         }));
    for (const std::string& name : names_) {
      ASSIGN_OR_RETURN(std::optional<Image> image,
                       store_.Get<Image>(Key(kind::kImage, {ns_, name})));
      if (image.has_value()) targets_.insert(image->target().digest());
    }
    return absl::OkStatus();
  }

  absl::StatusOr<bool> Use(const Image& image) const {
    if (names_.contains(image.name()) ||
        targets_.contains(image.target().digest())) {
      return true;
    }
    if (snapshots_.empty()) return false;
    // From its target down, as labels lead.
    std::set<std::string> seen;
    std::vector<std::string> queue = {image.target().digest()};
    while (!queue.empty() && seen.size() < kBlobsOfImageMax) {
      const std::string digest = std::move(queue.back());
      queue.pop_back();
      if (!seen.insert(digest).second) continue;
      const absl::StatusOr<std::optional<BlobInfo>> info =
          store_.Get<BlobInfo>(Key(kind::kBlob, {ns_, digest}));
      if (absl::IsDataLoss(info.status())) return true;  // Nobody knows.
      RETURN_IF_ERROR(info.status());
      if (!info->has_value()) continue;
      for (const auto& [label, value] : (*info)->labels()) {
        if (absl::StartsWith(label, kRefContent)) queue.push_back(value);
        if (!absl::StartsWith(label, kRefSnapshot)) continue;
        std::string snapshotter = label.substr(sizeof(kRefSnapshot) - 1);
        snapshotter = snapshotter.substr(0, snapshotter.find('/'));
        if (snapshots_.contains(
                Key(kind::kSnapshot, {ns_, snapshotter, value}))) {
          return true;
        }
      }
    }
    return false;
  }

 private:
  void AddLabels(const LabelMap& labels) {
    for (const auto& [label, value] : labels) {
      if (absl::StartsWith(label, kRefImage)) names_.insert(value);
    }
  }
  // The snapshot and all it stands on.
  absl::Status AddSnapshots(const std::string& snapshotter, std::string key) {
    while (!key.empty()) {
      const std::string record = Key(kind::kSnapshot, {ns_, snapshotter, key});
      if (!snapshots_.insert(record).second) return absl::OkStatus();
      ASSIGN_OR_RETURN(std::optional<SnapshotRecord> snapshot,
                       store_.Get<SnapshotRecord>(record));
      key = snapshot.has_value() ? snapshot->parent() : "";
    }
    return absl::OkStatus();
  }

  const Store& store_;
  const std::string ns_;
  std::set<std::string> names_;
  std::set<std::string> targets_;
  std::set<std::string> snapshots_;
};

}  // namespace

Retention::~Retention() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  if (thread_.joinable()) thread_.join();
}

void Retention::Start() {
  if (options_.enabled()) thread_ = std::thread([this] { Run(); });
}

bool Retention::Stopping() {
  absl::MutexLock lock(&mutex_);
  return stopping_;
}

void Retention::Run() {
  absl::Duration interval = kIntervalMax;
  if (options_.unused_max > absl::ZeroDuration()) {
    interval = std::clamp(options_.unused_max / 10, kIntervalMin, kIntervalMax);
  }
  if (options_.free_min_percent > 0) {
    interval = std::min(interval, kFreeInterval);
  }
  const auto stop = [this] { return stopping_; };
  absl::MutexLock lock(&mutex_);
  while (!stopping_) {
    mutex_.Unlock();
    const absl::Status status = Pass(absl::Now()).status();
    if (!status.ok()) {
      log::Error("retention failed", {{"error", MessageOf(status)}});
    }
    mutex_.Lock();
    mutex_.AwaitWithTimeout(absl::Condition(&stop), interval);
  }
}

absl::StatusOr<std::vector<RemovedImage>> Retention::Pass(absl::Time now) {
  std::vector<RemovedImage> removed;
  ASSIGN_OR_RETURN(const std::vector<Candidate> candidates, Survey(now));
  size_t next = 0;
  if (options_.unused_max > absl::ZeroDuration()) {
    for (; next < candidates.size() && !Stopping(); ++next) {
      const absl::Duration age = now - candidates[next].last_used;
      if (age <= options_.unused_max) break;  // Sorted: so are the rest.
      ASSIGN_OR_RETURN(
          const bool gone,
          Remove(candidates[next],
                 absl::StrCat("unused for ", absl::FormatDuration(age))));
      if (gone) removed.push_back({candidates[next].ns, candidates[next].name});
    }
    if (!removed.empty()) RETURN_IF_ERROR(collect_());
  }
  if (options_.free_min_percent <= 0 || HasRoom(absl::ZeroDuration())) {
    return removed;
  }
  // What is garbage already may be enough.
  RETURN_IF_ERROR(collect_());
  for (; next < candidates.size() && !Stopping(); ++next) {
    if (HasRoom(options_.settle)) break;
    ASSIGN_OR_RETURN(const bool gone, Remove(candidates[next], "disk full"));
    if (!gone) continue;
    removed.push_back({candidates[next].ns, candidates[next].name});
    RETURN_IF_ERROR(collect_());
  }
  return removed;
}

// Trees are deleted behind the collection: what they free shows later.
bool Retention::HasRoom(absl::Duration patience) {
  const absl::Time end = absl::Now() + patience;
  const auto stop = [this] { return stopping_; };
  while (true) {
    const absl::StatusOr<double> free = free_percent_();
    if (!free.ok()) {
      log::Error("free space not known", {{"error", MessageOf(free.status())}});
      return true;  // Never remove blindly.
    }
    if (*free >= options_.free_min_percent) return true;
    if (absl::Now() >= end) return false;
    absl::MutexLock lock(&mutex_);
    if (mutex_.AwaitWithTimeout(absl::Condition(&stop), kSettleStep)) {
      return true;
    }
  }
}

absl::StatusOr<std::vector<Retention::Candidate>> Retention::Survey(
    absl::Time now) {
  std::vector<std::string> namespaces = options_.namespaces;
  if (namespaces.empty()) {
    RETURN_IF_ERROR(
        store_.db().Scan(Prefix(kind::kNamespace, {}),
                         [&](std::string_view key, std::string_view) {
                           namespaces.push_back(Split(key)[0]);
                           return true;
                         }));
  }
  std::vector<Candidate> candidates;
  for (const std::string& ns : namespaces) {
    RETURN_IF_ERROR(SurveyNamespace(ns, now, &candidates));
  }
  std::sort(candidates.begin(), candidates.end(),
            [](const Candidate& a, const Candidate& b) {
              return a.last_used < b.last_used;
            });
  return candidates;
}

absl::Status Retention::SurveyNamespace(const std::string& ns, absl::Time now,
                                        std::vector<Candidate>* candidates) {
  std::map<std::string, absl::Time> noted;
  RETURN_IF_ERROR(store_.Scan<ImageUse>(
      Prefix(kind::kImageUse, {ns}),
      [&](const std::vector<std::string>& key, ImageUse& use) {
        noted[key[1]] = ToTime(use.last_used_at());
        return true;
      }));
  Users users(store_, ns);
  RETURN_IF_ERROR(users.Gather());
  Batch batch;
  absl::Status error;
  RETURN_IF_ERROR(store_.Scan<Image>(
      Prefix(kind::kImage, {ns}),
      [&](const std::vector<std::string>&, Image& image) {
        const absl::StatusOr<bool> used = users.Use(image);
        error = used.status();
        if (!error.ok()) return false;
        const auto before = noted.find(image.name());
        const bool known = before != noted.end();
        absl::Time last_used = known ? before->second : now;
        if (!known || (*used && last_used + kNoteInterval <= now)) {
          last_used = now;
          ImageUse use;
          *use.mutable_last_used_at() = ToTimestamp(now);
          batch.Put(Key(kind::kImageUse, {ns, image.name()}),
                    use.SerializeAsString());
        }
        if (known) noted.erase(before);
        const absl::Time written = ToTime(image.updated_at());
        if (*used || IsPinned(image.labels()) ||
            now - written < kRetentionAgeMin) {
          return true;
        }
        // One that was pulled again counts from then.
        candidates->push_back({ns, image.name(), std::max(last_used, written)});
        return true;
      }));
  RETURN_IF_ERROR(error);
  for (const auto& [name, at] : noted) {  // Of images that are gone.
    batch.Delete(Key(kind::kImageUse, {ns, name}));
  }
  if (batch.changes.empty()) return absl::OkStatus();
  return store_.db().Write(batch, /*sync=*/false);
}

absl::StatusOr<bool> Retention::Remove(const Candidate& candidate,
                                       const std::string& why) {
  const std::string key = Key(kind::kImage, {candidate.ns, candidate.name});
  bool gone = false;
  // No container is created between the check and the removal.
  RETURN_IF_ERROR(store_.Exclusive([&]() -> absl::Status {
    ASSIGN_OR_RETURN(std::optional<Image> image, store_.Get<Image>(key));
    if (!image.has_value() || IsPinned(image->labels()) ||
        ToTime(image->updated_at()) > candidate.last_used) {
      return absl::OkStatus();
    }
    Users users(store_, candidate.ns);
    RETURN_IF_ERROR(users.Gather());
    ASSIGN_OR_RETURN(const bool used, users.Use(*image));
    if (used) return absl::OkStatus();
    Batch batch;
    batch.Delete(key);
    batch.Delete(Key(kind::kImageUse, {candidate.ns, candidate.name}));
    RETURN_IF_ERROR(AddIndexChanges(store_.db(), &batch));
    containerd::services::images::v1::ImageDelete event;
    event.set_name(candidate.name);
    std::vector<Envelope> envelopes;
    envelopes.push_back(
        MakeEnvelope(candidate.ns, "/images/delete", PackEvent(event)));
    EventBus::Staged staged =
        store_.events().Stage(std::move(envelopes), &batch);
    const absl::Status written = store_.db().Write(batch, /*sync=*/true);
    store_.events().Finish(std::move(staged), written.ok());
    gone = written.ok();
    return written;
  }));
  if (!gone) return false;
  ++store_.deletions;
  if (store_.on_change) store_.on_change();
  static stats::Value* const removed =
      stats::Counter("bulkhead_retention_removed_images_total");
  removed->Add();
  log::Info(
      "image removed by retention",
      {{"namespace", candidate.ns}, {"image", candidate.name}, {"why", why}});
  return true;
}

}  // namespace bulkhead::metadata
