// A small face over RocksDB: byte strings in key order, atomic batches, and
// views that later writes do not change. Owns ROOT/metadata/db; a second
// process that opens it fails.
#ifndef BULKHEAD_SERVICES_METADATA_DB_H_
#define BULKHEAD_SERVICES_METADATA_DB_H_

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "services/metadata/schema.h"

namespace rocksdb {
class Env;
}

namespace bulkhead::metadata {

// Puts and deletes that are applied together or not at all.
struct Batch {
  // No value: delete.
  std::vector<std::pair<std::string, std::optional<std::string>>> changes;

  void Put(std::string key, std::string value) {
    changes.emplace_back(std::move(key), std::move(value));
  }
  void Delete(std::string key) {
    changes.emplace_back(std::move(key), std::nullopt);
  }
};

class Db;

// Takes a database of version `from` to the next one. The version number is
// written in the same batch as what `run` puts there; a long migration may
// write before that, in steps that can be repeated after a crash.
struct Migration {
  int from = 0;
  std::function<absl::Status(Db& db, Batch* batch)> run;
};

// Those that lead to kSchemaVersion.
std::vector<Migration> Migrations();

struct DbOptions {
  // What this program reads and writes. Tests set others.
  int schema_version = kSchemaVersion;
  std::vector<Migration> migrations = Migrations();
  rocksdb::Env* env = nullptr;  // Borrowed; tests make it fail. Null: the real.
  size_t write_buffer_bytes = 4 << 20;
};

// Thread-safe. Errors other than those named: kDataLoss: RocksDB's checksums
// say that the disk changed what was written. kResourceExhausted: disk full.
// kInternal: any other trouble with the disk. After a failed write others fail
// with the same error until the disk takes writes again (lib/rocks); reads go
// on.
class Db {
 public:
  // The database as it was when the view was taken.
  class View {
   public:
    virtual ~View() = default;
  };
  // Returns false to stop.
  using Visitor =
      std::function<bool(std::string_view key, std::string_view value)>;

  // Creates what is missing, and runs the migrations that an older database
  // needs, one by one. Errors, with texts for operators: kFailedPrecondition:
  //   a newer schema version, or an older one without a migration; kDataLoss
  //   (and others): RocksDB cannot open it: says how to repair or restore.
  static absl::StatusOr<std::unique_ptr<Db>> Open(
      const std::string& path, const DbOptions& options = DbOptions());
  // Salvages what can be read from a database that does not open. Nobody else
  // may have it open.
  static absl::Status Repair(const std::string& path);
  virtual ~Db() = default;

  // nullopt: no such key. `view` null: now.
  virtual absl::StatusOr<std::optional<std::string>> Get(
      const std::string& key, const View* view = nullptr) const = 0;
  // Visits keys with `prefix`, from `from` (or the prefix) on, in bytewise
  // order, as of the view or of the moment of the call.
  virtual absl::Status Scan(const std::string& prefix, const Visitor& visitor,
                            const View* view = nullptr,
                            const std::string& from = "") const = 0;
  // With `sync`, on OK the batch is on stable storage; concurrent writers
  // share an fsync.
  virtual absl::Status Write(const Batch& batch, bool sync) = 0;
  virtual std::unique_ptr<View> TakeView() const = 0;
  // The last key with `prefix`; nullopt: there is none.
  virtual absl::StatusOr<std::optional<std::string>> LastKey(
      const std::string& prefix) const = 0;
  // A copy of the database as it is now, in the new folder `path` (absolute,
  // mode 0700), on stable storage; shares files with the database where the
  // file system can. Until it is whole it is in a folder "<path>.XXXXXX".
  virtual absl::Status Checkpoint(const std::string& path) = 0;
};

}  // namespace bulkhead::metadata

#endif  // BULKHEAD_SERVICES_METADATA_DB_H_
