// The only place where a core error becomes a wire error and back.
#ifndef BULKHEAD_LIB_RPC_STATUS_H_
#define BULKHEAD_LIB_RPC_STATUS_H_

#include <grpcpp/support/status.h>

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lib/base/status_macros.h"

namespace bulkhead::rpc {

// The text that containerd's clients expect at the end of a message of this
// code ("not found", "already exists", ...; facts/core.md section 3). Empty
// for OK.
const char* ClassText(absl::StatusCode code);

// Same code and message, with ": <class text>" appended unless the message
// already ends with it.
grpc::Status ToGrpc(const absl::Status& status);

// Same code; a trailing ": <class text>" is stripped, so that an error passed
// through several services carries it once.
absl::Status FromGrpc(const grpc::Status& status);

// Fills `out` on success; ToProto(const T&, Proto*) is found next to T.
template <typename T, typename Proto>
grpc::Status Reply(const absl::StatusOr<T>& result, Proto* out) {
  if (result.ok()) ToProto(*result, out);
  return ToGrpc(result.status());
}

}  // namespace bulkhead::rpc

#endif  // BULKHEAD_LIB_RPC_STATUS_H_
