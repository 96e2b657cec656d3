#include "services/metadata/gc.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "lib/log/log.h"
#include "lib/stats/stats.h"
#include "proto/containerd/events/image.pb.h"
#include "proto/containerd/events/snapshot.pb.h"
#include "proto/containerd/services/containers/v1/containers.pb.h"
#include "proto/containerd/services/images/v1/images.pb.h"
#include "proto/containerd/services/leases/v1/leases.pb.h"
#include "proto/containerd/types/sandbox.pb.h"

namespace bulkhead::metadata {
namespace {

using containerd::services::containers::v1::Container;
using containerd::services::images::v1::Image;
using containerd::services::leases::v1::Lease;
using containerd::types::Sandbox;

constexpr char kGcPrefix[] = "containerd.io/gc.";
// When a backend refused something.
constexpr absl::Duration kRetryInterval = absl::Seconds(30);

// If `label` is `name` alone or goes on with "." or "/".
bool IsReference(const std::string& label, const std::string& name) {
  return absl::StartsWith(label, name) &&
         (label.size() == name.size() || label[name.size()] == '.' ||
          label[name.size()] == '/');
}

// The object that a gc.ref or gc.bref label names; empty if it is not one.
std::string Referenced(const std::string& ns, const std::string& label,
                       const std::string& value, const std::string& prefix) {
  if (!absl::StartsWith(label, prefix) || value.empty()) return "";
  const std::string rest = label.substr(prefix.size());
  if (IsReference(rest, "content")) return Key(kind::kBlob, {ns, value});
  if (IsReference(rest, "image")) return Key(kind::kImage, {ns, value});
  if (IsReference(rest, "container")) {
    return Key(kind::kContainer, {ns, value});
  }
  constexpr char kSnapshotPrefix[] = "snapshot.";
  if (absl::StartsWith(rest, kSnapshotPrefix)) {
    std::string snapshotter = rest.substr(sizeof(kSnapshotPrefix) - 1);
    snapshotter = snapshotter.substr(0, snapshotter.find('/'));
    return Key(kind::kSnapshot, {ns, snapshotter, value});
  }
  return "";
}

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

// One mark: what was reached, and the references that lead on.
class Marker {
 public:
  explicit Marker(Store& store) : store_(store) {}

  // Marks everything reachable in `view`.
  absl::Status MarkAll(const Db::View* view) {
    view_ = view;
    const absl::Time now = absl::Now();
    // Labels can point backwards, so those are gathered before marking.
    RETURN_IF_ERROR(ScanLabels<content_v1::Info>(kind::kBlob, true));
    RETURN_IF_ERROR(ScanLabels<SnapshotRecord>(kind::kSnapshot, true));
    RETURN_IF_ERROR(ScanLabels<Container>(kind::kContainer, false));
    RETURN_IF_ERROR(store_.Scan<Image>(
        Prefix(kind::kImage, {}),
        [&](const std::vector<std::string>& key, Image& image) {
          const std::string name = Key(kind::kImage, {key[0], key[1]});
          if (Expired(image.labels(), now)) {
            GatherBackReferences(key[0], name, image.labels());
          } else {
            roots_.push_back(name);
          }
          return true;
        },
        view));
    RETURN_IF_ERROR(store_.Scan<Sandbox>(
        Prefix(kind::kSandbox, {}),
        [&](const std::vector<std::string>& key, Sandbox&) {
          roots_.push_back(Key(kind::kSandbox, {key[0], key[1]}));
          return true;
        },
        view));
    RETURN_IF_ERROR(store_.Scan<IngestRecord>(
        Prefix(kind::kIngest, {}),
        [&](const std::vector<std::string>& key, IngestRecord& ingest) {
          if (ingest.has_expire_at() && ToTime(ingest.expire_at()) > now) {
            roots_.push_back(Key(kind::kIngest, {key[0], key[1]}));
          }
          return true;
        },
        view));
    RETURN_IF_ERROR(MarkLeases(now));
    for (const std::string& root : roots_) queue_.push_back(root);
    roots_.clear();
    return Drain();
  }

  // Marks what was written since, and what that refers to now.
  absl::Status MarkNoted(const std::vector<std::string>& keys) {
    view_ = nullptr;
    for (const std::string& key : keys) {
      switch (key[0]) {
        case kind::kLeaseResource: {
          const std::vector<std::string> parts = Split(key);
          Push(ResourceKey(parts[0], parts[2], parts[3]));
          break;
        }
        case kind::kImage:
        case kind::kContainer:
        case kind::kSandbox:
        case kind::kBlob:
        case kind::kIngest:
        case kind::kSnapshot:
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

  bool IsLive(const std::string& key) const {
    return marked_.contains(key) || flat_.contains(key);
  }

 private:
  template <typename Record>
  absl::Status ScanLabels(char kind, bool roots_by_label) {
    return store_.Scan<Record>(
        Prefix(kind, {}),
        [&](const std::vector<std::string>& parts, Record& record) {
          const std::string key =
              parts.size() == 2 ? Key(kind, {parts[0], parts[1]})
                                : Key(kind, {parts[0], parts[1], parts[2]});
          if (!roots_by_label || HasRootLabel(record.labels())) {
            roots_.push_back(key);
          }
          GatherBackReferences(parts[0], key, record.labels());
          return true;
        },
        view_);
  }

  void GatherBackReferences(const std::string& ns, const std::string& key,
                            const LabelMap& labels) {
    for (const auto& [label, value] : labels) {
      std::string parent =
          Referenced(ns, label, value, absl::StrCat(kGcPrefix, "bref."));
      if (!parent.empty()) back_[std::move(parent)].push_back(key);
    }
  }

  absl::Status MarkLeases(absl::Time now) {
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
    std::vector<std::string> flat_resources;
    RETURN_IF_ERROR(store_.db().Scan(
        Prefix(kind::kLeaseResource, {}),
        [&](std::string_view key, std::string_view) {
          const std::vector<std::string> parts = Split(key);
          const auto lease = flat.find(Key(kind::kLease, {parts[0], parts[1]}));
          if (lease == flat.end()) return true;
          const std::string resource =
              ResourceKey(parts[0], parts[2], parts[3]);
          if (resource.empty()) return true;
          if (lease->second) {
            flat_resources.push_back(resource);
          } else {
            roots_.push_back(resource);
          }
          return true;
        },
        view_));
    for (const std::string& key : flat_resources) {
      RETURN_IF_ERROR(MarkFlat(key));
    }
    return absl::OkStatus();
  }

  // The object itself; a snapshot's parents; an image's target.
  absl::Status MarkFlat(std::string key) {
    while (!key.empty() && flat_.insert(key).second) {
      const std::vector<std::string> parts = Split(key);
      std::string next;
      if (key[0] == kind::kSnapshot) {
        ASSIGN_OR_RETURN(std::optional<SnapshotRecord> snapshot,
                         store_.Get<SnapshotRecord>(key, view_));
        if (snapshot.has_value() && !snapshot->parent().empty()) {
          next = Key(kind::kSnapshot, {parts[0], parts[1], snapshot->parent()});
        }
      } else if (key[0] == kind::kImage) {
        ASSIGN_OR_RETURN(std::optional<Image> image,
                         store_.Get<Image>(key, view_));
        if (image.has_value()) {
          next = Key(kind::kBlob, {parts[0], image->target().digest()});
        }
      }
      key = std::move(next);
    }
    return absl::OkStatus();
  }

  void Push(std::string key) {
    if (!key.empty() && !marked_.contains(key))
      queue_.push_back(std::move(key));
  }

  absl::Status Drain() {
    while (!queue_.empty()) {
      const std::string key = std::move(queue_.back());
      queue_.pop_back();
      if (!marked_.insert(key).second) continue;
      RETURN_IF_ERROR(Follow(key));
    }
    return absl::OkStatus();
  }

  void FollowLabels(const std::string& ns, const LabelMap& labels) {
    static const std::string* const kPrefix =
        new std::string(absl::StrCat(kGcPrefix, "ref."));
    for (const auto& [label, value] : labels) {
      Push(Referenced(ns, label, value, *kPrefix));
    }
  }

  // Queues what the object refers to.
  absl::Status Follow(const std::string& key) {
    const std::vector<std::string> parts = Split(key);
    const std::string& ns = parts[0];
    if (auto it = back_.find(key); it != back_.end()) {
      for (const std::string& child : it->second) Push(child);
    }
    switch (key[0]) {
      case kind::kImage: {
        ASSIGN_OR_RETURN(std::optional<Image> image,
                         store_.Get<Image>(key, view_));
        if (!image.has_value()) break;
        Push(Key(kind::kBlob, {ns, image->target().digest()}));
        FollowLabels(ns, image->labels());
        break;
      }
      case kind::kBlob: {
        ASSIGN_OR_RETURN(std::optional<content_v1::Info> info,
                         store_.Get<content_v1::Info>(key, view_));
        if (info.has_value()) FollowLabels(ns, info->labels());
        break;
      }
      case kind::kSnapshot: {
        ASSIGN_OR_RETURN(std::optional<SnapshotRecord> snapshot,
                         store_.Get<SnapshotRecord>(key, view_));
        if (!snapshot.has_value()) break;
        if (!snapshot->parent().empty()) {
          Push(Key(kind::kSnapshot, {ns, parts[1], snapshot->parent()}));
        }
        FollowLabels(ns, snapshot->labels());
        break;
      }
      case kind::kContainer: {
        ASSIGN_OR_RETURN(std::optional<Container> container,
                         store_.Get<Container>(key, view_));
        if (!container.has_value()) break;
        if (!container->snapshot_key().empty()) {
          Push(Key(kind::kSnapshot,
                   {ns, container->snapshotter(), container->snapshot_key()}));
        }
        FollowLabels(ns, container->labels());
        break;
      }
      case kind::kSandbox: {
        ASSIGN_OR_RETURN(std::optional<Sandbox> sandbox,
                         store_.Get<Sandbox>(key, view_));
        if (sandbox.has_value()) FollowLabels(ns, sandbox->labels());
        break;
      }
      case kind::kIngest: {
        ASSIGN_OR_RETURN(std::optional<IngestRecord> ingest,
                         store_.Get<IngestRecord>(key, view_));
        if (ingest.has_value() && !ingest->expected().empty()) {
          Push(Key(kind::kBlob, {ns, ingest->expected()}));
        }
        break;
      }
      default:
        break;
    }
    return absl::OkStatus();
  }

  Store& store_;
  const Db::View* view_ = nullptr;
  std::vector<std::string> roots_;
  std::vector<std::string> queue_;
  std::unordered_set<std::string> marked_;
  std::unordered_set<std::string> flat_;
  // Back references: from what is pointed at to those that point.
  std::unordered_map<std::string, std::vector<std::string>> back_;
};

// Adds the removal of one object, re-read now, to `batch`.
class Sweeper {
 public:
  Sweeper(Store& store, CollectResult* result)
      : store_(store), result_(result) {}

  absl::Status Remove(const std::string& key) {
    const std::vector<std::string> parts = Split(key);
    const auto drop = [this](std::string gone) {
      batch_.Delete(std::move(gone));
    };
    switch (key[0]) {
      case kind::kSnapshot: {
        ASSIGN_OR_RETURN(std::optional<SnapshotRecord> record,
                         store_.Get<SnapshotRecord>(key));
        if (!record.has_value()) break;
        DeleteSnapshotRecord(parts[0], parts[1], parts[2], *record, drop);
        containerd::events::SnapshotRemove event;
        event.set_key(parts[2]);
        event.set_snapshotter(parts[1]);
        events_.push_back({parts[0], "/snapshot/remove", PackEvent(event)});
        ++result_->snapshots;
        break;
      }
      case kind::kImage: {
        drop(key);
        containerd::services::images::v1::ImageDelete event;
        event.set_name(parts[1]);
        events_.push_back({parts[0], "/images/delete", PackEvent(event)});
        ++result_->images;
        break;
      }
      case kind::kLease: {
        drop(key);
        RETURN_IF_ERROR(store_.db().Scan(
            Prefix(kind::kLeaseResource, {parts[0], parts[1]}),
            [&drop](std::string_view resource, std::string_view) {
              drop(std::string(resource));
              return true;
            }));
        ++result_->leases;
        break;
      }
      default:
        drop(key);
        ++(key[0] == kind::kBlob ? result_->blobs : result_->ingests);
        break;
    }
    return absl::OkStatus();
  }

  absl::Status Apply(bool sync) {
    RETURN_IF_ERROR(store_.db().Write(batch_, sync));
    batch_.changes.clear();
    for (const Event& event : events_) {
      store_.events().PublishAny(event.ns, event.topic, event.event);
    }
    events_.clear();
    return absl::OkStatus();
  }

 private:
  struct Event {
    std::string ns;
    std::string topic;
    google::protobuf::Any event;
  };

  Store& store_;
  CollectResult* const result_;
  Batch batch_;
  std::vector<Event> events_;
};

absl::StatusOr<CollectResult> CollectBehindBarrier(
    Store& store, const Db::View* view, absl::Duration* pause,
    const std::function<void()>& after_mark) {
  Marker marker(store);
  RETURN_IF_ERROR(marker.MarkAll(view));

  // Leases and expired images first: they name others.
  const absl::Time now = absl::Now();
  std::vector<std::string> garbage;
  RETURN_IF_ERROR(store.Scan<Lease>(
      Prefix(kind::kLease, {}),
      [&](const std::vector<std::string>& key, Lease& lease) {
        if (Expired(lease.labels(), now)) {
          garbage.push_back(Key(kind::kLease, {key[0], key[1]}));
        }
        return true;
      },
      view));
  for (const char kind :
       {kind::kSnapshot, kind::kBlob, kind::kIngest, kind::kImage}) {
    RETURN_IF_ERROR(store.db().Scan(
        Prefix(kind, {}),
        [&](std::string_view key, std::string_view) {
          std::string name(key);
          if (!marker.IsLive(name)) garbage.push_back(std::move(name));
          return true;
        },
        view));
  }
  if (after_mark) after_mark();

  CollectResult result;
  Sweeper sweeper(store, &result);
  for (size_t begin = 0; begin < garbage.size(); begin += kSweepStepMax) {
    // Most of what was noted, while writers go on.
    RETURN_IF_ERROR(marker.MarkNoted(store.TakeNoted()));
    const absl::Time started = absl::Now();
    const size_t end = std::min(garbage.size(), begin + kSweepStepMax);
    RETURN_IF_ERROR(store.Exclusive([&]() -> absl::Status {
      RETURN_IF_ERROR(marker.MarkNoted(store.TakeNoted()));
      for (size_t i = begin; i < end; ++i) {
        if (marker.IsLive(garbage[i])) continue;
        RETURN_IF_ERROR(sweeper.Remove(garbage[i]));
      }
      return sweeper.Apply(/*sync=*/false);
    }));
    if (pause != nullptr) *pause += absl::Now() - started;
  }
  // Backends are swept after this: their loss must not outlive the records.
  Batch sync;
  sync.Put(Key(kind::kVersion, {}), kSchemaVersion);
  RETURN_IF_ERROR(store.db().Write(sync, /*sync=*/true));
  return result;
}

}  // namespace

absl::StatusOr<CollectResult> CollectRecords(
    Store& store, absl::Duration* pause,
    const std::function<void()>& after_mark) {
  const std::unique_ptr<Db::View> view = store.BeginBarrier();
  absl::StatusOr<CollectResult> result =
      CollectBehindBarrier(store, view.get(), pause, after_mark);
  store.EndBarrier();
  return result;
}

Collector::Collector(Store& store, Content& content, Snapshots& snapshots,
                     const CollectorOptions& options)
    : store_(store),
      content_(content),
      snapshots_(snapshots),
      options_(options) {
  store_.on_change = [this] {
    if (!Due()) return;
    absl::MutexLock lock(&mutex_);
    changed_ = true;
  };
  thread_ = std::thread([this] { Run(); });
}

Collector::~Collector() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  thread_.join();
  store_.on_change = nullptr;
}

absl::Status Collector::CollectNow() {
  absl::MutexLock lock(&mutex_);
  const uint64_t request = ++wanted_;
  const auto done = [this, request] {
    return finished_ >= request || stopping_;
  };
  mutex_.Await(absl::Condition(&done));
  if (finished_ < request) return absl::CancelledError("shutting down");
  return last_;
}

void Collector::Run() {
  const auto asked = [this] { return stopping_ || wanted_ > finished_; };
  const auto due = [this] {
    return stopping_ || wanted_ > finished_ || changed_;
  };
  absl::MutexLock lock(&mutex_);
  mutex_.AwaitWithTimeout(absl::Condition(&asked), options_.startup_delay);
  bool first = true;  // What a crash left behind goes at the first run.
  while (true) {
    mutex_.AwaitWithTimeout(absl::Condition(&due),
                            retry_ ? kRetryInterval : absl::InfiniteDuration());
    if (stopping_) return;
    changed_ = false;
    if (wanted_ == finished_ && !first && !retry_ && !Due()) continue;
    if (wanted_ == finished_ &&
        options_.schedule_delay > absl::ZeroDuration() && !first) {
      mutex_.AwaitWithTimeout(absl::Condition(&asked), options_.schedule_delay);
      if (stopping_) return;
    }
    const uint64_t request = wanted_;
    const bool backends =
        request > finished_ || first || retry_ || store_.deletions > 0;
    retry_ = false;
    store_.deletions = 0;
    store_.mutations = 0;
    mutex_.Unlock();
    const absl::Status status = Collect(backends);
    mutex_.Lock();
    first = false;
    last_ = status;
    finished_ = request;
    if (stopping_) return;
    // The share of time in which writers wait stays below pause_threshold.
    const absl::Duration interval =
        options_.pause_threshold > 0
            ? pause_average_ / options_.pause_threshold - pause_average_
            : absl::ZeroDuration();
    mutex_.AwaitWithTimeout(absl::Condition(&asked), interval);
  }
}

bool Collector::Due() const {
  return store_.deletions > options_.deletion_threshold ||
         store_.mutations >= options_.mutation_threshold;
}

absl::Status Collector::Collect(bool backends) {
  static stats::Value* const runs = stats::Counter("bulkhead_gc_runs_total");
  static stats::Value* const removed =
      stats::Counter("bulkhead_gc_removed_total");
  static stats::Histogram* const seconds =
      stats::Latency("bulkhead_gc_duration_seconds");
  const absl::Time started = absl::Now();
  absl::Duration pause;
  const absl::StatusOr<CollectResult> result = CollectRecords(store_, &pause);
  if (!result.ok()) {
    log::Error("garbage collection failed",
               {{"error", MessageOf(result.status())}});
    return result.status();
  }
  {
    absl::MutexLock lock(&mutex_);
    pause_average_ =
        std::max(absl::Milliseconds(5), (pause_average_ * 3 + pause) / 4);
  }
  const int64_t total = result->leases + result->images + result->blobs +
                        result->ingests + result->snapshots;
  if (backends || total > 0) SweepBackends();
  runs->Add();
  removed->Add(total);
  seconds->ObserveMicros(absl::ToInt64Microseconds(absl::Now() - started));
  log::Debug("garbage collected",
             {{"snapshots", std::to_string(result->snapshots)},
              {"blobs", std::to_string(result->blobs)},
              {"ingests", std::to_string(result->ingests)},
              {"images", std::to_string(result->images)},
              {"leases", std::to_string(result->leases)},
              {"pause", absl::FormatDuration(pause)},
              {"took", absl::FormatDuration(absl::Now() - started)}});
  return absl::OkStatus();
}

// What fails is logged and tried again after kRetryInterval.
void Collector::SweepBackends() {
  bool failed = false;
  for (const std::string& snapshotter : snapshots_.names()) {
    const absl::Status status = snapshots_.SweepBackend(snapshotter);
    if (status.ok()) continue;
    failed = true;
    log::Debug("snapshotter not swept",
               {{"snapshotter", snapshotter}, {"error", MessageOf(status)}});
  }
  const absl::Status status = content_.SweepBackend();
  if (!status.ok()) {
    failed = true;
    log::Debug("content not swept", {{"error", MessageOf(status)}});
  }
  absl::MutexLock lock(&mutex_);
  retry_ = failed;
}

}  // namespace bulkhead::metadata
