#include "services/snapshotter/mounts_service.h"

#include <optional>
#include <utility>

#include "lib/filters/filters.h"
#include "lib/rpc/context.h"
#include "lib/rpc/status.h"

namespace bulkhead::snapshotter {
namespace {

namespace v1 = containerd::services::mounts::v1;
constexpr int64_t kNs = 1000000000;

template <typename Proto>
void FillMount(const os::MountSpec& mount, Proto* out) {
  out->set_type(mount.type);
  out->set_source(mount.source);
  out->set_target(mount.target);
  for (const std::string& option : mount.options) out->add_options(option);
}

void FillInfo(const Activation& activation, const std::string& name,
              containerd::types::ActivationInfo* out) {
  out->set_name(name);
  for (const ActiveMount& one : activation.active) {
    auto* active = out->add_active();
    FillMount(one.mount, active->mutable_mount());
    active->mutable_mounted_at()->set_seconds(one.mounted_at_ns / kNs);
    active->mutable_mounted_at()->set_nanos(one.mounted_at_ns % kNs);
    active->set_mount_point(one.mount_point);
    active->mutable_data()->insert(one.data.begin(), one.data.end());
  }
  for (const os::MountSpec& mount : activation.system) {
    FillMount(mount, out->add_system());
  }
  out->mutable_labels()->insert(activation.labels.begin(),
                                activation.labels.end());
}

// Names are each namespace's own.
std::string Prefix(const grpc::ServerContext& context) {
  return rpc::ContextOf(context).ns + "/";
}

}  // namespace

grpc::Status MountsService::Activate(grpc::ServerContext* context,
                                     const v1::ActivateRequest* request,
                                     v1::ActivateResponse* response) {
  if (request->name().empty()) {
    return rpc::ToGrpc(absl::InvalidArgumentError("mount name is required"));
  }
  std::vector<os::MountSpec> mounts;
  for (const auto& mount : request->mounts()) {
    mounts.push_back({mount.type(),
                      mount.source(),
                      mount.target(),
                      {mount.options().begin(), mount.options().end()}});
  }
  const absl::StatusOr<Activation> activation = manager_.Activate(
      Prefix(*context) + request->name(), mounts,
      Labels(request->labels().begin(), request->labels().end()),
      request->temporary(), rpc::ContextOf(*context).lease);
  if (activation.ok() && activated_) activated_();
  if (activation.ok()) {
    FillInfo(*activation, request->name(), response->mutable_info());
  }
  return rpc::ToGrpc(activation.status());
}

grpc::Status MountsService::Deactivate(grpc::ServerContext* context,
                                       const v1::DeactivateRequest* request,
                                       google::protobuf::Empty*) {
  return rpc::ToGrpc(manager_.Deactivate(Prefix(*context) + request->name()));
}

grpc::Status MountsService::Info(grpc::ServerContext* context,
                                 const v1::InfoRequest* request,
                                 v1::InfoResponse* response) {
  const absl::StatusOr<Activation> activation =
      manager_.Info(Prefix(*context) + request->name());
  if (activation.ok()) {
    FillInfo(*activation, request->name(), response->mutable_info());
  }
  return rpc::ToGrpc(activation.status());
}

grpc::Status MountsService::Update(grpc::ServerContext*,
                                   const v1::UpdateRequest*,
                                   v1::UpdateResponse*) {
  return rpc::ToGrpc(absl::UnimplementedError("Mounts.Update"));
}

grpc::Status MountsService::List(grpc::ServerContext* context,
                                 const v1::ListRequest* request,
                                 grpc::ServerWriter<v1::ListMessage>* writer) {
  const absl::StatusOr<filters::Filter> filter =
      filters::Filter::Parse(request->filters());
  if (!filter.ok()) return rpc::ToGrpc(filter.status());
  const std::string prefix = Prefix(*context);
  for (const Activation& activation : manager_.List()) {
    if (activation.name.compare(0, prefix.size(), prefix) != 0) continue;
    const std::string name = activation.name.substr(prefix.size());
    const auto field =
        [&](const filters::FieldPath& path) -> std::optional<std::string> {
      if (path.empty()) return std::nullopt;
      if (path[0] == "name") return name;
      if (path[0] == "labels") {
        return filters::MapField(activation.labels, path);
      }
      return std::nullopt;
    };
    if (!filter->Match(field)) continue;
    v1::ListMessage message;
    FillInfo(activation, name, message.mutable_info());
    if (!writer->Write(message)) break;
  }
  return grpc::Status::OK;
}

}  // namespace bulkhead::snapshotter
