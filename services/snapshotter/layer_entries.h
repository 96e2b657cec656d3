// What a layer's entries mean, and how many there may be, whatever they are
// written into: a tree (tar_extract.h) or an image (erofs_layer.h).
#ifndef BULKHEAD_SERVICES_SNAPSHOTTER_LAYER_ENTRIES_H_
#define BULKHEAD_SERVICES_SNAPSHOTTER_LAYER_ENTRIES_H_

#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lib/os/fd.h"
#include "services/snapshotter/tar_extract.h"
#include "services/snapshotter/tar_reader.h"

namespace bulkhead::snapshotter {

constexpr char kOpaqueXattr[] = "trusted.overlay.opaque";
// eStargz puts its table of contents last; it and the landmarks are no part of
// the tree.
constexpr char kStargzTable[] = "stargz.index.json";
constexpr const char* kStargzFiles[] = {kStargzTable, ".prefetch.landmark",
                                        ".no.prefetch.landmark"};

struct LayerName {
  enum class Means {
    kEntry,     // `base` in the directory `dir`.
    kWhiteout,  // What is `base` in `dir` below is hidden.
    kOpaque,    // All of `dir` below is.
  };
  Means means = Means::kEntry;
  std::string
      clean;  // See CleanName(). Of the entry, with its whiteout prefix.
  std::string dir;
  std::string base;  // A single component, neither empty nor "." nor "..".
};

// Hands the entries that mean something to `take`, with their names: not the
// root itself, which stays as it is, nor aufs' own bookkeeping. Counts into
// `result`.
// Errors: those of the reader and of `take`, with the entry's name;
//   kResourceExhausted: a limit of `options`, a name of more than NAME_MAX
//   bytes or too many directories. kInvalidArgument: a name that climbs above
//   the root, a whiteout of nothing.
absl::Status ForEachEntry(TarReader& reader, const ExtractOptions& options,
                          ExtractResult* result,
                          absl::FunctionRef<absl::Status(const TarEntry& entry,
                                                         const LayerName& name)>
                              take);

// kInvalidArgument: an owner that no file can have.
absl::Status CheckOwner(const TarEntry& entry);
// Of a device's entry. kInvalidArgument: more than mknod(2) can carry.
absl::StatusOr<dev_t> DeviceOf(const TarEntry& entry);
// kResourceExhausted: longer than NAME_MAX.
absl::Status CheckComponent(const std::string& name);

// `options.lower_dirs`, opened.
absl::StatusOr<std::vector<os::UniqueFd>> OpenLowers(
    const ExtractOptions& options);

}  // namespace bulkhead::snapshotter

#endif  // BULKHEAD_SERVICES_SNAPSHOTTER_LAYER_ENTRIES_H_
