#include "services/metadata/gc.h"

#include <algorithm>

#include "lib/log/log.h"
#include "lib/stats/stats.h"
#include "proto/containerd/events/image.pb.h"
#include "proto/containerd/events/snapshot.pb.h"
#include "proto/containerd/services/images/v1/images.pb.h"
#include "proto/containerd/services/leases/v1/leases.pb.h"
#include "services/metadata/index.h"
#include "services/metadata/marker.h"

namespace bulkhead::metadata {
namespace {

using containerd::services::leases::v1::Lease;

// When a backend refused something.
constexpr absl::Duration kRetryInterval = absl::Seconds(30);

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
        const absl::StatusOr<std::optional<SnapshotRecord>> record =
            store_.Get<SnapshotRecord>(key);
        if (absl::IsDataLoss(record.status())) break;  // Set aside just now.
        RETURN_IF_ERROR(record.status());
        if (!record->has_value()) break;
        DeleteSnapshotRecord(parts[0], parts[1], parts[2], **record, drop);
        containerd::events::SnapshotRemove event;
        event.set_key(parts[2]);
        event.set_snapshotter(parts[1]);
        events_.push_back(
            MakeEnvelope(parts[0], "/snapshot/remove", PackEvent(event)));
        ++result_->snapshots;
        break;
      }
      case kind::kImage: {
        drop(key);
        containerd::services::images::v1::ImageDelete event;
        event.set_name(parts[1]);
        events_.push_back(
            MakeEnvelope(parts[0], "/images/delete", PackEvent(event)));
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
    RETURN_IF_ERROR(AddIndexChanges(store_.db(), &batch_));
    EventBus::Staged staged =
        store_.events().Stage(std::exchange(events_, {}), &batch_);
    const absl::Status status = store_.db().Write(batch_, sync);
    store_.events().Finish(std::move(staged), status.ok());
    batch_.changes.clear();
    return status;
  }

 private:
  Store& store_;
  CollectResult* const result_;
  Batch batch_;
  std::vector<Envelope> events_;
};

// What `marker` did not reach, as of `view`. Leases first: they name others.
absl::StatusOr<std::vector<std::string>> FindGarbage(Store& store,
                                                     const Marker& marker,
                                                     const Db::View* view) {
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
  return garbage;
}

absl::StatusOr<CollectResult> CollectBehindBarrier(
    Store& store, const Db::View* view, absl::Duration* pause,
    const std::function<void()>& after_mark) {
  Marker marker(store);
  RETURN_IF_ERROR(marker.MarkAll(view));
  ASSIGN_OR_RETURN(const std::vector<std::string> garbage,
                   FindGarbage(store, marker, view));
  if (after_mark) after_mark();

  CollectResult result;
  Sweeper sweeper(store, &result);
  int64_t seen = store.mutations;
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
    const absl::Duration took = absl::Now() - started;
    if (pause != nullptr) *pause += took;
    // The lock is not fair: without a break those who wait for it would wait
    // for many steps. Where there are some, it is as long as the step, so that
    // the disk keeps up too.
    const int64_t mutations = store.mutations;
    if (end < garbage.size()) {
      absl::SleepFor(mutations == seen ? kBetweenSweepSteps
                                       : std::max(took, kBetweenSweepSteps));
    }
    seen = mutations;
  }
  // Backends are swept after this: their loss must not outlive the records.
  Batch sync;
  sync.Put(Key(kind::kVersion, {}), std::to_string(kSchemaVersion));
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

absl::StatusOr<std::vector<std::string>> ListGarbage(Store& store) {
  const std::unique_ptr<Db::View> view = store.db().TakeView();
  Marker marker(store);
  RETURN_IF_ERROR(marker.MarkAll(view.get()));
  return FindGarbage(store, marker, view.get());
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

absl::StatusOr<CollectResult> Collector::CollectNow() {
  absl::MutexLock lock(&mutex_);
  const uint64_t request = ++wanted_;
  const auto done = [this, request] {
    return finished_ >= request || stopping_;
  };
  mutex_.Await(absl::Condition(&done));
  if (finished_ < request) return absl::CancelledError("shutting down");
  RETURN_IF_ERROR(last_.status());
  return *last_;
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
    if (wanted_ == finished_ && !first) {
      mutex_.AwaitWithTimeout(absl::Condition(&asked),
                              std::max(options_.schedule_delay, kSettle));
      if (stopping_) return;
    }
    const uint64_t request = wanted_;
    const bool backends =
        request > finished_ || first || retry_ || store_.deletions > 0;
    retry_ = false;
    store_.deletions = 0;
    store_.mutations = 0;
    mutex_.Unlock();
    const absl::Time started = absl::Now();
    absl::Duration waited;
    absl::StatusOr<CollectResult> result = Collect(backends, &waited);
    const absl::Duration took = absl::Now() - started - waited;
    mutex_.Lock();
    first = false;
    last_ = std::move(result);
    finished_ = request;
    if (stopping_) return;
    // The share of time in which writers wait stays below pause_threshold, and
    // that in which it works at all below kWorkShareMax, or kIdleShareMax until
    // something is removed.
    const auto rest = [took](double share) {
      return std::min(took / share - took, kWorkIntervalMax);
    };
    const absl::Duration interval = std::max(
        options_.pause_threshold > 0
            ? pause_average_ / options_.pause_threshold - pause_average_
            : absl::ZeroDuration(),
        rest(kWorkShareMax));
    mutex_.AwaitWithTimeout(absl::Condition(&asked), interval);
    const auto removed = [this] {
      return stopping_ || wanted_ > finished_ ||
             store_.deletions > options_.deletion_threshold;
    };
    mutex_.AwaitWithTimeout(absl::Condition(&removed),
                            rest(kIdleShareMax) - interval);
  }
}

bool Collector::Due() const {
  return store_.deletions > options_.deletion_threshold ||
         store_.mutations >= options_.mutation_threshold;
}

absl::StatusOr<CollectResult> Collector::Collect(bool backends,
                                                 absl::Duration* waited) {
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
  if (backends || total > 0) *waited = SweepBackends();
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
  return *result;
}

// What fails is logged and tried again after kRetryInterval. Returns how much
// of the time it only waited for snapshots' files to be gone.
absl::Duration Collector::SweepBackends() {
  const absl::Time started = absl::Now();
  // Beside the snapshots: both wait for the disk most of the time.
  absl::Status content;
  absl::Duration content_took;
  std::thread blobs([&] {
    content = content_.SweepBackend();
    content_took = absl::Now() - started;
  });
  absl::Duration waited;
  bool failed = false;
  for (const std::string& snapshotter : snapshots_.names()) {
    absl::Duration cleanup;
    const absl::Status status = snapshots_.SweepBackend(snapshotter, &cleanup);
    waited += cleanup;
    if (status.ok()) continue;
    failed = true;
    log::Debug("snapshotter not swept",
               {{"snapshotter", snapshotter}, {"error", MessageOf(status)}});
  }
  blobs.join();
  const absl::Duration took = absl::Now() - started;
  if (!content.ok()) {
    failed = true;
    log::Debug("content not swept", {{"error", MessageOf(content)}});
  }
  absl::MutexLock lock(&mutex_);
  retry_ = failed;
  return std::min(waited, took - content_took);
}

}  // namespace bulkhead::metadata
