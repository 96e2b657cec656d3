// What the runtime service does with shim programs: find them, start them,
// have them clean up (facts/runtime.md, section 2). Callers run it in threads
// of their own; every call may block on the shim.
#ifndef BULKHEAD_SERVICES_RUNTIME_SHIM_BINARY_H_
#define BULKHEAD_SERVICES_RUNTIME_SHIM_BINARY_H_

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace bulkhead::runtime {

// A protobuf Any, without protobuf.
struct Any {
  std::string type_url;
  std::string value;
};

// What a start learned: how to reach the shim.
struct Bootstrap {
  int version = 2;  // Of its task service: 2 or 3.
  std::string address;
  std::string protocol = "ttrpc";
};
std::string ToJson(const Bootstrap& bootstrap);
// Errors: kInvalidArgument: not what bootstrap.json holds.
absl::StatusOr<Bootstrap> BootstrapFromJson(const std::string& json);
// A shim's answer on stdout, in any of the three forms.
// Errors: kInvalidArgument: none of them, or a version above 3.
// kUnimplemented: a protocol other than ttrpc, and grpc with version 3.
absl::StatusOr<Bootstrap> ParseBootstrap(const std::string& output);

struct ShimEnvironment {
  std::string grpc_address;   // Clients' socket: part of shims' hashes.
  std::string ttrpc_address;  // Where shims send events.
  std::string own_binary;     // -publish-binary.
  std::string socket_dir;     // For our shim and new ones.
  std::string oci_runtime;    // For our shim.
  std::string oci_root;       // For ours, and runc's without a root.
  std::vector<std::string> search_paths;  // Before $PATH.
  bool debug = false;
};

struct ShimCommand {
  std::string binary;
  std::string ns;
  std::string id;
  std::string bundle;
};

struct ShimDeleteResult {
  uint32_t pid = 0;
  uint32_t exit_status = 0;
  int64_t exited_at_seconds = 0;
  int32_t exited_at_nanos = 0;
};

// Thread-safe.
class ShimBinaries {
 public:
  explicit ShimBinaries(ShimEnvironment environment)
      : environment_(std::move(environment)) {}

  const ShimEnvironment& environment() const { return environment_; }

  // The program for a runtime's name or absolute path.
  // Errors: kInvalidArgument: no such form of name. kNotFound: not installed.
  absl::StatusOr<std::string> Resolve(const std::string& runtime) const;

  // Runs `start` in the bundle; `options` go along. Tries the other form of
  // stdin when the shim rejects the first, and remembers which one it likes.
  absl::StatusOr<Bootstrap> Start(const ShimCommand& command,
                                  const Any& options);
  // Runs `delete`. It is tolerant of a container that is already gone.
  absl::StatusOr<ShimDeleteResult> Delete(const ShimCommand& command,
                                          absl::Duration timeout) const;

  // What `-info` prints: a containerd.types.RuntimeInfo.
  // Errors: kUnimplemented: it failed, with what the shim said.
  absl::StatusOr<std::string> Info(const std::string& binary,
                                   const Any& options) const;

 private:
  std::vector<std::string> Arguments(const ShimCommand& command) const;
  std::vector<std::string> Environment(const ShimCommand& command) const;

  const ShimEnvironment environment_;
  std::mutex mutex_;
  std::map<std::string, bool> legacy_;  // By path of the binary.
};

// Whether `binary` is of the family whose options are runc's and whose default
// runc root would be shared with every containerd on the machine.
bool IsRuncShim(const std::string& binary);
bool IsOwnShim(const std::string& binary);

}  // namespace bulkhead::runtime

#endif  // BULKHEAD_SERVICES_RUNTIME_SHIM_BINARY_H_
