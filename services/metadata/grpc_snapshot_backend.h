// SnapshotBackend over a snapshotter's socket.
#ifndef BULKHEAD_SERVICES_METADATA_GRPC_SNAPSHOT_BACKEND_H_
#define BULKHEAD_SERVICES_METADATA_GRPC_SNAPSHOT_BACKEND_H_

#include <memory>
#include <string>

#include "services/metadata/snapshot_backend.h"

namespace bulkhead::metadata {

// Lazy: a socket that is not there yet is no error. `snapshotter` is the name
// that requests carry.
std::unique_ptr<SnapshotBackend> ConnectSnapshotBackend(
    const std::string& socket, const std::string& snapshotter);

}  // namespace bulkhead::metadata

#endif  // BULKHEAD_SERVICES_METADATA_GRPC_SNAPSHOT_BACKEND_H_
