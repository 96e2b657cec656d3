// Namespaces, container ids, topic components.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "lib/rpc/context.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string id(reinterpret_cast<const char*>(data), size);
  const absl::Status status = bulkhead::rpc::ValidateIdentifier(id);
  // What may name a folder must be harmless there.
  if (status.ok() &&
      (id.empty() || id.size() > 76 || id[0] == '.' ||
       id.find('/') != std::string::npos || id.find('\0') != std::string::npos))
    abort();
  return 0;
}
