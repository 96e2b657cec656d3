// The archive reader, fed in pieces that are no whole blocks.
#include <algorithm>
#include <cstdint>
#include <cstdlib>

#include "lib/tar/reader.h"

namespace {

class Bytes : public bulkhead::tar::ByteStream {
 public:
  Bytes(const uint8_t* data, size_t size)
      : left_(reinterpret_cast<const char*>(data), size) {}
  absl::StatusOr<absl::string_view> Fill() override {
    return left_.substr(0, 700);
  }
  void Consume(size_t size) override {
    if (size > left_.size()) abort();
    left_.remove_prefix(size);
  }

 private:
  absl::string_view left_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes bytes(data, size);
  bulkhead::tar::TarReader reader(bytes);
  bulkhead::tar::TarEntry entry;
  for (;;) {
    const auto more = reader.Next(&entry);
    if (!more.ok() || !*more) return 0;
    if (entry.size_bytes < 0) abort();
    if (entry.type != bulkhead::tar::TarType::kFile) continue;
    const absl::Status read =
        reader.ReadData([&](int64_t offset, absl::string_view piece) {
          if (offset < 0 ||
              offset + static_cast<int64_t>(piece.size()) > entry.size_bytes)
            abort();
          return absl::OkStatus();
        });
    if (!read.ok()) return 0;
  }
}
