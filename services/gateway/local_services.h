// The services that the gateway answers itself: Version, Introspection and
// Health.
#ifndef BULKHEAD_SERVICES_GATEWAY_LOCAL_SERVICES_H_
#define BULKHEAD_SERVICES_GATEWAY_LOCAL_SERVICES_H_

#include <mutex>
#include <string>

#include "lib/config/config.h"
#include "services/gateway/proxy.h"

namespace bulkhead::gateway {

class LocalServices : public LocalHandler {
 public:
  // `version` is what Version answers; `uuid` names this installation, see
  // LoadServerUuid().
  LocalServices(const config::Config& config, std::string version,
                std::string uuid)
      : config_(config), version_(std::move(version)), uuid_(std::move(uuid)) {}

  // Plugins change with the configuration. Thread-safe.
  void SetConfig(const config::Config& config) {
    std::lock_guard<std::mutex> lock(mutex_);
    config_ = config;
  }

  bool Serves(const std::string& service) const override;
  LocalReply Call(const std::string& service, const std::string& method,
                  const std::string& request,
                  const RouteTable& routes) override;

 private:
  LocalReply Introspection(const std::string& method,
                           const std::string& request,
                           const RouteTable& routes);

  std::mutex mutex_;
  config::Config config_;
  const std::string version_;
  const std::string uuid_;
};

// The UUID in `root`/server-uuid, made (random, version 4) and stored
// when it is missing. On a failed write the new one is returned all the same;
// it lasts until the process ends.
std::string LoadServerUuid(const std::string& root);

}  // namespace bulkhead::gateway

#endif  // BULKHEAD_SERVICES_GATEWAY_LOCAL_SERVICES_H_
