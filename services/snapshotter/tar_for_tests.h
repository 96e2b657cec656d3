// Archives made by hand, for tests: good ones and ones that no tool writes.
#ifndef BULKHEAD_SERVICES_SNAPSHOTTER_TAR_FOR_TESTS_H_
#define BULKHEAD_SERVICES_SNAPSHOTTER_TAR_FOR_TESTS_H_

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "services/snapshotter/byte_stream.h"

namespace bulkhead::snapshotter {

// One ustar header and its data, padded.
struct Item {
  std::string name;
  char type = '0';
  std::string data = "";
  std::string link = "";
  int mode = 0644;
  int uid = 0;
  int major = 0;
  int minor = 0;
};

inline void Octal(char* field, int digits, uint64_t value) {
  for (int i = digits - 1; i >= 0; --i, value >>= 3) field[i] = '0' + value % 8;
}

inline std::string Encode(const Item& item) {
  char h[512] = {};
  std::memcpy(h, item.name.data(), std::min<size_t>(item.name.size(), 100));
  Octal(h + 100, 7, item.mode);
  Octal(h + 108, 7, item.uid);
  Octal(h + 116, 7, item.uid);
  Octal(h + 124, 11, item.data.size());
  Octal(h + 136, 11, 1000000000);
  h[156] = item.type;
  std::memcpy(h + 157, item.link.data(),
              std::min<size_t>(item.link.size(), 100));
  std::memcpy(h + 257,
              "ustar\0"
              "00",
              8);
  Octal(h + 329, 7, item.major);
  Octal(h + 337, 7, item.minor);
  std::memset(h + 148, ' ', 8);
  unsigned sum = 0;
  for (const char c : h) sum += static_cast<unsigned char>(c);
  Octal(h + 148, 6, sum);
  h[154] = '\0';
  std::string out(h, sizeof(h));
  out += item.data;
  out.append((512 - item.data.size() % 512) % 512, '\0');
  return out;
}

inline std::string Tar(const std::vector<Item>& items) {
  std::string out;
  for (const Item& item : items) out += Encode(item);
  return out + std::string(1024, '\0');
}

inline std::string PaxRecord(const std::string& key, const std::string& value) {
  const size_t rest = key.size() + value.size() + 3;
  size_t size = rest + 1;
  while (std::to_string(size).size() + rest != size) ++size;
  return absl::StrCat(size, " ", key, "=", value, "\n");
}

// An empty gzip member with the extra field eStargz ends with.
inline std::string StargzFooter(bool subfield) {
  std::string extra = "00000000000002a1STARGZ";
  if (subfield) extra = std::string("SG\x16\0", 4) + extra;
  std::string out("\x1f\x8b\x08\x04\0\0\0\0\0\xff", 10);
  out += static_cast<char>(extra.size());
  out += '\0';
  out += extra;
  // One stored block, the last, of nothing; CRC and size of nothing.
  out.append("\x01\0\0\xff\xff", 5);
  return out + std::string(8, '\0');
}

class StringSource : public LayerSource {
 public:
  explicit StringSource(std::string data) : data_(std::move(data)) {}
  absl::StatusOr<size_t> Read(char* out, size_t size_bytes) override {
    const size_t n = std::min(size_bytes, data_.size() - at_);
    std::memcpy(out, data_.data() + at_, n);
    at_ += n;
    return n;
  }

 private:
  const std::string data_;
  size_t at_ = 0;
};

}  // namespace bulkhead::snapshotter

#endif  // BULKHEAD_SERVICES_SNAPSHOTTER_TAR_FOR_TESTS_H_
