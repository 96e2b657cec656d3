#include "services/runtime/shim_events.h"

#include <utility>

#include "proto/containerd/services/events/ttrpc/v1/events.pb.h"

namespace bulkhead::runtime {

std::unique_ptr<ttrpc::Server> ServeShimEvents(
    ttrpc::Reactor& reactor, os::UniqueFd listener,
    std::shared_ptr<TaskManager> tasks, EventForwarder& events) {
  // Connections that are ending keep the handler a little longer than the
  // server, and must not keep the manager with it.
  ttrpc::Server::Handler forward = [weak = std::weak_ptr<TaskManager>(tasks),
                                    &events](const ttrpc::Request& request,
                                             ttrpc::Server::Reply reply) {
    containerd::services::events::ttrpc::v1::ForwardRequest message;
    if (!message.ParseFromString(request.payload)) {
      return reply(absl::InvalidArgumentError("malformed ForwardRequest"));
    }
    const absl::Status valid = ValidateEnvelope(message.envelope());
    if (!valid.ok()) return reply(valid);
    std::shared_ptr<TaskManager> manager = weak.lock();
    if (manager == nullptr) {
      return reply(absl::UnavailableError("the runtime service is stopping"));
    }
    using Stage = TaskManager::EventStage;
    if (!manager->Observe(message.envelope(), Stage::kArrived)) {
      return reply(std::string());
    }
    containerd::types::Envelope end;
    if (message.envelope().topic() == "/tasks/exit" ||
        message.envelope().topic() == "/tasks/delete") {
      end = message.envelope();
    }
    events.Publish(std::move(*message.mutable_envelope()),
                   [reply, end, weak](const absl::Status& status) {
                     if (auto manager = weak.lock()) {
                       manager->Observe(
                           end, status.ok() ? Stage::kSent : Stage::kRefused);
                     }
                     if (!status.ok()) return reply(status);
                     reply(std::string());
                   });
  };
  return ttrpc::Server::Start(
      reactor, std::move(listener),
      {{"containerd.services.events.ttrpc.v1.Events/Forward", forward}});
}

}  // namespace bulkhead::runtime
