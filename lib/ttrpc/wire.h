// A small protobuf wire reader and writer, for programs that must not carry the
// protobuf runtime (the shim). proto3 rules: scalars that are zero and strings
// that are empty are not written.
#ifndef BULKHEAD_LIB_TTRPC_WIRE_H_
#define BULKHEAD_LIB_TTRPC_WIRE_H_

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>

namespace bulkhead::ttrpc {

// Walks the fields of one message. The bytes must outlive the reader.
//   WireReader reader(bytes);
//   while (reader.Next()) {
//     switch (reader.field()) { case 1: id = reader.bytes(); break; }
//   }
//   if (!reader.ok()) ...
class WireReader {
 public:
  explicit WireReader(std::string_view bytes) : rest_(bytes) {}

  // Moves to the next field. False at the end or at malformed bytes; ok()
  // tells which.
  bool Next() {
    if (!ok_ || rest_.empty()) return false;
    uint64_t tag = 0;
    if (!Varint(&tag) || (tag >> 3) == 0 || (tag >> 3) > 0x1fffffff) {
      return Fail();
    }
    field_ = static_cast<uint32_t>(tag >> 3);
    value_ = 0;
    bytes_ = {};
    switch (tag & 7) {
      case 0:
        return Varint(&value_) || Fail();
      case 1:
        return Fixed(8) || Fail();
      case 2: {
        uint64_t size = 0;
        if (!Varint(&size) || size > rest_.size()) return Fail();
        bytes_ = rest_.substr(0, size);
        rest_.remove_prefix(size);
        return true;
      }
      case 5:
        return Fixed(4) || Fail();
      default:
        return Fail();
    }
  }

  bool ok() const { return ok_; }
  uint32_t field() const { return field_; }
  // Of varint and fixed fields; 0 otherwise.
  uint64_t value() const { return value_; }
  bool flag() const { return value_ != 0; }
  // Of length-delimited fields; empty otherwise.
  std::string_view bytes() const { return bytes_; }
  std::string str() const { return std::string(bytes_); }

 private:
  bool Fail() { return ok_ = false; }
  bool Varint(uint64_t* out) {
    uint64_t value = 0;
    for (unsigned i = 0; i < 10 && i < rest_.size(); ++i) {
      const uint8_t byte = static_cast<uint8_t>(rest_[i]);
      value |= static_cast<uint64_t>(byte & 0x7f) << (7 * i);
      if (byte < 0x80) {
        rest_.remove_prefix(i + 1);
        *out = value;
        return true;
      }
    }
    return false;
  }
  bool Fixed(size_t size_bytes) {
    if (rest_.size() < size_bytes) return false;
    for (size_t i = 0; i < size_bytes; ++i) {
      value_ |= static_cast<uint64_t>(static_cast<uint8_t>(rest_[i]))
                << (8 * i);
    }
    rest_.remove_prefix(size_bytes);
    return true;
  }

  std::string_view rest_;
  std::string_view bytes_;
  uint64_t value_ = 0;
  uint32_t field_ = 0;
  bool ok_ = true;
};

// Builds one message. Calls chain; Take() hands the bytes over.
class WireWriter {
 public:
  WireWriter& Uint(uint32_t field, uint64_t value) {
    if (value != 0) {
      Varint(uint64_t{field} << 3);
      Varint(value);
    }
    return *this;
  }
  // int32 and int64 fields: negative values take ten bytes.
  WireWriter& Int(uint32_t field, int64_t value) {
    return Uint(field, static_cast<uint64_t>(value));
  }
  WireWriter& Double(uint32_t field, double value) {
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(bits));
    if (bits == 0) return *this;
    Varint(uint64_t{field} << 3 | 1);
    for (int i = 0; i < 8; ++i) {
      out_.push_back(static_cast<char>(bits >> (8 * i)));
    }
    return *this;
  }
  // string and bytes fields.
  WireWriter& Str(uint32_t field, std::string_view bytes) {
    return bytes.empty() ? *this : Message(field, bytes);
  }
  // Submessages and repeated elements: written even when empty.
  WireWriter& Message(uint32_t field, std::string_view bytes) {
    Varint(uint64_t{field} << 3 | 2);
    Varint(bytes.size());
    out_.append(bytes);
    return *this;
  }
  const std::string& str() const { return out_; }
  std::string Take() { return std::move(out_); }

 private:
  void Varint(uint64_t value) {
    for (; value >= 0x80; value >>= 7) {
      out_.push_back(static_cast<char>(value | 0x80));
    }
    out_.push_back(static_cast<char>(value));
  }

  std::string out_;
};

}  // namespace bulkhead::ttrpc

#endif  // BULKHEAD_LIB_TTRPC_WIRE_H_
