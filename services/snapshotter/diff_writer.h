// The difference of two directory trees as an OCI layer (facts/core.md,
// section 12). The same trees always give the same bytes.
#ifndef BULKHEAD_SERVICES_SNAPSHOTTER_DIFF_WRITER_H_
#define BULKHEAD_SERVICES_SNAPSHOTTER_DIFF_WRITER_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "lib/os/mount.h"

namespace bulkhead::snapshotter {

using ByteSink = std::function<absl::Status(absl::string_view)>;

// Writes an uncompressed tar of what makes `left` into `right`, both trusted
// paths of directories. `mtime_max_seconds` caps modification times.
// Errors: kAborted: a file changed while it was read.
absl::Status WriteDiff(const std::string& left, const std::string& right,
                       std::optional<int64_t> mtime_max_seconds,
                       const ByteSink& sink);

enum class Compression { kNone, kGzip, kZstd };

// Compresses what `produce` writes into its sink, and hands it to `sink`.
absl::Status Compress(Compression compression, const ByteSink& sink,
                      absl::FunctionRef<absl::Status(const ByteSink&)> produce);

// The mounts for looking only: no upperdir or workdir, "ro".
std::vector<os::MountSpec> ReadOnlyMounts(
    const std::vector<os::MountSpec>& mounts);

}  // namespace bulkhead::snapshotter

#endif  // BULKHEAD_SERVICES_SNAPSHOTTER_DIFF_WRITER_H_
