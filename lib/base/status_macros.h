// Early returns for absl::Status and absl::StatusOr, which Debian's Abseil
// lacks.
#ifndef BULKHEAD_LIB_BASE_STATUS_MACROS_H_
#define BULKHEAD_LIB_BASE_STATUS_MACROS_H_

#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"

namespace bulkhead {

// `status` with "`context`: " before its message; OK stays OK.
inline absl::Status Annotate(const absl::Status& status,
                             const std::string& context) {
  if (status.ok()) return status;
  return absl::Status(status.code(),
                      absl::StrCat(context, ": ",
                                   absl::string_view(status.message().data(),
                                                     status.message().size())));
}

// The message as a std::string.
inline std::string MessageOf(const absl::Status& status) {
  return std::string(status.message().data(), status.message().size());
}

}  // namespace bulkhead

#define BULKHEAD_CONCAT_INNER(a, b) a##b
#define BULKHEAD_CONCAT(a, b) BULKHEAD_CONCAT_INNER(a, b)

#define RETURN_IF_ERROR(expr)                          \
  do {                                                 \
    absl::Status bulkhead_status = (expr);             \
    if (!bulkhead_status.ok()) return bulkhead_status; \
  } while (false)

#define ASSIGN_OR_RETURN(lhs, expr) \
  BULKHEAD_ASSIGN_OR_RETURN(BULKHEAD_CONCAT(bulkhead_or_, __LINE__), lhs, expr)

#define BULKHEAD_ASSIGN_OR_RETURN(tmp, lhs, expr) \
  auto tmp = (expr);                              \
  if (!tmp.ok()) return tmp.status();             \
  lhs = std::move(tmp).value()

#endif  // BULKHEAD_LIB_BASE_STATUS_MACROS_H_
