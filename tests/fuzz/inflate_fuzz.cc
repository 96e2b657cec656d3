// The framing of compressed layers: gzip members, zstd and skippable frames,
// eStargz' footer. The first byte says in what pieces the bytes come.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "services/snapshotter/inflate.h"

namespace {

constexpr size_t kOutBytesMax = 1 << 20;  // Bombs are not what is looked for.

class Pieces : public bulkhead::snapshotter::LayerSource {
 public:
  Pieces(const uint8_t* data, size_t size, size_t piece)
      : data_(data), left_(size), piece_(piece) {}
  absl::StatusOr<size_t> Read(char* out, size_t size) override {
    if (size == 0) abort();
    const size_t n = std::min({size, left_, piece_});
    std::memcpy(out, data_, n);
    data_ += n;
    left_ -= n;
    return n;
  }

 private:
  const uint8_t* data_;
  size_t left_;
  const size_t piece_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  Pieces pieces(data + 1, size - 1, 1 + data[0] % 64 * 67);
  const auto inflater =
      bulkhead::snapshotter::NewInflater(pieces, (data[0] & 0x40) == 0);
  static char out[4096];
  for (size_t total = 0; total < kOutBytesMax;) {
    const size_t room = 1 + (data[0] >> 7) * (sizeof(out) - 1);
    const auto n = inflater->Read(out, room);
    if (!n.ok() || *n == 0) break;
    if (*n > room) abort();
    total += *n;
    if (room == 1 && total > 20000) break;
  }
  (void)inflater->is_stargz();
  return 0;
}
