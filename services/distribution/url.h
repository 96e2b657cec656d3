// URLs as registries use them. Pure functions.
#ifndef BULKHEAD_SERVICES_DISTRIBUTION_URL_H_
#define BULKHEAD_SERVICES_DISTRIBUTION_URL_H_

#include <string>

namespace bulkhead::distribution {

struct Url {
  std::string origin;  // "https://host:port"
  std::string rest;    // "/path?query"
};

Url SplitUrl(const std::string& url);

// `location` against `base`; "" if it leads to something else than http(s).
std::string ResolveUrl(const std::string& base, const std::string& location);

}  // namespace bulkhead::distribution

#endif  // BULKHEAD_SERVICES_DISTRIBUTION_URL_H_
