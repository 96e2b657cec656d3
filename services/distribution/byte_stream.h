// The binary protocol of transfer streams: bytes with windows, over a Stream.
#ifndef BULKHEAD_SERVICES_DISTRIBUTION_BYTE_STREAM_H_
#define BULKHEAD_SERVICES_DISTRIBUTION_BYTE_STREAM_H_

#include <memory>
#include <string>

#include "services/distribution/archive.h"
#include "services/distribution/streams.h"

namespace bulkhead::distribution {

constexpr int64_t kStreamWindowBytes = 1 << 20;   // What we let a client send.
constexpr size_t kStreamDataBytesMax = 32 << 10;  // Of one message of ours.

// What the client sends, until it closes its half. Errors: kInvalidArgument:
// the client broke the protocol.
ByteSource ReadFrom(std::shared_ptr<Stream> stream);

// Sends, as far as the client's windows allow; blocks else. Errors:
// kCancelled: the client has gone.
ByteSink WriteTo(std::shared_ptr<Stream> stream);

}  // namespace bulkhead::distribution

#endif  // BULKHEAD_SERVICES_DISTRIBUTION_BYTE_STREAM_H_
