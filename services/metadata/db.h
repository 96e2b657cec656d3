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

// Thread-safe. Errors other than those named are kInternal (the disk).
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

  // Errors: kFailedPrecondition: a newer schema version.
  static absl::StatusOr<std::unique_ptr<Db>> Open(const std::string& path);
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
};

}  // namespace bulkhead::metadata

#endif  // BULKHEAD_SERVICES_METADATA_DB_H_
