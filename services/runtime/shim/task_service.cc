#include "services/runtime/shim/task_service.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/os/fd.h"
#include "lib/os/mount.h"
#include "lib/ttrpc/wire.h"
#include "services/runtime/shim/json_scan.h"
#include "services/runtime/shim/spec.h"

namespace bulkhead::shim {
namespace {

using ttrpc::WireReader;
using ttrpc::WireWriter;

constexpr int64_t kDrainTimeoutMs = 10000;
constexpr size_t kContainersMax = 1024;
constexpr size_t kExecsMax = 4096;  // Of one container.

std::string Timestamp(timespec at) {
  WireWriter out;
  out.Int(1, at.tv_sec).Int(2, at.tv_nsec);
  return out.Take();
}

// {pid, exit_status, exited_at} from field `first` on.
void AddExit(uint32_t first, const ExitInfo& exit, WireWriter* out) {
  out->Uint(first, static_cast<uint32_t>(exit.status));
  if (exit.at.tv_sec != 0) out->Message(first + 1, Timestamp(exit.at));
}

absl::Status RuntimeError(const char* what, const std::string& error) {
  return absl::UnknownError(absl::StrCat(what, ": ", error));
}

absl::StatusOr<pid_t> ReadPidFile(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, os::ReadFile(path, 64));
  const long pid = std::strtol(text.c_str(), nullptr, 10);
  if (pid <= 0) return absl::UnknownError(absl::StrCat("no pid in ", path));
  return static_cast<pid_t>(pid);
}

absl::Status WriteFile(const std::string& path, const std::string& data) {
  ASSIGN_OR_RETURN(os::UniqueFd fd,
                   os::Open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600));
  return os::WriteFull(fd.get(), data.data(), data.size());
}

absl::StatusOr<os::UniqueFd> MemoryFile(const std::string& data) {
  os::UniqueFd fd(::memfd_create("request", MFD_CLOEXEC));
  if (!fd.valid()) return os::ErrnoStatus(errno, "memfd_create");
  RETURN_IF_ERROR(os::PWriteFull(fd.get(), data.data(), data.size(), 0));
  return fd;
}

os::MountSpec ParseMount(std::string_view bytes) {
  os::MountSpec mount;
  WireReader reader(bytes);
  while (reader.Next()) {
    if (reader.field() == 1) mount.type = reader.str();
    if (reader.field() == 2) mount.source = reader.str();
    if (reader.field() == 3) mount.target = reader.str();
    if (reader.field() == 4) mount.options.push_back(reader.str());
  }
  return mount;
}

// The value of an encoded google.protobuf.Any.
std::string AnyValue(std::string_view any) {
  std::string value;
  WireReader reader(any);
  while (reader.Next()) {
    if (reader.field() == 2) value = reader.str();
  }
  return value;
}

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
    const bool idle = containers_.empty() && creating_.empty();
    reply(absl::OkStatus(), "");
    if (idle) shut_down_();
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
  if (method == "Checkpoint") {
    return reply(absl::UnimplementedError("checkpoint is not supported"), "");
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

void TaskService::Create(const std::string& payload, Reply reply) {
  auto container = std::make_shared<Container>();
  container->init = std::make_shared<Process>();
  std::vector<os::MountSpec> mounts;
  std::string rootfs_fields;  // As the create event repeats them.
  std::string options_any;
  std::string checkpoint;
  StdioSpec& stdio = container->init->stdio;
  WireReader reader(payload);
  while (reader.Next()) {
    switch (reader.field()) {
      case 1:
        container->id = reader.str();
        break;
      case 2:
        container->bundle = reader.str();
        break;
      case 3: {
        mounts.push_back(ParseMount(reader.bytes()));
        WireWriter copy;
        copy.Message(3, reader.bytes());
        rootfs_fields += copy.str();
        break;
      }
      case 4:
        stdio.terminal = reader.flag();
        break;
      case 5:
        stdio.in = reader.str();
        break;
      case 6:
        stdio.out = reader.str();
        break;
      case 7:
        stdio.err = reader.str();
        break;
      case 8:
        checkpoint = reader.str();
        break;
      case 10:
        options_any = reader.str();
        break;
      default:
        break;
    }
  }
  const std::string& id = container->id;
  const std::string& bundle = container->bundle;
  const auto refuse = [&reply](const absl::Status& status) {
    reply(status, "");
  };
  if (id.empty() || bundle.empty() || bundle[0] != '/') {
    return refuse(
        absl::InvalidArgumentError("create needs an id and a bundle"));
  }
  if (!checkpoint.empty()) {
    return refuse(absl::UnimplementedError("restore is not supported"));
  }
  if (containers_.count(id) != 0 || creating_.count(id) != 0) {
    return refuse(absl::AlreadyExistsError(absl::StrCat("container ", id)));
  }
  if (containers_.size() + creating_.size() >= kContainersMax) {
    return refuse(absl::ResourceExhaustedError("too many containers"));
  }
  const absl::StatusOr<RuntimeOptions> options = ParseOptions(options_any);
  if (!options.ok()) return refuse(options.status());
  container->runtime =
      std::make_unique<OciRuntime>(loop_, *options, name_space_, bundle);
  container->private_pid_namespace = HasPrivatePidNamespace(bundle);
  creating_[id] = true;
  stdio.id = id;
  stdio.name_space = name_space_;
  stdio.uid = options->io_uid;
  stdio.gid = options->io_gid;

  absl::Status status = WriteFile(bundle + "/options.json", options->ToJson());
  if (status.ok()) {
    status = WriteFile(bundle + "/runtime", options->binary_name);
  }
  if (status.ok() && !mounts.empty()) {
    const std::string rootfs = bundle + "/rootfs";
    (void)::mkdir(rootfs.c_str(), 0711);  // Mostly there.
    status = os::MountAll(mounts, rootfs);
    container->mounted = status.ok();
    if (!status.ok()) {
      status = absl::UnknownError(absl::StrCat(
          "failed to mount rootfs component: ", MessageOf(status)));
    }
  }
  if (!status.ok()) return FailCreate(container, status, reply);

  container->init->io = std::make_unique<ProcessIo>(loop_, stdio);
  container->init->io->Open([this, container, rootfs_fields,
                             reply](const absl::Status& opened) {
    if (!opened.ok()) {
      // ProcessIo is calling us: let it return first.
      loop_->After(0, [this, container, opened, reply] {
        FailCreate(
            container,
            absl::UnknownError(absl::StrCat(
                "failed to create init process I/O: ", MessageOf(opened))),
            reply);
      });
      return;
    }
    ProcessIo& io = *container->init->io;
    OciRuntime::Command command;
    command.args = {"create", "--bundle", container->bundle, "--pid-file",
                    container->bundle + "/init.pid"};
    if (container->init->stdio.terminal) {
      command.args.insert(command.args.end(),
                          {"--console-socket", io.console_socket()});
    } else {
      command.has_streams = true;
      command.stdin_fd = io.child_stdin();
      command.stdout_fd = io.child_stdout();
      command.stderr_fd = io.child_stderr();
    }
    const RuntimeOptions& options = container->runtime->options();
    if (options.no_pivot_root) command.args.push_back("--no-pivot");
    if (options.no_new_keyring) command.args.push_back("--no-new-keyring");
    command.args.push_back(container->id);
    loop_->KeepExits();
    container->runtime->Run(command, [this, container, rootfs_fields,
                                      reply](const OciRuntime::Result& result) {
      Created(container, rootfs_fields, result, reply);
      loop_->ReleaseExits();
    });
    io.CloseChildEnds();
  });
}

void TaskService::FailCreate(const ContainerRef& container,
                             const absl::Status& status, const Reply& reply) {
  container->init->io.reset();
  if (container->mounted) {
    (void)os::UnmountTree(container->bundle + "/rootfs");  // Delete retries.
  }
  creating_.erase(container->id);
  reply(status, "");
}

void TaskService::Created(const ContainerRef& container,
                          const std::string& rootfs_fields,
                          const OciRuntime::Result& result,
                          const Reply& reply) {
  if (!result.ok) {
    return FailCreate(container,
                      RuntimeError("OCI runtime create failed", result.error),
                      reply);
  }
  const ProcessRef& init = container->init;
  const absl::StatusOr<pid_t> pid =
      ReadPidFile(container->bundle + "/init.pid");
  absl::Status status = pid.status();
  if (status.ok()) status = init->io->RuntimeDone();
  if (!status.ok()) {
    container->runtime->Run(
        {.args = {"delete", "--force", container->id}},
        [this, container, status, reply](const OciRuntime::Result&) {
          FailCreate(container, status, reply);
        });
    return;
  }
  init->pid = *pid;
  creating_.erase(container->id);
  containers_[container->id] = container;
  absl::StatusOr<Cgroup> cgroup = Cgroup::OfPid(*pid);
  if (cgroup.ok()) {
    container->cgroup = std::make_unique<Cgroup>(*cgroup);
    container->oom = std::make_unique<OomWatcher>(
        loop_, *cgroup, [this, id = container->id] {
          WireWriter event;
          event.Str(1, id);
          Publish("/tasks/oom", "TaskOOM", event.str());
        });
  }
  WireWriter event;
  event.Str(1, container->id).Str(2, container->bundle);
  std::string bytes = event.Take() + rootfs_fields;
  WireWriter io;
  io.Str(1, init->stdio.in).Str(2, init->stdio.out).Str(3, init->stdio.err);
  io.Uint(4, init->stdio.terminal);
  WireWriter rest;
  rest.Message(4, io.str()).Uint(6, static_cast<uint64_t>(*pid));
  Publish("/tasks/create", "TaskCreate", bytes + rest.str());
  WireWriter out;
  out.Uint(1, static_cast<uint64_t>(*pid));
  reply(absl::OkStatus(), out.Take());
  loop_->OnExit(*pid, [this, container](const ExitInfo& exit) {
    OnInitExit(container, exit);
  });
}

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
  container->runtime->Start(
      container->id, [this, container, reply, done = std::move(done)](
                         const OciRuntime::Result& result) {
        const ProcessRef& init = container->init;
        init->starting = false;
        if (!result.ok) {
          reply(RuntimeError("OCI runtime start failed", result.error), "");
        } else {
          init->state = State::kRunning;
          WireWriter event;
          event.Str(1, container->id);
          event.Uint(2, static_cast<uint64_t>(init->pid));
          Publish("/tasks/start", "TaskStart", event.str());
          WireWriter out;
          out.Uint(1, static_cast<uint64_t>(init->pid));
          reply(absl::OkStatus(), out.Take());
        }
        MaybeFinishInit(container);
        done();
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
  if (state == State::kPaused || state == State::kPausing) {
    return refuse(absl::UnknownError("cannot exec in a paused state"));
  }
  exec->spec =
      JsonWithMember(exec->spec, "terminal", stdio.terminal ? "true" : "false");
  if (exec->spec.empty()) {
    return refuse(absl::InvalidArgumentError("process spec is no object"));
  }
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

void TaskService::OnInitExit(const ContainerRef& container,
                             const ExitInfo& exit) {
  const ProcessRef& init = container->init;
  init->reaped = true;
  init->exit = exit;
  if (init->state == State::kPaused || init->state == State::kPausing) {
    // Thaws the group so that what is left in it can end.
    container->runtime->Run({.args = {"resume", container->id}},
                            [container](const OciRuntime::Result&) {});
  }
  if (!container->private_pid_namespace) {
    container->killing_rest = true;
    container->runtime->Run({.args = {"kill", "--all", container->id, "9"}},
                            [this, container](const OciRuntime::Result&) {
                              container->rest_killed = true;
                              MaybeFinishInit(container);
                            });
  }
  container->runtime->InitEnded();
  MaybeFinishInit(container);
}

void TaskService::OnExecExit(const ContainerRef& container,
                             const ProcessRef& process, const ExitInfo& exit) {
  process->reaped = true;
  process->exit = exit;
  Finish(container, process);
  MaybeFinishInit(container);
}

void TaskService::MaybeFinishInit(const ContainerRef& container) {
  const ProcessRef& init = container->init;
  if (!init->reaped || init->starting || init->state == State::kStopped) {
    return;
  }
  if (container->killing_rest && !container->rest_killed) return;
  for (const auto& [id, exec] : container->execs) {
    if (exec->starting || exec->state == State::kRunning) return;
  }
  if (container->oom != nullptr) container->oom->Check();
  Finish(container, init);
}

void TaskService::Finish(const ContainerRef& container,
                         const ProcessRef& process) {
  process->state = State::kStopped;
  WireWriter event;
  event.Str(1, container->id);
  event.Str(2, process->exec_id.empty() ? container->id : process->exec_id);
  event.Uint(3, static_cast<uint64_t>(process->pid));
  AddExit(4, process->exit, &event);
  Publish("/tasks/exit", "TaskExit", event.str());
  WireWriter out;
  AddExit(1, process->exit, &out);
  for (const Reply& waiter : std::exchange(process->waiters, {})) {
    waiter(absl::OkStatus(), out.str());
  }
}

void TaskService::Delete(const ContainerRef& container,
                         const ProcessRef& process, Reply reply) {
  Enqueue(process,
          [this, container, process, reply](std::function<void()> done) {
            absl::Status status;
            if (process->deleted) {
              status = absl::NotFoundError("container not created");
            } else if (process->state == State::kRunning) {
              status = absl::UnknownError("cannot delete a running process");
            } else if (process->state == State::kPaused ||
                       process->state == State::kPausing) {
              status = absl::UnknownError("cannot delete a paused process");
            }
            if (!status.ok()) {
              reply(status, "");
              return done();
            }
            const auto finish = [this, container, process, reply, done] {
              if (process->exec_id.empty())
                return DeleteInit(container, reply, done);
              process->io.reset();
              process->deleted = true;
              container->execs.erase(process->exec_id);
              (void)::unlink(
                  absl::StrCat(container->bundle, "/", process->exec_id, ".pid")
                      .c_str());
              WireWriter out;
              out.Uint(1, static_cast<uint64_t>(process->pid));
              AddExit(2, process->exit, &out);
              reply(absl::OkStatus(), out.Take());
              done();
            };
            if (process->io == nullptr || process->state != State::kStopped) {
              return finish();
            }
            process->io->WhenDrained(kDrainTimeoutMs, finish);
          });
}

void TaskService::DeleteInit(const ContainerRef& container, Reply reply,
                             std::function<void()> done) {
  std::vector<std::string> args = {"delete"};
  if (container->init->state != State::kStopped) args.push_back("--force");
  args.push_back(container->id);
  container->runtime->Run(
      {.args = args}, [this, container, reply, done = std::move(done)](
                          const OciRuntime::Result& result) {
        const ProcessRef& init = container->init;
        init->io.reset();
        container->oom.reset();
        absl::Status status;
        if (!result.ok && !absl::StrContains(result.error, "does not exist")) {
          status = RuntimeError("failed to delete task", result.error);
        }
        if (container->mounted) {
          const absl::Status unmounted =
              os::UnmountTree(container->bundle + "/rootfs");
          if (status.ok() && !unmounted.ok()) {
            status = absl::UnknownError(
                absl::StrCat("failed rootfs umount: ", MessageOf(unmounted)));
          }
        }
        if (!status.ok()) {
          reply(status, "");
          return done();
        }
        init->deleted = true;
        if (init->exit.at.tv_sec == 0) init->exit.at = Now();
        containers_.erase(container->id);
        WireWriter out;
        out.Uint(1, static_cast<uint64_t>(init->pid));
        AddExit(2, init->exit, &out);
        WireWriter event;
        event.Str(1, container->id);
        event.Uint(2, static_cast<uint64_t>(init->pid));
        AddExit(3, init->exit, &event);
        Publish("/tasks/delete", "TaskDelete", event.str());
        reply(absl::OkStatus(), out.Take());
        done();
      });
}

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
