#include "lib/rocks/healing_db.h"

#include <rocksdb/env.h>

#include <cstdarg>
#include <cstdio>
#include <map>
#include <utility>

#include "absl/time/clock.h"
#include "lib/log/log.h"
#include "lib/os/durable_dirs.h"
#include "lib/rocks/log_files.h"

namespace bulkhead::rocks {
namespace {

constexpr size_t kLogLineBytesMax = 1024;

// How often this thread uses which database just now.
thread_local std::map<const HealingDb*, int> t_uses;

// The keys that a batch writes or deletes.
class Keys : public rocksdb::WriteBatch::Handler {
 public:
  explicit Keys(std::unordered_map<std::string, std::optional<std::string>>* to)
      : to_(*to) {}
  void Put(const rocksdb::Slice& key, const rocksdb::Slice&) override {
    to_.try_emplace(key.ToString());
  }
  void Delete(const rocksdb::Slice& key) override {
    to_.try_emplace(key.ToString());
  }

 private:
  std::unordered_map<std::string, std::optional<std::string>>& to_;
};

// RocksDB's warnings among our own lines. Its own log file would fail on a full
// disk, and Debian's build ends the process at the next line after that
// (an assertion in WritableFileWriter).
class LogLines : public rocksdb::Logger {
 public:
  LogLines() : rocksdb::Logger(rocksdb::WARN_LEVEL) {}

  void Logv(const char* format, va_list arguments) override {
    char text[kLogLineBytesMax];
    (void)std::vsnprintf(text, sizeof(text), format, arguments);
    log::Warn("rocksdb", {{"says", text}});
  }
  void Logv(const rocksdb::InfoLogLevel level, const char* format,
            va_list arguments) override {
    if (level < GetInfoLogLevel() || level >= rocksdb::HEADER_LEVEL) return;
    Logv(format, arguments);
  }
};

rocksdb::Options With(rocksdb::Env* env, rocksdb::Options options) {
  options.env = env;
  if (options.info_log == nullptr) {
    options.info_log = std::make_shared<LogLines>();
  }
  return options;
}

}  // namespace

HealingDb::HealingDb(rocksdb::Options options, const std::string& path)
    : env_(WithLogsAhead(options.env)),
      options_(With(env_.get(), std::move(options))),
      path_(path) {}

rocksdb::Status HealingDb::Open(const rocksdb::Options& options,
                                const std::string& path,
                                std::unique_ptr<HealingDb>* out) {
  std::unique_ptr<HealingDb> made(new HealingDb(options, path));
  // RocksDB makes the folder, but does not care for its name.
  const absl::Status folder = os::MakeDurableDirs(path, 0700);
  if (!folder.ok()) return rocksdb::Status::IOError(folder.ToString());
  rocksdb::Status status;
  {
    absl::MutexLock lock(&made->mutex_);
    status = made->Reopen();
  }
  if (status.ok()) *out = std::move(made);
  return status;
}

rocksdb::Status HealingDb::Reopen() {
  rocksdb::DB* raw = nullptr;
  const rocksdb::Status status = rocksdb::DB::Open(options_, path_, &raw);
  if (status.ok()) db_.reset(raw);
  return status;
}

rocksdb::Status HealingDb::Acquire(rocksdb::DB** db) {
  const auto nested = t_uses.find(this);
  absl::MutexLock lock(&mutex_);
  if (nested == t_uses.end()) {
    const auto settled = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return !healing_;
    };
    if (!mutex_.AwaitWithTimeout(absl::Condition(&settled), kHealWait)) {
      return broken_;
    }
    // Closed, and could not be opened again.
    if (db_ == nullptr) {
      const rocksdb::Status healed = Heal();
      if (!healed.ok()) return healed;
    }
  }
  ++users_;
  ++t_uses[this];
  *db = db_.get();
  return rocksdb::Status::OK();
}

void HealingDb::Release() {
  absl::MutexLock lock(&mutex_);
  --users_;
  const auto own = t_uses.find(this);
  if (--own->second == 0) t_uses.erase(own);
}

HealingDb::Use::Use(HealingDb& db) : owner_(db), status_(db.Acquire(&db_)) {}

HealingDb::Use::~Use() {
  if (db_ != nullptr) owner_.Release();
}

HealingDb::Snapshot::Snapshot(HealingDb& db) : owner_(db) {
  const Use use(db);
  if (!use.status().ok()) return;
  absl::MutexLock lock(&owner_.mutex_);
  ++owner_.users_;  // Of no thread: it may die in another one.
  db_ = use.get();
  snapshot_ = db_->GetSnapshot();
}

HealingDb::Snapshot::~Snapshot() {
  if (db_ == nullptr) return;
  db_->ReleaseSnapshot(snapshot_);
  absl::MutexLock lock(&owner_.mutex_);
  --owner_.users_;
}

void HealingDb::RememberUndo(rocksdb::DB* db,
                             const rocksdb::WriteBatch& batch) {
  std::unordered_map<std::string, std::optional<std::string>> undo;
  Keys keys(&undo);
  (void)batch.Iterate(&keys);  // Our own batches are well formed.
  for (auto it = undo.begin(); it != undo.end();) {
    std::string value;
    // What failed never got as far as to be seen.
    const rocksdb::Status found =
        db->Get(rocksdb::ReadOptions(), it->first, &value);
    if (found.ok()) it->second = std::move(value);
    it = found.ok() || found.IsNotFound() ? std::next(it) : undo.erase(it);
  }
  absl::MutexLock lock(&mutex_);
  // An older entry is from before anything failed.
  for (auto& [key, value] : undo) undo_.try_emplace(key, std::move(value));
}

rocksdb::Status HealingDb::Write(const rocksdb::WriteOptions& options,
                                 rocksdb::WriteBatch* batch) {
  {
    absl::MutexLock lock(&mutex_);
    if (!broken_.ok()) {
      const rocksdb::Status healed = Heal();
      if (!healed.ok()) return healed;
    }
  }
  const Use db(*this);
  if (!db.status().ok()) return db.status();
  {
    // Another writer may have failed since.
    absl::MutexLock lock(&mutex_);
    if (!broken_.ok()) return broken_;
  }
  const rocksdb::Status status = db->Write(options, batch);
  if (status.ok() || status.IsInvalidArgument() || status.IsNotSupported()) {
    return status;
  }
  RememberUndo(db.get(), *batch);
  absl::MutexLock lock(&mutex_);
  if (broken_.ok()) {
    broken_ = status;
    heal_after_ = absl::Now() + kHealInterval;
    log::Error("database takes no more writes for now",
               {{"path", path_}, {"error", status.ToString()}});
  }
  return status;
}

rocksdb::Status HealingDb::Probe() const {
  rocksdb::Env* const env = options_.env;
  const std::string path = path_ + "/PROBE";
  std::unique_ptr<rocksdb::WritableFile> file;
  rocksdb::Status status = env->NewWritableFile(path, &file, {});
  // As much as the first write will need.
  if (status.ok()) status = file->Append(std::string(64 << 10, 'x'));
  if (status.ok()) status = file->Sync();
  if (status.ok()) status = file->Close();
  file.reset();
  const rocksdb::Status removed = env->DeleteFile(path);
  return status.ok() ? removed : status;
}

rocksdb::Status HealingDb::Heal() {
  const auto settled = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return !healing_;
  };
  mutex_.Await(absl::Condition(&settled));
  if (broken_.ok()) return broken_;  // Somebody else healed it.
  // A thread that uses the database would wait for itself.
  if (t_uses.count(this) > 0 || absl::Now() < heal_after_) return broken_;
  healing_ = true;
  mutex_.Unlock();
  rocksdb::Status status = Probe();
  mutex_.Lock();
  if (status.ok()) {
    const auto unused = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return users_ == 0;
    };
    if (mutex_.AwaitWithTimeout(absl::Condition(&unused), kHealWait)) {
      db_.reset();
      status = Reopen();
      if (status.ok() && !undo_.empty()) {
        rocksdb::WriteBatch undo;
        for (const auto& [key, value] : undo_) {
          (void)(value.has_value() ? undo.Put(key, *value) : undo.Delete(key));
        }
        rocksdb::WriteOptions synced;
        synced.sync = true;
        status = db_->Write(synced, &undo);
      }
    } else {
      status = rocksdb::Status::Busy("in use");
    }
  }
  healing_ = false;
  heal_after_ = absl::Now() + kHealInterval;
  if (!status.ok()) {
    log::Debug("database not healed yet",
               {{"path", path_}, {"error", status.ToString()}});
    return broken_;
  }
  undo_.clear();
  broken_ = rocksdb::Status::OK();
  log::Info("database takes writes again", {{"path", path_}});
  return broken_;
}

}  // namespace bulkhead::rocks
