// WWW-Authenticate from a hostile registry.
#include <cstdint>
#include <string>

#include "services/distribution/challenge.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  (void)bulkhead::distribution::ParseChallenges(
      std::string(reinterpret_cast<const char*>(data), size));
  return 0;
}
