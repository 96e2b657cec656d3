#include "services/runtime/mounts_client.h"

#include "absl/time/time.h"
#include "lib/base/status_macros.h"
#include "lib/rpc/channel.h"
#include "lib/rpc/context.h"
#include "lib/rpc/status.h"
#include "proto/containerd/services/mounts/v1/mounts.grpc.pb.h"

namespace bulkhead::runtime {
namespace {

namespace v1 = ::containerd::services::mounts::v1;
using Mount = containerd::types::Mount;

constexpr absl::Duration kActivateTimeout = absl::Minutes(1);  // It may mkfs.
constexpr absl::Duration kDeactivateTimeout = absl::Seconds(10);
// While this is there, the activation stays.
constexpr char kContainerBackRef[] = "containerd.io/gc.bref.container";

class Client : public RootfsMounts {
 public:
  explicit Client(const std::string& socket) : stub_(rpc::Connect(socket)) {}

  absl::Status Activate(const std::string& ns, const std::string& id,
                        std::vector<Mount>* mounts) override {
    v1::ActivateRequest request;
    request.set_name(id);
    for (const Mount& mount : *mounts) *request.add_mounts() = mount;
    (*request.mutable_labels())[kContainerBackRef] = id;
    v1::ActivateResponse response;
    const absl::Status status = rpc::RetryUnavailable(kActivateTimeout, [&] {
      const auto context = rpc::MakeClientContext({.ns = ns}, kActivateTimeout);
      return rpc::FromGrpc(stub_.Activate(context.get(), request, &response));
    });
    if (absl::IsUnimplemented(status)) return absl::OkStatus();
    RETURN_IF_ERROR(status);
    mounts->assign(response.info().system().begin(),
                   response.info().system().end());
    return absl::OkStatus();
  }

  absl::Status Deactivate(const std::string& ns,
                          const std::string& id) override {
    v1::DeactivateRequest request;
    request.set_name(id);
    google::protobuf::Empty response;
    const absl::Status status = rpc::RetryUnavailable(kDeactivateTimeout, [&] {
      const auto context =
          rpc::MakeClientContext({.ns = ns}, kDeactivateTimeout);
      return rpc::FromGrpc(stub_.Deactivate(context.get(), request, &response));
    });
    return absl::IsNotFound(status) ? absl::OkStatus() : status;
  }

 private:
  v1::Mounts::Stub stub_;
};

}  // namespace

std::unique_ptr<RootfsMounts> MakeRootfsMounts(const std::string& socket) {
  return std::make_unique<Client>(socket);
}

}  // namespace bulkhead::runtime
