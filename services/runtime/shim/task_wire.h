// Small pieces that the parts of the task service share: fields of its
// messages, and files of a bundle.
#ifndef BULKHEAD_SERVICES_RUNTIME_SHIM_TASK_WIRE_H_
#define BULKHEAD_SERVICES_RUNTIME_SHIM_TASK_WIRE_H_

#include <sys/types.h>
#include <time.h>

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lib/os/fd.h"
#include "lib/ttrpc/wire.h"
#include "services/runtime/shim/loop.h"

namespace bulkhead::shim {

// An encoded google.protobuf.Timestamp.
std::string Timestamp(timespec at);

// Writes exit_status as field `first` and exited_at as the next.
void AddExit(uint32_t first, const ExitInfo& exit, ttrpc::WireWriter* out);

// An encoded google.protobuf.Any, and its parts.
std::string MakeAny(std::string_view type_url, std::string_view value);
std::string AnyValue(std::string_view any);

// "what: the OCI runtime's own words", as containerd reports them.
absl::Status RuntimeError(const char* what, const std::string& error);

// A decimal number as OCI runtimes write it.
// Errors: kUnknown: no such number in the file.
absl::StatusOr<pid_t> ReadPidFile(const std::string& path);

// Need not outlive a crash of the machine: nothing in a bundle does.
absl::Status WriteFile(const std::string& path, const std::string& data);

// `data` as the start of a file without a name.
absl::StatusOr<os::UniqueFd> MemoryFile(const std::string& data);

}  // namespace bulkhead::shim

#endif  // BULKHEAD_SERVICES_RUNTIME_SHIM_TASK_WIRE_H_
