// Programs that turn a layer of one media type into another before it is
// unpacked (facts/core.md, section 12): [stream_processors.<id>].
#ifndef BULKHEAD_SERVICES_SNAPSHOTTER_PROCESSORS_H_
#define BULKHEAD_SERVICES_SNAPSHOTTER_PROCESSORS_H_

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "services/snapshotter/byte_stream.h"

namespace bulkhead::snapshotter {

constexpr int kProcessorChainMax = 8;
constexpr size_t kPayloadBytesMax = 4 << 20;
constexpr size_t kProcessorErrorBytesMax = 64 << 10;  // Of standard error.

struct StreamProcessor {
  std::string id;
  std::vector<std::string> accepts;  // Media types.
  std::string returns;               // A media type.
  std::string path;                  // Of the program, or its name.
  std::vector<std::string> args;
  std::vector<std::string> env;  // NAME=VALUE
};

// Processor id -> serialized google.protobuf.Any.
using Payloads = std::map<std::string, std::string>;

// The running programs between a source and the unpacker. Configured programs
// go before what is built in, as in containerd.
class ProcessorChain {
 public:
  virtual ~ProcessorChain() = default;
  // What the last program writes, and its media type. Reading it may be
  // confined.
  virtual LayerSource& output() = 0;
  virtual const std::string& media_type() const = 0;
  // Call once reading has ended. Blocks until all programs have ended; kills
  // them if `ok` is false. Errors: kUnknown: one failed, with what it wrote to
  // its standard error.
  virtual absl::Status Finish(bool ok) = 0;
};

// Null if no processor accepts `media_type`. Borrows `source`. The thread that
// calls it must be the one that destroys the result.
// Errors: kInvalidArgument: they lead in a circle, or a payload is too large.
//   Others: a program that does not start.
absl::StatusOr<std::unique_ptr<ProcessorChain>> StartProcessors(
    LayerSource& source, const std::string& media_type,
    const std::vector<StreamProcessor>& processors, const Payloads& payloads);

}  // namespace bulkhead::snapshotter

#endif  // BULKHEAD_SERVICES_SNAPSHOTTER_PROCESSORS_H_
