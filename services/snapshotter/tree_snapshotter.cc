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
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "lib/base/status_macros.h"
#include "lib/log/log.h"
#include "lib/os/fd.h"
#include "services/snapshotter/record_db.h"
#include "services/snapshotter/tree_ops.h"
#include "services/snapshotter/tree_root.h"

namespace bulkhead::snapshotter {
namespace {

constexpr char kUidMapping[] = "containerd.io/snapshot/uidmapping";
constexpr char kGidMapping[] = "containerd.io/snapshot/gidmapping";
constexpr size_t kImplicitFileBytesMax = 64 << 20;
constexpr char kRemovedPrefix[] = "rm-";

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

// The host id of the container's root in "ctr:host:size[,...]".
std::optional<uint32_t> MappedRoot(const std::string& mapping) {
  for (absl::string_view part : absl::StrSplit(mapping, ',')) {
    const std::vector<std::string> fields = absl::StrSplit(part, ':');
    uint32_t inside = 0;
    uint32_t outside = 0;
    uint32_t size = 0;
    if (fields.size() != 3 || !absl::SimpleAtoi(fields[0], &inside) ||
        !absl::SimpleAtoi(fields[1], &outside) ||
        !absl::SimpleAtoi(fields[2], &size)) {
      return std::nullopt;
    }
    if (inside == 0 && size > 0) return outside;
  }
  return std::nullopt;
}

class TreeSnapshotter : public Snapshotter {
 public:
  TreeSnapshotter(const TreeSnapshotterOptions& options,
                  std::unique_ptr<RecordDb> db)
      : options_(options),
        snapshots_(absl::StrCat(options.root, "/snapshots")),
        db_(std::move(db)) {
    struct stat st;
    index_off_ = ::stat("/sys/module/overlay/parameters/index", &st) == 0 &&
                 std::none_of(options.overlay_mount_options.begin(),
                              options.overlay_mount_options.end(),
                              [](const std::string& option) {
                                return absl::StartsWith(option, "index=");
                              });
  }

  ~TreeSnapshotter() override {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
      changed_.notify_all();
    }
    if (deleter_.joinable()) deleter_.join();
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
    deleter_ = std::thread([this] { DeleteLoop(); });
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
    std::lock_guard lock(mutex_);
    ASSIGN_OR_RETURN(const Record* record, Find(key));
    if (record->info.kind == Kind::kCommitted) {
      return absl::FailedPreconditionError(
          absl::StrCat("requested snapshot ", key, " not active or view"));
    }
    // Whoever asks may write: what was synced may be so no more.
    synced_.erase(record->id);
    return MountsOf(*record);
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
    std::vector<std::string> parent_trees;
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
        if (options_.driver != TreeSnapshotterOptions::Driver::kOverlay) {
          return absl::UnimplementedError(absl::StrCat(
              "snapshotter ", options_.name, " cannot rebase on commit"));
        }
        ASSIGN_OR_RETURN(const Record* base, FindParent(parent));
        parent_trees = Chain(base);
        rebase = true;
        ++children_[parent];
      }
      synced = synced_.contains(record.id);
    }
    absl::Status status;
    const std::string dir = Dir(record.id);
    if (rebase) {
      absl::StatusOr<bool> changed = FillImplicit(dir, parent_trees);
      status = changed.status();
      if (changed.ok() && *changed) synced = false;
    }
    if (status.ok() && !synced) status = SyncTree(dir);
    if (status.ok()) {
      absl::StatusOr<DiskUsage> usage = UsageOfTree(dir + "/fs");
      status = usage.status();
      if (usage.ok()) record.usage = *usage;
    }
    record.info.name = name;
    record.info.kind = Kind::kCommitted;
    record.info.labels = clean;
    if (rebase) record.info.parent = parent;
    record.info.created_at_ns = record.info.updated_at_ns = NowNs();
    if (status.ok()) status = db_->Put(record, key);
    std::lock_guard lock(mutex_);
    if (!status.ok()) {
      if (rebase) DropChild(parent);
      return status;
    }
    synced_.erase(record.id);
    records_.erase(key);
    ids_[record.id] = name;
    records_[name] = std::move(record);
    // Of use to nobody now; a crash here leaves two small harmless entries.
    ::unlink((dir + "/implicit").c_str());
    return absl::OkStatus();
  }

  absl::Status Remove(const std::string& key) override {
    const KeyLocks::Hold hold(locks_, {key});
    Record record;
    {
      std::lock_guard lock(mutex_);
      ASSIGN_OR_RETURN(const Record* found, Find(key));
      if (children_.contains(key)) {
        return absl::FailedPreconditionError(
            "cannot remove snapshot with child");
      }
      record = *found;
      records_.erase(key);
      in_flight_.insert(record.id);
      ids_.erase(record.id);
    }
    const absl::Status status = db_->Delete(key);
    std::lock_guard lock(mutex_);
    in_flight_.erase(record.id);
    if (!status.ok()) {
      ids_[record.id] = key;
      records_[key] = std::move(record);
      return status;
    }
    if (!record.info.parent.empty()) DropChild(record.info.parent);
    synced_.erase(record.id);
    Discard(absl::StrCat(record.id));
    return absl::OkStatus();
  }

  absl::StatusOr<SnapshotInfo> Stat(const std::string& key) override {
    const KeyLocks::Hold hold(locks_, {key});
    std::lock_guard lock(mutex_);
    ASSIGN_OR_RETURN(const Record* record, Find(key));
    return record->info;
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
    return record.info;
  }

  absl::Status Walk(
      const std::function<absl::Status(const SnapshotInfo&)>& visit) override {
    std::vector<SnapshotInfo> all;
    {
      std::lock_guard lock(mutex_);
      all.reserve(records_.size());
      for (const auto& [key, record] : records_) all.push_back(record.info);
    }
    for (const SnapshotInfo& info : all) RETURN_IF_ERROR(visit(info));
    return absl::OkStatus();
  }

  absl::StatusOr<DiskUsage> Usage(const std::string& key) override {
    std::string tree;
    {
      const KeyLocks::Hold hold(locks_, {key});
      std::lock_guard lock(mutex_);
      ASSIGN_OR_RETURN(const Record* record, Find(key));
      if (record->info.kind == Kind::kCommitted) return record->usage;
      if (record->info.kind == Kind::kView) return DiskUsage{};
      tree = Tree(record->id);
    }
    return UsageOfTree(tree);
  }

  absl::Status Cleanup() override {
    ASSIGN_OR_RETURN(const std::vector<std::string> names, Folders());
    std::unique_lock lock(mutex_);
    for (const std::string& name : names) {
      uint64_t id = 0;
      const bool numbered = absl::SimpleAtoi(name, &id);
      if (numbered && (ids_.contains(id) || in_flight_.contains(id))) continue;
      if (absl::StartsWith(name, kRemovedPrefix) &&
          (deleting_ == name || std::find(deletions_.begin(), deletions_.end(),
                                          name) != deletions_.end())) {
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

  absl::Status NoteUnpacked(
      const std::string& tree,
      const std::vector<std::string>& implicit_dirs) override {
    const std::string prefix = absl::StrCat(snapshots_, "/");
    uint64_t id = 0;
    if (!absl::StartsWith(tree, prefix) || !absl::EndsWith(tree, "/fs") ||
        !absl::SimpleAtoi(
            tree.substr(prefix.size(), tree.size() - prefix.size() - 3), &id)) {
      return absl::OkStatus();
    }
    if (!implicit_dirs.empty()) {
      std::string text;
      for (const std::string& dir : implicit_dirs) {
        text.append(dir).push_back('\0');
      }
      ASSIGN_OR_RETURN(os::UniqueFd fd,
                       os::Open(absl::StrCat(Dir(id), "/implicit"),
                                O_WRONLY | O_CREAT | O_TRUNC, 0600));
      RETURN_IF_ERROR(os::WriteFull(fd.get(), text.data(), text.size()));
    }
    std::lock_guard lock(mutex_);
    if (ids_.contains(id)) synced_.insert(id);
    return absl::OkStatus();
  }

 private:
  using Driver = TreeSnapshotterOptions::Driver;

  std::string Dir(uint64_t id) const {
    return absl::StrCat(snapshots_, "/", id);
  }
  std::string Tree(uint64_t id) const { return absl::StrCat(Dir(id), "/fs"); }

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

  // The trees of `record` and what is below it, nearest first.
  std::vector<std::string> Chain(const Record* record) const {
    std::vector<std::string> trees;
    while (record != nullptr) {
      trees.push_back(Tree(record->id));
      const auto it = records_.find(record->info.parent);
      record = it == records_.end() ? nullptr : &it->second;
    }
    return trees;
  }

  void DropChild(const std::string& parent) {
    const auto it = children_.find(parent);
    if (it != children_.end() && --it->second == 0) children_.erase(it);
  }

  std::vector<os::MountSpec> MountsOf(const Record& record) const {
    std::vector<std::string> lowers;
    if (const auto it = records_.find(record.info.parent);
        it != records_.end()) {
      lowers = Chain(&it->second);
    }
    const bool view = record.info.kind == Kind::kView;
    os::MountSpec mount;
    if (options_.driver == Driver::kNative) {
      mount.type = "bind";
      mount.source = view && !lowers.empty() ? lowers[0] : Tree(record.id);
      mount.options = {"rbind", view ? "ro" : "rw"};
      return {mount};
    }
    const auto uid = record.info.labels.find(kUidMapping);
    const auto gid = record.info.labels.find(kGidMapping);
    if (uid != record.info.labels.end() && gid != record.info.labels.end()) {
      mount.options.push_back("uidmap=" + uid->second);
      mount.options.push_back("gidmap=" + gid->second);
    }
    if (lowers.empty() || (view && lowers.size() == 1)) {
      mount.type = "bind";
      mount.source = lowers.empty() ? Tree(record.id) : lowers[0];
      mount.options.push_back(view ? "ro" : "rw");
      mount.options.push_back("rbind");
      return {mount};
    }
    mount.type = "overlay";
    mount.source = "overlay";
    if (!view) {
      mount.options.push_back(
          absl::StrCat("workdir=", Dir(record.id), "/work"));
      mount.options.push_back(absl::StrCat("upperdir=", Tree(record.id)));
    }
    mount.options.push_back(
        absl::StrCat("lowerdir=", absl::StrJoin(lowers, ":")));
    mount.options.insert(mount.options.end(),
                         options_.overlay_mount_options.begin(),
                         options_.overlay_mount_options.end());
    if (index_off_) mount.options.push_back("index=off");
    return {mount};
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

  // Without mutex_: the deleting thread.
  void DeleteLoop() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return stopping_ || !deletions_.empty(); });
      if (stopping_) return;  // The rest goes at the next start.
      deleting_ = deletions_.front();
      deletions_.pop_front();
      const std::string path = absl::StrCat(snapshots_, "/", deleting_);
      lock.unlock();
      const absl::Status status = os::RemoveAll(path);
      if (!status.ok()) {
        log::Warn("snapshot folder not deleted",
                  {{"path", path}, {"error", MessageOf(status)}});
      }
      lock.lock();
      if (!status.ok()) ++failures_;
      deleting_.clear();
      changed_.notify_all();
    }
  }

  // Without mutex_.
  absl::Status MakeFolder(const Record& record,
                          const std::vector<std::string>& lowers) {
    const std::string dir = Dir(record.id);
    const std::string fs = Tree(record.id);
    const bool active = record.info.kind == Kind::kActive;
    if (::mkdir(dir.c_str(), 0700) != 0 || ::mkdir(fs.c_str(), 0755) != 0) {
      return os::ErrnoStatus(errno, absl::StrCat("mkdir below ", dir));
    }
    if (::chmod(fs.c_str(), 0755) != 0) return os::ErrnoStatus(errno, fs);
    if (options_.driver == Driver::kNative) {
      if (active && !lowers.empty()) {
        RETURN_IF_ERROR(CopyTree(lowers[0], fs));
      }
    } else {
      if (active) {
        const std::string work = absl::StrCat(dir, "/work");
        if (::mkdir(work.c_str(), 0711) != 0 ||
            ::chmod(work.c_str(), 0711) != 0) {
          return os::ErrnoStatus(errno, work);
        }
      }
      RETURN_IF_ERROR(SetOwner(record, fs, lowers));
    }
    return os::SyncDir(snapshots_);
  }

  // Without mutex_. The tree belongs to the mapped root, or to whom the
  // nearest parent's belongs.
  absl::Status SetOwner(const Record& record, const std::string& fs,
                        const std::vector<std::string>& lowers) {
    const Labels& labels = record.info.labels;
    const auto uid_label = labels.find(kUidMapping);
    const auto gid_label = labels.find(kGidMapping);
    uid_t uid = 0;
    gid_t gid = 0;
    if (uid_label != labels.end() && gid_label != labels.end()) {
      const std::optional<uint32_t> mapped_uid = MappedRoot(uid_label->second);
      const std::optional<uint32_t> mapped_gid = MappedRoot(gid_label->second);
      if (!mapped_uid || !mapped_gid) {
        return absl::InvalidArgumentError(absl::StrCat(
            "no container root in uid mapping \"", uid_label->second,
            "\", gid mapping \"", gid_label->second, "\""));
      }
      uid = *mapped_uid;
      gid = *mapped_gid;
    } else if (!lowers.empty()) {
      struct stat st;
      if (::stat(lowers[0].c_str(), &st) != 0) {
        return os::ErrnoStatus(errno, lowers[0]);
      }
      uid = st.st_uid;
      gid = st.st_gid;
    }
    if ((uid != 0 || gid != 0) && ::lchown(fs.c_str(), uid, gid) != 0) {
      return os::ErrnoStatus(errno, absl::StrCat("chown ", fs));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<os::MountSpec>> Create(Kind kind,
                                                    const std::string& key,
                                                    const std::string& parent,
                                                    const Labels& labels) {
    RETURN_IF_ERROR(CheckKey(key, "snapshot key"));
    Record record;
    ASSIGN_OR_RETURN(record.info.labels, CleanLabels(labels));
    const KeyLocks::Hold hold(locks_, {key});
    std::vector<std::string> lowers;
    {
      std::lock_guard lock(mutex_);
      if (!parent.empty()) {
        ASSIGN_OR_RETURN(const Record* base, FindParent(parent));
        lowers = Chain(base);
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
    absl::Status status = MakeFolder(record, lowers);
    if (status.ok()) status = db_->Put(record);
    std::lock_guard lock(mutex_);
    in_flight_.erase(record.id);
    if (!status.ok()) {
      if (!parent.empty()) DropChild(parent);
      Discard(absl::StrCat(record.id));
      return status;
    }
    ids_[record.id] = key;
    std::vector<os::MountSpec> mounts = MountsOf(record);
    records_[key] = std::move(record);
    return mounts;
  }

  // Without mutex_. Gives directories that a layer made without knowing its
  // parent the attributes they have there. True if there were any.
  absl::StatusOr<bool> FillImplicit(const std::string& dir,
                                    const std::vector<std::string>& lowers) {
    absl::StatusOr<std::string> text =
        os::ReadFile(dir + "/implicit", kImplicitFileBytesMax);
    if (absl::IsNotFound(text.status())) return false;
    RETURN_IF_ERROR(text.status());
    ASSIGN_OR_RETURN(os::UniqueFd tree,
                     os::Open(dir + "/fs", O_RDONLY | O_DIRECTORY));
    std::vector<os::UniqueFd> below;
    for (const std::string& lower : lowers) {
      ASSIGN_OR_RETURN(os::UniqueFd fd, os::Open(lower, O_PATH | O_DIRECTORY));
      below.push_back(std::move(fd));
    }
    for (absl::string_view part : absl::StrSplit(*text, '\0')) {
      const std::string path(part.data(), part.size());
      if (path.empty()) continue;
      absl::StatusOr<os::UniqueFd> to =
          os::OpenInRoot(tree.get(), path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
      if (!to.ok()) continue;  // Replaced further on in the layer.
      for (const os::UniqueFd& fd : below) {
        absl::StatusOr<os::UniqueFd> from =
            os::OpenInRoot(fd.get(), path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
        if (absl::IsNotFound(from.status())) continue;
        // Anything but a directory hides what is further below.
        if (from.ok()) {
          RETURN_IF_ERROR(CopyDirAttributes(from->get(), to->get()));
        }
        break;
      }
    }
    return true;
  }

  // Without mutex_.
  absl::Status SyncTree(const std::string& dir) {
    ASSIGN_OR_RETURN(os::UniqueFd fd, os::Open(dir, O_RDONLY | O_DIRECTORY));
    if (::syncfs(fd.get()) != 0) return os::ErrnoStatus(errno, "syncfs");
    return absl::OkStatus();
  }

  const TreeSnapshotterOptions options_;
  const std::string snapshots_;
  const std::unique_ptr<RecordDb> db_;
  bool index_off_ = false;
  KeyLocks locks_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, Record> records_;  // What is on disk, by key.
  std::map<uint64_t, std::string> ids_;    // Folder number -> key.
  std::map<std::string, int> children_;    // Never zero.
  std::set<uint64_t> in_flight_;           // Being made or removed.
  std::set<uint64_t> synced_;              // Unpacked, synced, not touched.
  uint64_t next_id_ = 1;
  std::deque<std::string> deletions_;
  std::string deleting_;
  uint64_t failures_ = 0;
  bool stopping_ = false;
  std::thread deleter_;
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
  RETURN_IF_ERROR(os::MakeDirs(absl::StrCat(options.root, "/snapshots"), 0700));
  ASSIGN_OR_RETURN(std::unique_ptr<RecordDb> db,
                   RecordDb::Open(absl::StrCat(options.root, "/db")));
  auto snapshotter = std::make_unique<TreeSnapshotter>(options, std::move(db));
  RETURN_IF_ERROR(snapshotter->Load());
  return snapshotter;
}

}  // namespace bulkhead::snapshotter
