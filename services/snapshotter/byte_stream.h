// The bytes of a layer as the stages of an unpack see them.
#ifndef BULKHEAD_SERVICES_SNAPSHOTTER_BYTE_STREAM_H_
#define BULKHEAD_SERVICES_SNAPSHOTTER_BYTE_STREAM_H_

#include <cstddef>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "lib/tar/byte_stream.h"

namespace bulkhead::snapshotter {

// A layer's stored (compressed) bytes, in order. Not thread-safe but for
// Cancel().
class LayerSource {
 public:
  virtual ~LayerSource() = default;
  // Up to `size_bytes` (> 0) bytes into `out`; 0 at the end. Blocks while a
  // growing layer has no more bytes yet.
  virtual absl::StatusOr<size_t> Read(char* out, size_t size_bytes) = 0;
  // Wakes a blocked Read(), from another thread; reads fail from now on.
  virtual void Cancel() {}
  // Whether Read() needs no more than what it has open already, so that its
  // thread may be confined.
  virtual bool MayBeConfined() const { return true; }
};

// A layer's uncompressed bytes.
using tar::ByteStream;

}  // namespace bulkhead::snapshotter

#endif  // BULKHEAD_SERVICES_SNAPSHOTTER_BYTE_STREAM_H_
