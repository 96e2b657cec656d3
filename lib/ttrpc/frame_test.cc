#include "lib/ttrpc/frame.h"

#include <cstdint>
#include <limits>
#include <string>

#include "gtest/gtest.h"
#include "lib/ttrpc/wire.h"

namespace bulkhead::ttrpc {
namespace {

TEST(Frame, HeaderIsBigEndian) {
  std::string out;
  AppendFrame({.stream_id = 0x0b, .type = kFrameResponse}, "abc", &out);
  EXPECT_EQ(out, std::string("\0\0\0\3\0\0\0\x0b\2\0abc", 13));
  const FrameHeader header =
      DecodeFrameHeader(reinterpret_cast<const uint8_t*>(out.data()));
  EXPECT_EQ(header.body_size_bytes, 3u);
  EXPECT_EQ(header.stream_id, 11u);
  EXPECT_EQ(header.type, kFrameResponse);
  EXPECT_EQ(header.flags, 0);
}

TEST(Frame, LargeIdsSurvive) {
  uint8_t bytes[kFrameHeaderSizeBytes];
  EncodeFrameHeader({.body_size_bytes = 0x80706050,
                     .stream_id = 0xfffefdfc,
                     .type = 200,
                     .flags = 7},
                    bytes);
  const FrameHeader header = DecodeFrameHeader(bytes);
  EXPECT_EQ(header.body_size_bytes, 0x80706050u);
  EXPECT_EQ(header.stream_id, 0xfffefdfcu);
  EXPECT_EQ(header.type, 200);
  EXPECT_EQ(header.flags, 7);
}

TEST(Wire, RoundTrip) {
  WireWriter writer;
  writer.Str(1, "id").Uint(2, 300).Int(3, -1).Double(4, 1.5).Message(5, "");
  writer.Str(6, "").Uint(7, 0);
  WireReader reader(writer.str());
  ASSERT_TRUE(reader.Next());
  EXPECT_EQ(reader.str(), "id");
  ASSERT_TRUE(reader.Next());
  EXPECT_EQ(reader.value(), 300u);
  ASSERT_TRUE(reader.Next());
  EXPECT_EQ(reader.value(), std::numeric_limits<uint64_t>::max());
  ASSERT_TRUE(reader.Next());
  EXPECT_EQ(reader.field(), 4u);
  ASSERT_TRUE(reader.Next());
  EXPECT_EQ(reader.field(), 5u);
  EXPECT_FALSE(reader.Next());
  EXPECT_TRUE(reader.ok());
}

TEST(Wire, EveryPrefixIsRefusedOrShort) {
  WireWriter writer;
  writer.Str(1, "hello").Uint(2, 1u << 30).Double(3, 2.25);
  for (size_t size = 0; size < writer.str().size(); ++size) {
    WireReader reader(std::string_view(writer.str()).substr(0, size));
    int fields = 0;
    while (reader.Next()) ++fields;
    EXPECT_LT(fields, 3);
  }
}

TEST(Wire, MalformedBytesFail) {
  for (const char* bytes : {"\x0a\x05hi", "\x07", "\x80", "\x0b\x0b"}) {
    WireReader reader(bytes);
    while (reader.Next()) {
    }
    EXPECT_FALSE(reader.ok());
  }
}

}  // namespace
}  // namespace bulkhead::ttrpc
