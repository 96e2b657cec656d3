// Asks metadata whether what holds an activation is still there.
#ifndef BULKHEAD_SERVICES_SNAPSHOTTER_HOLDER_CLIENT_H_
#define BULKHEAD_SERVICES_SNAPSHOTTER_HOLDER_CLIENT_H_

#include <string>

#include "services/snapshotter/mount_holders.h"

namespace bulkhead::snapshotter {

// `socket`: metadata's. Each question is one call of 5 s at most. A lease past
// its containerd.io/gc.expire is gone.
MountHolders::Asker AskMetadata(const std::string& socket);

}  // namespace bulkhead::snapshotter

#endif  // BULKHEAD_SERVICES_SNAPSHOTTER_HOLDER_CLIENT_H_
