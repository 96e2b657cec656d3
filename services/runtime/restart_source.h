// The restart monitor's view of metadata, over gRPC.
#ifndef BULKHEAD_SERVICES_RUNTIME_RESTART_SOURCE_H_
#define BULKHEAD_SERVICES_RUNTIME_RESTART_SOURCE_H_

#include <memory>
#include <string>

#include "services/runtime/restart_monitor.h"

namespace bulkhead::runtime {

std::unique_ptr<RestartSource> MakeRestartSource(
    const std::string& metadata_socket);

}  // namespace bulkhead::runtime

#endif  // BULKHEAD_SERVICES_RUNTIME_RESTART_SOURCE_H_
