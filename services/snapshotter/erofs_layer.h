// A layer's archive turned into an EROFS image as it comes, with overlayfs' own
// whiteouts: what ExtractTar() would have made of it in an empty directory.
#ifndef BULKHEAD_SERVICES_SNAPSHOTTER_EROFS_LAYER_H_
#define BULKHEAD_SERVICES_SNAPSHOTTER_EROFS_LAYER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "services/snapshotter/byte_stream.h"
#include "services/snapshotter/erofs_writer.h"
#include "services/snapshotter/tar_extract.h"

namespace bulkhead::snapshotter {

// A directory the layer has no entry for, to be given its attributes once the
// layers below are known (PatchErofsDir).
struct ErofsImplicitDir {
  ErofsWriter::Nid nid = 0;
  std::string path;
};

// Writes the image to `fd`, an empty file open for reading and writing; not
// synced. `root` are the attributes of the top directory. Differences from a
// tree: no access times, and sockets' and unknown xattrs (no user., trusted.,
// security. or POSIX ACL) are left out.
// Errors: as ExtractTar().
absl::StatusOr<ExtractResult> WriteErofsLayer(
    ByteStream& stream, int fd, const ErofsAttributes& root,
    const ExtractOptions& options, std::vector<ErofsImplicitDir>* implicit);

}  // namespace bulkhead::snapshotter

#endif  // BULKHEAD_SERVICES_SNAPSHOTTER_EROFS_LAYER_H_
