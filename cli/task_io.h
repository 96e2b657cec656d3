// A process's standard streams over FIFOs, joined to ours.
#ifndef BULKHEAD_CLI_TASK_IO_H_
#define BULKHEAD_CLI_TASK_IO_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cli/client.h"
#include "cli/container.h"
#include "lib/os/fd.h"

namespace bulkhead::cli {

// The FIFOs of one process, in a private folder. The output ends are open for
// reading from the start, so that the shim never blocks on opening its ends.
class Fifos {
 public:
  struct Wanted {
    bool in = false;
    bool out = true;
    bool err = true;
  };
  // Makes `folder` (0700) and `<name>-stdin` etc. below it.
  static absl::StatusOr<std::unique_ptr<Fifos>> Create(
      const std::string& folder, const std::string& name, Wanted wanted);
  // Removes the FIFOs, and the folder if that leaves it empty.
  ~Fifos();
  // They stay: somebody else goes on using them.
  void Keep() { kept_ = true; }

  std::string in_path;  // Empty: not wanted.
  std::string out_path;
  std::string err_path;
  os::UniqueFd in;
  os::UniqueFd out;
  os::UniqueFd err;

 private:
  std::string folder_;
  bool kept_ = false;
};

struct StreamOptions {
  std::string container_id;
  std::string exec_id;    // Empty: the container's first process.
  bool terminal = false;  // Raw mode, size changes, detach keys.
  bool interactive = false;
  bool forward_signals = true;
  std::string detach_keys = "ctrl-p,ctrl-q";
};

struct StreamResult {
  bool detached = false;
  ExitInfo exit;  // Unless detached.
};

// Blocks the signals that StreamUntilExit() handles. Call it before anything
// starts a thread (so before the first call on a client).
void BlockForwardedSignals();

// Copies until the process is over and its output is drained, or the user
// detaches. `on_exit` is called when the process has ended, to make the shim
// close its ends (delete the task); `start` when everything is set up.
absl::StatusOr<StreamResult> StreamUntilExit(
    Client& client, Fifos& fifos, const StreamOptions& options,
    const std::function<absl::Status()>& start,
    const std::function<absl::Status(const ExitInfo&)>& on_exit);

}  // namespace bulkhead::cli

#endif  // BULKHEAD_CLI_TASK_IO_H_
