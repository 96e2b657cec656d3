// How a daemon starts, asks and cleans up after a shim: the command line of
// containerd's shims, in all its generations.
#ifndef BULKHEAD_SERVICES_RUNTIME_SHIM_BOOTSTRAP_H_
#define BULKHEAD_SERVICES_RUNTIME_SHIM_BOOTSTRAP_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace bulkhead::shim {

// The listening socket of a serving shim.
constexpr int kListenerFd = 3;

struct Flags {
  std::string name_space;
  std::string id;
  std::string grpc_address;
  std::string publish_binary;
  std::string bundle;
  std::string socket;
  bool debug = false;
  bool version = false;
  bool info = false;
  std::string action;  // "start", "delete", "" to serve; "pod" is our own.
};
// Go's flags: one dash or two, values after "=" or a space.
absl::StatusOr<Flags> ParseFlags(int argc, char** argv);

// What a daemon wrote to stdin.
struct BootstrapInput {
  bool has_params = false;  // BootstrapParams, not just options.
  std::string ttrpc_address;
  std::string grpc_address;
  std::string socket_dir;
  std::string options_any;  // Runtime options, in either form; may be empty.
};
// BootstrapParams are told from an Any of options by carrying our own id and
// namespace.
BootstrapInput ParseBootstrapInput(const std::string& bytes,
                                   const Flags& flags);

// The reply to `start` in the form this daemon understands: a BootstrapResult
// if it sent BootstrapParams, else JSON if it told its newest version, else
// the bare address.
std::string BootstrapReply(const std::string& address, bool has_params,
                           bool has_version);

// Where the shim of `group` listens, as a path.
std::string SocketPath(const std::string& dir, const std::string& grpc_address,
                       const std::string& name_space, const std::string& group);

// Each prints what the daemon expects on stdout.
absl::Status RunStart(const Flags& flags);
absl::Status RunDelete(const Flags& flags);
absl::Status RunInfo();

}  // namespace bulkhead::shim

#endif  // BULKHEAD_SERVICES_RUNTIME_SHIM_BOOTSTRAP_H_
