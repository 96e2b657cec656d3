// What may take a layer's archive in place of the tree extractor.
#ifndef BULKHEAD_SERVICES_SNAPSHOTTER_LAYER_SINK_H_
#define BULKHEAD_SERVICES_SNAPSHOTTER_LAYER_SINK_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "services/snapshotter/byte_stream.h"
#include "services/snapshotter/tar_extract.h"

namespace bulkhead::snapshotter {

// One layer being written. Not thread-safe. Destroyed before Publish(): what
// was written is dropped.
class LayerSink {
 public:
  virtual ~LayerSink() = default;

  // As ExtractTar(), on a thread confined as Worker::kExtract: whatever else it
  // needs is open before.
  virtual absl::StatusOr<ExtractResult> Take(ByteStream& stream,
                                             const ExtractOptions& options) = 0;

  // Makes durable what Take() wrote; from now on it is in the snapshot. Not on
  // a confined thread.
  virtual absl::Status Publish() = 0;
};

// The sink for a layer that is to go into the directory `tree`; null: it is
// unpacked there, with `options` as they were changed.
using SinkChooser = std::function<absl::StatusOr<std::unique_ptr<LayerSink>>(
    const std::string& tree, ExtractOptions* options)>;

}  // namespace bulkhead::snapshotter

#endif  // BULKHEAD_SERVICES_SNAPSHOTTER_LAYER_SINK_H_
