// One task as the manager sees it. Private to task_manager.cc and
// task_recovery.cc.
#ifndef BULKHEAD_SERVICES_RUNTIME_TASK_H_
#define BULKHEAD_SERVICES_RUNTIME_TASK_H_

#include <atomic>
#include <condition_variable>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/os/fd.h"
#include "services/runtime/shim_binary.h"
#include "services/runtime/shim_connection.h"
#include "services/runtime/task_manager.h"

namespace bulkhead::runtime {

// Answered once, by whoever comes first: the shim, the task's end, or the
// caller who gives up.
struct WaitCall {
  std::string exec_id;
  std::mutex mutex;
  std::function<void(absl::StatusOr<Exit>)> done;  // Null: answered.
  std::weak_ptr<ShimConnection> client;
  ShimConnection::CallId call = 0;

  void Complete(absl::StatusOr<Exit> result) {
    std::function<void(absl::StatusOr<Exit>)> hook;
    {
      std::lock_guard<std::mutex> lock(mutex);
      hook = std::exchange(done, nullptr);
    }
    if (hook) hook(std::move(result));
  }
  bool answered() {
    std::lock_guard<std::mutex> lock(mutex);
    return done == nullptr;
  }
};

struct Task {
  enum class Phase {
    kCreating,  // Nobody else may use it yet.
    kLoading,   // Being found again after a restart.
    kLive,
    kEnding,  // Being deleted, or its shim has died.
    kGone,
  };

  Task(std::string ns_in, std::string id_in, Phase phase_in)
      : ns(std::move(ns_in)), id(std::move(id_in)), phase(phase_in) {}
  const std::string ns;
  const std::string id;
  // Of one that is being created here: what ended before is another's.
  absl::Time created_at = absl::InfinitePast();
  std::string bundle;

  std::mutex mutex;
  std::condition_variable changed;  // phase, connected.
  Phase phase;
  bool connected = false;

  Bootstrap bootstrap;  // Written under the manager's mutex: others compare it.
  std::string shim_binary;
  bool joined = false;  // Runs in a shim that is not its own (sandbox).
  std::shared_ptr<ShimConnection> client;
  os::UniqueFd shim;  // pidfd
  pid_t shim_pid = 0;
  os::UniqueFd init;  // pidfd; empty if unknown.
  uint32_t pid = 0;
  struct Exec {
    uint32_t pid = 0;
    os::UniqueFd process;  // pidfd; empty if unknown.
  };
  std::map<std::string, Exec> execs;  // Started, not yet deleted.
  std::shared_ptr<os::UniqueFd> log;  // Shared with the reactor's hook.

  std::optional<Exit> exit;  // Of the first process, once known.
  // Published: on its way to metadata. Told: it has it, or the spool does.
  bool exit_published = false;
  bool exit_told = false;
  // It ended while this service was away, and its shim has not said so yet.
  bool exit_event_due = false;
  bool delete_published = false;
  bool delete_told = false;
  std::list<std::shared_ptr<WaitCall>> parked;  // Waits without a shim.
};

template <typename Response>
absl::StatusOr<Response> Parse(const std::string& method,
                               const absl::StatusOr<std::string>& reply) {
  RETURN_IF_ERROR(reply.status());
  Response response;
  if (!response.ParseFromString(*reply)) {
    return absl::InternalError(
        absl::StrCat("the shim's answer to ", method, " is malformed"));
  }
  return response;
}

template <typename Response>
absl::StatusOr<Response> TaskManager::Call(
    const TaskPtr& task, const std::string& method,
    const google::protobuf::MessageLite& request, absl::Duration timeout) {
  return Parse<Response>(
      method, Invoke(task, method, request.SerializeAsString(), timeout));
}

}  // namespace bulkhead::runtime

#endif  // BULKHEAD_SERVICES_RUNTIME_TASK_H_
