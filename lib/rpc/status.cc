#include "lib/rpc/status.h"

#include "absl/strings/match.h"
#include "absl/strings/strip.h"

namespace bulkhead::rpc {

const char* ClassText(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kInvalidArgument:
      return "invalid argument";
    case absl::StatusCode::kNotFound:
      return "not found";
    case absl::StatusCode::kAlreadyExists:
      return "already exists";
    case absl::StatusCode::kPermissionDenied:
      return "permission denied";
    case absl::StatusCode::kResourceExhausted:
      return "resource exhausted";
    case absl::StatusCode::kFailedPrecondition:
      return "failed precondition";
    case absl::StatusCode::kAborted:
      return "aborted";
    case absl::StatusCode::kOutOfRange:
      return "out of range";
    case absl::StatusCode::kUnimplemented:
      return "not implemented";
    case absl::StatusCode::kInternal:
      return "internal";
    case absl::StatusCode::kUnavailable:
      return "unavailable";
    case absl::StatusCode::kDataLoss:
      return "data loss";
    case absl::StatusCode::kUnauthenticated:
      return "unauthorized";
    default:
      return "";
  }
}

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  std::string message = MessageOf(status);
  const std::string text = ClassText(status.code());
  if (!text.empty() && message != text &&
      !absl::EndsWith(message, ": " + text)) {
    message += message.empty() ? text : ": " + text;
  }
  return {static_cast<grpc::StatusCode>(status.code()), message};
}

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  const auto code = static_cast<absl::StatusCode>(status.error_code());
  const std::string suffix = std::string(": ") + ClassText(code);
  std::string message = status.error_message();
  if (suffix.size() > 2 && absl::EndsWith(message, suffix)) {
    message.resize(message.size() - suffix.size());
  }
  return absl::Status(code, message);
}

}  // namespace bulkhead::rpc
