#include "services/distribution/stream_credentials.h"

#include <utility>

#include "proto/containerd/types/transfer/registry.pb.h"

namespace bulkhead::distribution {
namespace {

namespace transfer = containerd::types::transfer;

constexpr char kAuthRequestType[] = "containerd.types.transfer.AuthRequest";
constexpr char kAuthResponseType[] = "containerd.types.transfer.AuthResponse";

}  // namespace

CredentialSource StreamCredentials::For(
    std::shared_ptr<StreamCredentials> credentials, std::string reference) {
  if (credentials == nullptr) return {};
  return
      [credentials = std::move(credentials), reference = std::move(reference)](
          const std::string& host, const std::vector<std::string>& challenges) {
        return credentials->Ask(reference, host, challenges);
      };
}

absl::StatusOr<Credentials> StreamCredentials::Ask(
    const std::string& reference, const std::string& host,
    const std::vector<std::string>& challenges) {
  std::lock_guard<std::mutex> lock(mutex_);
  transfer::AuthRequest request;
  request.set_host(host);
  request.set_reference(reference);
  for (const std::string& challenge : challenges) {
    request.add_wwwauthenticate(challenge);
  }
  StreamMessage answer;
  if (!stream_->Send({kAuthRequestType, request.SerializeAsString()}) ||
      !stream_->Receive(&answer)) {
    return absl::UnauthenticatedError(
        "the client has closed the stream for credentials");
  }
  transfer::AuthResponse response;
  if (BareType(answer.type_url) != kAuthResponseType ||
      !response.ParseFromString(answer.value)) {
    return absl::InvalidArgumentError("the client's answer is malformed");
  }
  Credentials out;
  if (response.authtype() == transfer::CREDENTIALS) {
    out.username = response.username();
    out.secret = response.secret();
  } else if (response.authtype() == transfer::REFRESH) {
    out.username = response.username();
    out.secret = response.secret();
    out.refresh_token = true;
  }
  return out;
}

}  // namespace bulkhead::distribution
