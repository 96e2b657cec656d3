// RootfsMounts by a service that serves containerd.services.mounts.v1.
#ifndef BULKHEAD_SERVICES_RUNTIME_MOUNTS_CLIENT_H_
#define BULKHEAD_SERVICES_RUNTIME_MOUNTS_CLIENT_H_

#include <memory>
#include <string>

#include "services/runtime/rootfs_mounts.h"

namespace bulkhead::runtime {

// Waits out a restart of the service, within limits.
std::unique_ptr<RootfsMounts> MakeRootfsMounts(const std::string& socket);

}  // namespace bulkhead::runtime

#endif  // BULKHEAD_SERVICES_RUNTIME_MOUNTS_CLIENT_H_
