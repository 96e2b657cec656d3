// The ttrpc Events service that shims send their events to.
#ifndef BULKHEAD_SERVICES_RUNTIME_SHIM_EVENTS_H_
#define BULKHEAD_SERVICES_RUNTIME_SHIM_EVENTS_H_

#include <memory>

#include "lib/os/fd.h"
#include "lib/ttrpc/server.h"
#include "services/runtime/event_forwarder.h"
#include "services/runtime/task_manager.h"

namespace bulkhead::runtime {

// Serves Forward on `listener`: checks each event, lets `tasks` see it and
// hands it to `events`; answers when it is safe. `reactor` and `events`
// must outlive the server.
std::unique_ptr<ttrpc::Server> ServeShimEvents(
    ttrpc::Reactor& reactor, os::UniqueFd listener,
    std::shared_ptr<TaskManager> tasks, EventForwarder& events);

}  // namespace bulkhead::runtime

#endif  // BULKHEAD_SERVICES_RUNTIME_SHIM_EVENTS_H_
