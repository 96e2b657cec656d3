#include "services/gateway/call_stats.h"

#include "services/gateway/proxy.h"

namespace bulkhead::gateway {
namespace {

constexpr const char* kCodeNames[] = {"OK",
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

MethodStats::MethodStats(const std::string& service, const std::string& method)
    : service_(service), method_(method) {
  const stats::Labels labels = {{"grpc_service", service},
                                {"grpc_method", method}};
  started_ = stats::Counter("grpc_server_started_total", labels);
  latency_ = stats::Latency("grpc_server_handling_seconds", labels);
}

void MethodStats::Handled(int code, int64_t micros) {
  if (code < 0 || code > 16) code = 2;
  if (handled_[code] == nullptr) {
    handled_[code] = stats::Counter("grpc_server_handled_total",
                                    {{"grpc_service", service_},
                                     {"grpc_method", method_},
                                     {"grpc_code", kCodeNames[code]}});
  }
  handled_[code]->Add();
  latency_->ObserveMicros(micros);
}

MethodStats* CallStats::Of(const std::string& path, const std::string& service,
                           const std::string& method, bool known) {
  const auto found = methods_.find(path);
  if (found != methods_.end()) return found->second.get();
  if (!known || methods_.size() >= kMethodsMax) return &other_;
  auto& made = methods_[path];
  made = std::make_unique<MethodStats>(service, method);
  return made.get();
}

}  // namespace bulkhead::gateway
