// Payloads, keys and certificates from a hostile registry or a broken file.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "services/distribution/notation.h"
#include "services/distribution/signature.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  namespace distribution = bulkhead::distribution;
  const std::string text(reinterpret_cast<const char*>(data), size);
  const auto payload = distribution::ParseSimpleSigning(text);
  if (payload.ok() && payload->image.empty()) abort();
  (void)distribution::ParseSubject(text);
  (void)distribution::ParseCertificates(text);
  const auto keys = distribution::ParsePublicKeys(text);
  if (keys.ok() && (*keys)[0].Verifies("nobody signed this", text)) abort();
  return 0;
}
