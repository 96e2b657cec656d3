#include "services/runtime/metadata_client.h"

#include "lib/base/status_macros.h"
#include "lib/rpc/channel.h"
#include "lib/rpc/context.h"
#include "lib/rpc/status.h"
#include "proto/containerd/services/containers/v1/containers.grpc.pb.h"
#include "proto/containerd/services/events/v1/events.grpc.pb.h"
#include "proto/containerd/services/sandbox/v1/sandbox.grpc.pb.h"

namespace bulkhead::runtime {
namespace {

namespace containers_v1 = ::containerd::services::containers::v1;
namespace sandboxes_v1 = ::containerd::services::sandbox::v1;
namespace events_v1 = ::containerd::services::events::v1;

constexpr absl::Duration kGetTimeout = absl::Seconds(10);
constexpr absl::Duration kForwardTimeout = absl::Seconds(5);

Any ToAny(const google::protobuf::Any& any) {
  return Any{any.type_url(), any.value()};
}

}  // namespace

struct MetadataClient::Stubs {
  explicit Stubs(const std::shared_ptr<grpc::Channel>& channel)
      : containers(channel), sandboxes(channel), events(channel) {}
  containers_v1::Containers::Stub containers;
  sandboxes_v1::Store::Stub sandboxes;
  events_v1::Events::Stub events;
};

MetadataClient::MetadataClient(const std::string& socket)
    : stubs_(std::make_unique<Stubs>(rpc::Connect(socket))) {}

MetadataClient::~MetadataClient() = default;

absl::StatusOr<ContainerRecord> MetadataClient::GetContainer(
    const std::string& ns, const std::string& id) const {
  containers_v1::GetContainerRequest request;
  request.set_id(id);
  containers_v1::GetContainerResponse response;
  RETURN_IF_ERROR(rpc::RetryUnavailable(kGetTimeout, [&] {
    auto context = rpc::MakeClientContext({.ns = ns}, kGetTimeout);
    return rpc::FromGrpc(
        stubs_->containers.Get(context.get(), request, &response));
  }));
  const containers_v1::Container& container = response.container();
  return ContainerRecord{container.runtime().name(),
                         ToAny(container.runtime().options()),
                         ToAny(container.spec()), container.sandbox()};
}

absl::StatusOr<SandboxRecord> MetadataClient::GetSandbox(
    const std::string& ns, const std::string& id) const {
  sandboxes_v1::StoreGetRequest request;
  request.set_sandbox_id(id);
  sandboxes_v1::StoreGetResponse response;
  RETURN_IF_ERROR(rpc::RetryUnavailable(kGetTimeout, [&] {
    auto context = rpc::MakeClientContext({.ns = ns}, kGetTimeout);
    return rpc::FromGrpc(
        stubs_->sandboxes.Get(context.get(), request, &response));
  }));
  const auto& sandbox = response.sandbox();
  return SandboxRecord{sandbox.runtime().name(),
                       ToAny(sandbox.runtime().options()),
                       ToAny(sandbox.spec())};
}

absl::Status MetadataClient::ForwardEvent(
    const containerd::types::Envelope& envelope) const {
  events_v1::ForwardRequest request;
  *request.mutable_envelope() = envelope;
  google::protobuf::Empty response;
  auto context =
      rpc::MakeClientContext({.ns = envelope.namespace_()}, kForwardTimeout);
  return rpc::FromGrpc(
      stubs_->events.Forward(context.get(), request, &response));
}

}  // namespace bulkhead::runtime
