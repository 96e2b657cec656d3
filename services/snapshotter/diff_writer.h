// The difference of two directory trees as an OCI layer (facts/core.md,
// section 12). The same trees always give the same bytes.
#ifndef BULKHEAD_SERVICES_SNAPSHOTTER_DIFF_WRITER_H_
#define BULKHEAD_SERVICES_SNAPSHOTTER_DIFF_WRITER_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "lib/os/mount.h"
#include "lib/tar/writer.h"

namespace bulkhead::snapshotter {

using tar::ByteSink;

// Writes an uncompressed tar of what makes `left` into `right`, both trusted
// paths of directories. `mtime_max_seconds` caps modification times. `upper`,
// unless empty, is the upper folder of overlayfs by which `right` differs from
// `left`: only what is there is looked at, with the same outcome.
// Errors: kAborted: a file changed while it was read.
absl::Status WriteDiff(const std::string& left, const std::string& right,
                       std::optional<int64_t> mtime_max_seconds,
                       const ByteSink& sink, const std::string& upper = "");

// The upper folder of `right` if it is one overlay mount right on top of what
// `left` mounts, as a snapshot and its parent are; else "".
std::string UpperOf(const std::vector<os::MountSpec>& left,
                    const std::vector<os::MountSpec>& right);

enum class Compression { kNone, kGzip, kZstd };

// Compresses what `produce` writes into its sink, and hands it to `sink`.
absl::Status Compress(Compression compression, const ByteSink& sink,
                      absl::FunctionRef<absl::Status(const ByteSink&)> produce);

// The mounts for looking only: no upperdir or workdir, "ro".
std::vector<os::MountSpec> ReadOnlyMounts(
    const std::vector<os::MountSpec>& mounts);

}  // namespace bulkhead::snapshotter

#endif  // BULKHEAD_SERVICES_SNAPSHOTTER_DIFF_WRITER_H_
