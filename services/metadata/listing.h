// Listing records of one kind, by an index where there is one.
#ifndef BULKHEAD_SERVICES_METADATA_LISTING_H_
#define BULKHEAD_SERVICES_METADATA_LISTING_H_

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "lib/base/status_macros.h"
#include "lib/filters/filters.h"
#include "services/metadata/index.h"
#include "services/metadata/store.h"

namespace bulkhead::metadata {

// Gets each match, which it may move from, and the same as it is stored: the
// message on the wire. Returns false to stop.
template <typename Record>
using Visitor = std::function<bool(Record&, std::string_view stored)>;

// Visits the records of `kind` in `ns` that match, in bytewise order of their
// names, all as of the moment of the call. Holds one record at a time (and at
// most kCandidatesMax keys), however slow the visitor is. Damaged records are
// set aside and left out. `field` is what filters see of a record.
template <typename Record>
absl::Status ListRecords(const Store& store, char kind, const std::string& ns,
                         const filters::Filter& filter,
                         std::optional<std::string> (*field)(
                             const Record&, const filters::FieldPath&),
                         const Visitor<Record>& visitor) {
  const auto matches = [&](const Record& record) {
    return filter.Match(
        [&](const filters::FieldPath& path) { return field(record, path); });
  };
  std::unique_ptr<Db::View> view;
  if (!filter.matches_all()) {
    view = store.db().TakeView();
    ASSIGN_OR_RETURN(const std::optional<std::vector<std::string>> candidates,
                     Candidates(store.db(), view.get(), kind, ns, filter));
    if (candidates.has_value()) {
      for (const std::string& key : *candidates) {
        std::string stored;
        absl::StatusOr<std::optional<Record>> record =
            store.Get<Record>(key, view.get(), &stored);
        if (absl::IsDataLoss(record.status())) continue;  // Set aside.
        RETURN_IF_ERROR(record.status());
        if (!record->has_value() || !matches(**record)) continue;
        if (!visitor(**record, stored)) break;
      }
      return absl::OkStatus();
    }
  }
  return store.Scan<Record>(
      Prefix(kind, {ns}),
      [&](Record& record, std::string_view stored) {
        return !matches(record) || visitor(record, stored);
      },
      view.get());
}

}  // namespace bulkhead::metadata

#endif  // BULKHEAD_SERVICES_METADATA_LISTING_H_
