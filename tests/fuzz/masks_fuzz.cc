// Update field masks: on records with any labels, any path either changes what
// it names or is refused, and nothing else changes.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <string>

#include "services/metadata/util.h"

namespace metadata = bulkhead::metadata;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // The path, then keys and values by turns, each ended by a NUL.
  const std::string text(reinterpret_cast<const char*>(data), size);
  const size_t end = std::min(text.find('\0'), size);
  const std::string path = text.substr(0, end);
  metadata::LabelMap from;
  metadata::LabelMap labels;
  std::string key;
  bool is_key = true;
  for (size_t at = end + 1; at < size;) {
    const size_t stop = std::min(text.find('\0', at), size);
    const std::string part = text.substr(at, stop - at);
    if (is_key) {
      key = part;
    } else {
      (part.size() % 2 == 0 ? from : labels)[key] = part;
    }
    is_key = !is_key;
    at = stop + 1;
  }
  for (const std::string prefix : {"labels", "extensions"}) {
    std::string label;
    if (!metadata::MaskKey(path, prefix, &label)) continue;
    if (path != prefix + "." + label) abort();
    metadata::LabelMap after = labels;
    metadata::SetLabel(label, from, &after);
    const auto wanted = from.find(label);
    const bool there = wanted != from.end() && !wanted->second.empty();
    if (after.contains(label) != there) abort();
    if (there && after.at(label) != wanted->second) abort();
    after.erase(label);
    metadata::LabelMap before = labels;
    before.erase(label);
    if (after.size() != before.size()) abort();
    for (const auto& [name, value] : before) {
      if (!after.contains(name) || after.at(name) != value) abort();
    }
  }
  return 0;
}
