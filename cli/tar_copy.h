// Files of a container as a tar stream, and the other way round: `cp` with "-".
#ifndef BULKHEAD_CLI_TAR_COPY_H_
#define BULKHEAD_CLI_TAR_COPY_H_

#include <string>

#include "absl/status/status.h"
#include "cli/tree_copy.h"

namespace bulkhead::cli {

// Writes `from_dir`/`from`, with all below it, to the descriptor `out`, named
// `as` in the archive. Owners, modes, times (to the second), hard links,
// devices and file capabilities are kept; sockets are left out.
// Errors: kAborted: a file changed meanwhile. kResourceExhausted: deeper than
//   kTreeDepthMax.
absl::Status WriteTar(int from_dir, const std::string& from,
                      const std::string& as, int out);

// Unpacks the archive that `in` gives (to its end) into the folder `folder`,
// as seen from the descriptor `root`, which nothing leaves: paths and links are
// resolved as if it were "/". Owners are kept with `options`. A file in the way
// is replaced, a folder in the way of a file (or the reverse) is an error.
// Errors: kInvalidArgument: not a tar archive, or a name that climbs.
absl::Status ReadTar(int in, int root, const std::string& folder,
                     const CopyOptions& options);

}  // namespace bulkhead::cli

#endif  // BULKHEAD_CLI_TAR_COPY_H_
