// Labels as any client may set them: their limits, and what garbage collection
// reads from them.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "services/metadata/references.h"
#include "services/metadata/schema.h"
#include "services/metadata/util.h"

namespace metadata = bulkhead::metadata;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  const size_t middle = std::min(text.find('='), size);
  const std::string key = text.substr(0, middle);
  const std::string value = middle < size ? text.substr(middle + 1) : "";
  metadata::LabelMap labels;
  labels[key] = value;
  if (metadata::CheckLabels(labels, "x").ok() !=
      (key.size() + value.size() <= metadata::kLabelBytesMax)) {
    abort();
  }
  (void)metadata::Expired(labels, absl::Now());
  metadata::LabelMap expire;
  expire[metadata::kLabelExpire] = value;
  // What has expired stays expired.
  if (metadata::Expired(expire, absl::UnixEpoch()) &&
      !metadata::Expired(expire, absl::Now())) {
    abort();
  }
  for (const char* prefix :
       {metadata::kReferences, metadata::kBackReferences}) {
    const std::string named = metadata::ReferencedKey("ns", key, value, prefix);
    if (named.empty()) continue;
    // It is one object, in this namespace, of the kind that the key says.
    const auto parts = metadata::Split(named);
    const size_t wanted = named[0] == metadata::kind::kSnapshot ? 3 : 2;
    if (parts.size() != wanted || parts[0] != "ns" || parts.back() != value) {
      abort();
    }
  }
  (void)metadata::ConditionHolds(value, absl::Hours(1));
  metadata::DropEmpty(&labels);
  if (labels.contains(key) != !value.empty()) abort();
  if (metadata::CheckComponent(value, "value").ok() &&
      metadata::Split(metadata::Key('i', {"ns", value})).size() != 2) {
    abort();  // Two records under one key, or one under two.
  }
  (void)metadata::Quoted(text);
  return 0;
}
