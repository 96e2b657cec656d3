// What a person can do about a transfer that failed.
#ifndef BULKHEAD_CLI_REMEDY_H_
#define BULKHEAD_CLI_REMEDY_H_

#include <string>

#include "absl/status/status.h"
#include "lib/oci/reference.h"

namespace bulkhead::cli {

// "log in first: ..." or another piece of advice; empty if there is none that
// fits. Pure.
std::string Remedy(const absl::Status& status, const oci::Reference& reference);

// `status` with its remedy after its message; OK stays OK.
absl::Status WithRemedy(const absl::Status& status,
                        const oci::Reference& reference);

}  // namespace bulkhead::cli

#endif  // BULKHEAD_CLI_REMEDY_H_
