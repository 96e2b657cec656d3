// Starting programs without fork's copying, and OCI runtime commands on top.
#ifndef BULKHEAD_SERVICES_RUNTIME_SHIM_SPAWN_H_
#define BULKHEAD_SERVICES_RUNTIME_SHIM_SPAWN_H_

#include <sys/types.h>

#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace bulkhead::shim {

struct SpawnRequest {
  std::vector<std::string> argv;         // argv[0] is looked up in $PATH.
  bool inherit_environment = true;       // Without NOTIFY_SOCKET.
  std::vector<std::string> environment;  // NAME=value, added.
  // Negative: /dev/null.
  int stdin_fd = -1;
  int stdout_fd = -1;
  int stderr_fd = -1;
  std::vector<std::pair<int, int>> fds;  // Ours, and its number there.
  std::string working_directory;
  bool own_group = false;
  bool die_with_parent = true;  // SIGKILL when this thread ends.
};

// Starts a program with every signal at its default and unblocked, and no
// descriptor beyond those named. Returns once it was executed.
// Errors: kNotFound: no such program; otherwise what exec says.
absl::StatusOr<pid_t> Spawn(const SpawnRequest& request);

// Where `program` is in $PATH; itself when it has a slash.
absl::StatusOr<std::string> FindProgram(const std::string& program);

}  // namespace bulkhead::shim

#endif  // BULKHEAD_SERVICES_RUNTIME_SHIM_SPAWN_H_
