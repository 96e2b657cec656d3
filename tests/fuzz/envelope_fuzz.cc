// Notation's envelopes: whatever comes, without a trusted root none is good.
// An input that is no envelope is tried as each part of one.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "services/distribution/notation.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  namespace distribution = bulkhead::distribution;
  const std::string text(reinterpret_cast<const char*>(data), size);
  const absl::Time now = absl::FromUnixSeconds(1'800'000'000);
  const auto check = [&](const std::string& envelope) {
    if (distribution::VerifyNotationJws(envelope, {}, now).ok()) abort();
  };
  check(text);
  const std::string url = absl::WebSafeBase64Escape(text);
  const std::string plain = absl::Base64Escape(text);
  // As a certificate, as the protected header, as the signature.
  check(absl::StrCat(R"({"payload":"e30","protected":"eyJhbGciOiJFUzI1NiJ9",)",
                     R"("signature":"AA","header":{"x5c":[")", plain, "\"]}}"));
  check(absl::StrCat(R"({"payload":"e30","protected":")", url,
                     R"(","signature":")", url,
                     R"(","header":{"x5c":["AA"]}})"));
  return 0;
}
