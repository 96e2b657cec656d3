#include "services/snapshotter/record_db.h"

#include <rocksdb/cache.h>
#include <rocksdb/db.h>
#include <rocksdb/filter_policy.h>
#include <rocksdb/table.h>
#include <rocksdb/write_batch.h>

#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/rocks/healing_db.h"

namespace bulkhead::snapshotter {
namespace {

using nlohmann::json;

constexpr size_t kBlockCacheBytes = 1 << 20;
constexpr int kFormat = 1;

absl::Status ToStatus(const rocksdb::Status& status, const char* what) {
  if (status.ok()) return absl::OkStatus();
  const std::string text = absl::StrCat(what, ": ", status.ToString());
  if (status.IsCorruption()) return absl::DataLossError(text);
  if (status.IsNoSpace()) return absl::ResourceExhaustedError(text);
  return absl::InternalError(text);
}

std::string Encode(const Record& record) {
  const json value = {
      {"v", kFormat},
      {"id", record.id},
      {"parent", record.info.parent},
      {"kind", static_cast<int>(record.info.kind)},
      {"created", record.info.created_at_ns},
      {"updated", record.info.updated_at_ns},
      {"labels", record.info.labels},
      {"size", record.usage.size_bytes},
      {"inodes", record.usage.inodes},
  };
  // Keys and labels may be any bytes: kept as they are.
  const std::vector<uint8_t> bytes = json::to_msgpack(value);
  return "J" + std::string(bytes.begin(), bytes.end());
}

absl::StatusOr<Record> Decode(const std::string& key,
                              const std::string& bytes) {
  const absl::Status corrupt =
      absl::DataLossError(absl::StrCat("corrupt record of snapshot ", key));
  if (bytes.empty() || bytes[0] != 'J') return corrupt;
  const json value =
      json::from_msgpack(bytes.begin() + 1, bytes.end(), true, false);
  if (!value.is_object()) return corrupt;
  auto number = [&](const char* name) -> int64_t {
    const auto it = value.find(name);
    if (it == value.end() || !it->is_number_integer()) return -1;
    return it->get<int64_t>();
  };
  Record record;
  record.info.name = key;
  record.id = number("id");
  record.info.kind = static_cast<Kind>(number("kind"));
  record.info.created_at_ns = number("created");
  record.info.updated_at_ns = number("updated");
  record.usage = {number("size"), number("inodes")};
  const auto parent = value.find("parent");
  const auto labels = value.find("labels");
  if (number("v") != kFormat || number("id") <= 0 || number("kind") < 1 ||
      number("kind") > 3 || parent == value.end() || !parent->is_string() ||
      labels == value.end()) {
    return corrupt;
  }
  record.info.parent = parent->get<std::string>();
  if (labels->is_object()) {
    for (const auto& [name, label] : labels->items()) {
      if (label.is_string()) {
        record.info.labels[name] = label.get<std::string>();
      }
    }
  }
  return record;
}

class RocksRecordDb : public RecordDb {
 public:
  explicit RocksRecordDb(std::unique_ptr<rocks::HealingDb> db)
      : db_(std::move(db)) {
    synced_.sync = true;
  }

  absl::Status ForEach(
      const std::function<absl::Status(Record record)>& visit) override {
    const rocks::HealingDb::Use db(*db_);
    RETURN_IF_ERROR(ToStatus(db.status(), "reading snapshots"));
    rocksdb::ReadOptions options;
    options.fill_cache = false;
    const std::unique_ptr<rocksdb::Iterator> it(db->NewIterator(options));
    for (it->SeekToFirst(); it->Valid(); it->Next()) {
      ASSIGN_OR_RETURN(Record record,
                       Decode(it->key().ToString(), it->value().ToString()));
      RETURN_IF_ERROR(visit(std::move(record)));
    }
    return ToStatus(it->status(), "reading snapshots");
  }

  absl::Status Put(const Record& record, const std::string& old_key) override {
    rocksdb::WriteBatch batch;
    if (!old_key.empty()) batch.Delete(old_key);
    batch.Put(record.info.name, Encode(record));
    return ToStatus(db_->Write(synced_, &batch), "writing a snapshot");
  }

  absl::Status Delete(const std::vector<std::string>& keys) override {
    rocksdb::WriteBatch batch;
    for (const std::string& key : keys) batch.Delete(key);
    return ToStatus(db_->Write(synced_, &batch), "deleting a snapshot");
  }

 private:
  const std::unique_ptr<rocks::HealingDb> db_;
  rocksdb::WriteOptions synced_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<RecordDb>> RecordDb::Open(
    const std::string& path, const RecordDbOptions& wanted) {
  rocksdb::Options options;
  if (wanted.env != nullptr) options.env = wanted.env;
  options.create_if_missing = true;
  options.write_buffer_size = wanted.write_buffer_bytes;
  options.max_write_buffer_number = 2;
  options.max_background_jobs = 1;
  options.max_open_files = 32;
  options.keep_log_file_num = 2;
  options.max_log_file_size = 1 << 20;
  options.info_log_level = rocksdb::WARN_LEVEL;
  options.stats_dump_period_sec = 0;
  options.stats_persist_period_sec = 0;
  options.compression = rocksdb::kNoCompression;
  options.wal_recovery_mode = rocksdb::WALRecoveryMode::kPointInTimeRecovery;
  rocksdb::BlockBasedTableOptions table;
  table.block_cache = rocksdb::NewLRUCache(kBlockCacheBytes);
  options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  std::unique_ptr<rocks::HealingDb> db;
  const rocksdb::Status status = rocks::HealingDb::Open(options, path, &db);
  if (status.IsIOError() && status.ToString().find("lock") != std::string::npos)
    return absl::UnavailableError(
        absl::StrCat(path, " is in use: ", status.ToString()));
  RETURN_IF_ERROR(ToStatus(status, "opening the snapshot database"));
  return std::make_unique<RocksRecordDb>(std::move(db));
}

}  // namespace bulkhead::snapshotter
