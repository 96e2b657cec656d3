#include "services/gateway/call_stats.h"

#include "services/gateway/proxy.h"

namespace bulkhead::gateway {
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
