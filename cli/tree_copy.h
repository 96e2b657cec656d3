// Copying files and folders by descriptor, so that neither side's symlinks
// lead anywhere.
#ifndef BULKHEAD_CLI_TREE_COPY_H_
#define BULKHEAD_CLI_TREE_COPY_H_

#include <string>

#include "absl/status/status.h"

namespace bulkhead::cli {

constexpr int kTreeDepthMax = 256;

struct CopyOptions {
  bool owners = false;  // Keep them; else copies are the caller's.
};

// Copies `from_dir`/`from` to `to_dir`/`to`: one file, link, device or FIFO, or
// a folder with all below it, merged into one that is there. A file in the way
// is replaced, a folder in the way of a file (or the reverse) is an error.
// Contents (holes aside), modes, times and xattrs are kept. Not synced.
// Errors: kResourceExhausted: deeper than kTreeDepthMax.
absl::Status CopyEntry(int from_dir, const std::string& from, int to_dir,
                       const std::string& to, const CopyOptions& options);

// Copies everything in the folder `from` into the folder `to`, and the
// folder's own mode and owner onto it with `owners`. Both may be O_PATH.
absl::Status CopyContents(int from, int to, const CopyOptions& options);

}  // namespace bulkhead::cli

#endif  // BULKHEAD_CLI_TREE_COPY_H_
