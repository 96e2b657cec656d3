// A RocksDB database that gets well again by itself. RocksDB refuses every
// write after one has failed (a full or read-only disk, no descriptors left),
// until it is opened again; and what the failed write left in its log may come
// back then, or hide what is written after it. Here the next write after a
// failure looks whether the disk takes writes again, and if so reopens the
// database and takes back what had failed.
//
//   HealingDb::Use db(*healing);           // Keeps it open meanwhile.
//   if (!db.status().ok()) return db.status();
//   db->Get(...);
//
// Its logs are written into zeros (log_files.h).
//
// Thread-safe. Reads go on while writes fail.
#ifndef BULKHEAD_LIB_ROCKS_HEALING_DB_H_
#define BULKHEAD_LIB_ROCKS_HEALING_DB_H_

#include <rocksdb/db.h>
#include <rocksdb/options.h>
#include <rocksdb/status.h>
#include <rocksdb/write_batch.h>

#include <memory>
#include <optional>
#include <string>
#include <unordered_map>

#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace bulkhead::rocks {

// Between two looks at a disk that does not take writes.
constexpr absl::Duration kHealInterval = absl::Milliseconds(20);
// How long a healing write waits for readers to let go of the database, and
// they for it.
constexpr absl::Duration kHealWait = absl::Seconds(2);

class HealingDb {
 public:
  // RocksDB's errors, as rocksdb::DB::Open(). Its warnings go to lib/log unless
  // `options` has an info_log.
  static rocksdb::Status Open(const rocksdb::Options& options,
                              const std::string& path,
                              std::unique_ptr<HealingDb>* out);

  // Keeps the database open. One in the same thread as another gets the same
  // database at once; it must not outlive that one.
  class Use {
   public:
    explicit Use(HealingDb& db);
    ~Use();
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;

    // Not OK: the database cannot be opened again (yet).
    const rocksdb::Status& status() const { return status_; }
    rocksdb::DB* operator->() const { return db_; }
    rocksdb::DB* get() const { return db_; }

   private:
    HealingDb& owner_;
    rocksdb::DB* db_ = nullptr;
    rocksdb::Status status_;
  };

  // A snapshot of the database. While it lives, healing waits.
  class Snapshot {
   public:
    explicit Snapshot(HealingDb& db);
    ~Snapshot();
    Snapshot(const Snapshot&) = delete;
    Snapshot& operator=(const Snapshot&) = delete;
    // Null: status() of a Use would not be OK.
    const rocksdb::Snapshot* get() const { return snapshot_; }

   private:
    HealingDb& owner_;
    rocksdb::DB* db_ = nullptr;
    const rocksdb::Snapshot* snapshot_ = nullptr;
  };

  // Atomic. On an error nothing of the batch is visible, now or later (unless
  // the process dies before the database is well again). While the database is
  // not well, the error of the first failure comes back.
  rocksdb::Status Write(const rocksdb::WriteOptions& options,
                        rocksdb::WriteBatch* batch);

 private:
  HealingDb(rocksdb::Options options, const std::string& path);

  rocksdb::Status Acquire(rocksdb::DB** db);
  void Release();
  // The failed batch's keys and what they have now.
  void RememberUndo(rocksdb::DB* db, const rocksdb::WriteBatch& batch);
  // With mutex_. OK: the database takes writes again.
  rocksdb::Status Heal() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  rocksdb::Status Probe() const;
  rocksdb::Status Reopen() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::unique_ptr<rocksdb::Env> env_;  // What options_ has.
  const rocksdb::Options options_;
  const std::string path_;

  absl::Mutex mutex_;
  std::unique_ptr<rocksdb::DB> db_ ABSL_GUARDED_BY(mutex_);
  int users_ ABSL_GUARDED_BY(mutex_) = 0;
  bool healing_ ABSL_GUARDED_BY(mutex_) = false;
  rocksdb::Status broken_ ABSL_GUARDED_BY(mutex_);
  absl::Time heal_after_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
  std::unordered_map<std::string, std::optional<std::string>> undo_
      ABSL_GUARDED_BY(mutex_);
};

}  // namespace bulkhead::rocks

#endif  // BULKHEAD_LIB_ROCKS_HEALING_DB_H_
