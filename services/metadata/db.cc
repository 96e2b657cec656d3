#include "services/metadata/db.h"

#include <rocksdb/cache.h>
#include <rocksdb/db.h>
#include <rocksdb/filter_policy.h>
#include <rocksdb/options.h>
#include <rocksdb/table.h>
#include <rocksdb/utilities/checkpoint.h>
#include <rocksdb/write_batch.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/os/fd.h"
#include "lib/rocks/healing_db.h"
#include "services/metadata/schema.h"

namespace bulkhead::metadata {
namespace {

constexpr size_t kBlockCacheBytes = 4 << 20;
constexpr int kOpenFilesMax = 64;
constexpr size_t kWalBytesMax = 16 << 20;
// Of a table being written: else its bytes go out all at once, and the journal
// holds up every sync of the log meanwhile (measured: 90 ms, so 25).
constexpr uint64_t kTableSyncBytes = 256 << 10;

absl::Status FromRocks(const rocksdb::Status& status, const char* what) {
  if (status.ok()) return absl::OkStatus();
  const std::string text =
      absl::StrCat("metadata database: ", what, ": ", status.ToString());
  if (status.IsNoSpace()) return absl::ResourceExhaustedError(text);
  if (status.IsCorruption()) {
    return absl::DataLossError(
        absl::StrCat(text,
                     " (stop the suite and run `bulkhead fsck --repair "
                     "--root ROOT`, or restore a backup)"));
  }
  return absl::InternalError(text);
}

rocksdb::Slice ToSlice(std::string_view text) {
  return rocksdb::Slice(text.data(), text.size());
}

// The first key behind all that begin with `prefix`; empty: there is none.
std::string EndOf(std::string prefix) {
  while (!prefix.empty() && prefix.back() == '\xff') prefix.pop_back();
  if (!prefix.empty()) ++prefix.back();
  return prefix;
}

class RocksView : public Db::View {
 public:
  explicit RocksView(rocks::HealingDb& db) : snapshot_(db) {}
  const rocksdb::Snapshot* snapshot() const { return snapshot_.get(); }

 private:
  const rocks::HealingDb::Snapshot snapshot_;
};

// kUnavailable: there was no database when the view was taken.
absl::StatusOr<rocksdb::ReadOptions> Read(const Db::View* view) {
  rocksdb::ReadOptions options;
  if (view == nullptr) return options;
  options.snapshot = static_cast<const RocksView*>(view)->snapshot();
  if (options.snapshot == nullptr) {
    return absl::UnavailableError("metadata database: it is being reopened");
  }
  return options;
}

class RocksDb : public Db {
 public:
  explicit RocksDb(std::unique_ptr<rocks::HealingDb> db) : db_(std::move(db)) {}

  absl::StatusOr<std::optional<std::string>> Get(
      const std::string& key, const View* view) const override {
    const rocks::HealingDb::Use db(*db_);
    RETURN_IF_ERROR(FromRocks(db.status(), "read"));
    ASSIGN_OR_RETURN(const rocksdb::ReadOptions options, Read(view));
    std::string value;
    const rocksdb::Status status = db->Get(options, key, &value);
    if (status.IsNotFound()) return std::optional<std::string>();
    RETURN_IF_ERROR(FromRocks(status, "read"));
    return std::optional<std::string>(std::move(value));
  }

  absl::Status Scan(const std::string& prefix, const Visitor& visitor,
                    const View* view, const std::string& from) const override {
    const rocks::HealingDb::Use db(*db_);
    RETURN_IF_ERROR(FromRocks(db.status(), "scan"));
    ASSIGN_OR_RETURN(rocksdb::ReadOptions options, Read(view));
    // Whoever walks through a view reads all of a kind: the small cache is for
    // those who ask for single records.
    options.fill_cache = view == nullptr;
    // Without the bound, a search that finds nothing goes on through all that
    // was deleted behind the prefix.
    const std::string end = EndOf(prefix);
    const rocksdb::Slice bound = ToSlice(end);
    if (!end.empty()) options.iterate_upper_bound = &bound;
    std::unique_ptr<rocksdb::Iterator> it(db->NewIterator(options));
    for (it->Seek(from.empty() ? prefix : from); it->Valid(); it->Next()) {
      if (!it->key().starts_with(prefix)) break;
      if (!visitor({it->key().data(), it->key().size()},
                   {it->value().data(), it->value().size()})) {
        break;
      }
    }
    return FromRocks(it->status(), "scan");
  }

  absl::Status Write(const Batch& batch, bool sync) override {
    rocksdb::WriteBatch writes;
    for (const auto& [key, value] : batch.changes) {
      const rocksdb::Status status =
          value.has_value() ? writes.Put(ToSlice(key), ToSlice(*value))
                            : writes.Delete(ToSlice(key));
      RETURN_IF_ERROR(FromRocks(status, "batch"));
    }
    rocksdb::WriteOptions options;
    options.sync = sync;
    return FromRocks(db_->Write(options, &writes), "write");
  }

  std::unique_ptr<View> TakeView() const override {
    return std::make_unique<RocksView>(*db_);
  }

  absl::StatusOr<std::optional<std::string>> LastKey(
      const std::string& prefix) const override {
    const rocks::HealingDb::Use db(*db_);
    RETURN_IF_ERROR(FromRocks(db.status(), "seek"));
    std::unique_ptr<rocksdb::Iterator> it(db->NewIterator({}));
    // Components are below this byte wherever this is asked.
    it->SeekForPrev(prefix + "\x7f");
    RETURN_IF_ERROR(FromRocks(it->status(), "seek"));
    if (!it->Valid() || !it->key().starts_with(prefix)) {
      return std::optional<std::string>();
    }
    return std::optional<std::string>(it->key().ToString());
  }

  absl::Status Checkpoint(const std::string& path) override {
    const rocks::HealingDb::Use db(*db_);
    RETURN_IF_ERROR(FromRocks(db.status(), "checkpoint"));
    rocksdb::Checkpoint* raw = nullptr;
    RETURN_IF_ERROR(
        FromRocks(rocksdb::Checkpoint::Create(db.get(), &raw), "checkpoint"));
    const std::unique_ptr<rocksdb::Checkpoint> checkpoint(raw);
    // RocksDB makes folders that anybody may enter.
    std::string around = path + ".XXXXXX";
    if (::mkdtemp(around.data()) == nullptr) {
      return os::ErrnoStatus(errno, absl::StrCat("mkdtemp ", around));
    }
    const std::string made = around + "/db";
    absl::Status status =
        FromRocks(checkpoint->CreateCheckpoint(made), "checkpoint");
    if (status.ok() && ::chmod(made.c_str(), 0700) != 0) {
      status = os::ErrnoStatus(errno, absl::StrCat("chmod ", made));
    }
    if (status.ok() && ::rename(made.c_str(), path.c_str()) != 0) {
      status = os::ErrnoStatus(errno, absl::StrCat("rename ", made));
    }
    std::error_code ignored;  // What is left is empty, or in the way of none.
    std::filesystem::remove_all(around, ignored);
    RETURN_IF_ERROR(status);
    return os::SyncDir(std::filesystem::path(path).parent_path().string());
  }

 private:
  const std::unique_ptr<rocks::HealingDb> db_;
};

rocksdb::Options MakeOptions() {
  rocksdb::Options options;
  options.create_if_missing = true;
  // More than one waits to be written while a collection runs.
  options.max_write_buffer_number = 4;
  // Whoever waits for the writer of its group sleeps: spinning takes the
  // processor from that one.
  options.enable_write_thread_adaptive_yield = false;
  options.max_open_files = kOpenFilesMax;
  options.max_total_wal_size = kWalBytesMax;
  options.max_background_jobs = 1;
  options.keep_log_file_num = 2;
  options.max_log_file_size = 1 << 20;
  options.recycle_log_file_num = 0;
  options.bytes_per_sync = kTableSyncBytes;
  options.info_log_level = rocksdb::WARN_LEVEL;
  options.stats_dump_period_sec = 0;
  options.stats_persist_period_sec = 0;
  options.compression = rocksdb::kLZ4Compression;
  options.wal_recovery_mode = rocksdb::WALRecoveryMode::kPointInTimeRecovery;
  rocksdb::BlockBasedTableOptions table;
  table.block_cache = rocksdb::NewLRUCache(kBlockCacheBytes, 2);
  // Index and filters in pieces: with records of 8 KiB the index of one table
  // is as large as a shard of the cache, and would be read again for each Get.
  table.cache_index_and_filter_blocks = true;
  table.index_type = rocksdb::BlockBasedTableOptions::kTwoLevelIndexSearch;
  table.partition_filters = true;
  table.enable_index_compression = false;
  table.filter_policy.reset(rocksdb::NewBloomFilterPolicy(10));
  options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  return options;
}

// Brings `db` to the version that `options` name.
absl::Status Migrate(RocksDb& db, const std::string& path,
                     const DbOptions& options) {
  const std::string key = Key(kind::kVersion, {});
  ASSIGN_OR_RETURN(std::optional<std::string> text, db.Get(key, nullptr));
  int version = options.schema_version;
  if (!text.has_value()) {
    Batch batch;
    batch.Put(key, std::to_string(version));
    return db.Write(batch, true);
  }
  if (!absl::SimpleAtoi(*text, &version) || version <= 0) {
    return absl::DataLossError(absl::StrCat(
        "metadata database '", path,
        "' has no readable schema version; restore a backup with `bulkhead "
        "restore DIR --root ROOT`"));
  }
  if (version > options.schema_version) {
    return absl::FailedPreconditionError(absl::StrCat(
        "metadata database '", path, "' has schema version ", version,
        "; this program knows versions up to ", options.schema_version,
        ": start the newer Bulkhead that wrote it, or restore a backup made "
        "before the upgrade"));
  }
  for (; version < options.schema_version; ++version) {
    const Migration* step = nullptr;
    for (const Migration& migration : options.migrations) {
      if (migration.from == version) step = &migration;
    }
    if (step == nullptr) {
      return absl::FailedPreconditionError(absl::StrCat(
          "metadata database '", path, "' has schema version ", version,
          ", which this program can no longer read: upgrade in smaller steps"));
    }
    Batch batch;
    RETURN_IF_ERROR(step->run(db, &batch));
    batch.Put(key, std::to_string(version + 1));
    RETURN_IF_ERROR(db.Write(batch, true));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Db>> Db::Open(const std::string& path,
                                             const DbOptions& options) {
  rocksdb::Options rocks_options = MakeOptions();
  rocks_options.write_buffer_size = options.write_buffer_bytes;
  if (options.env != nullptr) rocks_options.env = options.env;
  std::unique_ptr<rocks::HealingDb> healing;
  const rocksdb::Status opened =
      rocks::HealingDb::Open(rocks_options, path, &healing);
  if (opened.IsCorruption() || opened.IsNotFound() ||
      opened.IsInvalidArgument()) {
    return absl::DataLossError(absl::StrCat(
        "metadata database '", path, "' does not open: ", opened.ToString(),
        "; with the suite stopped, `bulkhead fsck --repair --root ROOT` "
        "salvages what can be read, `bulkhead restore DIR --root ROOT` puts "
        "back a backup"));
  }
  RETURN_IF_ERROR(FromRocks(opened, "open"));
  auto db = std::make_unique<RocksDb>(std::move(healing));
  RETURN_IF_ERROR(Migrate(*db, path, options));
  return std::unique_ptr<Db>(std::move(db));
}

absl::Status Db::Repair(const std::string& path) {
  rocksdb::Options options = MakeOptions();
  options.write_buffer_size = DbOptions().write_buffer_bytes;
  options.create_if_missing = false;
  options.wal_recovery_mode =
      rocksdb::WALRecoveryMode::kSkipAnyCorruptedRecords;
  return FromRocks(rocksdb::RepairDB(path, options), "repair");
}

}  // namespace bulkhead::metadata
