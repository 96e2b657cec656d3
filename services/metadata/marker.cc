#include "services/metadata/marker.h"

#include "absl/strings/match.h"
#include "proto/containerd/services/containers/v1/containers.pb.h"
#include "proto/containerd/services/content/v1/content.pb.h"
#include "proto/containerd/services/images/v1/images.pb.h"
#include "proto/containerd/services/leases/v1/leases.pb.h"
#include "proto/containerd/types/sandbox.pb.h"
#include "services/metadata/records.pb.h"
#include "services/metadata/references.h"

namespace bulkhead::metadata {
namespace {

namespace content_v1 = containerd::services::content::v1;
using containerd::services::containers::v1::Container;
using containerd::services::images::v1::Image;
using containerd::services::leases::v1::Lease;
using containerd::types::Sandbox;

constexpr char kLabelCondition[] = "containerd.io/gc.cond.snapshot.";
constexpr char kLabelUsedAt[] = "containerd.io/gc.cond.value-usedat";
constexpr size_t kPathStepsMax = 10000;

bool HasRootLabel(const LabelMap& labels) {
  for (const auto& [label, value] : labels) {
    if (absl::StartsWith(label, kLabelRoot)) return true;
  }
  return false;
}

// The object that a lease's resource is.
std::string ResourceKey(const std::string& ns, const std::string& type,
                        const std::string& id) {
  if (type == "content") return Key(kind::kBlob, {ns, id});
  if (type == "images") return Key(kind::kImage, {ns, id});
  if (type == "ingests") return Key(kind::kIngest, {ns, id});
  constexpr char kSnapshots[] = "snapshots/";
  if (absl::StartsWith(type, kSnapshots)) {
    return Key(kind::kSnapshot, {ns, type.substr(sizeof(kSnapshots) - 1), id});
  }
  return "";
}

}  // namespace

template <typename Record>
absl::StatusOr<std::optional<Record>> Marker::Read(const std::string& key) {
  absl::StatusOr<std::optional<Record>> record = store_.Get<Record>(key, view_);
  if (!absl::IsDataLoss(record.status())) return record;
  spared_.insert(Split(key)[0]);  // One bad record must not stop all.
  return std::optional<Record>();
}

template <typename Record>
absl::Status Marker::ScanLabels(char kind, bool roots_by_label,
                                const char* why) {
  return store_.Scan<Record>(
      Prefix(kind, {}),
      [&](const std::vector<std::string>& parts, Record& record) {
        const std::string key = parts.size() == 2
                                    ? Key(kind, {parts[0], parts[1]})
                                    : Key(kind, {parts[0], parts[1], parts[2]});
        if (!roots_by_label || HasRootLabel(record.labels())) {
          Root(key, why);
        }
        if constexpr (std::is_same_v<Record, SnapshotRecord>) {
          NoteUse(key, record.labels());
        }
        if constexpr (std::is_same_v<Record, Container>) {
          FollowContainer(key, record);
        }
        GatherBackReferences(parts[0], key, record.labels());
        return true;
      },
      view_);
}

absl::Status Marker::MarkAll(const Db::View* view) {
  view_ = view;
  const absl::Time now = absl::Now();
  // Labels can point backwards, so those are gathered before marking.
  RETURN_IF_ERROR(ScanLabels<content_v1::Info>(kind::kBlob, true, kLabelRoot));
  RETURN_IF_ERROR(
      ScanLabels<SnapshotRecord>(kind::kSnapshot, true, kLabelRoot));
  RETURN_IF_ERROR(ScanLabels<Container>(kind::kContainer, false, "container"));
  RETURN_IF_ERROR(store_.Scan<Image>(
      Prefix(kind::kImage, {}),
      [&](const std::vector<std::string>& key, Image& image) {
        const std::string name = Key(kind::kImage, {key[0], key[1]});
        GatherBackReferences(key[0], name, image.labels());
        if (!Expired(image.labels(), now)) Root(name, "image");
        return true;
      },
      view));
  RETURN_IF_ERROR(store_.Scan<Sandbox>(
      Prefix(kind::kSandbox, {}),
      [&](const std::vector<std::string>& key, Sandbox&) {
        Root(Key(kind::kSandbox, {key[0], key[1]}), "sandbox");
        return true;
      },
      view));
  RETURN_IF_ERROR(store_.Scan<IngestRecord>(
      Prefix(kind::kIngest, {}),
      [&](const std::vector<std::string>& key, IngestRecord& ingest) {
        if (ingest.has_expire_at() && ToTime(ingest.expire_at()) > now) {
          Root(Key(kind::kIngest, {key[0], key[1]}), "live ingest");
        }
        return true;
      },
      view));
  RETURN_IF_ERROR(MarkLeases(now));
  for (const Condition& each : conditions_) Apply(each, now);
  // As of now: the scans above may have found some.
  RETURN_IF_ERROR(
      store_.db().Scan(Prefix(kind::kDamaged, {}),
                       [this](std::string_view key, std::string_view) {
                         spared_.insert(Split(key.substr(2))[0]);
                         return true;
                       }));
  return Drain();
}

absl::Status Marker::MarkNoted(const std::vector<std::string>& keys) {
  view_ = nullptr;
  for (const std::string& key : keys) {
    switch (key[0]) {
      case kind::kLeaseResource: {
        const std::vector<std::string> parts = Split(key);
        Root(ResourceKey(parts[0], parts[2], parts[3]),
             absl::StrCat("lease ", parts[1]));
        break;
      }
      case kind::kLease:
        marked_.insert(key);  // One of this name may have been expired.
        break;
      case kind::kSnapshot:
        RETURN_IF_ERROR(LookAgain(key));
        [[fallthrough]];
      case kind::kImage:
      case kind::kContainer:
      case kind::kSandbox:
      case kind::kBlob:
      case kind::kIngest:
        // Its references may be new, even if it was marked before.
        marked_.insert(key);
        RETURN_IF_ERROR(Follow(key));
        break;
      default:
        break;
    }
  }
  return Drain();
}

// A condition on a snapshot may hold now that did not when it was marked.
absl::Status Marker::LookAgain(const std::string& snapshot) {
  ASSIGN_OR_RETURN(std::optional<SnapshotRecord> record,
                   Read<SnapshotRecord>(snapshot));
  if (!record.has_value()) return absl::OkStatus();
  NoteUse(snapshot, record->labels());
  for (const Condition& each : conditions_) {
    if (each.snapshot == snapshot) Apply(each, absl::Now());
  }
  return absl::OkStatus();
}

void Marker::NoteUse(const std::string& snapshot, const LabelMap& labels) {
  const auto used = labels.find(kLabelUsedAt);
  absl::Time at;
  std::string error;
  if (used != labels.end() &&
      absl::ParseTime(absl::RFC3339_full, used->second, &at, &error)) {
    used_at_[snapshot] = at;
  }
}

void Marker::Apply(const Condition& condition, absl::Time now) {
  const auto used_at = used_at_.find(condition.snapshot);
  if (used_at != used_at_.end() &&
      ConditionHolds(condition.conditions, now - used_at->second)) {
    back_[condition.snapshot].push_back(condition.holder);
  }
}

void Marker::GatherBackReferences(const std::string& ns, const std::string& key,
                                  const LabelMap& labels) {
  for (const auto& [label, value] : labels) {
    std::string parent = ReferencedKey(ns, label, value, kBackReferences);
    if (!parent.empty()) back_[std::move(parent)].push_back(key);
    if (absl::StartsWith(label, kLabelCondition) &&
        (key[0] == kind::kImage || key[0] == kind::kBlob)) {
      std::string snapshotter = label.substr(sizeof(kLabelCondition) - 1);
      snapshotter = snapshotter.substr(0, snapshotter.find('/'));
      const size_t bar = value.find('|');
      if (bar == std::string::npos) continue;
      conditions_.push_back(
          {key, Key(kind::kSnapshot, {ns, snapshotter, value.substr(bar + 1)}),
           value.substr(0, bar)});
    }
  }
}

absl::Status Marker::MarkLeases(absl::Time now) {
  std::unordered_map<std::string, bool> flat;  // Of live leases.
  RETURN_IF_ERROR(store_.Scan<Lease>(
      Prefix(kind::kLease, {}),
      [&](const std::vector<std::string>& key, Lease& lease) {
        if (Expired(lease.labels(), now)) return true;
        flat[Key(kind::kLease, {key[0], key[1]})] =
            lease.labels().contains(kLabelFlat);
        return true;
      },
      view_));
  std::vector<std::pair<std::string, std::string>> flat_resources;
  RETURN_IF_ERROR(store_.db().Scan(
      Prefix(kind::kLeaseResource, {}),
      [&](std::string_view key, std::string_view) {
        const std::vector<std::string> parts = Split(key);
        const auto lease = flat.find(Key(kind::kLease, {parts[0], parts[1]}));
        if (lease == flat.end()) return true;
        const std::string resource = ResourceKey(parts[0], parts[2], parts[3]);
        if (resource.empty()) return true;
        if (lease->second) {
          flat_resources.emplace_back(resource, parts[1]);
        } else {
          Root(resource, absl::StrCat("lease ", parts[1]));
        }
        return true;
      },
      view_));
  for (const auto& [key, lease] : flat_resources) {
    RETURN_IF_ERROR(MarkFlat(key, "", absl::StrCat("flat lease ", lease)));
  }
  return absl::OkStatus();
}

// The object itself; a snapshot's parents; an image's target.
absl::Status Marker::MarkFlat(std::string key, std::string from,
                              std::string by) {
  while (!key.empty() && flat_.insert(key).second) {
    if (explain_) from_.try_emplace(key, Step{from, by});
    const std::vector<std::string> parts = Split(key);
    std::string next;
    if (key[0] == kind::kSnapshot) {
      ASSIGN_OR_RETURN(std::optional<SnapshotRecord> snapshot,
                       Read<SnapshotRecord>(key));
      if (snapshot.has_value() && !snapshot->parent().empty()) {
        next = Key(kind::kSnapshot, {parts[0], parts[1], snapshot->parent()});
      }
    } else if (key[0] == kind::kImage) {
      ASSIGN_OR_RETURN(std::optional<Image> image, Read<Image>(key));
      if (image.has_value()) {
        next = Key(kind::kBlob, {parts[0], image->target().digest()});
      }
    }
    by = key[0] == kind::kImage ? "target" : "parent";
    from = std::move(key);
    key = std::move(next);
  }
  return absl::OkStatus();
}

void Marker::Push(std::string key, const std::string& from,
                  const std::string& by) {
  if (key.empty() || marked_.contains(key)) return;
  if (explain_ && key != from) from_.try_emplace(key, Step{from, by});
  queue_.push_back(std::move(key));
}

absl::Status Marker::Drain() {
  while (!queue_.empty()) {
    const std::string key = std::move(queue_.back());
    queue_.pop_back();
    if (!marked_.insert(key).second) continue;
    RETURN_IF_ERROR(Follow(key));
  }
  return absl::OkStatus();
}

void Marker::FollowLabels(const std::string& key, const LabelMap& labels) {
  const std::string ns = Split(key)[0];
  for (const auto& [label, value] : labels) {
    Push(ReferencedKey(ns, label, value, kReferences), key, label);
  }
}

void Marker::FollowContainer(const std::string& key,
                             const Container& container) {
  if (!container.snapshot_key().empty()) {
    Push(Key(kind::kSnapshot, {Split(key)[0], container.snapshotter(),
                               container.snapshot_key()}),
         key, "snapshot_key");
  }
  FollowLabels(key, container.labels());
}

absl::Status Marker::Follow(const std::string& key) {
  const std::vector<std::string> parts = Split(key);
  const std::string& ns = parts[0];
  if (auto it = back_.find(key); it != back_.end()) {
    for (const std::string& child : it->second) {
      Push(child, key, "back reference");
    }
  }
  switch (key[0]) {
    case kind::kImage: {
      ASSIGN_OR_RETURN(std::optional<Image> image, Read<Image>(key));
      if (!image.has_value()) break;
      Push(Key(kind::kBlob, {ns, image->target().digest()}), key, "target");
      FollowLabels(key, image->labels());
      break;
    }
    case kind::kBlob: {
      ASSIGN_OR_RETURN(std::optional<content_v1::Info> info,
                       Read<content_v1::Info>(key));
      if (info.has_value()) FollowLabels(key, info->labels());
      break;
    }
    case kind::kSnapshot: {
      ASSIGN_OR_RETURN(std::optional<SnapshotRecord> snapshot,
                       Read<SnapshotRecord>(key));
      if (!snapshot.has_value()) break;
      if (!snapshot->parent().empty()) {
        Push(Key(kind::kSnapshot, {ns, parts[1], snapshot->parent()}), key,
             "parent");
      }
      FollowLabels(key, snapshot->labels());
      break;
    }
    case kind::kContainer: {
      // MarkAll() follows each as it scans them: their records are large.
      if (view_ != nullptr) break;
      ASSIGN_OR_RETURN(std::optional<Container> container,
                       Read<Container>(key));
      if (container.has_value()) FollowContainer(key, *container);
      break;
    }
    case kind::kSandbox: {
      ASSIGN_OR_RETURN(std::optional<Sandbox> sandbox, Read<Sandbox>(key));
      if (sandbox.has_value()) FollowLabels(key, sandbox->labels());
      break;
    }
    case kind::kIngest: {
      ASSIGN_OR_RETURN(std::optional<IngestRecord> ingest,
                       Read<IngestRecord>(key));
      if (ingest.has_value() && !ingest->expected().empty()) {
        Push(Key(kind::kBlob, {ns, ingest->expected()}), key, "expected");
      }
      break;
    }
    default:
      break;
  }
  return absl::OkStatus();
}

std::vector<Marker::Step> Marker::PathTo(const std::string& key) const {
  std::vector<Step> path;
  std::string at = key;
  while (!at.empty() && path.size() < kPathStepsMax) {
    const auto it = from_.find(at);
    if (it == from_.end()) return {};
    path.insert(path.begin(), Step{at, it->second.by});
    at = it->second.key;
  }
  return path;
}

}  // namespace bulkhead::metadata
