#include "services/metadata/grpc_snapshot_backend.h"

#include <grpcpp/channel.h>

#include <chrono>
#include <optional>

#include "lib/rpc/channel.h"
#include "lib/rpc/context.h"
#include "lib/rpc/removal.h"
#include "lib/rpc/status.h"
#include "proto/containerd/services/snapshots/v1/snapshots.grpc.pb.h"

namespace bulkhead::metadata {
namespace {

namespace v1 = snapshots_v1;

constexpr absl::Duration kRetryTimeout = absl::Seconds(3);
constexpr absl::Duration kRemovalTimeout = absl::Minutes(1);
// A snapshotter may refuse calls without a namespace, as a containerd does. One
// for all: snapshots are shared between ours, and the collector has none.
constexpr char kNamespace[] = "default";

class GrpcSnapshotBackend final : public SnapshotBackend {
 public:
  GrpcSnapshotBackend(const std::string& socket, std::string snapshotter)
      : channel_(rpc::Connect(socket)),
        stub_(v1::Snapshots::NewStub(channel_)),
        removal_(channel_, kNamespace),
        name_(std::move(snapshotter)) {}

  absl::StatusOr<Mounts> Prepare(const std::string& key,
                                 const std::string& parent,
                                 const LabelMap& labels) override {
    v1::PrepareSnapshotRequest request;
    request.set_snapshotter(name_);
    request.set_key(key);
    request.set_parent(parent);
    *request.mutable_labels() = labels;
    v1::PrepareSnapshotResponse response;
    RETURN_IF_ERROR(Once(&v1::Snapshots::Stub::Prepare, request, &response));
    return Mounts(response.mounts().begin(), response.mounts().end());
  }

  absl::StatusOr<Mounts> View(const std::string& key, const std::string& parent,
                              const LabelMap& labels) override {
    v1::ViewSnapshotRequest request;
    request.set_snapshotter(name_);
    request.set_key(key);
    request.set_parent(parent);
    *request.mutable_labels() = labels;
    v1::ViewSnapshotResponse response;
    RETURN_IF_ERROR(Once(&v1::Snapshots::Stub::View, request, &response));
    return Mounts(response.mounts().begin(), response.mounts().end());
  }

  absl::StatusOr<Mounts> MountsOf(const std::string& key) override {
    v1::MountsRequest request;
    request.set_snapshotter(name_);
    request.set_key(key);
    v1::MountsResponse response;
    RETURN_IF_ERROR(Retry(&v1::Snapshots::Stub::Mounts, request, &response));
    return Mounts(response.mounts().begin(), response.mounts().end());
  }

  absl::Status Commit(const std::string& name, const std::string& key,
                      const std::string& parent,
                      const LabelMap& labels) override {
    v1::CommitSnapshotRequest request;
    request.set_snapshotter(name_);
    request.set_name(name);
    request.set_key(key);
    request.set_parent(parent);
    *request.mutable_labels() = labels;
    google::protobuf::Empty response;
    return Once(&v1::Snapshots::Stub::Commit, request, &response);
  }

  absl::Status Remove(const std::string& key) override {
    v1::RemoveSnapshotRequest request;
    request.set_snapshotter(name_);
    request.set_key(key);
    google::protobuf::Empty response;
    return Retry(&v1::Snapshots::Stub::Remove, request, &response);
  }

  std::vector<absl::Status> RemoveMany(
      const std::vector<std::string>& keys) override {
    std::optional<rpc::Removed> removed =
        removal_.Remove(name_, keys, kRemovalTimeout);
    return removed.has_value() ? *std::move(removed)
                               : SnapshotBackend::RemoveMany(keys);
  }

  absl::StatusOr<v1::Info> Stat(const std::string& key) override {
    v1::StatSnapshotRequest request;
    request.set_snapshotter(name_);
    request.set_key(key);
    v1::StatSnapshotResponse response;
    RETURN_IF_ERROR(Retry(&v1::Snapshots::Stub::Stat, request, &response));
    return response.info();
  }

  absl::Status Update(const v1::Info& info,
                      const std::vector<std::string>& mask) override {
    v1::UpdateSnapshotRequest request;
    request.set_snapshotter(name_);
    *request.mutable_info() = info;
    for (const std::string& path : mask) {
      request.mutable_update_mask()->add_paths(path);
    }
    v1::UpdateSnapshotResponse response;
    return Retry(&v1::Snapshots::Stub::Update, request, &response);
  }

  absl::Status List(
      const std::vector<std::string>& filters,
      const std::function<void(const v1::Info&)>& visitor) override {
    v1::ListSnapshotsRequest request;
    request.set_snapshotter(name_);
    for (const std::string& filter : filters) request.add_filters(filter);
    // A stream that breaks before its first message may be tried again.
    return rpc::RetryUnavailable(kRetryTimeout, [&] {
      const auto context = rpc::MakeClientContext({.ns = kNamespace});
      const auto reader = stub_->List(context.get(), request);
      v1::ListSnapshotsResponse response;
      bool any = false;
      while (reader->Read(&response)) {
        any = true;
        for (const v1::Info& info : response.info()) visitor(info);
      }
      const absl::Status status = rpc::FromGrpc(reader->Finish());
      if (any && absl::IsUnavailable(status)) {
        return absl::InternalError(MessageOf(status));
      }
      return status;
    });
  }

  absl::StatusOr<v1::UsageResponse> Usage(const std::string& key) override {
    v1::UsageRequest request;
    request.set_snapshotter(name_);
    request.set_key(key);
    v1::UsageResponse response;
    RETURN_IF_ERROR(Retry(&v1::Snapshots::Stub::Usage, request, &response));
    return response;
  }

  absl::Status Cleanup() override {
    v1::CleanupRequest request;
    request.set_snapshotter(name_);
    google::protobuf::Empty response;
    return Once(&v1::Snapshots::Stub::Cleanup, request, &response);
  }

 private:
  template <typename Request, typename Response>
  using Method = grpc::Status (v1::Snapshots::Stub::*)(grpc::ClientContext*,
                                                       const Request&,
                                                       Response*);

  template <typename Request, typename Response>
  absl::Status Once(Method<Request, Response> method, const Request& request,
                    Response* response) {
    // A service that is being restarted is back within this; the request is
    // sent once all the same.
    (void)channel_->WaitForConnected(std::chrono::system_clock::now() +
                                     absl::ToChronoMicroseconds(kRetryTimeout));
    const auto context = rpc::MakeClientContext({.ns = kNamespace});
    return rpc::FromGrpc(
        (stub_.get()->*method)(context.get(), request, response));
  }

  // For calls that may be repeated.
  template <typename Request, typename Response>
  absl::Status Retry(Method<Request, Response> method, const Request& request,
                     Response* response) {
    return rpc::RetryUnavailable(kRetryTimeout, [&] {
      const auto context = rpc::MakeClientContext({.ns = kNamespace});
      return rpc::FromGrpc(
          (stub_.get()->*method)(context.get(), request, response));
    });
  }

  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<v1::Snapshots::Stub> stub_;
  rpc::RemovalClient removal_;
  const std::string name_;
};

}  // namespace

std::unique_ptr<SnapshotBackend> ConnectSnapshotBackend(
    const std::string& socket, const std::string& snapshotter) {
  return std::make_unique<GrpcSnapshotBackend>(socket, snapshotter);
}

}  // namespace bulkhead::metadata
