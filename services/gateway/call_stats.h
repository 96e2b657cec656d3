// Finds the counters of a method by its path. Not thread-safe.
#ifndef BULKHEAD_SERVICES_GATEWAY_CALL_STATS_H_
#define BULKHEAD_SERVICES_GATEWAY_CALL_STATS_H_

#include <map>
#include <memory>
#include <string>

#include "lib/stats/method_stats.h"

namespace bulkhead::gateway {

using stats::MethodStats;

class CallStats {
 public:
  // Lives as long as this. Past kMethodsMax methods, and for services that
  // are not `known` here, one shared entry.
  MethodStats* Of(const std::string& path, const std::string& service,
                  const std::string& method, bool known);

 private:
  std::map<std::string, std::unique_ptr<MethodStats>> methods_;
  MethodStats other_{"other", "other"};
};

}  // namespace bulkhead::gateway

#endif  // BULKHEAD_SERVICES_GATEWAY_CALL_STATS_H_
