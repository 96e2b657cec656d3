// The Task service: containers and their processes, as containerd's shim has
// them.
#ifndef BULKHEAD_SERVICES_RUNTIME_SHIM_TASK_SERVICE_H_
#define BULKHEAD_SERVICES_RUNTIME_SHIM_TASK_SERVICE_H_

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "services/runtime/shim/cgroup.h"
#include "services/runtime/shim/events.h"
#include "services/runtime/shim/loop.h"
#include "services/runtime/shim/oci_runtime.h"
#include "services/runtime/shim/server.h"
#include "services/runtime/shim/stdio.h"

namespace bulkhead::shim {

class TaskService {
 public:
  // `shut_down` is called when a client ends the shim, just before the call is
  // answered: it must not end it at once.
  TaskService(Loop* loop, EventPublisher* events, std::string name_space,
              std::function<void()> shut_down)
      : loop_(loop),
        events_(events),
        name_space_(std::move(name_space)),
        shut_down_(std::move(shut_down)) {}

  // Every container and process in a line each, for a log.
  std::string Describe() const;
  bool empty() const { return containers_.empty() && creating_.empty(); }
  std::vector<std::string> Ids() const;  // Of the containers there are.
  // SIGKILL to the init process of every container; does not wait.
  void KillAll();

  // Answers any method of containerd.task.v2.Task and v3.Task; others get
  // kUnimplemented.
  void Handle(const std::string& service, const std::string& method,
              const std::string& payload, Reply reply);

 private:
  enum class State {
    kUnknown,
    kCreated,
    kRunning,
    kStopped,
    kPaused,
    kPausing
  };

  // The init process of a container, or an exec.
  struct Process {
    std::string exec_id;  // Empty for init.
    State state = State::kCreated;
    pid_t pid = 0;
    ExitInfo exit;
    StdioSpec stdio;
    std::string spec;  // Of an exec, JSON.
    std::unique_ptr<ProcessIo> io;
    std::vector<Reply> waiters;
    bool starting = false;
    bool deleted = false;
    bool reaped = false;  // The exit is known but perhaps not told yet.
    bool read = false;    // And clients have what it had written.
    // Calls that change the process run one after another.
    std::deque<std::function<void()>> operations;
    bool busy = false;
  };
  struct Container {
    std::string id;
    std::string bundle;
    std::unique_ptr<OciRuntime> runtime;
    std::shared_ptr<Process> init;
    std::map<std::string, std::shared_ptr<Process>> execs;
    std::unique_ptr<Cgroup> cgroup;
    std::unique_ptr<OomWatcher> oom;
    std::string checkpoint;  // The image it is restored from; mostly empty.
    std::string parent_checkpoint;
    bool private_pid_namespace = true;
    bool mounted = false;
    bool killing_rest = false;  // Of a shared pid namespace.
    bool rest_killed = false;
  };
  using ContainerRef = std::shared_ptr<Container>;
  using ProcessRef = std::shared_ptr<Process>;

  void Create(const std::string& payload, Reply reply);
  void Created(const ContainerRef& container, const std::string& rootfs_fields,
               const OciRuntime::Result& result, const Reply& reply);
  // From now on calls find it.
  void Register(const ContainerRef& container, const std::string& rootfs_fields,
                const Reply& reply);
  void FailCreate(const ContainerRef& container, const absl::Status& status,
                  const Reply& reply);
  // Init runs, under this number: watches its end and its cgroup.
  void Adopt(const ContainerRef& container, pid_t pid);
  void Start(const ContainerRef& container, const ProcessRef& process,
             Reply reply);
  void StartInit(const ContainerRef& container, Reply reply,
                 std::function<void()> done);
  void Restore(const ContainerRef& container, Reply reply,
               std::function<void()> done);
  void InitStarted(const ContainerRef& container, const Reply& reply);
  void StartExec(const ContainerRef& container, const ProcessRef& process,
                 Reply reply, std::function<void()> done);
  void ExecStarted(const ContainerRef& container, const ProcessRef& process,
                   const OciRuntime::Result& result, const Reply& reply);
  void Exec(const ContainerRef& container, const std::string& payload,
            const Reply& reply);
  void Delete(const ContainerRef& container, const ProcessRef& process,
              Reply reply);
  void DeleteInit(const ContainerRef& container, Reply reply,
                  std::function<void()> done);
  void Kill(const ContainerRef& container, const ProcessRef& process,
            int signal, bool all, Reply reply);
  void PauseOrResume(const ContainerRef& container, bool pause, Reply reply);
  void Update(const ContainerRef& container, const std::string& payload,
              Reply reply);
  void Checkpoint(const ContainerRef& container, const std::string& payload,
                  Reply reply);
  void Pids(const ContainerRef& container, const Reply& reply);
  void StateOf(const ContainerRef& container, const ProcessRef& process,
               const Reply& reply);

  void OnInitExit(const ContainerRef& container, const ExitInfo& exit);
  void OnExecExit(const ContainerRef& container, const ProcessRef& process,
                  const ExitInfo& exit);
  // Some clients (ctr 1.6 for one) close their ends of the streams as soon as
  // they hear of an exit, whatever is still in them: so it is told once they
  // have read everything. See ProcessIo::WhenRead().
  static void WhenRead(const ProcessRef& process, std::function<void()> done);
  // Tells the exit of init once nothing has to come before it.
  void MaybeFinishInit(const ContainerRef& container);
  void Finish(const ContainerRef& container, const ProcessRef& process);

  // Runs `operation` after the earlier ones; it calls its argument when done.
  void Enqueue(const ProcessRef& process,
               std::function<void(std::function<void()>)> operation);
  void RunNext(const ProcessRef& process);
  void Publish(const char* topic, const char* type, const std::string& event);

  Loop* loop_;
  EventPublisher* events_;
  std::string name_space_;
  std::function<void()> shut_down_;
  std::map<std::string, ContainerRef> containers_;
  std::map<std::string, bool> creating_;
};

}  // namespace bulkhead::shim

#endif  // BULKHEAD_SERVICES_RUNTIME_SHIM_TASK_SERVICE_H_
