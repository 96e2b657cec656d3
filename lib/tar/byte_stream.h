// Bytes that are read where they lie.
#ifndef BULKHEAD_LIB_TAR_BYTE_STREAM_H_
#define BULKHEAD_LIB_TAR_BYTE_STREAM_H_

#include <cstddef>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace bulkhead::tar {

// A stream of bytes, without copying. Not thread-safe.
class ByteStream {
 public:
  virtual ~ByteStream() = default;
  // The bytes at hand, at least one unless the stream is over (then empty).
  // They stay valid until Consume() has taken all of them.
  virtual absl::StatusOr<absl::string_view> Fill() = 0;
  // Takes `size_bytes` of what the last Fill() returned.
  virtual void Consume(size_t size_bytes) = 0;
  // Keeps what the last Fill() returned where it is while the result lives,
  // which may be on another thread. Null: that cannot be done.
  virtual std::shared_ptr<void> Hold() { return nullptr; }
};

}  // namespace bulkhead::tar

#endif  // BULKHEAD_LIB_TAR_BYTE_STREAM_H_
