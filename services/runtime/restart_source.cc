#include "services/runtime/restart_source.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/rpc/channel.h"
#include "lib/rpc/context.h"
#include "lib/rpc/status.h"
#include "proto/containerd/services/containers/v1/containers.grpc.pb.h"
#include "proto/containerd/services/namespaces/v1/namespaces.grpc.pb.h"
#include "proto/containerd/services/snapshots/v1/snapshots.grpc.pb.h"

namespace bulkhead::runtime {
namespace {

namespace containers_v1 = ::containerd::services::containers::v1;
namespace namespaces_v1 = ::containerd::services::namespaces::v1;
namespace snapshots_v1 = ::containerd::services::snapshots::v1;
using Json = nlohmann::json;

// Short: a stop of this service waits for it, and a later look tries again.
constexpr absl::Duration kTimeout = absl::Seconds(3);

bool WantsTerminal(const std::string& spec) {
  const Json parsed = Json::parse(spec, nullptr, false);
  if (!parsed.is_object()) return false;
  auto process = parsed.find("process");
  if (process == parsed.end() || !process->is_object()) return false;
  auto terminal = process->find("terminal");
  return terminal != process->end() && terminal->is_boolean() &&
         terminal->get<bool>();
}

class MetadataSource : public RestartSource {
 public:
  explicit MetadataSource(const std::shared_ptr<grpc::Channel>& channel)
      : namespaces_(channel), containers_(channel), snapshots_(channel) {}

  absl::StatusOr<std::vector<Key>> Restartable() override {
    namespaces_v1::ListNamespacesResponse namespaces;
    RETURN_IF_ERROR(Call({}, [&](grpc::ClientContext* context) {
      return namespaces_.List(context, {}, &namespaces);
    }));
    containers_v1::ListContainersRequest request;
    request.add_filters(absl::StrCat("labels.\"", kRestartStatusLabel, "\""));
    std::vector<Key> out;
    for (const auto& ns : namespaces.namespaces()) {
      containers_v1::ListContainersResponse found;
      RETURN_IF_ERROR(Call(ns.name(), [&](grpc::ClientContext* context) {
        return containers_.List(context, request, &found);
      }));
      for (const auto& container : found.containers()) {
        out.emplace_back(ns.name(), container.id());
      }
    }
    return out;
  }

  absl::StatusOr<RestartRecord> Record(const Key& key) override {
    containers_v1::GetContainerRequest request;
    request.set_id(key.second);
    containers_v1::GetContainerResponse response;
    RETURN_IF_ERROR(Call(key.first, [&](grpc::ClientContext* context) {
      return containers_.Get(context, request, &response);
    }));
    const containers_v1::Container& container = response.container();
    RestartRecord record;
    record.labels.insert(container.labels().begin(), container.labels().end());
    record.created_at = absl::FromUnixSeconds(container.created_at().seconds());
    record.terminal = WantsTerminal(container.spec().value());
    record.snapshotter = container.snapshotter();
    record.snapshot_key = container.snapshot_key();
    return record;
  }

  absl::StatusOr<std::vector<containerd::types::Mount>> Mounts(
      const std::string& ns, const RestartRecord& record) override {
    std::vector<containerd::types::Mount> out;
    if (record.snapshot_key.empty()) return out;
    snapshots_v1::MountsRequest request;
    request.set_snapshotter(record.snapshotter);
    request.set_key(record.snapshot_key);
    snapshots_v1::MountsResponse response;
    RETURN_IF_ERROR(Call(ns, [&](grpc::ClientContext* context) {
      return snapshots_.Mounts(context, request, &response);
    }));
    out.assign(response.mounts().begin(), response.mounts().end());
    return out;
  }

  absl::Status SetLabel(const Key& key, const std::string& label,
                        const std::string& value) override {
    containers_v1::UpdateContainerRequest request;
    request.mutable_container()->set_id(key.second);
    (*request.mutable_container()->mutable_labels())[label] = value;
    request.mutable_update_mask()->add_paths(absl::StrCat("labels.", label));
    containers_v1::UpdateContainerResponse response;
    return Call(key.first, [&](grpc::ClientContext* context) {
      return containers_.Update(context, request, &response);
    });
  }

 private:
  // All of these may be sent twice.
  template <typename Send>
  absl::Status Call(const std::string& ns, Send send) {
    return rpc::RetryUnavailable(kTimeout, [&] {
      auto context = rpc::MakeClientContext({.ns = ns}, kTimeout);
      return rpc::FromGrpc(send(context.get()));
    });
  }

  namespaces_v1::Namespaces::Stub namespaces_;
  containers_v1::Containers::Stub containers_;
  snapshots_v1::Snapshots::Stub snapshots_;
};

}  // namespace

std::unique_ptr<RestartSource> MakeRestartSource(
    const std::string& metadata_socket) {
  return std::make_unique<MetadataSource>(rpc::Connect(metadata_socket));
}

}  // namespace bulkhead::runtime
