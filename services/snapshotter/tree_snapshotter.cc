#include "services/snapshotter/tree_snapshotter.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "lib/base/status_macros.h"
#include "lib/log/log.h"
#include "lib/os/durable_dirs.h"
#include "lib/os/fd.h"
#include "services/snapshotter/driver.h"
#include "services/snapshotter/record_db.h"

namespace bulkhead::snapshotter {
namespace {

constexpr char kUpperDirLabel[] = "containerd.io/snapshot/overlay.upperdir";
constexpr char kRemovedPrefix[] = "rm-";
constexpr int kDeleters = 2;  // One waits for the disk while one works.

int64_t NowNs() { return absl::ToUnixNanos(absl::Now()); }

// Whole calls on one key come one after another; calls on others at once.
class KeyLocks {
 public:
  class Hold {
   public:
    Hold(KeyLocks& locks, std::set<std::string> keys)
        : locks_(locks), keys_(std::move(keys)) {
      std::unique_lock lock(locks_.mutex_);
      locks_.changed_.wait(lock, [&] {
        return std::none_of(keys_.begin(), keys_.end(), [&](const auto& key) {
          return locks_.held_.contains(key);
        });
      });
      locks_.held_.insert(keys_.begin(), keys_.end());
    }
    ~Hold() {
      std::lock_guard lock(locks_.mutex_);
      for (const std::string& key : keys_) locks_.held_.erase(key);
      locks_.changed_.notify_all();
    }

   private:
    KeyLocks& locks_;
    const std::set<std::string> keys_;
  };

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::set<std::string> held_;
};

absl::Status CheckKey(const std::string& key, const char* what) {
  if (key.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(what, " must not be empty"));
  }
  if (key.size() > kKeyBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, " is longer than ", kKeyBytesMax, " bytes"));
  }
  return absl::OkStatus();
}

// Checked, and without empty values.
absl::StatusOr<Labels> CleanLabels(const Labels& labels) {
  Labels out;
  size_t total = 0;
  for (const auto& [key, value] : labels) {
    if (key.size() + value.size() > kLabelBytesMax) {
      return absl::InvalidArgumentError(absl::StrCat(
          "label key and value length (", key.size() + value.size(),
          " bytes) greater than maximum size (", kLabelBytesMax,
          " bytes), key: ", key.substr(0, 64)));
    }
    total += key.size() + value.size();
    if (!value.empty()) out[key] = value;
  }
  if (total > kLabelsTotalBytesMax) {
    return absl::ResourceExhaustedError(
        absl::StrCat("labels of ", total, " bytes are over the limit of ",
                     kLabelsTotalBytesMax));
  }
  return out;
}

class TreeSnapshotter : public Snapshotter {
 public:
  TreeSnapshotter(const TreeSnapshotterOptions& options,
                  std::unique_ptr<Driver> driver, std::unique_ptr<RecordDb> db)
      : options_(options),
        snapshots_(absl::StrCat(options.root, "/snapshots")),
        driver_(std::move(driver)),
        db_(std::move(db)) {}

  ~TreeSnapshotter() override {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
      changed_.notify_all();
    }
    for (std::thread& deleter : deleters_) deleter.join();
    std::lock_guard lock(mutex_);
    Places committed;
    for (const auto& [key, record] : records_) {
      if (record.info.kind == Kind::kCommitted) {
        committed.push_back(PlaceOf(record));
      }
    }
    ReleaseUnused(committed);
    // What is still to be deleted goes at the next start, but is not kept
    // mounted until then.
    for (const std::string& name : deletions_) {
      driver_->Release({0, absl::StrCat(snapshots_, "/", name)});
    }
  }

  absl::Status Load() {
    RETURN_IF_ERROR(db_->ForEach([this](Record record) {
      next_id_ = std::max(next_id_, record.id + 1);
      if (!record.info.parent.empty()) ++children_[record.info.parent];
      ids_[record.id] = record.info.name;
      records_[record.info.name] = std::move(record);
      return absl::OkStatus();
    }));
    ASSIGN_OR_RETURN(const std::vector<std::string> names, Folders());
    RETURN_IF_ERROR(DropHalfMade({names.begin(), names.end()}));
    for (const std::string& name : names) {
      uint64_t id = 0;
      const std::string digits = absl::StartsWith(name, kRemovedPrefix)
                                     ? name.substr(sizeof(kRemovedPrefix) - 1)
                                     : name;
      if (absl::SimpleAtoi(digits, &id)) next_id_ = std::max(next_id_, id + 1);
      if (!absl::SimpleAtoi(name, &id) || !ids_.contains(id)) {
        log::Info("deleting what no snapshot owns",
                  {{"snapshotter", options_.name}, {"folder", name}});
        deletions_.push_back(name);
      }
    }
    Settle();
    for (const auto& [key, record] : records_) {
      if (record.info.kind != Kind::kCommitted) {
        driver_->Restore(PlaceOf(record), Chain(record.info.parent));
      }
    }
    for (int i = 0; i < kDeleters; ++i) {
      deleters_.emplace_back([this] { DeleteLoop(); });
    }
    return absl::OkStatus();
  }

  const std::string& name() const override { return options_.name; }

  absl::StatusOr<std::vector<os::MountSpec>> Prepare(
      const std::string& key, const std::string& parent,
      const Labels& labels) override {
    return Create(Kind::kActive, key, parent, labels);
  }
  absl::StatusOr<std::vector<os::MountSpec>> View(
      const std::string& key, const std::string& parent,
      const Labels& labels) override {
    return Create(Kind::kView, key, parent, labels);
  }

  absl::StatusOr<std::vector<os::MountSpec>> Mounts(
      const std::string& key) override {
    const KeyLocks::Hold hold(locks_, {key});
    Place place;
    Places below;
    {
      std::lock_guard lock(mutex_);
      ASSIGN_OR_RETURN(const Record* record, Find(key));
      if (record->info.kind == Kind::kCommitted) {
        return absl::FailedPreconditionError(
            absl::StrCat("requested snapshot ", key, " not active or view"));
      }
      // Whoever asks may write: what was synced may be so no more.
      unpacked_.erase(record->id);
      place = PlaceOf(*record);
      below = Chain(record->info.parent);
    }
    return driver_->Mounts(place, below);
  }

  absl::Status Commit(const std::string& name, const std::string& key,
                      const Labels& labels,
                      const std::string& parent) override {
    RETURN_IF_ERROR(CheckKey(name, "snapshot name"));
    RETURN_IF_ERROR(CheckKey(key, "snapshot key"));
    ASSIGN_OR_RETURN(const Labels clean, CleanLabels(labels));
    const KeyLocks::Hold hold(locks_, {name, key});
    Record record;
    bool rebase = false;
    bool synced = false;
    std::optional<DiskUsage> measured;
    Place place;
    Places below;
    {
      std::lock_guard lock(mutex_);
      if (records_.contains(name)) {
        return absl::AlreadyExistsError(
            absl::StrCat("committed snapshot ", name));
      }
      absl::StatusOr<const Record*> found = Find(key);
      if (!found.ok()) {
        return Annotate(found.status(), "failed to get active snapshot");
      }
      record = **found;
      if (record.info.kind != Kind::kActive) {
        return absl::FailedPreconditionError(
            absl::StrCat("snapshot \"", key, "\" is not active"));
      }
      if (!parent.empty() && parent != record.info.parent) {
        if (!record.info.parent.empty()) {
          return absl::InvalidArgumentError(
              absl::StrCat("snapshot \"", key, "\" already has the parent \"",
                           record.info.parent, "\""));
        }
        if (!driver_->CanRebase()) {
          return absl::UnimplementedError(absl::StrCat(
              "snapshotter ", options_.name, " cannot rebase on commit"));
        }
        ASSIGN_OR_RETURN(const Record* base, FindParent(parent));
        below = Chain(base->info.name);
        rebase = true;
        ++children_[parent];
      }
      place = PlaceOf(record);
      if (!rebase) below = Chain(record.info.parent);
      const auto unpacked = unpacked_.find(record.id);
      synced = unpacked != unpacked_.end() && unpacked->second.synced;
      if (synced) measured = unpacked->second.usage;
      in_flight_.insert(record.id);
    }
    const absl::StatusOr<DiskUsage> usage =
        driver_->Seal(place, below, rebase, synced, measured);
    absl::Status status = usage.status();
    if (usage.ok()) record.usage = *usage;
    record.info.name = name;
    record.info.kind = Kind::kCommitted;
    record.info.labels = clean;
    if (rebase) record.info.parent = parent;
    record.info.created_at_ns = record.info.updated_at_ns = NowNs();
    if (status.ok()) status = db_->Put(record, key);
    std::lock_guard lock(mutex_);
    in_flight_.erase(record.id);
    if (!status.ok()) {
      if (rebase) {
        DropChild(parent);
        ReleaseUnused(below);
      }
      return status;
    }
    unpacked_.erase(record.id);
    records_.erase(key);
    ids_[record.id] = name;
    records_[name] = std::move(record);
    driver_->Sealed(place, rebase);
    return absl::OkStatus();
  }

  std::vector<absl::Status> RemoveMany(
      const std::vector<std::string>& keys) override {
    const KeyLocks::Hold hold(locks_, {keys.begin(), keys.end()});
    std::vector<absl::Status> results;
    std::vector<size_t> taken;    // Of `keys` ...
    std::vector<Record> records;  // ... and what they were.
    std::vector<std::string> names;
    {
      std::lock_guard lock(mutex_);
      for (const std::string& key : keys) {
        results.push_back(Take(key, &records));
        if (!results.back().ok()) continue;
        taken.push_back(results.size() - 1);
        names.push_back(key);
      }
    }
    if (names.empty()) return results;
    const absl::Status status = db_->Delete(names);
    std::lock_guard lock(mutex_);
    for (size_t i = 0; i < taken.size(); ++i) {
      Record& record = records[i];
      results[taken[i]] = status;
      in_flight_.erase(record.id);
      if (!status.ok()) {
        ids_[record.id] = names[i];
        records_[names[i]] = std::move(record);
        continue;
      }
      if (!record.info.parent.empty()) DropChild(record.info.parent);
      unpacked_.erase(record.id);
      Discard(absl::StrCat(record.id));
    }
    return results;
  }

  absl::StatusOr<SnapshotInfo> Stat(const std::string& key) override {
    const KeyLocks::Hold hold(locks_, {key});
    std::lock_guard lock(mutex_);
    ASSIGN_OR_RETURN(const Record* record, Find(key));
    return Shown(*record);
  }

  absl::StatusOr<SnapshotInfo> Update(
      const std::string& key, const Labels& labels,
      const std::vector<std::string>& paths) override {
    const KeyLocks::Hold hold(locks_, {key});
    Record record;
    {
      std::lock_guard lock(mutex_);
      ASSIGN_OR_RETURN(const Record* found, Find(key));
      record = *found;
    }
    Labels wanted = paths.empty() ? labels : record.info.labels;
    for (const std::string& path : paths) {
      if (path == "labels") {
        wanted = labels;
      } else if (absl::StartsWith(path, "labels.")) {
        const std::string label = path.substr(sizeof("labels.") - 1);
        const auto it = labels.find(label);
        if (it == labels.end()) {
          wanted.erase(label);
        } else {
          wanted[label] = it->second;
        }
      } else {
        return absl::InvalidArgumentError(absl::StrCat(
            "cannot update \"", path, "\" field on snapshot \"", key, "\""));
      }
    }
    ASSIGN_OR_RETURN(record.info.labels, CleanLabels(wanted));
    record.info.updated_at_ns = NowNs();
    RETURN_IF_ERROR(db_->Put(record));
    std::lock_guard lock(mutex_);
    records_[key] = record;
    return Shown(record);
  }

  absl::Status Walk(
      const std::function<absl::Status(const SnapshotInfo&)>& visit) override {
    std::vector<SnapshotInfo> all;
    {
      std::lock_guard lock(mutex_);
      all.reserve(records_.size());
      for (const auto& [key, record] : records_) all.push_back(Shown(record));
    }
    for (const SnapshotInfo& info : all) RETURN_IF_ERROR(visit(info));
    return absl::OkStatus();
  }

  absl::StatusOr<DiskUsage> Usage(const std::string& key) override {
    Place place;
    Places below;
    {
      const KeyLocks::Hold hold(locks_, {key});
      std::lock_guard lock(mutex_);
      ASSIGN_OR_RETURN(const Record* record, Find(key));
      if (record->info.kind == Kind::kCommitted) return record->usage;
      if (record->info.kind == Kind::kView) return DiskUsage{};
      place = PlaceOf(*record);
      below = Chain(record->info.parent);
    }
    return driver_->Usage(place, below);
  }

  absl::Status Cleanup() override {
    ASSIGN_OR_RETURN(const std::vector<std::string> names, Folders());
    std::unique_lock lock(mutex_);
    for (const std::string& name : names) {
      uint64_t id = 0;
      const bool numbered = absl::SimpleAtoi(name, &id);
      if (numbered && (ids_.contains(id) || in_flight_.contains(id))) continue;
      // Renamed under the hands of who deletes it, it would be found missing.
      if (deleting_.contains(name) ||
          std::find(deletions_.begin(), deletions_.end(), name) !=
              deletions_.end()) {
        continue;
      }
      Discard(name);
    }
    const uint64_t failures = failures_;
    changed_.wait(lock, [this] {
      return stopping_ || (deletions_.empty() && deleting_.empty());
    });
    if (failures_ != failures) {
      return absl::InternalError("some folders could not be deleted");
    }
    return absl::OkStatus();
  }

  absl::Status NoteUnpacked(const std::string& tree,
                            const std::vector<std::string>& implicit_dirs,
                            const std::optional<DiskUsage>& usage) override {
    Place place;
    Places below;
    if (!ActiveAt(tree, &place, &below)) return absl::OkStatus();
    RETURN_IF_ERROR(driver_->NoteUnpacked(place, implicit_dirs));
    std::lock_guard lock(mutex_);
    if (ids_.contains(place.id)) {
      unpacked_[place.id] = {.usage = usage, .synced = false};
    }
    return absl::OkStatus();
  }

  void NoteSynced(const std::string& tree) override {
    Place place;
    Places below;
    if (!ActiveAt(tree, &place, &below)) return;
    std::lock_guard lock(mutex_);
    const auto unpacked = unpacked_.find(place.id);
    if (unpacked != unpacked_.end()) unpacked->second.synced = true;
  }

  absl::StatusOr<std::unique_ptr<LayerSink>> SinkFor(
      const std::string& tree, ExtractOptions* options) override {
    Place place;
    Places below;
    if (!ActiveAt(tree, &place, &below)) return std::unique_ptr<LayerSink>();
    {
      // It may fail after it has written.
      std::lock_guard lock(mutex_);
      unpacked_.erase(place.id);
    }
    return driver_->SinkFor(place, below, options);
  }

 private:
  std::string Dir(uint64_t id) const {
    return absl::StrCat(snapshots_, "/", id);
  }

  Place PlaceOf(const Record& record) const {
    return {record.id, Dir(record.id), record.info.kind, record.info.labels};
  }

  // As clients see it.
  SnapshotInfo Shown(const Record& record) const {
    SnapshotInfo info = record.info;
    if (options_.upperdir_label) {
      info.labels[kUpperDirLabel] = PlaceOf(record).tree();
    }
    return info;
  }

  // Without mutex_. The active snapshot whose tree is at `tree`; false: none.
  bool ActiveAt(const std::string& tree, Place* place, Places* below) {
    const std::string prefix = absl::StrCat(snapshots_, "/");
    uint64_t id = 0;
    if (!absl::StartsWith(tree, prefix) || !absl::EndsWith(tree, "/fs") ||
        !absl::SimpleAtoi(
            tree.substr(prefix.size(), tree.size() - prefix.size() - 3), &id)) {
      return false;
    }
    std::lock_guard lock(mutex_);
    const auto key = ids_.find(id);
    if (key == ids_.end()) return false;
    const Record& record = records_.at(key->second);
    if (record.info.kind != Kind::kActive) return false;
    *place = PlaceOf(record);
    *below = Chain(record.info.parent);
    return true;
  }

  // A Prepare whose record was written but not synced fails and takes its
  // folder away; if the process ends before the record is taken back too, only
  // that is left. Nobody was told of the snapshot.
  absl::Status DropHalfMade(const std::set<std::string>& folders) {
    std::vector<std::string> keys;
    for (const auto& [key, record] : records_) {
      if (folders.contains(absl::StrCat(record.id))) continue;
      if (record.info.kind == Kind::kCommitted) {
        // No crash does that: the folders are somewhere else just now.
        log::Error("the folder of a committed snapshot is missing",
                   {{"snapshotter", options_.name},
                    {"key", key},
                    {"path", absl::StrCat(snapshots_, "/", record.id)}});
        return absl::OkStatus();
      }
      keys.push_back(key);
    }
    for (const std::string& key : keys) {
      const Record& record = records_.at(key);
      log::Warn("dropping a snapshot that has no folder",
                {{"snapshotter", options_.name}, {"key", key}});
      RETURN_IF_ERROR(db_->Delete({key}));
      if (!record.info.parent.empty()) DropChild(record.info.parent);
      ids_.erase(record.id);
      records_.erase(key);
    }
    return absl::OkStatus();
  }

  // Has the driver do again what its Seal() did not sync.
  void Settle() {
    std::vector<Places> chains;
    for (const auto& [key, record] : records_) {
      if (record.info.kind == Kind::kCommitted &&
          driver_->IsUnsettled(PlaceOf(record))) {
        chains.push_back(Chain(key));
      }
    }
    if (chains.empty()) return;
    std::stable_sort(
        chains.begin(), chains.end(),
        [](const Places& a, const Places& b) { return a.size() < b.size(); });
    const absl::Status status = driver_->Settle(chains);
    if (!status.ok()) {
      log::Error(
          "committed snapshots are not settled; the next start tries it"
          " again",
          {{"snapshotter", options_.name}, {"error", MessageOf(status)}});
    }
  }

  absl::StatusOr<std::vector<std::string>> Folders() const {
    std::vector<std::string> names;
    DIR* stream = ::opendir(snapshots_.c_str());
    if (stream == nullptr) return os::ErrnoStatus(errno, snapshots_);
    while (dirent* entry = ::readdir(stream)) {
      const std::string name = entry->d_name;
      if (name != "." && name != "..") names.push_back(name);
    }
    ::closedir(stream);
    return names;
  }

  // All below are called with mutex_ held unless they say otherwise.

  absl::StatusOr<const Record*> Find(const std::string& key) const {
    const auto it = records_.find(key);
    if (it == records_.end()) {
      return absl::NotFoundError(
          absl::StrCat("snapshot ", key, " does not exist"));
    }
    return &it->second;
  }

  absl::StatusOr<const Record*> FindParent(const std::string& parent) const {
    const auto it = records_.find(parent);
    if (it == records_.end()) {
      return absl::NotFoundError(
          absl::StrCat("parent snapshot ", parent, " does not exist"));
    }
    if (it->second.info.kind != Kind::kCommitted) {
      return absl::InvalidArgumentError(
          absl::StrCat("parent \"", parent, "\" is not committed snapshot"));
    }
    return &it->second;
  }

  // `name` (may be empty) and what is below it, nearest first.
  Places Chain(const std::string& name) const {
    Places places;
    for (auto it = records_.find(name); it != records_.end();
         it = records_.find(it->second.info.parent)) {
      places.push_back(PlaceOf(it->second));
    }
    return places;
  }

  // Moves the record of `key`, which is to be removed, to `records`.
  absl::Status Take(const std::string& key, std::vector<Record>* records) {
    RETURN_IF_ERROR(Find(key).status());
    if (children_.contains(key)) {
      return absl::FailedPreconditionError("cannot remove snapshot with child");
    }
    const auto it = records_.find(key);
    in_flight_.insert(it->second.id);
    ids_.erase(it->second.id);
    records->push_back(std::move(it->second));
    records_.erase(it);
    return absl::OkStatus();
  }

  void DropChild(const std::string& parent) {
    const auto it = children_.find(parent);
    if (it != children_.end() && --it->second == 0) children_.erase(it);
  }

  // Tells the driver of those among the committed `places` that nothing active
  // and no view is above of. Not while something is being made or committed:
  // what that needs is not on record yet.
  void ReleaseUnused(const Places& places) {
    if (!in_flight_.empty()) return;
    std::set<uint64_t> used;
    for (const auto& [key, record] : records_) {
      if (record.info.kind == Kind::kCommitted) continue;
      for (const Place& place : Chain(record.info.parent)) {
        used.insert(place.id);
      }
    }
    for (const Place& place : places) {
      if (!used.contains(place.id)) driver_->Release(place);
    }
  }

  // Renames a folder away and queues its deletion.
  void Discard(const std::string& name) {
    std::string away = name;
    if (!absl::StartsWith(name, kRemovedPrefix)) {
      away = absl::StrCat(kRemovedPrefix, name);
      if (::rename(absl::StrCat(snapshots_, "/", name).c_str(),
                   absl::StrCat(snapshots_, "/", away).c_str()) != 0) {
        if (errno == ENOENT) return;
        away = name;  // Not ours to keep: deleted where it is.
      }
    }
    deletions_.push_back(away);
    changed_.notify_all();
  }

  // Without mutex_: a deleting thread.
  void DeleteLoop() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return stopping_ || !deletions_.empty(); });
      if (stopping_) return;  // The rest goes at the next start.
      const std::string name = deletions_.front();
      deletions_.pop_front();
      deleting_.insert(name);
      const std::string path = absl::StrCat(snapshots_, "/", name);
      lock.unlock();
      const absl::Status status = driver_->Delete(path);
      if (!status.ok()) {
        log::Warn("snapshot folder not deleted",
                  {{"path", path}, {"error", MessageOf(status)}});
      }
      lock.lock();
      if (!status.ok()) ++failures_;
      deleting_.erase(name);
      changed_.notify_all();
    }
  }

  absl::StatusOr<std::vector<os::MountSpec>> Create(Kind kind,
                                                    const std::string& key,
                                                    const std::string& parent,
                                                    const Labels& labels) {
    RETURN_IF_ERROR(CheckKey(key, "snapshot key"));
    Record record;
    ASSIGN_OR_RETURN(record.info.labels, CleanLabels(labels));
    const KeyLocks::Hold hold(locks_, {key});
    Places below;
    {
      std::lock_guard lock(mutex_);
      if (!parent.empty()) {
        RETURN_IF_ERROR(FindParent(parent).status());
        below = Chain(parent);
      }
      if (records_.contains(key)) {
        return absl::AlreadyExistsError(absl::StrCat("snapshot ", key));
      }
      record.id = next_id_++;
      if (!parent.empty()) ++children_[parent];
      in_flight_.insert(record.id);
    }
    record.info.name = key;
    record.info.parent = parent;
    record.info.kind = kind;
    record.info.created_at_ns = record.info.updated_at_ns = NowNs();
    std::vector<os::MountSpec> mounts;
    const auto make = [&]() -> absl::Status {
      const Place place = PlaceOf(record);
      if (::mkdir(place.dir.c_str(), 0700) != 0) {
        return os::ErrnoStatus(errno, absl::StrCat("mkdir ", place.dir));
      }
      RETURN_IF_ERROR(driver_->Make(place, below));
      ASSIGN_OR_RETURN(mounts, driver_->Mounts(place, below));
      RETURN_IF_ERROR(os::SyncDir(snapshots_));
      return db_->Put(record);
    };
    const absl::Status status = make();
    std::lock_guard lock(mutex_);
    in_flight_.erase(record.id);
    if (!status.ok()) {
      if (!parent.empty()) DropChild(parent);
      Discard(absl::StrCat(record.id));
      ReleaseUnused(below);
      return status;
    }
    ids_[record.id] = key;
    records_[key] = std::move(record);
    return mounts;
  }

  const TreeSnapshotterOptions options_;
  const std::string snapshots_;
  const std::unique_ptr<Driver> driver_;
  const std::unique_ptr<RecordDb> db_;
  KeyLocks locks_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, Record> records_;  // What is on disk, by key.
  std::map<uint64_t, std::string> ids_;    // Folder number -> key.
  std::map<std::string, int> children_;    // Never zero.
  std::set<uint64_t> in_flight_;           // Being made, committed or removed.
  struct LayerState {
    std::optional<DiskUsage> usage;  // If it is known.
    bool synced = false;
  };
  std::map<uint64_t, LayerState> unpacked_;  // And not touched since.
  uint64_t next_id_ = 1;
  std::deque<std::string> deletions_;
  std::set<std::string> deleting_;
  uint64_t failures_ = 0;
  bool stopping_ = false;
  std::vector<std::thread> deleters_;
};

}  // namespace

const char* KindName(Kind kind) {
  switch (kind) {
    case Kind::kView:
      return "view";
    case Kind::kActive:
      return "active";
    case Kind::kCommitted:
      return "committed";
    case Kind::kUnknown:
      break;
  }
  return "unknown";
}

absl::StatusOr<std::unique_ptr<Snapshotter>> OpenTreeSnapshotter(
    const TreeSnapshotterOptions& options) {
  const DriverOptions driver_options = {options.overlay_mount_options};
  std::unique_ptr<Driver> driver;
  switch (options.driver) {
    case TreeSnapshotterOptions::Driver::kOverlay:
      driver = NewOverlayDriver(driver_options);
      break;
    case TreeSnapshotterOptions::Driver::kNative:
      driver = NewNativeDriver();
      break;
    case TreeSnapshotterOptions::Driver::kBtrfs:
      driver = NewBtrfsDriver();
      break;
    case TreeSnapshotterOptions::Driver::kErofs:
      driver = NewErofsDriver(driver_options);
      break;
  }
  RETURN_IF_ERROR(
      os::MakeDurableDirs(absl::StrCat(options.root, "/snapshots"), 0700));
  RETURN_IF_ERROR(driver->Check(options.root));
  ASSIGN_OR_RETURN(std::unique_ptr<RecordDb> db,
                   RecordDb::Open(absl::StrCat(options.root, "/db")));
  auto snapshotter = std::make_unique<TreeSnapshotter>(
      options, std::move(driver), std::move(db));
  RETURN_IF_ERROR(snapshotter->Load());
  return snapshotter;
}

}  // namespace bulkhead::snapshotter
