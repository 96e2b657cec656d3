// Secondary indexes: which images, containers and blobs have a field of a
// value, so that a listing by "field==value" reads only what it may show.
//
// An entry is a key without a value (kind::kIndex), written in the batch of
// the change that makes it true. A listing reads each record and matches it, so
// an entry too many costs time and is never seen.
//
// Found without reading every record, with "==":
//   image      name, target.digest, labels.* (other than containerd.io/gc.*)
//   container  id, image, labels.*
//   blob       digest, labels.*
//   lease, sandbox  id
#ifndef BULKHEAD_SERVICES_METADATA_INDEX_H_
#define BULKHEAD_SERVICES_METADATA_INDEX_H_

#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lib/filters/filters.h"
#include "services/metadata/db.h"

namespace bulkhead::metadata {

// A listing whose index names more records than this reads all of them.
constexpr size_t kCandidatesMax = 8192;

// The entries of a record; none for kinds without an index and for what does
// not parse.
std::set<std::string> IndexEntries(std::string_view key,
                                   std::string_view record);

// Adds to `batch` what the changes in it mean for the index. The caller holds
// the locks of the records that it changes.
absl::Status AddIndexChanges(const Db& db, Batch* batch);

// The keys, in bytewise order, of all records of `kind` in `ns` that may match
// `filter` as of `view`; nullopt: read them all.
absl::StatusOr<std::optional<std::vector<std::string>>> Candidates(
    const Db& db, const Db::View* view, char kind, const std::string& ns,
    const filters::Filter& filter);

// Writes every entry that should be there. For the migration to version 2.
absl::Status BuildIndex(Db& db);

// The record that an entry is of.
std::string IndexedRecord(std::string_view entry);

}  // namespace bulkhead::metadata

#endif  // BULKHEAD_SERVICES_METADATA_INDEX_H_
