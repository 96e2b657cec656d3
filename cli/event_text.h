// Events as text.
#ifndef BULKHEAD_CLI_EVENT_TEXT_H_
#define BULKHEAD_CLI_EVENT_TEXT_H_

#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "proto/containerd/types/event.pb.h"

namespace bulkhead::cli {

// The fields of an event of a known type, in order; empty for others.
std::vector<std::pair<std::string, std::string>> EventFields(
    const google::protobuf::Any& event);

// One line without its newline. `format`: "" for people, "json", or a template
// with {{.Time}} {{.Namespace}} {{.Topic}} {{.Type}} {{.Event}}.
absl::StatusOr<std::string> EventLine(
    const containerd::types::Envelope& envelope, const std::string& format);

}  // namespace bulkhead::cli

#endif  // BULKHEAD_CLI_EVENT_TEXT_H_
