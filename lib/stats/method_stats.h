// The counters of one RPC method, with the names that Prometheus' gRPC
// dashboards know: grpc_server_started_total, grpc_server_handled_total and
// grpc_server_handling_seconds.
#ifndef BULKHEAD_LIB_STATS_METHOD_STATS_H_
#define BULKHEAD_LIB_STATS_METHOD_STATS_H_

#include <atomic>
#include <cstdint>
#include <string>

#include "lib/stats/stats.h"

namespace bulkhead::stats {

// "OK", "NotFound", ... for a gRPC status code; anything else is "Unknown".
const char* GrpcCodeName(int code);

// Thread-safe; a call costs three atomic adds.
class MethodStats {
 public:
  MethodStats(std::string service, std::string method);

  const std::string& service() const { return service_; }
  const std::string& method() const { return method_; }
  void Started() { started_->Add(); }
  // `code` is what the client saw.
  void Handled(int code, int64_t micros);

 private:
  static constexpr int kCodes = 17;

  const std::string service_;
  const std::string method_;
  Value* const started_;
  Histogram* const latency_;
  std::atomic<Value*> handled_[kCodes] = {};  // Made when first seen.
};

}  // namespace bulkhead::stats

#endif  // BULKHEAD_LIB_STATS_METHOD_STATS_H_
