// The filter grammar; what parses must also match without trouble.
#include <cstdint>
#include <string>

#include "lib/filters/filters.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  const auto filter = bulkhead::filters::Filter::ParseAll({text});
  if (!filter.ok()) return 0;
  (void)filter->Match([](const bulkhead::filters::FieldPath& path) {
    return path.size() % 2 == 0 ? std::optional<std::string>()
                                : std::optional<std::string>(path.back());
  });
  return 0;
}
