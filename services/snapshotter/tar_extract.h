// Applies a layer's tar stream to a directory tree (facts/core.md, section
// 12): whiteouts, opaque directories, hard links, devices, extended
// attributes, owners, modes, times.
#ifndef BULKHEAD_SERVICES_SNAPSHOTTER_TAR_EXTRACT_H_
#define BULKHEAD_SERVICES_SNAPSHOTTER_TAR_EXTRACT_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "services/snapshotter/byte_stream.h"

namespace bulkhead::snapshotter {

class FileWriter;

struct ExtractOptions {
  // Whiteouts as overlayfs stores them (0:0 character devices and
  // trusted.overlay.opaque) instead of real deletions.
  bool overlay_whiteouts = false;
  // Trees below, nearest first: where attributes of missing parent
  // directories come from.
  std::vector<std::string> lower_dirs;
  int64_t bytes_max = int64_t{1} << 40;  // Of file sizes; of the stream.
  int64_t entries_max = 10'000'000;
  // Whether to count what the tree takes: not where a file that is open takes
  // more than it will.
  bool count = true;
  // Whether the layer, read to the very end of its stream, was an eStargz.
  // Null: no.
  std::function<bool()> is_stargz;
};

struct ExtractResult {
  int64_t entries = 0;
  int64_t file_bytes = 0;
  // Directories the layer has no entry for but needed: relative paths. At most
  // kImplicitDirsMax.
  std::vector<std::string> implicit_dirs;
  // What the tree takes, its root included; -1: not counted, as that was
  // not wanted, it did not begin empty or something in it was replaced.
  int64_t inodes = -1;
  int64_t blocks = -1;  // Of 512 bytes.
  // Files of eStargz's own that were unpacked at the top: its table of contents
  // and landmarks. No part of the tree if the layer is an eStargz.
  std::vector<std::string> stargz_files;
};

constexpr size_t kImplicitDirsMax = 100000;
// Names of a layer's directories, whose times are set at the end, together.
constexpr int64_t kDirNamesBytesMax = 256 << 20;

// Reads the archive to its end marker (the stream may go on) and writes it
// below `root`, a trusted path. Nothing is synced. On error the tree is left
// partly written. With a `writer`, whose Run() goes on meanwhile, the thread
// there fills what files it can; it is idle at the end, and `stream` must have
// Hold().
// Errors: kInvalidArgument: malformed, or names that leave the root.
//   kResourceExhausted: a limit, named. Others: the file system's.
absl::StatusOr<ExtractResult> ExtractTar(ByteStream& stream,
                                         const std::string& root,
                                         const ExtractOptions& options,
                                         FileWriter* writer = nullptr);

}  // namespace bulkhead::snapshotter

#endif  // BULKHEAD_SERVICES_SNAPSHOTTER_TAR_EXTRACT_H_
