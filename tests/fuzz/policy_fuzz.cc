// The policies of [distribution], and names as they match them.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "lib/config/config.h"
#include "services/distribution/trust.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  namespace distribution = bulkhead::distribution;
  const std::string text(reinterpret_cast<const char*>(data), size);
  const std::string name = text.substr(0, text.find('\n'));
  const std::string once = distribution::ComparableName(name);
  if (distribution::ComparableName(once) != once) abort();
  if (!distribution::MatchesPattern("*", name)) abort();
  (void)distribution::MatchesPattern(text.substr(0, 200), name);
  const auto config = bulkhead::config::Parse(text, "fuzz");
  if (!config.ok()) return 0;
  const auto trust = distribution::Trust::Create(config->distribution);
  if (!trust.ok() || !config->distribution.image_verifier.bin_dir.empty()) {
    return 0;  // Programs are not run here.
  }
  distribution::Trust::Question question;  // From an archive.
  question.names = {"registry.example/app:1"};
  question.image.digest = bulkhead::Digest::Of("x");
  (void)(*trust)->Check(question);
  return 0;
}
