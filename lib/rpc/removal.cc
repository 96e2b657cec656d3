#include "lib/rpc/removal.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "lib/rpc/channel.h"
#include "lib/rpc/context.h"
#include "lib/rpc/status.h"

namespace bulkhead::rpc {

namespace {

// A service that is being restarted is back within this.
constexpr absl::Duration kRetryTimeout = absl::Seconds(3);

}  // namespace

namespace v1 = ::bulkhead::removal::v1;

grpc::Status RemovalService::Remove(grpc::ServerContext*,
                                    const v1::RemoveRequest* request,
                                    v1::RemoveResponse* response) {
  if (static_cast<size_t>(request->names_size()) > kRemovalNamesMax) {
    return ToGrpc(absl::InvalidArgumentError(
        absl::StrCat(request->names_size(), " names in one call, more than ",
                     kRemovalNamesMax)));
  }
  const absl::StatusOr<Removed> removed =
      remove_(request->snapshotter(),
              {request->names().begin(), request->names().end()});
  if (!removed.ok()) return ToGrpc(removed.status());
  for (const absl::Status& status : *removed) {
    const grpc::Status sent = ToGrpc(status);
    v1::Result* const result = response->add_results();
    result->set_code(sent.error_code());
    result->set_message(sent.error_message());
  }
  return grpc::Status::OK;
}

RemovalClient::RemovalClient(const std::shared_ptr<grpc::Channel>& channel,
                             std::string ns)
    : stub_(v1::Removal::NewStub(channel)), ns_(std::move(ns)) {}

std::optional<Removed> RemovalClient::Remove(
    const std::string& snapshotter, const std::vector<std::string>& names,
    absl::Duration timeout) {
  if (absent_) return std::nullopt;
  v1::RemoveRequest request;
  request.set_snapshotter(snapshotter);
  for (const std::string& name : names) request.add_names(name);
  v1::RemoveResponse response;
  absl::Status status = RetryUnavailable(kRetryTimeout, [&] {
    const auto context = MakeClientContext({.ns = ns_}, timeout);
    return FromGrpc(stub_->Remove(context.get(), request, &response));
  });
  if (absl::IsUnimplemented(status)) {
    absent_ = true;
    return std::nullopt;
  }
  if (status.ok() &&
      static_cast<size_t>(response.results_size()) != names.size()) {
    status = absl::InternalError(absl::StrCat(
        response.results_size(), " results for ", names.size(), " removals"));
  }
  if (!status.ok()) return Removed(names.size(), status);
  Removed removed;
  removed.reserve(names.size());
  for (const v1::Result& result : response.results()) {
    removed.push_back(FromGrpc(grpc::Status(
        static_cast<grpc::StatusCode>(result.code()), result.message())));
  }
  return removed;
}

}  // namespace bulkhead::rpc
