// Docker's config.json, as people and other programs have left it.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "cli/credentials.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  namespace cli = bulkhead::cli;
  const std::string text(reinterpret_cast<const char*>(data), size);
  const size_t line = text.find('\n');
  const std::string host = cli::RegistryHost(text.substr(0, line));
  const std::string config =
      line == std::string::npos ? text : text.substr(line + 1);
  for (const std::string& each :
       {host, std::string("docker.io"), std::string("registry.example:5000")}) {
    const cli::Credentials found = cli::CredentialsFrom(config, each);
    if (found.secret.empty() != found.empty()) abort();
    (void)cli::HelperFor(config, each);
  }
  return 0;
}
