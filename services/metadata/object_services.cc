#include "services/metadata/object_services.h"

#include <grpcpp/server_context.h>
#include <grpcpp/support/server_callback.h>

#include "absl/strings/numbers.h"
#include "lib/rpc/context.h"
#include "lib/rpc/server.h"
#include "lib/rpc/status.h"
#include "proto/containerd/services/containers/v1/containers.grpc.pb.h"
#include "proto/containerd/services/events/v1/events.grpc.pb.h"
#include "proto/containerd/services/images/v1/images.grpc.pb.h"
#include "proto/containerd/services/leases/v1/leases.grpc.pb.h"
#include "proto/containerd/services/namespaces/v1/namespaces.grpc.pb.h"
#include "proto/containerd/services/sandbox/v1/sandbox.grpc.pb.h"
#include "services/metadata/objects.h"
#include "services/metadata/reply.h"
#include "services/metadata/util.h"

namespace bulkhead::metadata {
namespace {

using google::protobuf::Empty;
using grpc::ServerContext;
using rpc::ContextOf;
using rpc::RequireNamespace;
using rpc::ToGrpc;

namespace containers_v1 = containerd::services::containers::v1;
namespace events_v1 = containerd::services::events::v1;
namespace images_v1 = containerd::services::images::v1;
namespace leases_v1 = containerd::services::leases::v1;
namespace namespaces_v1 = containerd::services::namespaces::v1;
namespace sandbox_v1 = containerd::services::sandbox::v1;

template <typename Request>
Mask MaskOf(const Request& request) {
  return Mask(request.update_mask().paths().begin(),
              request.update_mask().paths().end());
}

// How much a unary answer may grow: past what a message may have, the call
// fails instead of building what nobody can be sent.
class ReplyRoom {
 public:
  // False: no more fits.
  bool Take(size_t record_bytes) {
    // A tag and a length of at most five bytes go with each record.
    bytes_ += record_bytes + 6;
    return bytes_ <= static_cast<size_t>(rpc::kMessageBytesMax);
  }
  absl::Status status() const {
    if (bytes_ <= static_cast<size_t>(rpc::kMessageBytesMax)) {
      return absl::OkStatus();
    }
    return absl::ResourceExhaustedError(
        absl::StrCat("the listing is larger than a message may be (",
                     rpc::kMessageBytesMax, " bytes): narrow it by a filter"));
  }

 private:
  size_t bytes_ = 0;
};

// Runs `list(visitor)` into the repeated field `field` of `response`. What is
// stored is what goes on the wire: as a field that the message does not know
// it is neither built nor serialized again.
template <typename Record, typename List>
grpc::Status ReplyList(const List& list, int field,
                       google::protobuf::Message* response) {
  google::protobuf::UnknownFieldSet* const fields =
      response->GetReflection()->MutableUnknownFields(response);
  ReplyRoom room;
  REPLY_IF_ERROR(list([&](Record&, std::string_view stored) {
    if (!room.Take(stored.size())) return false;
    fields->AddLengthDelimited(field)->assign(stored);
    return true;
  }));
  return ToGrpc(room.status());
}

class NamespacesService final : public namespaces_v1::Namespaces::Service {
 public:
  explicit NamespacesService(Store& store) : core_(store) {}

  grpc::Status Get(ServerContext*,
                   const namespaces_v1::GetNamespaceRequest* request,
                   namespaces_v1::GetNamespaceResponse* response) override {
    REPLY_IF_ERROR(CheckComponent(request->name(), "namespace"));
    ASSIGN_OR_REPLY(*response->mutable_namespace_(),
                    core_.Get(request->name()));
    return grpc::Status::OK;
  }
  grpc::Status List(ServerContext*, const namespaces_v1::ListNamespacesRequest*,
                    namespaces_v1::ListNamespacesResponse* response) override {
    ASSIGN_OR_REPLY(std::vector<Namespace> all, core_.List());
    for (Namespace& each : all) {
      *response->add_namespaces() = std::move(each);
    }
    return grpc::Status::OK;
  }
  grpc::Status Create(
      ServerContext*, const namespaces_v1::CreateNamespaceRequest* request,
      namespaces_v1::CreateNamespaceResponse* response) override {
    REPLY_IF_ERROR(CheckIdentifier(request->namespace_().name()));
    ASSIGN_OR_REPLY(*response->mutable_namespace_(),
                    core_.Create(request->namespace_()));
    return grpc::Status::OK;
  }
  grpc::Status Update(
      ServerContext*, const namespaces_v1::UpdateNamespaceRequest* request,
      namespaces_v1::UpdateNamespaceResponse* response) override {
    REPLY_IF_ERROR(CheckIdentifier(request->namespace_().name()));
    ASSIGN_OR_REPLY(*response->mutable_namespace_(),
                    core_.Update(request->namespace_(), MaskOf(*request)));
    return grpc::Status::OK;
  }
  grpc::Status Delete(ServerContext*,
                      const namespaces_v1::DeleteNamespaceRequest* request,
                      Empty*) override {
    REPLY_IF_ERROR(CheckIdentifier(request->name()));
    return ToGrpc(core_.Delete(request->name()));
  }

 private:
  Namespaces core_;
};

class ImagesService final : public images_v1::Images::Service {
 public:
  ImagesService(Store& store, const CollectNow& collect_now)
      : core_(store), collect_now_(collect_now) {}

  grpc::Status Get(ServerContext* context,
                   const images_v1::GetImageRequest* request,
                   images_v1::GetImageResponse* response) override {
    ASSIGN_OR_REPLY(const std::string ns, RequireNamespace(*context));
    REPLY_IF_ERROR(CheckComponent(request->name(), "image name"));
    ASSIGN_OR_REPLY(*response->mutable_image(), core_.Get(ns, request->name()));
    return grpc::Status::OK;
  }
  grpc::Status List(ServerContext* context,
                    const images_v1::ListImagesRequest* request,
                    images_v1::ListImagesResponse* response) override {
    ASSIGN_OR_REPLY(const std::string ns, RequireNamespace(*context));
    ASSIGN_OR_REPLY(const filters::Filter filter,
                    filters::Filter::Parse(request->filters()));
    return ReplyList<Image>(
        [&](const Visitor<Image>& v) { return core_.List(ns, filter, v); },
        images_v1::ListImagesResponse::kImagesFieldNumber, response);
  }
  grpc::Status Create(ServerContext* context,
                      const images_v1::CreateImageRequest* request,
                      images_v1::CreateImageResponse* response) override {
    if (request->image().name().empty()) {
      return ToGrpc(absl::InvalidArgumentError("Image.Name required"));
    }
    ASSIGN_OR_REPLY(const std::string ns, RequireNamespace(*context));
    ASSIGN_OR_REPLY(*response->mutable_image(),
                    core_.Create(ns, request->image(),
                                 ContextOf(*context).lease, Epoch(*request)));
    return grpc::Status::OK;
  }
  grpc::Status Update(ServerContext* context,
                      const images_v1::UpdateImageRequest* request,
                      images_v1::UpdateImageResponse* response) override {
    if (request->image().name().empty()) {
      return ToGrpc(absl::InvalidArgumentError("Image.Name required"));
    }
    ASSIGN_OR_REPLY(const std::string ns, RequireNamespace(*context));
    ASSIGN_OR_REPLY(*response->mutable_image(),
                    core_.Update(ns, request->image(), MaskOf(*request),
                                 ContextOf(*context).lease, Epoch(*request)));
    return grpc::Status::OK;
  }
  grpc::Status Delete(ServerContext* context,
                      const images_v1::DeleteImageRequest* request,
                      Empty*) override {
    ASSIGN_OR_REPLY(const std::string ns, RequireNamespace(*context));
    REPLY_IF_ERROR(CheckComponent(request->name(), "image name"));
    REPLY_IF_ERROR(core_.Delete(ns, request->name(), request->target().digest(),
                                ContextOf(*context).lease));
    if (request->sync()) return ToGrpc(collect_now_());
    return grpc::Status::OK;
  }

 private:
  template <typename Request>
  static std::optional<google::protobuf::Timestamp> Epoch(
      const Request& request) {
    if (!request.has_source_date_epoch()) return std::nullopt;
    return request.source_date_epoch();
  }

  Images core_;
  const CollectNow& collect_now_;
};

class ContainersService final : public containers_v1::Containers::Service {
 public:
  explicit ContainersService(Store& store) : core_(store) {}

  grpc::Status Get(ServerContext* context,
                   const containers_v1::GetContainerRequest* request,
                   containers_v1::GetContainerResponse* response) override {
    ASSIGN_OR_REPLY(const std::string ns, RequireNamespace(*context));
    REPLY_IF_ERROR(CheckComponent(request->id(), "container id"));
    ASSIGN_OR_REPLY(*response->mutable_container(),
                    core_.Get(ns, request->id()));
    return grpc::Status::OK;
  }
  grpc::Status List(ServerContext* context,
                    const containers_v1::ListContainersRequest* request,
                    containers_v1::ListContainersResponse* response) override {
    ASSIGN_OR_REPLY(const std::string ns, RequireNamespace(*context));
    ASSIGN_OR_REPLY(const filters::Filter filter,
                    filters::Filter::Parse(request->filters()));
    return ReplyList<Container>(
        [&](const Visitor<Container>& v) { return core_.List(ns, filter, v); },
        containers_v1::ListContainersResponse::kContainersFieldNumber,
        response);
  }
  grpc::Status ListStream(
      ServerContext* context,
      const containers_v1::ListContainersRequest* request,
      grpc::ServerWriter<containers_v1::ListContainerMessage>* writer)
      override {
    ASSIGN_OR_REPLY(const std::string ns, RequireNamespace(*context));
    ASSIGN_OR_REPLY(const filters::Filter filter,
                    filters::Filter::Parse(request->filters()));
    return ToGrpc(core_.List(
        ns, filter, [writer](Container& container, std::string_view) {
          containers_v1::ListContainerMessage message;
          *message.mutable_container() = std::move(container);
          return writer->Write(message);
        }));
  }
  grpc::Status Create(
      ServerContext* context,
      const containers_v1::CreateContainerRequest* request,
      containers_v1::CreateContainerResponse* response) override {
    ASSIGN_OR_REPLY(const std::string ns, RequireNamespace(*context));
    ASSIGN_OR_REPLY(*response->mutable_container(),
                    core_.Create(ns, request->container()));
    return grpc::Status::OK;
  }
  grpc::Status Update(
      ServerContext* context,
      const containers_v1::UpdateContainerRequest* request,
      containers_v1::UpdateContainerResponse* response) override {
    ASSIGN_OR_REPLY(const std::string ns, RequireNamespace(*context));
    ASSIGN_OR_REPLY(*response->mutable_container(),
                    core_.Update(ns, request->container(), MaskOf(*request)));
    return grpc::Status::OK;
  }
  grpc::Status Delete(ServerContext* context,
                      const containers_v1::DeleteContainerRequest* request,
                      Empty*) override {
    ASSIGN_OR_REPLY(const std::string ns, RequireNamespace(*context));
    REPLY_IF_ERROR(CheckComponent(request->id(), "container id"));
    return ToGrpc(core_.Delete(ns, request->id()));
  }

 private:
  Containers core_;
};

class LeasesService final : public leases_v1::Leases::Service {
 public:
  LeasesService(Store& store, const CollectNow& collect_now)
      : core_(store), collect_now_(collect_now) {}

  grpc::Status Create(ServerContext* context,
                      const leases_v1::CreateRequest* request,
                      leases_v1::CreateResponse* response) override {
    ASSIGN_OR_REPLY(const std::string ns, RequireNamespace(*context));
    Lease wanted;
    wanted.set_id(request->id());
    *wanted.mutable_labels() = request->labels();
    ASSIGN_OR_REPLY(*response->mutable_lease(), core_.Create(ns, wanted));
    return grpc::Status::OK;
  }
  grpc::Status Delete(ServerContext* context,
                      const leases_v1::DeleteRequest* request,
                      Empty*) override {
    ASSIGN_OR_REPLY(const std::string ns, RequireNamespace(*context));
    REPLY_IF_ERROR(CheckComponent(request->id(), "lease id"));
    REPLY_IF_ERROR(core_.Delete(ns, request->id()));
    if (request->sync()) return ToGrpc(collect_now_());
    return grpc::Status::OK;
  }
  grpc::Status List(ServerContext* context,
                    const leases_v1::ListRequest* request,
                    leases_v1::ListResponse* response) override {
    ASSIGN_OR_REPLY(const std::string ns, RequireNamespace(*context));
    ASSIGN_OR_REPLY(const filters::Filter filter,
                    filters::Filter::Parse(request->filters()));
    return ReplyList<Lease>(
        [&](const Visitor<Lease>& v) { return core_.List(ns, filter, v); },
        leases_v1::ListResponse::kLeasesFieldNumber, response);
  }
  grpc::Status AddResource(ServerContext* context,
                           const leases_v1::AddResourceRequest* request,
                           Empty*) override {
    ASSIGN_OR_REPLY(const std::string ns, RequireNamespace(*context));
    REPLY_IF_ERROR(CheckComponent(request->id(), "lease id"));
    return ToGrpc(core_.AddResource(ns, request->id(), request->resource()));
  }
  grpc::Status DeleteResource(ServerContext* context,
                              const leases_v1::DeleteResourceRequest* request,
                              Empty*) override {
    ASSIGN_OR_REPLY(const std::string ns, RequireNamespace(*context));
    REPLY_IF_ERROR(CheckComponent(request->id(), "lease id"));
    return ToGrpc(core_.DeleteResource(ns, request->id(), request->resource()));
  }
  grpc::Status ListResources(
      ServerContext* context, const leases_v1::ListResourcesRequest* request,
      leases_v1::ListResourcesResponse* response) override {
    ASSIGN_OR_REPLY(const std::string ns, RequireNamespace(*context));
    REPLY_IF_ERROR(CheckComponent(request->id(), "lease id"));
    ReplyRoom room;
    REPLY_IF_ERROR(
        core_.ListResources(ns, request->id(), [&](Resource& resource) {
          if (!room.Take(resource.ByteSizeLong())) return false;
          *response->add_resources() = std::move(resource);
          return true;
        }));
    return ToGrpc(room.status());
  }

 private:
  Leases core_;
  const CollectNow& collect_now_;
};

class SandboxService final : public sandbox_v1::Store::Service {
 public:
  explicit SandboxService(Store& store) : core_(store) {}

  grpc::Status Create(ServerContext* context,
                      const sandbox_v1::StoreCreateRequest* request,
                      sandbox_v1::StoreCreateResponse* response) override {
    ASSIGN_OR_REPLY(const std::string ns, RequireNamespace(*context));
    REPLY_IF_ERROR(CheckIdentifier(request->sandbox().sandbox_id()));
    ASSIGN_OR_REPLY(*response->mutable_sandbox(),
                    core_.Create(ns, request->sandbox()));
    return grpc::Status::OK;
  }
  grpc::Status Update(ServerContext* context,
                      const sandbox_v1::StoreUpdateRequest* request,
                      sandbox_v1::StoreUpdateResponse* response) override {
    ASSIGN_OR_REPLY(const std::string ns, RequireNamespace(*context));
    REPLY_IF_ERROR(CheckIdentifier(request->sandbox().sandbox_id()));
    const Mask fields(request->fields().begin(), request->fields().end());
    ASSIGN_OR_REPLY(*response->mutable_sandbox(),
                    core_.Update(ns, request->sandbox(), fields));
    return grpc::Status::OK;
  }
  grpc::Status Delete(ServerContext* context,
                      const sandbox_v1::StoreDeleteRequest* request,
                      sandbox_v1::StoreDeleteResponse*) override {
    ASSIGN_OR_REPLY(const std::string ns, RequireNamespace(*context));
    REPLY_IF_ERROR(CheckIdentifier(request->sandbox_id()));
    return ToGrpc(core_.Delete(ns, request->sandbox_id()));
  }
  grpc::Status List(ServerContext* context,
                    const sandbox_v1::StoreListRequest* request,
                    sandbox_v1::StoreListResponse* response) override {
    ASSIGN_OR_REPLY(const std::string ns, RequireNamespace(*context));
    ASSIGN_OR_REPLY(const filters::Filter filter,
                    filters::Filter::Parse(request->filters()));
    return ReplyList<Sandbox>(
        [&](const Visitor<Sandbox>& v) { return core_.List(ns, filter, v); },
        sandbox_v1::StoreListResponse::kListFieldNumber, response);
  }
  grpc::Status Get(ServerContext* context,
                   const sandbox_v1::StoreGetRequest* request,
                   sandbox_v1::StoreGetResponse* response) override {
    ASSIGN_OR_REPLY(const std::string ns, RequireNamespace(*context));
    REPLY_IF_ERROR(CheckIdentifier(request->sandbox_id()));
    ASSIGN_OR_REPLY(*response->mutable_sandbox(),
                    core_.Get(ns, request->sandbox_id()));
    return grpc::Status::OK;
  }

 private:
  Sandboxes core_;
};

// After which a subscriber that has left is noticed.
constexpr absl::Duration kCancelLook = absl::Milliseconds(500);

// `event` with its number in a field of its own.
Envelope Numbered(const Event& event) {
  Envelope copy = *event.envelope;
  copy.GetReflection()->MutableUnknownFields(&copy)->AddVarint(kSequenceField,
                                                               event.sequence);
  return copy;
}

class EventsService final : public events_v1::Events::Service {
 public:
  explicit EventsService(EventBus& bus) : bus_(bus) {}

  grpc::Status Publish(ServerContext* context,
                       const events_v1::PublishRequest* request,
                       Empty*) override {
    ASSIGN_OR_REPLY(const std::string ns, RequireNamespace(*context));
    REPLY_IF_ERROR(ValidateTopic(request->topic()));
    return ToGrpc(bus_.PublishAny(ns, request->topic(), request->event()));
  }
  grpc::Status Forward(ServerContext*, const events_v1::ForwardRequest* request,
                       Empty*) override {
    const Envelope& envelope = request->envelope();
    const absl::Status ns = CheckIdentifier(envelope.namespace_());
    if (!ns.ok()) {
      return ToGrpc(Annotate(ns, "event envelope has invalid namespace"));
    }
    REPLY_IF_ERROR(ValidateTopic(envelope.topic()));
    if (envelope.timestamp().seconds() == 0 &&
        envelope.timestamp().nanos() == 0) {
      return ToGrpc(absl::InvalidArgumentError(
          "timestamp must be set on forwarded event"));
    }
    return ToGrpc(bus_.Forward(envelope));
  }
  grpc::Status Subscribe(ServerContext* context,
                         const events_v1::SubscribeRequest* request,
                         grpc::ServerWriter<Envelope>* writer) override {
    absl::StatusOr<filters::Filter> filter =
        filters::Filter::Parse(request->filters());
    if (!filter.ok()) {
      // containerd leaves this error unmapped.
      const grpc::Status mapped = ToGrpc(filter.status());
      return {grpc::StatusCode::UNKNOWN, mapped.error_message()};
    }
    std::optional<uint64_t> after;
    const auto header = context->client_metadata().find(kEventsAfterHeader);
    if (header != context->client_metadata().end()) {
      const std::string text(header->second.data(), header->second.size());
      if (!absl::SimpleAtoi(text, &after.emplace())) {
        return ToGrpc(absl::InvalidArgumentError(absl::StrCat(
            kEventsAfterHeader, ": ", Quoted(text), " is not a number")));
      }
      context->AddInitialMetadata(kEventsLastHeader, absl::StrCat(bus_.last()));
    }
    absl::Mutex mutex;
    bool ready = false;
    bool idle = false;
    ASSIGN_OR_REPLY(const std::unique_ptr<Subscription> subscription,
                    bus_.Subscribe(
                        *std::move(filter),
                        [&] {
                          absl::MutexLock lock(&mutex);
                          ready = true;
                        },
                        after));
    writer->SendInitialMetadata();
    while (!context->IsCancelled()) {
      {
        // Nothing tells this thread that the client has left.
        absl::MutexLock lock(&mutex);
        if (idle) mutex.AwaitWithTimeout(absl::Condition(&ready), kCancelLook);
        ready = false;
      }
      ASSIGN_OR_REPLY(const Event next, subscription->Next());
      idle = next.envelope == nullptr;
      if (idle) continue;
      if (!(after.has_value() ? writer->Write(Numbered(next))
                              : writer->Write(*next.envelope))) {
        break;
      }
    }
    return grpc::Status::CANCELLED;
  }

 private:
  EventBus& bus_;
};

}  // namespace

struct ObjectServices::Impl {
  Impl(Store& store, CollectNow collect)
      : collect_now(std::move(collect)),
        namespaces(store),
        images(store, collect_now),
        containers(store),
        leases(store, collect_now),
        sandboxes(store),
        events(store.events()) {}

  const CollectNow collect_now;
  NamespacesService namespaces;
  ImagesService images;
  ContainersService containers;
  LeasesService leases;
  SandboxService sandboxes;
  EventsService events;
};

ObjectServices::ObjectServices(Store& store, CollectNow collect_now)
    : impl_(std::make_unique<Impl>(store, std::move(collect_now))) {}
ObjectServices::~ObjectServices() = default;

std::vector<grpc::Service*> ObjectServices::services() const {
  return {&impl_->namespaces, &impl_->images,    &impl_->containers,
          &impl_->leases,     &impl_->sandboxes, &impl_->events};
}

}  // namespace bulkhead::metadata
