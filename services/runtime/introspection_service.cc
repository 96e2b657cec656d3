#include "services/runtime/introspection_service.h"

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/rpc/status.h"
#include "proto/containerd/services/introspection/v1/introspection.grpc.pb.h"
#include "proto/containerd/types/introspection.pb.h"

namespace bulkhead::runtime {
namespace {

namespace introspection_v1 = ::containerd::services::introspection::v1;

constexpr char kType[] = "io.containerd.runtime.v2";
constexpr char kId[] = "task";
constexpr char kRequestType[] = "containerd.types.RuntimeRequest";
constexpr char kInfoType[] = "containerd.types.RuntimeInfo";

class Introspection final : public introspection_v1::Introspection::Service {
 public:
  Introspection(const ShimBinaries& shims, std::string default_runtime)
      : shims_(shims), default_runtime_(std::move(default_runtime)) {}

  grpc::Status PluginInfo(
      grpc::ServerContext*, const introspection_v1::PluginInfoRequest* request,
      introspection_v1::PluginInfoResponse* response) override {
    return rpc::ToGrpc([&]() -> absl::Status {
      if (request->type() != kType || request->id() != kId) {
        return absl::NotFoundError(
            absl::StrCat("plugin ", request->type(), ".", request->id()));
      }
      const std::string& url = request->options().type_url();
      containerd::types::RuntimeRequest wanted;
      if (url.substr(url.rfind('/') + 1) != kRequestType ||
          !wanted.ParseFromString(request->options().value())) {
        return absl::InvalidArgumentError(
            absl::StrCat("options of type ", url, ", not ", kRequestType));
      }
      ASSIGN_OR_RETURN(const std::string binary,
                       shims_.Resolve(wanted.runtime_path().empty()
                                          ? default_runtime_
                                          : wanted.runtime_path()));
      ASSIGN_OR_RETURN(const std::string info,
                       shims_.Info(binary, {wanted.options().type_url(),
                                            wanted.options().value()}));
      containerd::types::RuntimeInfo checked;
      if (!checked.ParseFromString(info)) {
        return absl::InternalError(
            absl::StrCat(binary, " -info printed something else"));
      }
      auto* plugin = response->mutable_plugin();
      plugin->set_type(kType);
      plugin->set_id(kId);
      plugin->add_requires("io.containerd.metadata.v1");
      auto* platform = plugin->add_platforms();
      platform->set_os("linux");
      platform->set_architecture("amd64");
      response->mutable_extra()->set_type_url(kInfoType);
      response->mutable_extra()->set_value(info);
      return absl::OkStatus();
    }());
  }

 private:
  const ShimBinaries& shims_;
  const std::string default_runtime_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeIntrospectionService(
    const ShimBinaries& shims, const std::string& default_runtime) {
  return std::make_unique<Introspection>(shims, default_runtime);
}

}  // namespace bulkhead::runtime
