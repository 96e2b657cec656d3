// The sandbox service: the pod whose containers this shim runs.
#ifndef BULKHEAD_SERVICES_RUNTIME_SHIM_SANDBOX_SERVICE_H_
#define BULKHEAD_SERVICES_RUNTIME_SHIM_SANDBOX_SERVICE_H_

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "services/runtime/shim/loop.h"
#include "services/runtime/shim/pod.h"
#include "services/runtime/shim/server.h"
#include "services/runtime/shim/task_service.h"

namespace bulkhead::shim {

constexpr char kSandboxService[] = "containerd.runtime.sandbox.v1.Sandbox";

// One pod at most. Its namespaces are those of the process whose number Start
// and Status tell; containers join them by path in their specs and are created
// over this shim's Task service. The shim lives until ShutdownSandbox.
class SandboxService {
 public:
  // `tasks` must outlive it. `shut_down` is called once the pod was shut down;
  // the call was answered.
  SandboxService(Loop* loop, TaskService* tasks,
                 std::function<void()> shut_down)
      : loop_(loop), tasks_(tasks), shut_down_(std::move(shut_down)) {}

  // Answers any method of the sandbox service; others get kUnimplemented.
  void Handle(const std::string& method, const std::string& payload,
              Reply reply);

  // There is a pod: the shim stays, also without containers.
  bool present() const { return pod_ != nullptr; }

 private:
  enum class State { kCreated, kStarting, kReady, kStopped };
  struct Pod {
    std::string id;
    PodConfig config;
    std::map<std::string, std::string> annotations;
    State state = State::kCreated;
    pid_t pid = 0;
    timespec created_at{};
    ExitInfo exit;
    // Answered when it has stopped.
    std::vector<std::function<void()>> on_stopped;
    bool stop_wanted = false;  // While it starts.
  };
  using PodRef = std::shared_ptr<Pod>;

  void Create(const std::string& payload, const Reply& reply);
  void Start(const PodRef& pod, const Reply& reply);
  void Stop(const PodRef& pod, const Reply& reply);
  void Wait(const PodRef& pod, const Reply& reply);
  void Status(const PodRef& pod, bool verbose, const Reply& reply);
  void Metrics(const PodRef& pod, const Reply& reply);
  void Shutdown(const PodRef& pod, const Reply& reply);
  void Stopped(const PodRef& pod, const ExitInfo& exit);

  Loop* loop_;
  TaskService* tasks_;
  std::function<void()> shut_down_;
  PodRef pod_;
};

}  // namespace bulkhead::shim

#endif  // BULKHEAD_SERVICES_RUNTIME_SHIM_SANDBOX_SERVICE_H_
