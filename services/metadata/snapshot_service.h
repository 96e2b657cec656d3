// gRPC adapter of client-facing Snapshots.
#ifndef BULKHEAD_SERVICES_METADATA_SNAPSHOT_SERVICE_H_
#define BULKHEAD_SERVICES_METADATA_SNAPSHOT_SERVICE_H_

#include <grpcpp/impl/codegen/service_type.h>

#include <memory>

#include "services/metadata/snapshots.h"

namespace bulkhead::metadata {

// `snapshots` is borrowed. Thread-safe. Cleanup is UNIMPLEMENTED: it belongs
// to backends.
std::unique_ptr<grpc::Service> MakeSnapshotService(Snapshots& snapshots);

}  // namespace bulkhead::metadata

#endif  // BULKHEAD_SERVICES_METADATA_SNAPSHOT_SERVICE_H_
