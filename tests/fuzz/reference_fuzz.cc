// Image references: what parses survives being printed and parsed again.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "lib/oci/reference.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  namespace oci = bulkhead::oci;
  const std::string text(reinterpret_cast<const char*>(data), size);
  (void)oci::ParseFull(text);
  (void)oci::FamiliarName(text);
  const auto reference = oci::ParseNormalized(text);
  if (!reference.ok()) return 0;
  if (!oci::ParseNormalized(oci::Familiar(*reference)).ok()) abort();
  return 0;
}
