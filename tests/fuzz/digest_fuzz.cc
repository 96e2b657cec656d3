// Digests: what parses prints as it was written.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "lib/digest/digest.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  const auto digest = bulkhead::Digest::Parse(text);
  if (digest.ok() && digest->str() != text) abort();
  return 0;
}
