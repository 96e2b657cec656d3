// ttrpc frames: a 10-byte header before each message. Shared by the client and
// server in this folder and by the shim, which links nothing else of ours here.
#ifndef BULKHEAD_LIB_TTRPC_FRAME_H_
#define BULKHEAD_LIB_TTRPC_FRAME_H_

#include <cstddef>
#include <cstdint>
#include <string>

namespace bulkhead::ttrpc {

constexpr size_t kFrameHeaderSizeBytes = 10;
// A longer body is drained and answered with kResourceExhausted.
constexpr uint32_t kFrameBodySizeBytesMax = 4 << 20;

// The type byte. Receivers ignore types they do not know.
constexpr uint8_t kFrameRequest = 1;
constexpr uint8_t kFrameResponse = 2;
constexpr uint8_t kFrameData = 3;

// The flag bits. Unary requests and responses carry none.
constexpr uint8_t kFlagRemoteClosed = 1;
constexpr uint8_t kFlagRemoteOpen = 2;
constexpr uint8_t kFlagNoData = 4;

// What every pending call fails with when the connection is lost; clients
// match on this text.
constexpr char kClosedText[] = "ttrpc: closed";

struct FrameHeader {
  uint32_t body_size_bytes = 0;
  uint32_t stream_id = 0;
  uint8_t type = 0;
  uint8_t flags = 0;
};

// Writes exactly kFrameHeaderSizeBytes to `out`.
inline void EncodeFrameHeader(const FrameHeader& header, uint8_t* out) {
  for (int i = 0; i < 4; ++i) {
    out[i] = static_cast<uint8_t>(header.body_size_bytes >> (24 - 8 * i));
    out[4 + i] = static_cast<uint8_t>(header.stream_id >> (24 - 8 * i));
  }
  out[8] = header.type;
  out[9] = header.flags;
}

// Reads exactly kFrameHeaderSizeBytes from `in`. Any ten bytes are a header.
inline FrameHeader DecodeFrameHeader(const uint8_t* in) {
  FrameHeader header;
  for (int i = 0; i < 4; ++i) {
    header.body_size_bytes = header.body_size_bytes << 8 | in[i];
    header.stream_id = header.stream_id << 8 | in[4 + i];
  }
  header.type = in[8];
  header.flags = in[9];
  return header;
}

// Appends a whole frame to `out`. The body must be at most
// kFrameBodySizeBytesMax bytes.
inline void AppendFrame(FrameHeader header, const std::string& body,
                        std::string* out) {
  header.body_size_bytes = static_cast<uint32_t>(body.size());
  uint8_t bytes[kFrameHeaderSizeBytes];
  EncodeFrameHeader(header, bytes);
  out->append(reinterpret_cast<const char*>(bytes), sizeof(bytes));
  out->append(body);
}

// What the receiver answers to a body that is too long.
inline std::string OversizeText(uint32_t body_size_bytes) {
  return "message length " + std::to_string(body_size_bytes) +
         " exceed maximum message size of " +
         std::to_string(kFrameBodySizeBytesMax);
}

}  // namespace bulkhead::ttrpc

#endif  // BULKHEAD_LIB_TTRPC_FRAME_H_
