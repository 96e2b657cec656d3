// Counts calls by service, method and code, with the names that every service
// of the suite uses (lib/rpc). Not thread-safe.
#ifndef BULKHEAD_SERVICES_GATEWAY_CALL_STATS_H_
#define BULKHEAD_SERVICES_GATEWAY_CALL_STATS_H_

#include <map>
#include <memory>
#include <string>

#include "lib/stats/stats.h"

namespace bulkhead::gateway {

class MethodStats {
 public:
  MethodStats(const std::string& service, const std::string& method);
  void Started() { started_->Add(); }
  // `code` is what the client saw; anything that is no gRPC code counts as
  // Unknown.
  void Handled(int code, int64_t micros);

 private:
  std::string service_;
  std::string method_;
  stats::Value* started_;
  stats::Histogram* latency_;
  stats::Value* handled_[17] = {};
};

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
