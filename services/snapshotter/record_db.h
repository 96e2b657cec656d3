// The snapshotter's graph in RocksDB: one record a snapshot, by key.
#ifndef BULKHEAD_SERVICES_SNAPSHOTTER_RECORD_DB_H_
#define BULKHEAD_SERVICES_SNAPSHOTTER_RECORD_DB_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "services/snapshotter/snapshotter.h"

namespace rocksdb {
class Env;
}

namespace bulkhead::snapshotter {

struct Record {
  uint64_t id = 0;  // Folder number; never zero.
  SnapshotInfo info;
  DiskUsage usage;  // Committed snapshots only.
};

struct RecordDbOptions {
  rocksdb::Env* env = nullptr;  // Borrowed; tests make it fail. Null: the real.
  size_t write_buffer_bytes = 1 << 20;
};

// Thread-safe. Every write is synced before it returns. After a failed write
// others fail with the same error until the disk takes writes again
// (lib/rocks). kResourceExhausted: the disk is full. kInternal: other trouble.
class RecordDb {
 public:
  // Makes the database if missing. Errors: kUnavailable: another process has
  // it. kDataLoss: corrupt.
  static absl::StatusOr<std::unique_ptr<RecordDb>> Open(
      const std::string& path,
      const RecordDbOptions& options = RecordDbOptions());
  virtual ~RecordDb() = default;

  virtual absl::Status ForEach(
      const std::function<absl::Status(Record record)>& visit) = 0;
  // Writes `record` under its name, and deletes `old_key` unless empty, in one
  // step.
  virtual absl::Status Put(const Record& record,
                           const std::string& old_key = "") = 0;
  // In one step.
  virtual absl::Status Delete(const std::vector<std::string>& keys) = 0;
};

}  // namespace bulkhead::snapshotter

#endif  // BULKHEAD_SERVICES_SNAPSHOTTER_RECORD_DB_H_
