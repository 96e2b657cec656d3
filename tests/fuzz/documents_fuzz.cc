// Manifests, indexes, configurations and platforms from a registry.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "lib/oci/image.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  namespace oci = bulkhead::oci;
  const std::string text(reinterpret_cast<const char*>(data), size);
  (void)oci::GuessMediaType(text);
  (void)oci::ParsePlatform(text);
  const auto manifest = oci::ParseManifest(text);
  if (manifest.ok() && !oci::ParseManifest(oci::WriteManifest(*manifest)).ok())
    abort();
  const auto index = oci::ParseIndex(text);
  if (index.ok() && !oci::ParseIndex(oci::WriteIndex(*index)).ok()) abort();
  const auto config = oci::ParseImageConfig(text);
  if (config.ok() &&
      !oci::ParseImageConfig(oci::WriteImageConfig(*config)).ok())
    abort();
  return 0;
}
