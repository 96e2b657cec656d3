// Containers as the command line sees them: a record, perhaps a task, and our
// labels that tie them together.
#ifndef BULKHEAD_CLI_CONTAINER_H_
#define BULKHEAD_CLI_CONTAINER_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cli/client.h"
#include "proto/containerd/services/containers/v1/containers.pb.h"
#include "proto/containerd/v1/types/task.pb.h"

namespace bulkhead::cli {

using ContainerRecord = containerd::services::containers::v1::Container;
using TaskRecord = containerd::v1::types::Process;

// Labels on container records.
inline constexpr char kLabelName[] = "bulkhead/name";
inline constexpr char kLabelLogPath[] = "bulkhead/log-path";
inline constexpr char kLabelLogFormat[] = "bulkhead/log-format";  // json, raw
inline constexpr char kLabelStopSignal[] = "bulkhead/stop-signal";
inline constexpr char kLabelAutoRemove[] = "bulkhead/auto-remove";
inline constexpr char kLabelOpenStdin[] = "bulkhead/open-stdin";
inline constexpr char kLabelNetwork[] = "bulkhead/network";
inline constexpr char kLabelStopTimeout[] = "bulkhead/stop-timeout";
inline constexpr char kLabelLogOptions[] = "bulkhead/log-options";
inline constexpr char kLabelVolumes[] = "bulkhead/volumes";  // Names, by comma.
// containerd's, for whoever watches over restarts.
inline constexpr char kLabelRestartStatus[] = "containerd.io/restart.status";
inline constexpr char kLabelRestartPolicy[] = "containerd.io/restart.policy";
inline constexpr char kLabelRestartLog[] = "containerd.io/restart.loguri";
inline constexpr char kLabelRestartStopped[] =
    "containerd.io/restart.explicitly-stopped";
// How the last task ended, once it has been deleted.
inline constexpr char kLabelExitStatus[] = "bulkhead/exit-status";
inline constexpr char kLabelExitedAt[] = "bulkhead/exited-at";

std::string LabelOf(const ContainerRecord& record, const std::string& key);
// The label bulkhead/name, else the id.
std::string NameOf(const ContainerRecord& record);

// By id, name, or a unique start of the id. kNotFound, kInvalidArgument
// (several fit).
absl::StatusOr<ContainerRecord> FindContainer(Client& client,
                                              const std::string& text);
absl::StatusOr<std::vector<ContainerRecord>> ListContainers(Client& client);
// kAlreadyExists: another container has it.
absl::Status CheckNameFree(Client& client, const std::string& name);

// nullopt: no task.
absl::StatusOr<std::optional<TaskRecord>> GetTask(Client& client,
                                                  const std::string& id);
// Tasks of the namespace by container id.
absl::StatusOr<std::map<std::string, TaskRecord>> ListTasks(Client& client);

bool IsAlive(const TaskRecord& task);  // Created, running or paused.

// Sets labels (empty values remove).
absl::Status SetLabels(Client& client, const std::string& id,
                       const std::map<std::string, std::string>& labels);

// Tells the restart monitor that a container with a policy shall run or rest.
// Nothing for others.
absl::Status WantRunning(Client& client, const ContainerRecord& record,
                         bool running);

struct ExitInfo {
  uint32_t status = 0;
  absl::Time exited_at;
};

// Errors: kNotFound: it is not running (already over).
absl::Status KillTask(Client& client, const std::string& id, int signal,
                      bool all = false, const std::string& exec_id = "");
// Blocks; survives restarts of the service for a while.
absl::StatusOr<ExitInfo> WaitTask(
    Client& client, const std::string& id, const std::string& exec_id = "",
    absl::Duration timeout = absl::InfiniteDuration());
// Deletes a stopped task; a missing one is OK.
absl::Status DeleteTask(Client& client, const std::string& id,
                        ExitInfo* exit = nullptr);
// Stops with `signal`, after `grace` with SIGKILL; OK if it is not running.
absl::Status StopTask(Client& client, const std::string& id, int signal,
                      absl::Duration grace);

// Removes task, record, snapshot and files. kFailedPrecondition: it is running
// and not `force`.
absl::Status RemoveContainer(Client& client, const ContainerRecord& record,
                             bool force);

// The same for a container whose task is known to be gone.
absl::Status RemoveWithoutTask(Client& client, const ContainerRecord& record);

// Our files for a container: <root>/logs/<ns>/<id>, found through the server.
std::string ContainerDir(Client& client, const std::string& id);
// A private folder for FIFOs: beside the socket if we may, else below
// $XDG_RUNTIME_DIR.
absl::StatusOr<std::string> FifoDir(Client& client, const std::string& id);

absl::Time ToTime(int64_t seconds, int64_t nanos);

}  // namespace bulkhead::cli

#endif  // BULKHEAD_CLI_CONTAINER_H_
