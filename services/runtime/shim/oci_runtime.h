// Runs the OCI runtime (runc, crun) as child processes, on the loop.
#ifndef BULKHEAD_SERVICES_RUNTIME_SHIM_OCI_RUNTIME_H_
#define BULKHEAD_SERVICES_RUNTIME_SHIM_OCI_RUNTIME_H_

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lib/os/fd.h"
#include "services/runtime/shim/loop.h"

namespace bulkhead::shim {

// containerd.runc.v1.Options, with our defaults filled in.
struct RuntimeOptions {
  bool no_pivot_root = false;
  bool no_new_keyring = false;
  std::string shim_cgroup;
  uint32_t io_uid = 0;
  uint32_t io_gid = 0;
  std::string binary_name;  // Never empty after FillDefaults.
  std::string root;         // Without the namespace; likewise.
  bool systemd_cgroup = false;
  // Read by the daemon, which names the image in each request.
  std::string criu_image_path;
  std::string criu_work_path;  // Where CRIU works at a restore.

  // From BULKHEAD_OCI_RUNTIME and BULKHEAD_OCI_ROOT, or runc and its root.
  void FillDefaults();
  // options.json as containerd writes it.
  std::string ToJson() const;
  static RuntimeOptions FromJson(std::string_view json);
};

// From an encoded google.protobuf.Any; an empty value means the defaults.
// Errors: kInvalidArgument: malformed bytes, or another type.
absl::StatusOr<RuntimeOptions> ParseOptions(std::string_view any);

class OciRuntime {
 public:
  OciRuntime(Loop* loop, RuntimeOptions options, const std::string& name_space,
             std::string bundle);

  struct Command {
    std::vector<std::string> args;  // After the global options.
    int stdin_fd = -1;
    // Both negative: kept, and used as the error when there is no log entry.
    int stdout_fd = -1;
    int stderr_fd = -1;
    bool has_streams = false;  // The three above are the container's.
  };
  struct Result {
    bool ok = false;
    std::string error;   // The runtime's own words.
    std::string output;  // What it printed, when that was kept.
  };
  // Starts it now; `done` is called later, once. The descriptors may be closed
  // when this returns.
  void Run(const Command& command, std::function<void(const Result&)> done);

  // Lets the created container `id` run; `done` is called later, once. What
  // `runc start` and `crun start` do is open one FIFO; this does it itself,
  // because starting that program takes longer than the whole shim.
  void Start(const std::string& id, std::function<void(const Result&)> done);
  // Deletes the container `id`, whose init process has ended if `stopped`;
  // `done` is called later, once. For runc and crun it removes the cgroups and
  // the state of an ordinary container itself: starting that program to do so
  // takes longer than everything else at the end of a container. Where anything
  // else would be to do (hooks, systemd, processes that are left) they do it.
  void Delete(const std::string& id, bool stopped,
              std::function<void(const Result&)> done);
  // For a Start() that waits for an init process which ended meanwhile.
  void InitEnded();

  const RuntimeOptions& options() const { return options_; }
  // The folder where the runtime keeps its containers.
  const std::string& root() const { return root_; }
  std::vector<std::string> GlobalArgs() const;
  // True for runtimes whose init process takes signals like any other.
  bool signals_directly() const { return signals_directly_; }
  // runc itself and wrappers of that name: it has options others do not know.
  bool is_like_runc() const { return is_like_runc_; }

 private:
  // A start through the FIFO that has no answer yet.
  struct PendingStart {
    std::string id;
    std::string path;
    os::UniqueFd fifo;
    std::function<void(const Result&)> done;
  };

  // False when nothing was decided: runc, or crun, has to do it.
  bool DeleteStopped(const std::string& id) const;
  bool StartCrun(const std::string& id) const;
  bool DeleteStoppedCrun(const std::string& id) const;
  std::string LastError(int64_t log_offset_bytes) const;
  void ReadStart(bool last);

  std::unique_ptr<PendingStart> pending_;
  Loop* loop_;
  RuntimeOptions options_;
  std::string root_;
  std::string bundle_;
  bool signals_directly_ = false;
  bool is_like_runc_ = false;
  bool is_runc_ = false;
  bool is_crun_ = false;
};

}  // namespace bulkhead::shim

#endif  // BULKHEAD_SERVICES_RUNTIME_SHIM_OCI_RUNTIME_H_
