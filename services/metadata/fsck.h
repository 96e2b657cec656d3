// Checks records against each other and against the backends (bulkhead fsck).
// Runs beside everything else: what looks wrong is looked at again under its
// lock before it is reported.
#ifndef BULKHEAD_SERVICES_METADATA_FSCK_H_
#define BULKHEAD_SERVICES_METADATA_FSCK_H_

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "services/metadata/content.h"
#include "services/metadata/snapshots.h"
#include "services/metadata/store.h"

namespace bulkhead::metadata {

enum class Severity {
  kNote,     // Nothing is wrong, only worth knowing.
  kLost,     // Wrong, and nothing here can bring it back.
  kDamaged,  // Wrong; a repair puts it right.
};

struct Finding {
  Severity severity = Severity::kNote;
  std::string key;  // The record's database key; empty: text says it all.
  std::string text;
  std::string repaired;  // What the repair did; empty: nothing.
};

struct CheckOptions {
  // Drops what was set aside, damaged and missing blobs with their records (so
  // that they are fetched again), records of lost snapshots that no container
  // uses; rebuilds indexes and the records of blobs that are referred to.
  bool repair = false;
  // Reads every blob and compares its digest.
  bool bytes = true;
};

struct CheckTotals {
  int64_t records = 0;
  int64_t blobs = 0;
  int64_t bytes = 0;
  int64_t snapshots = 0;
};

// Calls `report` for each finding; false ends the check. Errors: of the
// database and the backends.
absl::StatusOr<CheckTotals> CheckAll(
    Store& store, Content& content, Snapshots& snapshots,
    const CheckOptions& options,
    const std::function<bool(const Finding&)>& report);

}  // namespace bulkhead::metadata

#endif  // BULKHEAD_SERVICES_METADATA_FSCK_H_
