// bulkhead.admin.v1.Admin: collections, explanations, checks and backups for
// operators. Ours; not part of containerd's contract.
#ifndef BULKHEAD_SERVICES_METADATA_ADMIN_SERVICE_H_
#define BULKHEAD_SERVICES_METADATA_ADMIN_SERVICE_H_

#include <grpcpp/impl/codegen/service_type.h>

#include <memory>

#include "services/metadata/content.h"
#include "services/metadata/gc.h"
#include "services/metadata/snapshots.h"
#include "services/metadata/store.h"

namespace bulkhead::metadata {

// All are borrowed.
std::unique_ptr<grpc::Service> MakeAdminService(Store& store, Content& content,
                                                Snapshots& snapshots,
                                                Collector& collector);

}  // namespace bulkhead::metadata

#endif  // BULKHEAD_SERVICES_METADATA_ADMIN_SERVICE_H_
