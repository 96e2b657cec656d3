// What changed between two trees, as Docker prints it.
#ifndef BULKHEAD_CLI_TREE_DIFF_H_
#define BULKHEAD_CLI_TREE_DIFF_H_

#include <string>

#include "absl/status/status.h"

namespace bulkhead::cli {

// Prints lines of A (added), C (changed) or D (deleted) and a path below `path`
// for the open directories `before` (-1: nothing was there) and `now`. Sets
// *changed if there are any. Follows no symlink.
// Errors: kResourceExhausted: nested too deeply.
absl::Status PrintChanges(int before, int now, const std::string& path,
                          int depth, bool* changed);

}  // namespace bulkhead::cli

#endif  // BULKHEAD_CLI_TREE_DIFF_H_
