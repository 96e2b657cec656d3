// What is done to a running container: signals, freezing, limits.
#include <cerrno>
#include <csignal>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/ttrpc/wire.h"
#include "services/runtime/shim/task_service.h"
#include "services/runtime/shim/task_wire.h"

namespace bulkhead::shim {
namespace {

using ttrpc::WireReader;
using ttrpc::WireWriter;

constexpr size_t kCriuLogSizeBytesMax = 16 << 20;

// containerd.runc.v1.CheckpointOptions, as far as a shim needs them.
struct CheckpointOptions {
  bool exit = false;
  bool open_tcp = false;
  bool external_unix_sockets = false;
  bool terminal = false;
  bool file_locks = false;
  std::vector<std::string> empty_namespaces;
  std::string cgroups_mode;
  std::string work_path;
  std::string parent_path;
};

absl::StatusOr<CheckpointOptions> ParseCheckpointOptions(std::string_view any) {
  const std::string value = AnyValue(any);
  CheckpointOptions options;
  WireReader reader(value);
  while (reader.Next()) {
    switch (reader.field()) {
      case 1:
        options.exit = reader.flag();
        break;
      case 2:
        options.open_tcp = reader.flag();
        break;
      case 3:
        options.external_unix_sockets = reader.flag();
        break;
      case 4:
        options.terminal = reader.flag();
        break;
      case 5:
        options.file_locks = reader.flag();
        break;
      case 6:
        options.empty_namespaces.push_back(reader.str());
        break;
      case 7:
        options.cgroups_mode = reader.str();
        break;
      case 9:
        options.work_path = reader.str();
        break;
      case 10:
        options.parent_path = reader.str();
        break;
      default:
        break;
    }
  }
  if (!reader.ok()) {
    return absl::InvalidArgumentError("malformed checkpoint options");
  }
  return options;
}

std::vector<std::string> CheckpointArgs(const CheckpointOptions& options,
                                        const std::string& image_path,
                                        const std::string& work_path) {
  std::vector<std::string> args = {"checkpoint", "--image-path", image_path,
                                   "--work-path", work_path};
  const auto add = [&args](const char* name, const std::string& value) {
    if (value.empty()) return;
    args.push_back(name);
    args.push_back(value);
  };
  add("--parent-path", options.parent_path);
  if (options.open_tcp) args.push_back("--tcp-established");
  if (options.external_unix_sockets) args.push_back("--ext-unix-sk");
  if (options.terminal) args.push_back("--shell-job");
  if (options.file_locks) args.push_back("--file-locks");
  for (const std::string& name : options.empty_namespaces) {
    add("--empty-ns", name);
  }
  add("--manage-cgroups-mode", options.cgroups_mode);
  if (!options.exit) args.push_back("--leave-running");
  return args;
}

}  // namespace

void TaskService::Kill(const ContainerRef& container, const ProcessRef& process,
                       int signal, bool all, Reply reply) {
  const auto finished = [process] {
    return process->reaped || process->state == State::kStopped ||
           process->deleted;
  };
  const auto direct = [process, signal]() -> absl::Status {
    // Our own child and not reaped: the number cannot be another's.
    if (::kill(process->pid, signal) == 0) return absl::OkStatus();
    if (errno == ESRCH) {
      return absl::NotFoundError("process already finished");
    }
    return absl::UnknownError(
        absl::StrCat("unknown error after kill: ",
                     MessageOf(os::ErrnoStatus(errno, "kill"))));
  };
  if (finished()) {
    return reply(absl::NotFoundError("process already finished"), "");
  }
  if (process->pid == 0) {
    return reply(absl::FailedPreconditionError("process not created"), "");
  }
  const bool is_init = process->exec_id.empty();
  const bool paused = container->init->state == State::kPaused ||
                      container->init->state == State::kPausing;
  if (!is_init || (!all && !paused && container->runtime->signals_directly())) {
    return reply(direct(), "");
  }
  Enqueue(process, [=](std::function<void()> done) {
    if (finished()) {
      reply(absl::NotFoundError("process already finished"), "");
      return done();
    }
    OciRuntime::Command command;
    command.args = {"kill"};
    if (all) command.args.push_back("--all");
    command.args.push_back(container->id);
    command.args.push_back(std::to_string(signal));
    container->runtime->Run(
        command, [container, reply, done](const OciRuntime::Result& result) {
          absl::Status status;
          const std::string& error = result.error;
          if (result.ok) {
            status = absl::OkStatus();
          } else if (absl::StrContains(error, "os: process already finished") ||
                     absl::StrContains(error, "container not running") ||
                     absl::StrContains(error, "no such process") ||
                     absl::StrContains(error, "No such process")) {
            status = absl::NotFoundError("process already finished");
          } else if (absl::StrContains(error, "does not exist")) {
            status = absl::NotFoundError("no such container");
          } else {
            status = RuntimeError("unknown error after kill", error);
          }
          reply(status, "");
          done();
        });
  });
}

void TaskService::KillAll() {
  // Kill() may answer at once, which may change the map.
  const std::map<std::string, ContainerRef> containers = containers_;
  for (const auto& [id, container] : containers) {
    Kill(container, container->init, SIGKILL, false,
         [](const absl::Status&, const std::string&) {});
  }
}

void TaskService::PauseOrResume(const ContainerRef& container, bool pause,
                                Reply reply) {
  Enqueue(container->init, [this, container, pause,
                            reply](std::function<void()> done) {
    const State state = container->init->state;
    const char* text = nullptr;
    const bool stopped = state == State::kStopped || container->init->reaped;
    if (stopped) {
      text = pause ? "cannot pause a stopped container"
                   : "cannot resume a stopped container";
    } else if (state == State::kCreated) {
      text = pause ? "cannot pause task in created state"
                   : "cannot resume task in created state";
    } else if (pause && state == State::kPaused) {
      text = "cannot pause a paused container";
    } else if (!pause && state == State::kRunning) {
      text = "cannot resume a running process";
    }
    if (text != nullptr) {
      reply(absl::UnknownError(text), "");
      return done();
    }
    if (pause) container->init->state = State::kPausing;
    container->runtime->Run(
        {.args = {pause ? "pause" : "resume", container->id}},
        [this, container, pause, reply,
         done](const OciRuntime::Result& result) {
          State& state = container->init->state;
          const bool live = state != State::kStopped;
          if (live) {
            state = pause == result.ok ? State::kPaused : State::kRunning;
          }
          if (!result.ok) {
            reply(RuntimeError(pause ? "OCI runtime pause failed"
                                     : "OCI runtime resume failed",
                               result.error),
                  "");
          } else {
            WireWriter event;
            event.Str(1, container->id);
            Publish(pause ? "/tasks/paused" : "/tasks/resumed",
                    pause ? "TaskPaused" : "TaskResumed", event.str());
            reply(absl::OkStatus(), "");
          }
          MaybeFinishInit(container);
          done();
        });
  });
}

void TaskService::Update(const ContainerRef& container,
                         const std::string& payload, Reply reply) {
  std::string resources;
  WireReader reader(payload);
  while (reader.Next()) {
    if (reader.field() == 2) resources = AnyValue(reader.bytes());
  }
  Enqueue(container->init, [container, resources,
                            reply](std::function<void()> done) {
    absl::Status status;
    if (container->init->state == State::kStopped || container->init->reaped) {
      status = absl::UnknownError("cannot update a stopped container");
    }
    absl::StatusOr<os::UniqueFd> file =
        MemoryFile(resources.empty() ? "{}" : resources);
    if (status.ok()) status = file.status();
    if (!status.ok()) {
      reply(status, "");
      return done();
    }
    container->runtime->Run(
        {.args = {"update", "--resources=-", container->id},
         .stdin_fd = file->get()},
        [container, reply, done](const OciRuntime::Result& result) {
          reply(result.ok
                    ? absl::OkStatus()
                    : RuntimeError("OCI runtime update failed", result.error),
                "");
          done();
        });
  });
}

void TaskService::Checkpoint(const ContainerRef& container,
                             const std::string& payload, Reply reply) {
  std::string image_path;
  std::string options_any;
  WireReader reader(payload);
  while (reader.Next()) {
    if (reader.field() == 2) image_path = reader.str();
    if (reader.field() == 3) options_any = reader.str();
  }
  const absl::StatusOr<CheckpointOptions> options =
      ParseCheckpointOptions(options_any);
  if (!options.ok()) return reply(options.status(), "");
  Enqueue(container->init, [container, image_path, options = *options,
                            reply](std::function<void()> done) {
    const State state = container->init->state;
    const char* text = nullptr;
    if (state == State::kStopped || container->init->reaped) {
      text = "cannot checkpoint a stopped container";
    } else if (state == State::kCreated) {
      text = "cannot checkpoint a task in created state";
    }
    if (text != nullptr) {
      reply(absl::UnknownError(text), "");
      return done();
    }
    // A folder of our own goes away again; one that was asked for stays.
    const bool own = options.work_path.empty();
    const std::string work =
        own ? container->bundle + "/work/criu-work" : options.work_path;
    const absl::Status made = os::MakeDirs(work, 0700);
    if (!made.ok()) {
      reply(absl::UnknownError(MessageOf(made)), "");
      return done();
    }
    container->runtime->Run(
        {.args =
             [&] {
               std::vector<std::string> args =
                   CheckpointArgs(options, image_path, work);
               args.push_back(container->id);
               return args;
             }()},
        [container, work, own, reply, done](const OciRuntime::Result& result) {
          absl::Status status;
          if (!result.ok) {
            const std::string log = container->bundle + "/criu-dump.log";
            const absl::StatusOr<std::string> text =
                os::ReadFile(work + "/dump.log", kCriuLogSizeBytesMax);
            if (text.ok()) (void)WriteFile(log, *text);  // Only to look at.
            status = RuntimeError("OCI runtime checkpoint failed",
                                  absl::StrCat(result.error, ": path= ", log));
          }
          if (own) (void)os::RemoveAll(work);  // Delete removes the bundle.
          reply(status, "");
          done();
        });
  });
}

}  // namespace bulkhead::shim
