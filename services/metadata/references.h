// What labels say to garbage collection (facts/core.md section 10). Pure.
#ifndef BULKHEAD_SERVICES_METADATA_REFERENCES_H_
#define BULKHEAD_SERVICES_METADATA_REFERENCES_H_

#include <string>

#include "absl/time/time.h"

namespace bulkhead::metadata {

inline constexpr char kReferences[] = "containerd.io/gc.ref.";
inline constexpr char kBackReferences[] = "containerd.io/gc.bref.";

// The database key of the object in `ns` that a label with `prefix` (one of
// the above) names; empty if it names none.
std::string ReferencedKey(const std::string& ns, const std::string& label,
                          const std::string& value, const std::string& prefix);

// If a gc.cond label's conditions ("usedat<24h,usedat=..."), of which any may
// hold, hold for a snapshot that was last used `age` ago. `age` is compared
// with durations (Go's spelling) by = != < > <= >=; anything else is false.
bool ConditionHolds(const std::string& conditions, absl::Duration age);

}  // namespace bulkhead::metadata

#endif  // BULKHEAD_SERVICES_METADATA_REFERENCES_H_
