#include "lib/stats/method_stats.h"

#include <utility>

namespace bulkhead::stats {
namespace {

constexpr int kUnknown = 2;
constexpr const char* kNames[] = {"OK",
                                  "Canceled",
                                  "Unknown",
                                  "InvalidArgument",
                                  "DeadlineExceeded",
                                  "NotFound",
                                  "AlreadyExists",
                                  "PermissionDenied",
                                  "ResourceExhausted",
                                  "FailedPrecondition",
                                  "Aborted",
                                  "OutOfRange",
                                  "Unimplemented",
                                  "Internal",
                                  "Unavailable",
                                  "DataLoss",
                                  "Unauthenticated"};

}  // namespace

const char* GrpcCodeName(int code) {
  return kNames[code < 0 || code > 16 ? kUnknown : code];
}

MethodStats::MethodStats(std::string service, std::string method)
    : service_(std::move(service)),
      method_(std::move(method)),
      started_(Counter("grpc_server_started_total",
                       {{"grpc_service", service_}, {"grpc_method", method_}})),
      latency_(
          Latency("grpc_server_handling_seconds",
                  {{"grpc_service", service_}, {"grpc_method", method_}})) {}

void MethodStats::Handled(int code, int64_t micros) {
  if (code < 0 || code >= kCodes) code = kUnknown;
  Value* value = handled_[code].load(std::memory_order_acquire);
  if (value == nullptr) {
    value = Counter("grpc_server_handled_total",
                    {{"grpc_service", service_},
                     {"grpc_method", method_},
                     {"grpc_code", GrpcCodeName(code)}});
    handled_[code].store(value, std::memory_order_release);
  }
  value->Add();
  latency_->ObserveMicros(micros);
}

}  // namespace bulkhead::stats
