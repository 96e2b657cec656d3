// Who answers which call, and what is only asked.
#include "services/runtime/shim/task_service.h"

#include <unistd.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "lib/ttrpc/wire.h"
#include "services/runtime/shim/task_wire.h"

namespace bulkhead::shim {
namespace {

using ttrpc::WireReader;
using ttrpc::WireWriter;

}  // namespace

void TaskService::Enqueue(
    const ProcessRef& process,
    std::function<void(std::function<void()>)> operation) {
  process->operations.push_back(
      [this, process, operation = std::move(operation)] {
        operation([this, process] {
          process->busy = false;
          RunNext(process);
        });
      });
  RunNext(process);
}

void TaskService::RunNext(const ProcessRef& process) {
  if (process->busy || process->operations.empty()) return;
  process->busy = true;
  const std::function<void()> next = std::move(process->operations.front());
  process->operations.pop_front();
  next();
}

void TaskService::Publish(const char* topic, const char* type,
                          const std::string& event) {
  events_->Publish(topic, absl::StrCat("containerd.events.", type), event);
}

void TaskService::Handle(const std::string& service, const std::string& method,
                         const std::string& payload, Reply reply) {
  if (service != "containerd.task.v2.Task" &&
      service != "containerd.task.v3.Task") {
    return reply(absl::UnimplementedError(absl::StrCat("service ", service)),
                 "");
  }
  // Field 1 is the container's id everywhere, field 2 the exec's where it is
  // no longer string of another meaning.
  std::string id;
  std::string second;
  uint64_t numbers[8] = {};
  WireReader reader(payload);
  while (reader.Next()) {
    if (reader.field() == 1) id = reader.str();
    if (reader.field() == 2) second = reader.str();
    if (reader.field() < 8) numbers[reader.field()] = reader.value();
  }
  if (!reader.ok()) {
    return reply(absl::InvalidArgumentError("malformed request"), "");
  }
  if (method == "Create") return Create(payload, std::move(reply));
  const auto found = containers_.find(id);
  if (method == "Connect") {
    WireWriter out;
    out.Uint(1, static_cast<uint64_t>(::getpid()));
    if (found != containers_.end()) {
      out.Uint(2, static_cast<uint64_t>(found->second->init->pid));
    }
    return reply(absl::OkStatus(), out.Take());
  }
  if (method == "Shutdown") {
    // Gives up its name before it answers: who starts a shim next must not
    // find this one.
    if (empty()) shut_down_();
    reply(absl::OkStatus(), "");
    return;
  }
  constexpr const char* kMethods[] = {
      "State",  "Start",   "Delete",    "Pids",      "Pause",
      "Resume", "Kill",    "Exec",      "Wait",      "Stats",
      "Update", "CloseIO", "ResizePty", "Checkpoint"};
  if (std::find(std::begin(kMethods), std::end(kMethods), method) ==
      std::end(kMethods)) {
    return reply(absl::UnimplementedError(absl::StrCat("method ", method)), "");
  }
  if (found == containers_.end()) {
    return reply(absl::NotFoundError("container not created"), "");
  }
  const ContainerRef container = found->second;
  if (method == "Exec") return Exec(container, payload, reply);
  if (method == "Pids") return Pids(container, reply);
  if (method == "Pause") return PauseOrResume(container, true, reply);
  if (method == "Resume") return PauseOrResume(container, false, reply);
  if (method == "Update") return Update(container, payload, reply);
  if (method == "Checkpoint") return Checkpoint(container, payload, reply);
  if (method == "Stats") {
    absl::StatusOr<std::string> metrics =
        container->cgroup == nullptr
            ? absl::NotFoundError("cgroup does not exist")
            : container->cgroup->Metrics();
    if (!metrics.ok()) return reply(metrics.status(), "");
    WireWriter out;
    out.Message(1, *metrics);
    return reply(absl::OkStatus(), out.Take());
  }
  ProcessRef process = container->init;
  if (!second.empty()) {
    const auto exec = container->execs.find(second);
    if (exec == container->execs.end()) {
      return reply(
          absl::NotFoundError(absl::StrCat("process does not exist ", second)),
          "");
    }
    process = exec->second;
  }
  if (method == "State") return StateOf(container, process, reply);
  if (method == "Start") return Start(container, process, std::move(reply));
  if (method == "Delete") return Delete(container, process, std::move(reply));
  if (method == "Kill") {
    return Kill(container, process, static_cast<int>(numbers[3]),
                numbers[4] != 0, std::move(reply));
  }
  if (method == "Wait") {
    if (process->state != State::kStopped) {
      process->waiters.push_back(std::move(reply));
      return;
    }
    WireWriter out;
    AddExit(1, process->exit, &out);
    return reply(absl::OkStatus(), out.Take());
  }
  if (method == "CloseIO") {
    if (process->io != nullptr && numbers[3] != 0) process->io->CloseStdin();
    return reply(absl::OkStatus(), "");
  }
  // ResizePty.
  absl::Status status;
  if (process->io != nullptr) {
    status = process->io->Resize(static_cast<uint32_t>(numbers[3]),
                                 static_cast<uint32_t>(numbers[4]));
  }
  reply(status, "");
}

std::vector<std::string> TaskService::Ids() const {
  std::vector<std::string> ids;
  for (const auto& [id, container] : containers_) ids.push_back(id);
  for (const auto& [id, unused] : creating_) ids.push_back(id);
  return ids;
}

std::string TaskService::Describe() const {
  std::string out =
      absl::StrCat("shim ", ::getpid(), ", namespace ", name_space_, ": ",
                   containers_.size(), " containers\n");
  const auto describe = [&out](const Process& process) {
    constexpr const char* kNames[] = {"unknown", "created", "running",
                                      "stopped", "paused",  "pausing"};
    absl::StrAppend(
        &out, "pid ", process.pid, ", ",
        kNames[static_cast<int>(process.state)],
        process.starting ? ", starting" : "", process.reaped ? ", reaped" : "",
        process.busy ? ", busy" : "", ", ", process.operations.size(),
        " calls wait, ", process.waiters.size(), " wait for its end\n");
  };
  for (const auto& [id, container] : containers_) {
    absl::StrAppend(&out, id, ": ");
    describe(*container->init);
    for (const auto& [exec_id, exec] : container->execs) {
      absl::StrAppend(&out, id, " ", exec_id, ": ");
      describe(*exec);
    }
  }
  return out;
}

void TaskService::Pids(const ContainerRef& container, const Reply& reply) {
  std::vector<pid_t> pids;
  if (container->cgroup != nullptr) {
    absl::StatusOr<std::vector<pid_t>> found = container->cgroup->Pids();
    if (found.ok()) pids = *std::move(found);
  }
  if (pids.empty() && !container->init->reaped) {
    pids.push_back(container->init->pid);
  }
  std::map<pid_t, std::string> execs;
  for (const auto& [id, exec] : container->execs) {
    if (exec->state == State::kRunning) execs[exec->pid] = id;
  }
  WireWriter out;
  for (const pid_t pid : pids) {
    WireWriter process;
    process.Uint(1, static_cast<uint64_t>(pid));
    const auto exec = execs.find(pid);
    if (exec != execs.end()) {
      WireWriter details;
      details.Str(1, exec->second);
      WireWriter any;
      any.Str(1, "containerd.runc.v1.ProcessDetails").Str(2, details.str());
      process.Message(2, any.str());
    }
    out.Message(1, process.str());
  }
  reply(absl::OkStatus(), out.Take());
}

void TaskService::StateOf(const ContainerRef& container,
                          const ProcessRef& process, const Reply& reply) {
  State state = process->state;
  const State outer = container->init->state;
  if (!process->exec_id.empty() && state == State::kRunning &&
      (outer == State::kPaused || outer == State::kPausing)) {
    state = outer;
  }
  WireWriter out;
  out.Str(1, process->exec_id.empty() ? container->id : process->exec_id);
  out.Str(2, container->bundle);
  out.Uint(3, static_cast<uint64_t>(process->pid));
  out.Uint(4, static_cast<uint64_t>(state));
  out.Str(5, process->stdio.in).Str(6, process->stdio.out);
  out.Str(7, process->stdio.err).Uint(8, process->stdio.terminal);
  if (state == State::kStopped) AddExit(9, process->exit, &out);
  out.Str(11, process->exec_id);
  reply(absl::OkStatus(), out.Take());
}

}  // namespace bulkhead::shim
