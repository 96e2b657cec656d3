// hosts.toml as an administrator may have broken it.
#include <cstdint>
#include <string>

#include "services/distribution/hosts.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  bulkhead::distribution::RegistryHost host;
  host.scheme = "https";
  host.host = "registry.example";
  host.path = "/v2";
  (void)bulkhead::distribution::ParseHostsToml(
      std::string(reinterpret_cast<const char*>(data), size), "/nowhere", host);
  return 0;
}
