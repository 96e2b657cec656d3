// Decompression of layers: gzip (ISA-L; several members), zstd (several
// frames), or none.
#ifndef BULKHEAD_SERVICES_SNAPSHOTTER_INFLATE_H_
#define BULKHEAD_SERVICES_SNAPSHOTTER_INFLATE_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "services/snapshotter/byte_stream.h"

namespace bulkhead::snapshotter {

// How a layer of this media type is stored.
struct LayerEncoding {
  bool sniff = true;  // False: taken as it is.
};

// Errors: kUnimplemented: not a layer type.
absl::StatusOr<LayerEncoding> EncodingOf(const std::string& media_type);

class Inflater : public LayerSource {
 public:
  // Whether the gzip members read so far ended with eStargz's footer: the tar
  // then has a table of contents among its files.
  virtual bool is_stargz() const = 0;
};

// Uncompressed bytes of `source` (borrowed), as Read() of LayerSource gives
// them. The compression is told from the first bytes, if `sniff`. Skippable
// zstd frames (zstd:chunked keeps its table of contents there) give none.
// Memory: at most the largest zstd window, kZstdWindowLogMax. Errors:
// kInvalidArgument: corrupt or truncated data.
std::unique_ptr<Inflater> NewInflater(LayerSource& source, bool sniff);

constexpr int kZstdWindowLogMax = 27;  // 128 MiB, what `zstd --long` makes.

}  // namespace bulkhead::snapshotter

#endif  // BULKHEAD_SERVICES_SNAPSHOTTER_INFLATE_H_
