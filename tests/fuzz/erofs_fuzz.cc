// A layer's archive turned into an EROFS image in memory: names, whiteouts,
// links and limits of layer_entries.h, and the writer.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>

#include "services/snapshotter/erofs_layer.h"

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
  static const int image = ::memfd_create("image", MFD_CLOEXEC);
  if (image < 0 || ::ftruncate(image, 0) != 0 ||
      ::lseek(image, 0, SEEK_SET) != 0) {
    abort();
  }
  Bytes bytes(data, size);
  bulkhead::snapshotter::ExtractOptions options;
  options.bytes_max = 64 << 20;
  options.entries_max = 10000;
  options.is_stargz = [size] { return size % 2 == 0; };
  bulkhead::snapshotter::ErofsAttributes root;
  root.mode = 0755;
  std::vector<bulkhead::snapshotter::ErofsImplicitDir> implicit;
  const auto written = bulkhead::snapshotter::WriteErofsLayer(
      bytes, image, root, options, &implicit);
  if (!written.ok()) return 0;
  for (const auto& dir : implicit) {
    if (!bulkhead::snapshotter::PatchErofsDir(image, dir.nid, root).ok()) {
      abort();
    }
  }
  return 0;
}
