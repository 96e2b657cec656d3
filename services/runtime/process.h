// Runs a program to its end: shims' `start` and `delete`.
#ifndef BULKHEAD_SERVICES_RUNTIME_PROCESS_H_
#define BULKHEAD_SERVICES_RUNTIME_PROCESS_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "lib/os/fd.h"

namespace bulkhead::runtime {

// Output past this is cut.
constexpr size_t kCommandOutputBytesMax = 1 << 20;

struct Command {
  std::vector<std::string> argv;  // argv[0] is the path of the program.
  std::vector<std::string> env;   // KEY=VALUE, all of it.
  std::string cwd;
  std::string input;  // On stdin; empty: /dev/null.
  // One stream for stdout and stderr, returned as `output`.
  bool merge_stderr = false;
  absl::Duration timeout = absl::Seconds(30);
};

struct CommandResult {
  int exit_code = 0;  // 128 + signal if killed.
  std::string output;
  std::string errors;
};

// The program gets a process group and a session of its own, default signal
// handling, no descriptor but 0-2, and no parent-death signal: what it leaves
// running outlives this process. Blocks until the program has exited and its
// output has ended (a second after the exit at most).
// Errors: kNotFound: no such program. kDeadlineExceeded: it was killed.
absl::StatusOr<CommandResult> RunCommand(const Command& command);

// A descriptor of the process `pid`, if it is alive and (`parent` > 0) a child
// of `parent`; else empty.
os::UniqueFd OpenProcess(pid_t pid, pid_t parent = 0);
// Whether the process behind a pidfd still runs. An empty one does not.
bool IsAlive(const os::UniqueFd& pidfd);
// Waits for its end; false after `timeout`.
bool AwaitExit(const os::UniqueFd& pidfd, absl::Duration timeout);
void SendSignal(const os::UniqueFd& pidfd, int signal);

}  // namespace bulkhead::runtime

#endif  // BULKHEAD_SERVICES_RUNTIME_PROCESS_H_
