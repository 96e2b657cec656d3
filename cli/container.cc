#include "cli/container.h"

#include <google/protobuf/empty.pb.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cli/names.h"
#include "lib/base/status_macros.h"
#include "lib/os/fd.h"
#include "proto/containerd/services/introspection/v1/introspection.pb.h"
#include "proto/containerd/services/snapshots/v1/snapshots.pb.h"
#include "proto/containerd/services/tasks/v1/tasks.pb.h"

namespace bulkhead::cli {
namespace {

namespace containers = containerd::services::containers::v1;
namespace tasks = containerd::services::tasks::v1;

constexpr char kDefaultRoot[] = "/var/lib/bulkhead";
constexpr absl::Duration kServicePatience = absl::Seconds(30);
constexpr absl::Duration kWaitRetry = absl::Milliseconds(100);
constexpr absl::Duration kKillGrace = absl::Seconds(10);

absl::StatusOr<std::vector<ContainerRecord>> ListFiltered(
    Client& client, const std::string& filter) {
  containers::ListContainersRequest request;
  if (!filter.empty()) request.add_filters(filter);
  containers::ListContainersResponse response;
  RETURN_IF_ERROR(
      client.Call(std::string(kContainers) + "List", request, &response));
  return std::vector<ContainerRecord>(response.containers().begin(),
                                      response.containers().end());
}

std::string Quoted(const std::string& text) {
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') quoted += '\\';
    quoted += c;
  }
  return quoted + "\"";
}

}  // namespace

std::string LabelOf(const ContainerRecord& record, const std::string& key) {
  const auto found = record.labels().find(key);
  return found == record.labels().end() ? "" : found->second;
}

std::string NameOf(const ContainerRecord& record) {
  const std::string name = LabelOf(record, kLabelName);
  return name.empty() ? record.id() : name;
}

absl::StatusOr<ContainerRecord> FindContainer(Client& client,
                                              const std::string& text) {
  if (text.size() == kIdHexDigits) {
    containers::GetContainerRequest request;
    request.set_id(text);
    containers::GetContainerResponse response;
    const absl::Status status =
        client.Call(std::string(kContainers) + "Get", request, &response);
    if (status.ok()) return response.container();
    if (!absl::IsNotFound(status)) return status;
  }
  ASSIGN_OR_RETURN(const std::vector<ContainerRecord> all,
                   ListContainers(client));
  const ContainerRecord* match = nullptr;
  for (const ContainerRecord& record : all) {
    if (record.id() == text || LabelOf(record, kLabelName) == text) {
      return record;
    }
  }
  for (const ContainerRecord& record : all) {
    if (text.empty() || !absl::StartsWith(record.id(), text)) continue;
    if (match != nullptr) {
      return absl::InvalidArgumentError(absl::StrCat(
          "several containers begin with '", text, "'; give more digits"));
    }
    match = &record;
  }
  if (match != nullptr) return *match;
  return absl::NotFoundError(absl::StrCat("No such container: ", text,
                                          " — `bulkhead ps -a` lists them"));
}

absl::StatusOr<std::vector<ContainerRecord>> ListContainers(Client& client) {
  return ListFiltered(client, "");
}

absl::Status CheckNameFree(Client& client, const std::string& name) {
  ASSIGN_OR_RETURN(
      const std::vector<ContainerRecord> taken,
      ListFiltered(client, absl::StrCat("labels.", Quoted(kLabelName),
                                        "==", Quoted(name))));
  if (taken.empty()) return absl::OkStatus();
  return absl::AlreadyExistsError(absl::StrCat(
      "the name '", name, "' is used by container ", ShortId(taken[0].id()),
      " — remove it with `bulkhead rm ", name, "` or choose another name"));
}

absl::StatusOr<std::optional<TaskRecord>> GetTask(Client& client,
                                                  const std::string& id) {
  tasks::GetRequest request;
  request.set_container_id(id);
  tasks::GetResponse response;
  const absl::Status status =
      client.Call(std::string(kTasks) + "Get", request, &response);
  if (absl::IsNotFound(status)) return std::optional<TaskRecord>();
  RETURN_IF_ERROR(status);
  return std::optional<TaskRecord>(response.process());
}

absl::StatusOr<std::map<std::string, TaskRecord>> ListTasks(Client& client) {
  tasks::ListTasksRequest request;
  tasks::ListTasksResponse response;
  RETURN_IF_ERROR(
      client.Call(std::string(kTasks) + "List", request, &response));
  std::map<std::string, TaskRecord> by_id;
  for (const TaskRecord& task : response.tasks()) {
    by_id[task.id().empty() ? task.container_id() : task.id()] = task;
  }
  return by_id;
}

bool IsAlive(const TaskRecord& task) {
  return task.status() == containerd::v1::types::CREATED ||
         task.status() == containerd::v1::types::RUNNING ||
         task.status() == containerd::v1::types::PAUSED ||
         task.status() == containerd::v1::types::PAUSING;
}

absl::Status SetLabels(Client& client, const std::string& id,
                       const std::map<std::string, std::string>& labels) {
  containers::UpdateContainerRequest request;
  request.mutable_container()->set_id(id);
  for (const auto& [key, value] : labels) {
    (*request.mutable_container()->mutable_labels())[key] = value;
    request.mutable_update_mask()->add_paths("labels." + key);
  }
  containers::UpdateContainerResponse response;
  return client.Call(std::string(kContainers) + "Update", request, &response);
}

absl::Status WantRunning(Client& client, const ContainerRecord& record,
                         bool running) {
  if (LabelOf(record, kLabelRestartPolicy).empty()) return absl::OkStatus();
  return SetLabels(client, record.id(),
                   {{kLabelRestartStatus, running ? "running" : "stopped"},
                    {kLabelRestartStopped, running ? "" : "true"}});
}

absl::Status KillTask(Client& client, const std::string& id, int signal,
                      bool all, const std::string& exec_id) {
  tasks::KillRequest request;
  request.set_container_id(id);
  request.set_exec_id(exec_id);
  request.set_signal(static_cast<uint32_t>(signal));
  request.set_all(all);
  google::protobuf::Empty empty;
  return client.Call(std::string(kTasks) + "Kill", request, &empty);
}

absl::StatusOr<ExitInfo> WaitTask(Client& client, const std::string& id,
                                  const std::string& exec_id,
                                  absl::Duration timeout) {
  tasks::WaitRequest request;
  request.set_container_id(id);
  request.set_exec_id(exec_id);
  tasks::WaitResponse response;
  if (timeout != absl::InfiniteDuration()) {
    RETURN_IF_ERROR(
        client.Call(std::string(kTasks) + "Wait", request, &response, timeout));
  } else {
    // A wait lasts as long as it lasts; only the time without a service counts.
    absl::Time answered_at = absl::Now();
    for (;;) {
      const absl::Time asked_at = absl::Now();
      const absl::Status status =
          client.Call(std::string(kTasks) + "Wait", request, &response);
      if (status.ok()) break;
      if (!absl::IsUnavailable(status)) return status;
      const absl::Time now = absl::Now();
      if (now - asked_at > kWaitRetry) answered_at = now;
      if (now - answered_at > kServicePatience) return status;
      absl::SleepFor(kWaitRetry);
    }
  }
  return ExitInfo{response.exit_status(), ToTime(response.exited_at().seconds(),
                                                 response.exited_at().nanos())};
}

absl::Status DeleteTask(Client& client, const std::string& id, ExitInfo* exit) {
  tasks::DeleteTaskRequest request;
  request.set_container_id(id);
  tasks::DeleteResponse response;
  const absl::Status status = client.CallPatiently(
      std::string(kTasks) + "Delete", request, &response, kServicePatience);
  if (absl::IsNotFound(status)) return absl::OkStatus();
  if (status.ok() && exit != nullptr) {
    *exit = {response.exit_status(), ToTime(response.exited_at().seconds(),
                                            response.exited_at().nanos())};
  }
  return status;
}

absl::Status StopTask(Client& client, const std::string& id, int signal,
                      absl::Duration grace) {
  ASSIGN_OR_RETURN(const std::optional<TaskRecord> task, GetTask(client, id));
  if (!task.has_value() || !IsAlive(*task)) return absl::OkStatus();
  const absl::Status asked = KillTask(client, id, signal);
  if (absl::IsNotFound(asked)) return absl::OkStatus();
  RETURN_IF_ERROR(asked);
  if (task->status() == containerd::v1::types::PAUSED) {
    tasks::ResumeTaskRequest resume;
    resume.set_container_id(id);
    google::protobuf::Empty empty;
    // A frozen process cannot act on the signal; SIGKILL follows anyway.
    (void)client.Call(std::string(kTasks) + "Resume", resume, &empty);
  }
  if (signal != SIGKILL) {
    const absl::StatusOr<ExitInfo> exit =
        WaitTask(client, id, "", std::max(grace, absl::Milliseconds(1)));
    if (exit.ok() || absl::IsNotFound(exit.status())) return absl::OkStatus();
    if (!absl::IsDeadlineExceeded(exit.status())) return exit.status();
    const absl::Status killed = KillTask(client, id, SIGKILL);
    if (absl::IsNotFound(killed)) return absl::OkStatus();
    RETURN_IF_ERROR(killed);
  }
  const absl::Status over = WaitTask(client, id, "", kKillGrace).status();
  return absl::IsNotFound(over) ? absl::OkStatus() : over;
}

absl::Status RemoveContainer(Client& client, const ContainerRecord& record,
                             bool force) {
  ASSIGN_OR_RETURN(const std::optional<TaskRecord> task,
                   GetTask(client, record.id()));
  if (task.has_value()) {
    if (IsAlive(*task)) {
      if (!force) {
        return absl::FailedPreconditionError(
            absl::StrCat("container ", NameOf(record),
                         " is running — stop it with `bulkhead"
                         " stop ",
                         NameOf(record), "`, or use `rm -f`"));
      }
      RETURN_IF_ERROR(
          StopTask(client, record.id(), SIGKILL, absl::ZeroDuration()));
    }
    RETURN_IF_ERROR(DeleteTask(client, record.id()));
  }
  return RemoveWithoutTask(client, record);
}

absl::Status RemoveWithoutTask(Client& client, const ContainerRecord& record) {
  // Both at once. A snapshot that could not be removed now is garbage as soon
  // as no record names it.
  absl::Status unsnapped;
  std::thread snapshot([&] {
    if (record.snapshot_key().empty()) return;
    containerd::services::snapshots::v1::RemoveSnapshotRequest remove;
    remove.set_snapshotter(record.snapshotter());
    remove.set_key(record.snapshot_key());
    google::protobuf::Empty empty;
    unsnapped = client.Call(std::string(kSnapshots) + "Remove", remove, &empty);
  });
  containers::DeleteContainerRequest remove;
  remove.set_id(record.id());
  google::protobuf::Empty empty;
  const absl::Status removed =
      client.Call(std::string(kContainers) + "Delete", remove, &empty);
  snapshot.join();
  for (const absl::Status& status : {removed, unsnapped}) {
    if (!status.ok() && !absl::IsNotFound(status)) return status;
  }
  const std::string log = LabelOf(record, kLabelLogPath);
  const size_t slash = log.rfind('/');
  // Only a folder that is this container's: labels are anybody's to write.
  if (slash != std::string::npos &&
      absl::EndsWith(log.substr(0, slash), "/" + record.id()) &&
      log.find("..") == std::string::npos) {
    RETURN_IF_ERROR(os::RemoveAll(log.substr(0, slash)));
  }
  const absl::StatusOr<std::string> fifos = FifoDir(client, record.id());
  if (fifos.ok()) (void)os::RemoveAll(*fifos);  // In a tmpfs: gone at boot.
  return absl::OkStatus();
}

std::string ContainerDir(Client& client, const std::string& id) {
  containerd::services::introspection::v1::PluginsRequest request;
  request.add_filters("type==io.containerd.runtime.v2,id==task");
  containerd::services::introspection::v1::PluginsResponse response;
  const char* named = std::getenv("BULKHEAD_ROOT");  // For foreign daemons.
  std::string root = named != nullptr ? named : kDefaultRoot;
  if (client.Call(std::string(kIntrospection) + "Plugins", request, &response)
          .ok()) {
    for (const auto& plugin : response.plugins()) {
      const auto found = plugin.exports().find("root");
      if (found != plugin.exports().end()) root = found->second;
    }
  }
  // Somebody else's daemon says <root>/<plugin>.
  if (absl::EndsWith(root, "/io.containerd.runtime.v2.task")) {
    root.resize(root.rfind('/'));
  }
  return absl::StrCat(root, "/logs/", client.ns(), "/", id);
}

absl::StatusOr<std::string> FifoDir(Client& client, const std::string& id) {
  const std::string& address = client.address();
  std::string base = address.substr(0, address.rfind('/'));
  if (::access(base.c_str(), W_OK) != 0) {
    const char* runtime_dir = std::getenv("XDG_RUNTIME_DIR");
    base = runtime_dir != nullptr ? runtime_dir : "/tmp";
    absl::StrAppend(&base, "/bulkhead-", ::getuid());
  }
  return absl::StrCat(base, "/cli/", client.ns(), "/", id);
}

absl::Time ToTime(int64_t seconds, int64_t nanos) {
  return absl::UnixEpoch() + absl::Seconds(seconds) + absl::Nanoseconds(nanos);
}

}  // namespace bulkhead::cli
