// Early returns for gRPC handlers.
#ifndef BULKHEAD_SERVICES_METADATA_REPLY_H_
#define BULKHEAD_SERVICES_METADATA_REPLY_H_

#include "lib/base/status_macros.h"
#include "lib/rpc/status.h"

#define REPLY_IF_ERROR(expr)                                            \
  do {                                                                  \
    const absl::Status reply_status = (expr);                           \
    if (!reply_status.ok()) return bulkhead::rpc::ToGrpc(reply_status); \
  } while (false)

#define ASSIGN_OR_REPLY(lhs, expr) \
  ASSIGN_OR_REPLY_(BULKHEAD_CONCAT(reply_or_, __LINE__), lhs, expr)
#define ASSIGN_OR_REPLY_(tmp, lhs, expr)                     \
  auto tmp = (expr);                                         \
  if (!tmp.ok()) return bulkhead::rpc::ToGrpc(tmp.status()); \
  lhs = std::move(tmp).value()

#endif  // BULKHEAD_SERVICES_METADATA_REPLY_H_
