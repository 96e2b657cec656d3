// The two messages every ttrpc call is wrapped in (ttrpc.Request and
// ttrpc.Response), coded by hand so that nothing here needs protobuf.
#ifndef BULKHEAD_LIB_TTRPC_ENVELOPE_H_
#define BULKHEAD_LIB_TTRPC_ENVELOPE_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"

namespace bulkhead::ttrpc {

using Metadata = std::vector<std::pair<std::string, std::string>>;

struct Request {
  std::string service;
  std::string method;
  std::string payload;
  int64_t timeout_nano = 0;  // 0: none.
  Metadata metadata;
};

struct Response {
  int32_t code = 0;  // A gRPC status code; 0: success.
  std::string message;
  std::string payload;
};

std::string Encode(const Request& request);
std::string Encode(const Response& response);
// False for bytes that are no such message. Unknown fields are skipped.
bool Decode(const std::string& bytes, Request* out);
bool Decode(const std::string& bytes, Response* out);

// Between wire codes and ours; a code out of range becomes kUnknown.
absl::Status StatusOf(const Response& response);
Response ResponseOf(const absl::Status& error);

}  // namespace bulkhead::ttrpc

#endif  // BULKHEAD_LIB_TTRPC_ENVELOPE_H_
