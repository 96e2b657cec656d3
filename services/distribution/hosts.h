// Which servers stand for a registry: hosts.toml and Docker's certs.d layout,
// and the defaults without either. Read anew for each transfer.
#ifndef BULKHEAD_SERVICES_DISTRIBUTION_HOSTS_H_
#define BULKHEAD_SERVICES_DISTRIBUTION_HOSTS_H_

#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "services/distribution/http.h"

namespace bulkhead::distribution {

constexpr size_t kHostsFileBytesMax = 1 << 20;
constexpr size_t kHostsMax = 64;  // In one hosts.toml.

struct RegistryHost {
  std::string scheme;  // "http" or "https".
  std::string host;    // With the port if it is not the scheme's.
  std::string path;    // "/v2", or what override_path says. No trailing slash.
  bool pull = true;
  bool resolve = true;
  bool push = true;
  bool referrers = true;
  TlsOptions tls;
  // Speak https first; plain http if the server does not speak TLS.
  bool https_first = false;
  absl::Duration dial_timeout = absl::Seconds(30);
  std::vector<std::pair<std::string, std::string>> headers;

  std::string Url(const std::string& used_scheme) const {
    return used_scheme + "://" + host + path;
  }
};

struct HostsOptions {
  // Folders with one folder per registry, the first that has one wins; each
  // may hold several, colon-separated.
  std::string config_path;
  std::string default_scheme;  // "http", "https" or "".
};

// The servers for the registry `host` (as in a reference), in the order to
// try. Errors: kInvalidArgument: a hosts.toml that cannot be used, with its
// path.
absl::StatusOr<std::vector<RegistryHost>> HostsFor(const std::string& host,
                                                   const HostsOptions& options);

// True for localhost, 127.0.0.0/8 and [::1], with or without a port.
bool IsLoopback(const std::string& host);

// Parses hosts.toml found in `dir`. Exposed for tests.
absl::StatusOr<std::vector<RegistryHost>> ParseHostsToml(
    const std::string& toml, const std::string& dir,
    const RegistryHost& default_host);

}  // namespace bulkhead::distribution

#endif  // BULKHEAD_SERVICES_DISTRIBUTION_HOSTS_H_
