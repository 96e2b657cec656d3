// The life of tasks: bundles, shims, recovery after a restart. No gRPC here;
// messages to and from shims are those of containerd.task.v2.
#ifndef BULKHEAD_SERVICES_RUNTIME_TASK_MANAGER_H_
#define BULKHEAD_SERVICES_RUNTIME_TASK_MANAGER_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "lib/ttrpc/reactor.h"
#include "proto/containerd/task/v2/task.pb.h"
#include "services/runtime/bundle.h"
#include "services/runtime/cgroup_warmer.h"
#include "services/runtime/event_forwarder.h"
#include "services/runtime/rootfs_mounts.h"
#include "services/runtime/shim_binary.h"
#include "services/runtime/shim_connection.h"
#include "services/runtime/workers.h"

namespace bulkhead::runtime {

namespace shim_v2 = ::containerd::task::v2;

// What a container's record says about running it.
struct ContainerRecord {
  std::string runtime;  // Empty: the default.
  Any options;
  Any spec;
  std::string sandbox;
};

// Where records come from; thread-safe, may block.
// Errors: kNotFound.
using ContainerSource = std::function<absl::StatusOr<ContainerRecord>(
    const std::string& ns, const std::string& id)>;

struct Deadlines {
  absl::Duration load = absl::Seconds(5);     // Finding a shim again.
  absl::Duration cleanup = absl::Seconds(5);  // `delete`, after a failure.
  absl::Duration shutdown = absl::Seconds(3);
  absl::Duration state = absl::Seconds(2);
  absl::Duration stats = absl::Seconds(2);
  absl::Duration kill = absl::Seconds(10);
  absl::Duration remove = absl::Seconds(20);  // Delete in the shim.
  absl::Duration call = absl::Minutes(2);     // Create, Start, all others.
};

struct CreateTask {
  std::string id;
  std::vector<containerd::types::Mount> rootfs;
  std::string stdin_path;
  std::string stdout_path;
  std::string stderr_path;
  bool terminal = false;
  Any options;
  std::string checkpoint;  // A folder to restore from.
  // Fills a folder of the bundle with what to restore from, instead. May block.
  std::function<absl::Status(const std::string& folder)> fetch_checkpoint;
  std::string runtime_path;  // Instead of the record's runtime.
  // A shim that runs already, to be joined (sandboxes).
  std::string task_api_address;
  int task_api_version = 0;
};

struct Exit {
  uint32_t pid = 0;
  uint32_t status = 0;
  int64_t at_seconds = 0;
  int32_t at_nanos = 0;
};

// The shim of a sandbox, for containers that join it. kNotFound: none that can
// be joined. Thread-safe; must not block for long.
using SandboxShims = std::function<absl::StatusOr<Bootstrap>(
    const std::string& ns, const std::string& sandbox)>;

struct Task;  // Private to the .cc files.

// One Wait that has not answered yet. Destroying it gives it up: the callback
// will not start any more (it may be running).
class WaitHandle {
 public:
  virtual ~WaitHandle() = default;
};

// Thread-safe. Calls block on shims, within Deadlines; a shim's error comes
// through with its code and text. kNotFound "task X not found": no such task
// in the namespace. Tasks that are being found again after a restart are
// waited for.
class TaskManager {
 public:
  struct Options {
    Bundles bundles;
    std::string default_runtime;
    Deadlines deadlines;
    ShimDialer dialer;
    SandboxShims sandboxes;                 // May be null: there are none.
    RootfsMounts* rootfs_mounts = nullptr;  // Borrowed; null: no such service.
  };

  // All borrowed objects must outlive the manager.
  TaskManager(Options options, ttrpc::Reactor& reactor, ShimBinaries& shims,
              EventForwarder& events, ContainerSource containers);
  // Lets go of all shims; they and their tasks run on.
  ~TaskManager();

  // Finds the shims of an earlier life again, all at once and in the
  // background. Call once, first.
  absl::Status Recover();

  // Errors: kAlreadyExists "task X". kNotFound: no such container.
  absl::StatusOr<uint32_t> Create(const std::string& ns,
                                  const CreateTask& request);
  absl::StatusOr<uint32_t> Start(const std::string& ns, const std::string& id,
                                 const std::string& exec_id);
  // Ends the shim too, and removes the bundle.
  absl::StatusOr<Exit> Delete(const std::string& ns, const std::string& id);
  absl::StatusOr<Exit> DeleteProcess(const std::string& ns,
                                     const std::string& id,
                                     const std::string& exec_id);
  // A shim that does not answer: what the kernel knows about the process.
  absl::StatusOr<shim_v2::StateResponse> State(const std::string& ns,
                                               const std::string& id,
                                               const std::string& exec_id);
  std::vector<shim_v2::StateResponse> List(const std::string& ns);
  // Reaches the process even if the shim hangs; a shim that hangs while its
  // container gets SIGKILL goes with it.
  absl::Status Kill(const std::string& ns, const shim_v2::KillRequest& kill);
  absl::Status Exec(const std::string& ns,
                    const shim_v2::ExecProcessRequest& exec);
  // Writes a checkpoint into the folder `path`. `options`: as the shim takes
  // them, may be empty.
  absl::Status Checkpoint(const std::string& ns, const std::string& id,
                          const std::string& path, const Any& options);
  absl::StatusOr<shim_v2::PidsResponse> Pids(const std::string& ns,
                                             const std::string& id);
  // Ids of the namespace's tasks.
  std::vector<std::string> Ids(const std::string& ns);
  // Of those that answer in time, by id.
  std::vector<std::pair<std::string, Any>> Stats(
      const std::string& ns, const std::vector<std::string>& ids);
  // Pause, Resume, ResizePty, CloseIO, Update: methods that answer nothing.
  absl::Status Forward(const std::string& ns, const std::string& id,
                       const std::string& method,
                       const google::protobuf::MessageLite& request);

  // `done` runs once, on any thread, when the process has exited: also when
  // its shim dies. It must not block. Null handle: it has run already.
  std::unique_ptr<WaitHandle> Wait(
      const std::string& ns, const std::string& id, const std::string& exec_id,
      std::function<void(absl::StatusOr<Exit>)> done);

  // Every event a shim sends passes here when it arrives, and when metadata has
  // it or it was refused. False: it has been published before (a shim sends
  // again what was not acknowledged) and is not to be.
  enum class EventStage { kArrived, kSent, kRefused };
  bool Observe(const containerd::types::Envelope& envelope, EventStage stage);

 private:
  using Key = std::pair<std::string, std::string>;
  using TaskPtr = std::shared_ptr<Task>;

  // A task to talk to, loaded.
  absl::StatusOr<TaskPtr> Find(const std::string& ns, const std::string& id);
  // Those that can be asked; after a while also those that still load.
  bool StillLoads(const TaskPtr& task);
  std::vector<TaskPtr> InNamespace(const std::string& ns);
  TaskPtr Peek(const Key& key);
  absl::StatusOr<TaskPtr> Reserve(const std::string& ns, const std::string& id);
  void Drop(const TaskPtr& task);

  // task_manager.cc
  absl::StatusOr<std::string> Invoke(const TaskPtr& task,
                                     const std::string& method,
                                     const std::string& payload,
                                     absl::Duration timeout);
  template <typename Response>
  absl::StatusOr<Response> Call(const TaskPtr& task, const std::string& method,
                                const google::protobuf::MessageLite& request,
                                absl::Duration timeout);
  std::vector<absl::StatusOr<std::string>> FanOut(
      const std::vector<TaskPtr>& tasks, const std::string& method,
      const std::vector<std::string>& payloads, absl::Duration timeout);
  absl::StatusOr<uint32_t> CreateIn(const TaskPtr& task,
                                    const CreateTask& request,
                                    const ContainerRecord& record);
  absl::Status StartShim(const TaskPtr& task, const CreateTask& request,
                         const ContainerRecord& record, const Any& options);
  void SetBootstrap(const TaskPtr& task, Bootstrap bootstrap);
  void Forget(const TaskPtr& task, const CreateTask& request);
  // And what was mounted below its root file system.
  void RemoveBundle(const Task& task);
  // Whether its bundle says that this was done; undoes it.
  bool HasActivation(const Task& task) const;
  void Deactivate(const Task& task);
  void IssueWait(const TaskPtr& task, const std::string& exec_id,
                 const std::shared_ptr<struct WaitCall>& wait);

  // task_hung.cc
  // As Invoke(), but a shim that answers nothing at all is given up within
  // seconds: kDeadlineExceeded.
  absl::StatusOr<std::string> InvokeProbed(const TaskPtr& task,
                                           const std::string& method,
                                           const std::string& payload,
                                           absl::Duration timeout);
  // Who the shim and the first process are, when the shim does not say.
  void IdentifyFromKernel(const TaskPtr& task);
  // These give `error` where the kernel knows nothing either.
  absl::StatusOr<shim_v2::StateResponse> StateFromKernel(
      const TaskPtr& task, const std::string& exec_id,
      const absl::Status& error);
  absl::Status KillByKernel(const TaskPtr& task,
                            const shim_v2::KillRequest& kill,
                            const absl::Status& error);
  void EndHungShim(const TaskPtr& task);
  std::string CgroupOf(const TaskPtr& task) const;

  // task_recovery.cc
  absl::Status Attach(const TaskPtr& task);  // Dials, learns the shim's pid.
  void Load(const TaskPtr& task);
  absl::Status LoadShim(const TaskPtr& task);
  void OpenLog(const TaskPtr& task);
  void OnDisconnect(const TaskPtr& task);
  void HandleLostShim(const TaskPtr& task);
  void ResumeWaits(const TaskPtr& task);
  // Cleans up after a dead shim: `delete`, events, bundle, waiters.
  void Bury(const TaskPtr& task, bool known);
  void EndShim(const TaskPtr& task, bool deleted);
  void Finish(const TaskPtr& task, const Exit& exit);
  void PublishExit(const Task& task, const Exit& exit);
  void PublishDelete(const Task& task, const Exit& exit);
  // Into the bundle: `told`: metadata has it, or will from the spool.
  void WriteExit(const Task& task, const Exit& exit, bool told);
  void CheckMissedExit(const TaskPtr& task);
  // So that the exit is published before the delete.
  void AwaitExitEvent(const TaskPtr& task);

  const Options options_;
  ttrpc::Reactor& reactor_;
  ShimBinaries& shims_;
  EventForwarder& events_;
  const ContainerSource containers_;
  std::mutex mutex_;
  std::map<Key, TaskPtr> tasks_;
  CgroupWarmer warmer_;
  Workers workers_;  // Last: its work uses everything above.
};

}  // namespace bulkhead::runtime

#endif  // BULKHEAD_SERVICES_RUNTIME_TASK_MANAGER_H_
