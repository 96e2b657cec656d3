#include "lib/rpc/context.h"

#include <chrono>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"

namespace bulkhead::rpc {
namespace {

constexpr size_t kIdentifierBytesMax = 76;
constexpr char kIdentifierPattern[] =
    "^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$";

bool IsAlnum(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
         (c >= '0' && c <= '9');
}

std::string FirstValue(const grpc::ServerContextBase& context,
                       const char* key) {
  const auto& metadata = context.client_metadata();
  const auto found = metadata.lower_bound(key);
  if (found == metadata.end() || found->first != key) return "";
  return std::string(found->second.data(), found->second.size());
}

}  // namespace

CallContext ContextOf(const grpc::ServerContextBase& context) {
  return {FirstValue(context, kNamespaceHeader),
          FirstValue(context, kLeaseHeader)};
}

absl::StatusOr<std::string> RequireNamespace(
    const grpc::ServerContextBase& context) {
  std::string ns = FirstValue(context, kNamespaceHeader);
  if (ns.empty()) {
    return absl::FailedPreconditionError("namespace is required");
  }
  const absl::Status valid = ValidateIdentifier(ns);
  if (!valid.ok()) return Annotate(valid, "namespace validation");
  return ns;
}

void AddContext(const CallContext& call, grpc::ClientContext* context) {
  if (!call.ns.empty()) context->AddMetadata(kNamespaceHeader, call.ns);
  if (!call.lease.empty()) context->AddMetadata(kLeaseHeader, call.lease);
}

std::unique_ptr<grpc::ClientContext> MakeClientContext(const CallContext& call,
                                                       absl::Duration timeout) {
  auto context = std::make_unique<grpc::ClientContext>();
  AddContext(call, context.get());
  if (timeout != absl::InfiniteDuration()) {
    context->set_deadline(std::chrono::system_clock::now() +
                          absl::ToChronoMicroseconds(timeout));
  }
  return context;
}

absl::Status ValidateIdentifier(const std::string& id) {
  if (id.empty()) {
    return absl::InvalidArgumentError("identifier must not be empty");
  }
  if (id.size() > kIdentifierBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("identifier \"", id, "\" greater than maximum length (",
                     kIdentifierBytesMax, " characters)"));
  }
  // Runs of letters and digits with single separators between them.
  bool valid = IsAlnum(id.front()) && IsAlnum(id.back());
  for (size_t i = 0; valid && i < id.size(); ++i) {
    if (IsAlnum(id[i])) continue;
    valid =
        (id[i] == '.' || id[i] == '_' || id[i] == '-') && IsAlnum(id[i - 1]);
  }
  if (valid) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("identifier \"", id, "\" must match ", kIdentifierPattern));
}

}  // namespace bulkhead::rpc
