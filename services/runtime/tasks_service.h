// containerd.services.tasks.v1.Tasks over the TaskManager. Wait is served by
// gRPC's callback API, so that it needs no thread while it waits.
#ifndef BULKHEAD_SERVICES_RUNTIME_TASKS_SERVICE_H_
#define BULKHEAD_SERVICES_RUNTIME_TASKS_SERVICE_H_

#include <grpcpp/impl/codegen/service_type.h>

#include <memory>

#include "services/runtime/checkpoint_store.h"
#include "services/runtime/task_manager.h"

namespace bulkhead::runtime {

// Borrowed objects must outlive the service. `containers` gives the spec that
// goes into a checkpoint.
std::unique_ptr<grpc::Service> MakeTasksService(
    TaskManager& tasks, const CheckpointStore& checkpoints,
    ContainerSource containers);

}  // namespace bulkhead::runtime

#endif  // BULKHEAD_SERVICES_RUNTIME_TASKS_SERVICE_H_
