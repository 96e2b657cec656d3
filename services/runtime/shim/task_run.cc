// Starting: the init process of a container, and execs beside it.
#include <unistd.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/ttrpc/wire.h"
#include "services/runtime/shim/json_scan.h"
#include "services/runtime/shim/spec.h"
#include "services/runtime/shim/task_service.h"
#include "services/runtime/shim/task_wire.h"

namespace bulkhead::shim {
namespace {

using ttrpc::WireReader;
using ttrpc::WireWriter;

constexpr size_t kExecsMax = 4096;  // Of one container.

}  // namespace

void TaskService::Start(const ContainerRef& container,
                        const ProcessRef& process, Reply reply) {
  Enqueue(process,
          [this, container, process, reply](std::function<void()> done) {
            if (process->exec_id.empty()) {
              StartInit(container, reply, std::move(done));
            } else {
              StartExec(container, process, reply, std::move(done));
            }
          });
}

void TaskService::StartInit(const ContainerRef& container, Reply reply,
                            std::function<void()> done) {
  const ProcessRef& init = container->init;
  if (init->state != State::kCreated || init->deleted) {
    const char* state = init->deleted                    ? "deleted"
                        : init->state == State::kStopped ? "stopped"
                        : init->state == State::kRunning ? "running"
                                                         : "paused";
    reply(
        absl::UnknownError(absl::StrCat("cannot start a ", state, " process")),
        "");
    return done();
  }
  init->starting = true;
  if (!container->checkpoint.empty()) {
    return Restore(container, std::move(reply), std::move(done));
  }
  container->runtime->Start(
      container->id, [this, container, reply, done = std::move(done)](
                         const OciRuntime::Result& result) {
        container->init->starting = false;
        if (!result.ok) {
          reply(RuntimeError("OCI runtime start failed", result.error), "");
        } else {
          InitStarted(container, reply);
        }
        MaybeFinishInit(container);
        done();
      });
}

void TaskService::InitStarted(const ContainerRef& container,
                              const Reply& reply) {
  const ProcessRef& init = container->init;
  init->state = State::kRunning;
  WireWriter event;
  event.Str(1, container->id);
  event.Uint(2, static_cast<uint64_t>(init->pid));
  Publish("/tasks/start", "TaskStart", event.str());
  WireWriter out;
  out.Uint(1, static_cast<uint64_t>(init->pid));
  reply(absl::OkStatus(), out.Take());
}

void TaskService::Restore(const ContainerRef& container, Reply reply,
                          std::function<void()> done) {
  const ProcessRef& init = container->init;
  // It stays as it was created and may be started again.
  const auto failed = [container, reply, done](const absl::Status& why) {
    container->init->io.reset();
    container->init->starting = false;
    reply(why, "");
    done();
  };
  init->io = std::make_unique<ProcessIo>(loop_, init->stdio);
  init->io->Open([this, container, reply, done,
                  failed](const absl::Status& opened) {
    if (!opened.ok()) {
      loop_->After(0, [failed, opened] {
        failed(absl::UnknownError(absl::StrCat(
            "failed to create init process I/O: ", MessageOf(opened))));
      });
      return;
    }
    ProcessIo& io = *container->init->io;
    const RuntimeOptions& options = container->runtime->options();
    OciRuntime::Command command;
    command.args = {"restore", "--image-path", container->checkpoint,
                    "--work-path",
                    options.criu_work_path.empty() ? container->bundle + "/work"
                                                   : options.criu_work_path};
    const auto add = [&command](std::vector<std::string> args) {
      command.args.insert(command.args.end(), args.begin(), args.end());
    };
    if (!container->parent_checkpoint.empty()) {
      add({"--parent-path", container->parent_checkpoint});
    }
    add({"--detach", "--pid-file", container->bundle + "/init.pid"});
    if (container->init->stdio.terminal) {
      add({"--console-socket", io.console_socket()});
    } else {
      command.has_streams = true;
      command.stdin_fd = io.child_stdin();
      command.stdout_fd = io.child_stdout();
      command.stderr_fd = io.child_stderr();
    }
    if (options.no_pivot_root) add({"--no-pivot"});
    if (container->runtime->is_like_runc()) add({"--no-subreaper"});
    add({"--bundle", container->bundle, container->id});
    loop_->KeepExits();
    container->runtime->Run(command, [this, container, reply, done, failed](
                                         const OciRuntime::Result& result) {
      absl::Status status =
          result.ok ? absl::OkStatus()
                    : RuntimeError("OCI runtime restore failed", result.error);
      absl::StatusOr<pid_t> pid =
          status.ok() ? ReadPidFile(container->bundle + "/init.pid")
                      : absl::StatusOr<pid_t>(0);
      if (status.ok()) status = pid.status();
      if (status.ok()) status = container->init->io->RuntimeDone();
      if (!status.ok()) {
        failed(status);
      } else {
        container->init->starting = false;
        container->checkpoint.clear();
        Adopt(container, *pid);
        InitStarted(container, reply);
        done();
      }
      loop_->ReleaseExits();
    });
    io.CloseChildEnds();
  });
}

void TaskService::Exec(const ContainerRef& container,
                       const std::string& payload, const Reply& reply) {
  auto exec = std::make_shared<Process>();
  StdioSpec& stdio = exec->stdio;
  WireReader reader(payload);
  while (reader.Next()) {
    switch (reader.field()) {
      case 2:
        exec->exec_id = reader.str();
        break;
      case 3:
        stdio.terminal = reader.flag();
        break;
      case 4:
        stdio.in = reader.str();
        break;
      case 5:
        stdio.out = reader.str();
        break;
      case 6:
        stdio.err = reader.str();
        break;
      case 7:
        exec->spec = AnyValue(reader.bytes());
        break;
      default:
        break;
    }
  }
  const std::string& id = exec->exec_id;
  const auto refuse = [&reply](const absl::Status& status) {
    reply(status, "");
  };
  if (id.empty() || id.find('/') != std::string::npos) {
    return refuse(absl::InvalidArgumentError("exec id is not valid"));
  }
  if (container->execs.count(id) != 0) {
    return refuse(absl::AlreadyExistsError(absl::StrCat("id ", id)));
  }
  if (container->execs.size() >= kExecsMax) {
    return refuse(absl::ResourceExhaustedError("too many processes"));
  }
  const State state = container->init->state;
  if (state == State::kStopped || container->init->reaped) {
    return refuse(absl::UnknownError("cannot exec in a stopped state"));
  }
  if (!container->checkpoint.empty()) {
    return refuse(absl::UnknownError("cannot exec in a created state"));
  }
  if (state == State::kPaused || state == State::kPausing) {
    return refuse(absl::UnknownError("cannot exec in a paused state"));
  }
  exec->spec =
      JsonWithMember(exec->spec, "terminal", stdio.terminal ? "true" : "false");
  if (exec->spec.empty()) {
    return refuse(absl::InvalidArgumentError("process spec is no object"));
  }
  const absl::Status user = CheckUser(exec->spec);
  if (!user.ok()) return refuse(user);
  stdio.id = id;
  stdio.name_space = name_space_;
  stdio.uid = container->runtime->options().io_uid;
  stdio.gid = container->runtime->options().io_gid;
  container->execs[id] = exec;
  WireWriter event;
  event.Str(1, container->id).Str(2, id);
  Publish("/tasks/exec-added", "TaskExecAdded", event.str());
  reply(absl::OkStatus(), "");
}

void TaskService::StartExec(const ContainerRef& container,
                            const ProcessRef& process, Reply reply,
                            std::function<void()> done) {
  absl::Status status;
  if (process->state != State::kCreated || process->deleted) {
    status = absl::UnknownError(process->state == State::kRunning
                                    ? "cannot start a running process"
                                    : "cannot start a stopped process");
  } else if (container->init->reaped ||
             container->init->state == State::kStopped) {
    status = absl::FailedPreconditionError(absl::StrCat(
        "container ", container->id, " init process is not running"));
  }
  if (!status.ok()) {
    reply(status, "");
    return done();
  }
  process->starting = true;
  const auto failed = [this, container, process, reply,
                       done](const absl::Status& why) {
    process->io.reset();
    process->starting = false;
    process->state = State::kStopped;
    process->exit = {255, Now()};
    WireWriter out;
    AddExit(1, process->exit, &out);
    for (const Reply& waiter : std::exchange(process->waiters, {})) {
      waiter(absl::OkStatus(), out.str());
    }
    reply(why, "");
    MaybeFinishInit(container);
    done();
  };
  process->io = std::make_unique<ProcessIo>(loop_, process->stdio);
  process->io->Open([this, container, process, reply, done,
                     failed](const absl::Status& opened) {
    const std::string spec_file =
        absl::StrCat(container->bundle, "/", process->exec_id, ".process");
    const std::string pid_file =
        absl::StrCat(container->bundle, "/", process->exec_id, ".pid");
    absl::Status status = opened;
    if (status.ok()) status = WriteFile(spec_file, process->spec);
    if (!status.ok()) {
      loop_->After(0, [failed, status] {
        failed(absl::UnknownError(absl::StrCat(
            "failed to create exec process I/O: ", MessageOf(status))));
      });
      return;
    }
    ProcessIo& io = *process->io;
    OciRuntime::Command command;
    command.args = {"exec", "--process", spec_file};
    if (process->stdio.terminal) {
      command.args.insert(command.args.end(),
                          {"--console-socket", io.console_socket()});
    } else {
      command.has_streams = true;
      command.stdin_fd = io.child_stdin();
      command.stdout_fd = io.child_stdout();
      command.stderr_fd = io.child_stderr();
    }
    command.args.insert(command.args.end(),
                        {"--detach", "--pid-file", pid_file, container->id});
    loop_->KeepExits();
    container->runtime->Run(command, [this, container, process, reply, done,
                                      failed, spec_file, pid_file](
                                         const OciRuntime::Result& result) {
      (void)::unlink(spec_file.c_str());
      absl::Status status =
          result.ok ? absl::OkStatus()
                    : RuntimeError("OCI runtime exec failed", result.error);
      absl::StatusOr<pid_t> pid =
          status.ok() ? ReadPidFile(pid_file) : absl::StatusOr<pid_t>(0);
      if (status.ok()) status = pid.status();
      if (status.ok()) status = process->io->RuntimeDone();
      if (!status.ok()) {
        failed(status);
      } else {
        process->pid = *pid;
        process->starting = false;
        process->state = State::kRunning;
        WireWriter event;
        event.Str(1, container->id).Str(2, process->exec_id);
        event.Uint(3, static_cast<uint64_t>(*pid));
        Publish("/tasks/exec-started", "TaskExecStarted", event.str());
        WireWriter out;
        out.Uint(1, static_cast<uint64_t>(*pid));
        reply(absl::OkStatus(), out.Take());
        loop_->OnExit(*pid, [this, container, process](const ExitInfo& exit) {
          OnExecExit(container, process, exit);
        });
        done();
      }
      loop_->ReleaseExits();
    });
    io.CloseChildEnds();
  });
}

}  // namespace bulkhead::shim
