// WWW-Authenticate (RFC 9110, section 11.6.1).
#ifndef BULKHEAD_SERVICES_DISTRIBUTION_CHALLENGE_H_
#define BULKHEAD_SERVICES_DISTRIBUTION_CHALLENGE_H_

#include <map>
#include <string>
#include <vector>

namespace bulkhead::distribution {

struct Challenge {
  std::string scheme;  // Lower case: "bearer", "basic", ...
  std::map<std::string, std::string> parameters;  // Names in lower case.
};

// Every challenge in one header value; what cannot be read is left out.
std::vector<Challenge> ParseChallenges(const std::string& header);

}  // namespace bulkhead::distribution

#endif  // BULKHEAD_SERVICES_DISTRIBUTION_CHALLENGE_H_
