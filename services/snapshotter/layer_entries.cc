#include "services/snapshotter/layer_entries.h"

#include <fcntl.h>
#include <sys/sysmacros.h>

#include <climits>
#include <tuple>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "services/snapshotter/tree_root.h"

namespace bulkhead::snapshotter {
namespace {

constexpr char kWhiteoutPrefix[] = ".wh.";
constexpr char kMetaPrefix[] = ".wh..wh.";
constexpr char kOpaqueMarker[] = ".wh..wh..opq";
constexpr int64_t kMajorMax = (1 << 12) - 1;
constexpr int64_t kMinorMax = (1 << 20) - 1;
constexpr int64_t kIdMax = 0xfffffffe;
constexpr size_t kShownNameBytesMax = 256;

// False: nothing is to be done.
absl::StatusOr<bool> Understand(const std::string& name, LayerName* out) {
  ASSIGN_OR_RETURN(out->clean, CleanName(name));
  if (out->clean.empty()) return false;
  std::tie(out->dir, out->base) = SplitName(out->clean);
  RETURN_IF_ERROR(CheckComponent(out->base));
  // aufs' own bookkeeping, at the top only.
  if (absl::StartsWith(out->clean, kMetaPrefix) &&
      out->clean != kOpaqueMarker) {
    return false;
  }
  out->means = LayerName::Means::kEntry;
  if (out->base == kOpaqueMarker) {
    out->means = LayerName::Means::kOpaque;
  } else if (absl::StartsWith(out->base, kWhiteoutPrefix)) {
    out->means = LayerName::Means::kWhiteout;
    out->base.erase(0, sizeof(kWhiteoutPrefix) - 1);
    if (out->base.empty() || out->base == "." || out->base == "..") {
      return absl::InvalidArgumentError("invalid whiteout name");
    }
  }
  return true;
}

}  // namespace

absl::Status ForEachEntry(TarReader& reader, const ExtractOptions& options,
                          ExtractResult* result,
                          absl::FunctionRef<absl::Status(const TarEntry& entry,
                                                         const LayerName& name)>
                              take) {
  TarEntry entry;
  LayerName name;
  for (;;) {
    ASSIGN_OR_RETURN(const bool more, reader.Next(&entry));
    if (!more) return absl::OkStatus();
    if (++result->entries > options.entries_max) {
      return absl::ResourceExhaustedError(
          absl::StrCat("the layer has more than ", options.entries_max,
                       " entries (snapshotter.layer_entries_max)"));
    }
    if (entry.size_bytes > options.bytes_max - result->file_bytes) {
      return absl::ResourceExhaustedError(
          absl::StrCat("the layer holds more than ", options.bytes_max,
                       " bytes (snapshotter.layer_bytes_max)"));
    }
    result->file_bytes += entry.size_bytes;
    const absl::StatusOr<bool> understood = Understand(entry.name, &name);
    absl::Status status = understood.status();
    if (status.ok() && *understood) status = take(entry, name);
    if (!status.ok()) {
      return Annotate(
          status, absl::StrCat("entry \"",
                               entry.name.substr(0, kShownNameBytesMax), "\""));
    }
  }
}

absl::Status CheckOwner(const TarEntry& entry) {
  if (entry.uid < 0 || entry.gid < 0 || entry.uid > kIdMax ||
      entry.gid > kIdMax) {
    return absl::InvalidArgumentError("owner out of range");
  }
  return absl::OkStatus();
}

absl::StatusOr<dev_t> DeviceOf(const TarEntry& entry) {
  if (entry.device_major < 0 || entry.device_major > kMajorMax ||
      entry.device_minor < 0 || entry.device_minor > kMinorMax) {
    return absl::InvalidArgumentError("device number out of range");
  }
  return makedev(entry.device_major, entry.device_minor);
}

absl::Status CheckComponent(const std::string& name) {
  if (name.size() <= NAME_MAX) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat(
      "a name of ", name.size(), " bytes is over the limit of ", NAME_MAX));
}

absl::StatusOr<std::vector<os::UniqueFd>> OpenLowers(
    const ExtractOptions& options) {
  std::vector<os::UniqueFd> lowers;
  for (const std::string& dir : options.lower_dirs) {
    ASSIGN_OR_RETURN(os::UniqueFd fd, os::Open(dir, O_PATH | O_DIRECTORY));
    lowers.push_back(std::move(fd));
  }
  return lowers;
}

}  // namespace bulkhead::snapshotter
