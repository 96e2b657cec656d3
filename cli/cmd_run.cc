// run, create, start, exec, attach.
#include <fcntl.h>
#include <google/protobuf/empty.pb.h>
#include <signal.h>
#include <spawn.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "cli/commands.h"
#include "cli/container.h"
#include "cli/format.h"
#include "cli/logs.h"
#include "cli/names.h"
#include "cli/rootfs_view.h"
#include "cli/run_options.h"
#include "cli/spec/options.h"
#include "cli/spec/spec.h"
#include "cli/spec/user.h"
#include "cli/task_io.h"
#include "cli/terminal.h"
#include "cli/volumes.h"
#include "lib/base/status_macros.h"
#include "proto/containerd/services/snapshots/v1/snapshots.pb.h"
#include "proto/containerd/services/tasks/v1/tasks.pb.h"

namespace bulkhead::cli {
namespace {

using ::nlohmann::json;
namespace tasks = containerd::services::tasks::v1;

json SpecOf(const ContainerRecord& record) {
  json spec = json::parse(record.spec().value(), nullptr, false);
  if (!spec.is_object()) spec = json::object();
  return spec;
}

bool HasTerminal(const ContainerRecord& record) {
  const json spec = SpecOf(record);
  return spec.contains("process") && spec["process"].is_object() &&
         spec["process"].contains("terminal") &&
         spec["process"]["terminal"] == true;
}

bool LogsJson(const ContainerRecord& record) {
  return LabelOf(record, kLabelLogFormat) == "json";
}

// Docker's way to tell "cannot be run" from other failures.
int StartFailureCode(const absl::Status& status) {
  const std::string text = MessageOf(status);
  if (absl::StrContains(text, "executable file not found") ||
      absl::StrContains(text, "no such file or directory") ||
      absl::StrContains(text, "No such file or directory")) {
    return kExitNotFound;
  }
  if (absl::StrContains(text, "permission denied") ||
      absl::StrContains(text, "Permission denied") ||
      absl::StrContains(text, "is a directory") ||
      absl::StrContains(text, "Is a directory") ||
      absl::StrContains(text, "exec format error") ||
      absl::StrContains(text, "not a directory")) {
    return kExitNotExecutable;
  }
  return kExitRunFailed;
}

// The streams of a new task. `fifos` may be null.
struct TaskStreams {
  std::string in;
  std::string out;
  std::string err;
};

TaskStreams ChooseStreams(const ContainerRecord& record, const Fifos* fifos,
                          bool terminal, bool to_log) {
  TaskStreams streams;
  const std::string log = LabelOf(record, kLabelLogPath);
  if (fifos != nullptr) {
    streams = {fifos->in_path, fifos->out_path, fifos->err_path};
  }
  if (!to_log || log.empty()) return streams;
  if (LogsJson(record)) {
    const std::string options = LabelOf(record, kLabelLogOptions);
    streams.out = JsonLogUri(log, options, streams.out);
    streams.err = terminal ? "" : JsonLogUri(log, options, streams.err);
  } else if (fifos == nullptr || fifos->out_path.empty()) {
    // Other shims append what they read to the file as it is.
    streams.out = "file://" + log;
    streams.err = terminal ? "" : streams.out;
  }
  return streams;
}

absl::Status CreateTask(Client& client, const ContainerRecord& record,
                        const Mounts* mounts, const TaskStreams& streams,
                        bool terminal) {
  tasks::CreateTaskRequest request;
  if (mounts != nullptr) {
    *request.mutable_rootfs() = *mounts;
  } else {
    containerd::services::snapshots::v1::MountsRequest asked;
    asked.set_snapshotter(record.snapshotter());
    asked.set_key(record.snapshot_key());
    containerd::services::snapshots::v1::MountsResponse found;
    RETURN_IF_ERROR(
        client.Call(std::string(kSnapshots) + "Mounts", asked, &found));
    request.mutable_rootfs()->Swap(found.mutable_mounts());
  }
  request.set_container_id(record.id());
  request.set_stdin(streams.in);
  request.set_stdout(streams.out);
  request.set_stderr(streams.err);
  request.set_terminal(terminal);
  tasks::CreateTaskResponse response;
  return client.Call(std::string(kTasks) + "Create", request, &response);
}

absl::Status StartTask(Client& client, const std::string& id,
                       const std::string& exec_id = "") {
  tasks::StartRequest request;
  request.set_container_id(id);
  request.set_exec_id(exec_id);
  tasks::StartResponse response;
  return client.Call(std::string(kTasks) + "Start", request, &response);
}

// Remembers how it ended, then lets the shim go.
absl::Status EndTask(Client& client, const ContainerRecord& record,
                     const ExitInfo& exit, bool remember) {
  // With a policy whoever restarts it needs to see how it ended.
  if (!LabelOf(record, kLabelRestartPolicy).empty()) return absl::OkStatus();
  RETURN_IF_ERROR(DeleteTask(client, record.id()));
  if (!remember) return absl::OkStatus();
  const absl::Status labelled = SetLabels(
      client, record.id(),
      {{kLabelExitStatus, absl::StrCat(exit.status)},
       {kLabelExitedAt, absl::FormatTime(absl::RFC3339_full, exit.exited_at,
                                         absl::UTCTimeZone())}});
  // Somebody removed the container meanwhile: nothing to remember.
  return absl::IsNotFound(labelled) ? absl::OkStatus() : labelled;
}

struct ForegroundOptions {
  bool interactive = false;
  bool remove = false;
  std::string detach_keys = "ctrl-p,ctrl-q";
};

// Creates the task, starts it and stays with it. The result is the exit code.
// `mounts` may be null, as for StartDetached().
int RunForeground(Client& client, const ContainerRecord& record,
                  const Mounts* mounts, const ForegroundOptions& options) {
  const bool terminal = HasTerminal(record);
  const auto cleanup = [&] {
    if (!options.remove) return;
    const absl::Status removed = RemoveContainer(client, record, true);
    if (!removed.ok()) Report(removed);
  };
  const absl::StatusOr<std::string> folder = FifoDir(client, record.id());
  absl::StatusOr<std::unique_ptr<Fifos>> fifos = absl::UnknownError("");
  if (!folder.ok()) {
    fifos = folder.status();
  } else {
    fifos =
        Fifos::Create(*folder, "init", {options.interactive, true, !terminal});
  }
  if (!fifos.ok()) {
    cleanup();
    return Report(fifos.status(), kExitRunFailed);
  }
  const TaskStreams streams =
      ChooseStreams(record, fifos->get(), terminal, !options.remove);
  absl::Status status = CreateTask(client, record, mounts, streams, terminal);
  if (!status.ok()) {
    cleanup();
    return Report(status, StartFailureCode(status));
  }
  StreamOptions stream;
  stream.container_id = record.id();
  stream.terminal = terminal;
  stream.interactive = options.interactive;
  stream.forward_signals = !terminal;
  stream.detach_keys = options.detach_keys;
  bool started = false;
  const absl::StatusOr<StreamResult> result = StreamUntilExit(
      client, **fifos, stream,
      [&] {
        const absl::Status start = StartTask(client, record.id());
        started = start.ok();
        return started ? WantRunning(client, record, true) : start;
      },
      [&](const ExitInfo& exit) {
        return EndTask(client, record, exit, !options.remove);
      });
  if (!result.ok()) {
    if (!started) {
      // What was never started is of no use to anybody.
      (void)KillTask(client, record.id(), 9);
      (void)DeleteTask(client, record.id());
    }
    cleanup();
    return Report(result.status(),
                  started ? kExitRunFailed : StartFailureCode(result.status()));
  }
  if (result->detached) {
    (*fifos)->Keep();  // For `attach`.
    return kExitOk;
  }
  if (options.remove) {
    absl::Status removed = RemoveWithoutTask(client, record);
    if (removed.ok()) removed = RemoveAnonymousVolumes(client, record);
    if (!removed.ok()) Report(removed);
  }
  return static_cast<int>(result->exit.status);
}

// For -d --rm: a process of its own that waits and removes.
absl::Status SpawnRemover(Client& client, const std::string& id) {
  std::string address = client.address();
  std::string ns = client.ns();
  std::string name = id;
  char self[] = "/proc/self/exe";
  char arg0[] = "bulkhead";
  char address_flag[] = "--address";
  char ns_flag[] = "--namespace";
  char command[] = "__autoremove";
  char* argv[] = {arg0,      address_flag, address.data(), ns_flag,
                  ns.data(), command,      name.data(),    nullptr};
  posix_spawnattr_t attributes;
  posix_spawn_file_actions_t actions;
  ::posix_spawnattr_init(&attributes);
  ::posix_spawn_file_actions_init(&actions);
  sigset_t none;
  ::sigemptyset(&none);
  ::posix_spawnattr_setsigmask(&attributes, &none);
  ::posix_spawnattr_setflags(&attributes,
                             POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK);
  for (const int fd : {0, 1, 2}) {
    ::posix_spawn_file_actions_addopen(&actions, fd, "/dev/null", O_RDWR, 0);
  }
  pid_t pid = 0;
  const int error =
      ::posix_spawn(&pid, self, &actions, &attributes, argv, environ);
  ::posix_spawn_file_actions_destroy(&actions);
  ::posix_spawnattr_destroy(&attributes);
  return error == 0 ? absl::OkStatus() : os::ErrnoStatus(error, "posix_spawn");
}

}  // namespace

absl::Status StartDetached(Client& client, const ContainerRecord& record,
                           const Mounts* mounts) {
  const bool terminal = HasTerminal(record);
  std::unique_ptr<Fifos> fifos;
  if (LabelOf(record, kLabelOpenStdin) == "true") {
    // Stays for `attach`; the shim keeps it open.
    ASSIGN_OR_RETURN(const std::string folder, FifoDir(client, record.id()));
    ASSIGN_OR_RETURN(fifos,
                     Fifos::Create(folder, "init", {true, false, false}));
  }
  const TaskStreams streams =
      ChooseStreams(record, fifos.get(), terminal, true);
  if (fifos != nullptr) fifos->Keep();
  RETURN_IF_ERROR(CreateTask(client, record, mounts, streams, terminal));
  const absl::Status started = StartTask(client, record.id());
  if (!started.ok()) {
    (void)KillTask(client, record.id(), 9);  // It never ran.
    (void)DeleteTask(client, record.id());
    return started;
  }
  RETURN_IF_ERROR(WantRunning(client, record, true));
  if (LabelOf(record, kLabelAutoRemove) == "true") {
    return SpawnRemover(client, record.id());
  }
  return absl::OkStatus();
}

namespace {

int Run(Session& session, RunOptions& options) {
  if (!options.detach) BlockForwardedSignals();
  if (options.tty && !options.detach && options.interactive &&
      !::isatty(STDIN_FILENO)) {
    return Report(absl::InvalidArgumentError(
                      "the input is not a terminal — leave out -t"),
                  kExitRunFailed);
  }
  Client& client = session.client();
  const absl::StatusOr<NewContainer> made = CreateContainer(client, options);
  if (!made.ok()) return Report(made.status(), kExitRunFailed);
  const ContainerRecord& record = made->record;
  if (!options.cid_file.empty()) {
    const absl::Status written =
        os::WriteFileAtomic(options.cid_file, record.id(), 0644);
    if (!written.ok()) return Report(written, kExitRunFailed);
  }
  if (options.detach) {
    const absl::Status started = StartDetached(client, record, &made->mounts);
    if (!started.ok()) {
      if (options.remove) (void)RemoveContainer(client, record, true);
      return Report(started, StartFailureCode(started));
    }
    std::printf("%s\n", record.id().c_str());
    return kExitOk;
  }
  return RunForeground(
      client, record, &made->mounts,
      {options.interactive, options.remove, options.detach_keys});
}

int Create(Session& session, RunOptions& options) {
  const absl::StatusOr<NewContainer> made =
      CreateContainer(session.client(), options);
  if (!made.ok()) return Report(made.status(), kExitRunFailed);
  std::printf("%s\n", made->record.id().c_str());
  return kExitOk;
}

struct ExecOptions {
  bool detach = false;
  bool interactive = false;
  bool tty = false;
  bool privileged = false;
  std::vector<std::string> env;
  std::vector<std::string> env_files;
  std::string workdir;
  std::string user;
  std::string detach_keys = "ctrl-p,ctrl-q";
  std::vector<std::string> rest;
};

// The process of an exec: the container's own with what the user changed.
absl::StatusOr<json> ExecProcess(Client& client, const ContainerRecord& record,
                                 const ExecOptions& options, pid_t init_pid) {
  const json spec = SpecOf(record);
  if (!spec.contains("process") || !spec["process"].is_object()) {
    return absl::FailedPreconditionError(
        absl::StrCat("container ", NameOf(record), " has no process spec"));
  }
  json process = spec["process"];
  process["terminal"] = options.tty;
  process["args"] =
      std::vector<std::string>(options.rest.begin() + 1, options.rest.end());
  process.erase("consoleSize");
  std::vector<std::string> env;
  if (process.contains("env") && process["env"].is_array()) {
    for (const json& entry : process["env"]) {
      if (entry.is_string()) env.push_back(entry.get<std::string>());
    }
  }
  if (options.tty) env = MergeEnv({"TERM=xterm"}, env);
  for (const std::string& path : options.env_files) {
    ASSIGN_OR_RETURN(const std::vector<std::string> more, ReadEnvFile(path));
    env = MergeEnv(env, more);
  }
  for (const std::string& text : options.env) {
    ASSIGN_OR_RETURN(const std::string entry, ResolveEnv(text));
    if (!entry.empty()) env = MergeEnv(env, {entry});
  }
  if (!options.workdir.empty()) process["cwd"] = options.workdir;
  if (!options.user.empty()) {
    // The container runs: its own files are at /proc/<pid>/root.
    absl::StatusOr<std::map<std::string, std::string>> files = ReadFilesOf(
        {{"bind", absl::StrCat("/proc/", init_pid, "/root"), "", {}}},
        {"etc/passwd", "etc/group"}, kAccountFileBytesMax);
    if (!files.ok() && !IsNumericUser(options.user)) return files.status();
    if (!files.ok()) files = std::map<std::string, std::string>();
    ASSIGN_OR_RETURN(const User user,
                     ResolveUser(options.user, (*files)["etc/passwd"],
                                 (*files)["etc/group"]));
    process["user"] = {{"uid", user.uid}, {"gid", user.gid}};
    if (!user.additional_gids.empty()) {
      process["user"]["additionalGids"] = user.additional_gids;
    }
    if (!user.home.empty()) env = MergeEnv(env, {"HOME=" + user.home});
    if (process.contains("capabilities") &&
        process["capabilities"].is_object()) {
      json& capabilities = process["capabilities"];
      const json held =
          user.uid == 0 ? capabilities["bounding"] : json(json::array());
      capabilities["effective"] = held;
      capabilities["permitted"] = held;
    }
  }
  process["env"] = env;
  if (options.privileged) {
    ASSIGN_OR_RETURN(const std::vector<std::string> all,
                     Capabilities(true, {}, {}));
    for (const char* set : {"bounding", "effective", "permitted"}) {
      process["capabilities"][set] = all;
    }
  }
  return process;
}

int Exec(Session& session, ExecOptions& options) {
  if (!options.detach) BlockForwardedSignals();
  Client& client = session.client();
  const absl::StatusOr<ContainerRecord> record =
      FindContainer(client, options.rest[0]);
  if (!record.ok()) return Report(record.status());
  const absl::StatusOr<std::optional<TaskRecord>> task =
      GetTask(client, record->id());
  if (!task.ok()) return Report(task.status());
  if (!task->has_value() || !IsAlive(**task)) {
    return Report(absl::FailedPreconditionError(
        absl::StrCat("container ", NameOf(*record),
                     " is not running — start it with "
                     "`bulkhead start ",
                     NameOf(*record), "`")));
  }
  if ((*task)->status() == containerd::v1::types::PAUSED) {
    return Report(absl::FailedPreconditionError(absl::StrCat(
        "container ", NameOf(*record), " is paused — `bulkhead unpause ",
        NameOf(*record), "` first")));
  }
  const absl::StatusOr<json> process =
      ExecProcess(client, *record, options, static_cast<pid_t>((*task)->pid()));
  if (!process.ok()) return Report(process.status(), kExitNotExecutable);

  const std::string exec_id = NewId().substr(0, 32);
  std::unique_ptr<Fifos> fifos;
  if (!options.detach) {
    const absl::StatusOr<std::string> folder = FifoDir(client, record->id());
    if (!folder.ok()) return Report(folder.status());
    absl::StatusOr<std::unique_ptr<Fifos>> made =
        Fifos::Create(*folder, exec_id.substr(0, 12),
                      {options.interactive, true, !options.tty});
    if (!made.ok()) return Report(made.status());
    fifos = *std::move(made);
  }
  tasks::ExecProcessRequest request;
  request.set_container_id(record->id());
  request.set_exec_id(exec_id);
  request.set_terminal(options.tty);
  if (fifos != nullptr) {
    request.set_stdin(fifos->in_path);
    request.set_stdout(fifos->out_path);
    request.set_stderr(fifos->err_path);
  }
  request.mutable_spec()->set_type_url(kProcessTypeUrl);
  request.mutable_spec()->set_value(
      process->dump(-1, ' ', false, json::error_handler_t::replace));
  google::protobuf::Empty empty;
  const absl::Status added =
      client.Call(std::string(kTasks) + "Exec", request, &empty);
  if (!added.ok()) return Report(added, kExitNotExecutable);
  const auto remove = [&]() -> absl::Status {
    tasks::DeleteProcessRequest gone;
    gone.set_container_id(record->id());
    gone.set_exec_id(exec_id);
    tasks::DeleteResponse response;
    const absl::Status status =
        client.Call(std::string(kTasks) + "DeleteProcess", gone, &response);
    return absl::IsNotFound(status) ? absl::OkStatus() : status;
  };
  if (options.detach) {
    const absl::Status started = StartTask(client, record->id(), exec_id);
    if (started.ok()) return kExitOk;
    (void)remove();  // The first error counts.
    const int code = StartFailureCode(started);
    return Report(started, code == kExitRunFailed ? kExitNotExecutable : code);
  }
  StreamOptions stream;
  stream.container_id = record->id();
  stream.exec_id = exec_id;
  stream.terminal = options.tty;
  stream.interactive = options.interactive;
  stream.forward_signals = !options.tty;
  stream.detach_keys = options.detach_keys;
  bool started = false;
  const absl::StatusOr<StreamResult> result = StreamUntilExit(
      client, *fifos, stream,
      [&] {
        const absl::Status status = StartTask(client, record->id(), exec_id);
        started = status.ok();
        return status;
      },
      [&](const ExitInfo&) { return remove(); });
  if (!result.ok()) {
    if (!started) (void)remove();  // The first error counts.
    const int code = StartFailureCode(result.status());
    return Report(result.status(), !started && code == kExitRunFailed
                                       ? kExitNotExecutable
                                       : code);
  }
  if (result->detached) return kExitOk;
  return static_cast<int>(result->exit.status);
}

struct StartOptions {
  bool attach = false;
  bool interactive = false;
  std::vector<std::string> names;
};

int Start(Session& session, StartOptions& options) {
  const bool foreground = options.attach || options.interactive;
  if (foreground) BlockForwardedSignals();
  if (foreground && options.names.size() != 1) {
    return Report(
        absl::InvalidArgumentError("-a and -i take exactly one container"));
  }
  Client& client = session.client();
  int code = kExitOk;
  for (const std::string& name : options.names) {
    const absl::StatusOr<ContainerRecord> record = FindContainer(client, name);
    if (!record.ok()) {
      code = Report(record.status());
      continue;
    }
    const absl::StatusOr<std::optional<TaskRecord>> task =
        GetTask(client, record->id());
    if (!task.ok()) {
      code = Report(task.status());
      continue;
    }
    if (task->has_value() && IsAlive(**task)) {
      std::printf("%s\n", name.c_str());
      continue;
    }
    absl::Status status = DeleteTask(client, record->id());
    if (status.ok() && foreground) {
      return RunForeground(
          client, *record, nullptr,
          {options.interactive, LabelOf(*record, kLabelAutoRemove) == "true",
           "ctrl-p,ctrl-q"});
    }
    if (status.ok()) status = StartDetached(client, *record);
    if (!status.ok()) {
      code = Report(status);
      continue;
    }
    std::printf("%s\n", name.c_str());
  }
  return code;
}

// One that was started in the foreground without a log, and left: its FIFOs are
// still there.
int AttachFifos(Client& client, const ContainerRecord& record,
                const TaskRecord& task, bool no_stdin,
                const std::string& keys) {
  Fifos fifos;
  const auto open = [](const std::string& path, int flags, os::UniqueFd* fd) {
    if (path.empty()) return;
    absl::StatusOr<os::UniqueFd> opened = os::Open(path, flags | O_NONBLOCK);
    if (opened.ok()) *fd = *std::move(opened);
  };
  open(task.stdout(), O_RDONLY, &fifos.out);
  open(task.stderr(), O_RDONLY, &fifos.err);
  if (!no_stdin) open(task.stdin(), O_RDWR, &fifos.in);
  if (!fifos.out.valid()) {
    return Report(absl::FailedPreconditionError(absl::StrCat(
        "the output of container ", NameOf(record),
        " goes to another client, whose FIFO is not there any more")));
  }
  StreamOptions stream;
  stream.container_id = record.id();
  stream.terminal = task.terminal();
  stream.interactive = fifos.in.valid();
  stream.forward_signals = !stream.terminal;
  stream.detach_keys = keys;
  const bool remove = LabelOf(record, kLabelAutoRemove) == "true";
  const absl::StatusOr<StreamResult> result = StreamUntilExit(
      client, fifos, stream, [] { return absl::OkStatus(); },
      [&](const ExitInfo& exit) {
        return EndTask(client, record, exit, !remove);
      });
  if (!result.ok()) return Report(result.status());
  if (result->detached) return kExitOk;
  if (remove) {
    absl::Status removed = RemoveWithoutTask(client, record);
    if (removed.ok()) removed = RemoveAnonymousVolumes(client, record);
    if (!removed.ok()) Report(removed);
  }
  return static_cast<int>(result->exit.status);
}

int Attach(Session& session, const std::string& name, bool no_stdin,
           const std::string& keys) {
  BlockForwardedSignals();
  Client& client = session.client();
  const absl::StatusOr<ContainerRecord> record = FindContainer(client, name);
  if (!record.ok()) return Report(record.status());
  const absl::StatusOr<std::optional<TaskRecord>> task =
      GetTask(client, record->id());
  if (!task.ok()) return Report(task.status());
  if (!task->has_value() || !IsAlive(**task)) {
    return Report(absl::FailedPreconditionError(
        absl::StrCat("container ", name,
                     " is not running — start it with "
                     "`bulkhead start -a ",
                     name, "`")));
  }
  const std::string log = LabelOf(*record, kLabelLogPath);
  if ((log.empty() || !absl::StrContains((*task)->stdout(), log)) &&
      absl::StartsWith((*task)->stdout(), "/")) {
    return AttachFifos(client, *record, **task, no_stdin, keys);
  }
  if (log.empty() || !absl::StrContains((*task)->stdout(), log)) {
    return Report(absl::FailedPreconditionError(
        absl::StrCat("container ", name,
                     " has no log to follow (it was started in the foreground "
                     "with --rm, or by another client)")));
  }
  // The log is the output; the FIFO, if there is one, the input.
  os::UniqueFd stop(::eventfd(0, EFD_CLOEXEC));
  absl::Notification placed;
  std::thread printer([&] {
    LogOptions options;
    options.follow = true;
    options.from_end = true;
    options.placed = [&] { placed.Notify(); };
    const absl::Status printed =
        PrintLog(log, LogsJson(*record), options, stop.get());
    if (!printed.ok()) Report(printed);
    if (!placed.HasBeenNotified()) placed.Notify();
  });
  // Else the answer to the first input could be taken for older output.
  placed.WaitForNotification();
  const auto finish = [&] {
    const uint64_t one = 1;
    (void)!::write(stop.get(), &one, sizeof(one));  // Cannot fail.
    printer.join();
  };
  Fifos fifos;
  if (!no_stdin && !(*task)->stdin().empty()) {
    absl::StatusOr<os::UniqueFd> in =
        os::Open((*task)->stdin(), O_RDWR | O_NONBLOCK);
    if (in.ok()) fifos.in = *std::move(in);
  }
  StreamOptions stream;
  stream.container_id = record->id();
  stream.terminal = (*task)->terminal();
  stream.interactive = fifos.in.valid();
  stream.forward_signals = !stream.terminal;
  stream.detach_keys = keys;
  const absl::StatusOr<StreamResult> result = StreamUntilExit(
      client, fifos, stream, [] { return absl::OkStatus(); },
      [](const ExitInfo&) { return absl::OkStatus(); });
  finish();
  if (!result.ok()) return Report(result.status());
  return result->detached ? kExitOk : static_cast<int>(result->exit.status);
}

int AutoRemove(Session& session, const std::string& id) {
  Client& client = session.client();
  const absl::Status over = WaitTask(client, id).status();
  if (!over.ok() && !absl::IsNotFound(over)) return kExitFailed;
  const absl::StatusOr<ContainerRecord> record = FindContainer(client, id);
  if (!record.ok()) return kExitOk;  // Somebody was quicker.
  absl::Status removed = RemoveContainer(client, *record, true);
  if (removed.ok()) removed = RemoveAnonymousVolumes(client, *record);
  return removed.ok() ? kExitOk : kExitFailed;
}

}  // namespace

void AddRunCommands(Command& root) {
  auto run = std::make_shared<RunOptions>();
  Command run_command = root.Sub("run", "Run a command in a new container");
  run_command.Flag("-d,--detach", &run->detach,
                   "Leave it in the background and print its id");
  DeclareRunFlags(run_command, run.get());
  run_command
      .Examples(
          "  bulkhead run --rm -it debian bash\n"
          "  bulkhead run -d --name web -v /srv:/srv:ro --memory 256m IMAGE\n"
          "  bulkhead run --rm --network host alpine wget -qO- example.org\n\n"
          "Exit code: the command's; 125 if bulkhead failed, 126 if the "
          "command cannot\nbe run, 127 if it was not found.")
      .Does([run](Session& session) { return Run(session, *run); });

  auto create = std::make_shared<RunOptions>();
  Command create_command =
      root.Sub("create", "Make a container without starting it");
  DeclareRunFlags(create_command, create.get());
  create_command
      .Examples(
          "  bulkhead create --name db IMAGE\n"
          "  bulkhead start db")
      .Does([create](Session& session) { return Create(session, *create); });

  auto start = std::make_shared<StartOptions>();
  root.Sub("start", "Start containers that are not running")
      .Flag("-a,--attach", &start->attach, "Show the output, forward signals")
      .Flag("-i,--interactive", &start->interactive, "Pass on standard input")
      .Arguments("CONTAINER", &start->names, "Names or ids")
      .Complete(Completes::kContainers)
      .Examples("  bulkhead start web\n  bulkhead start -a web")
      .Does([start](Session& session) { return Start(session, *start); });

  auto exec = std::make_shared<ExecOptions>();
  root.Sub("exec", "Run a command in a running container")
      .Flag("-d,--detach", &exec->detach, "Leave it in the background")
      .Flag("-i,--interactive", &exec->interactive, "Pass on standard input")
      .Flag("-t,--tty", &exec->tty, "Give the process a terminal")
      .Flag("--privileged", &exec->privileged, "All capabilities")
      .Option("-e,--env", &exec->env, "Environment variable", "KEY[=VALUE]")
      .Option("--env-file", &exec->env_files, "Variables from a file", "FILE")
      .Option("-w,--workdir", &exec->workdir, "Working directory", "DIR")
      .Option("-u,--user", &exec->user, "User", "USER[:GROUP]")
      .Option("--detach-keys", &exec->detach_keys, "Keys that detach", "KEYS")
      .Rest("CONTAINER COMMAND [ARG...]", &exec->rest, 2)
      .Complete(Completes::kContainers)
      .Examples(
          "  bulkhead exec -it web sh\n"
          "  bulkhead exec -u nobody web id")
      .Does([exec](Session& session) { return Exec(session, *exec); });

  struct AttachOptions {
    std::string name;
    bool no_stdin = false;
    std::string detach_keys = "ctrl-p,ctrl-q";
  };
  auto attach = std::make_shared<AttachOptions>();
  root.Sub("attach", "Join a running container's input and output")
      .Argument("CONTAINER", &attach->name, "Name or id")
      .Flag("--no-stdin", &attach->no_stdin, "Only watch")
      .Option("--detach-keys", &attach->detach_keys, "Keys that detach", "KEYS")
      .Complete(Completes::kContainers)
      .Examples("  bulkhead attach web      (ctrl-p ctrl-q leaves again)")
      .Does([attach](Session& session) {
        return Attach(session, attach->name, attach->no_stdin,
                      attach->detach_keys);
      });

  auto removed = std::make_shared<std::string>();
  root.Sub("__autoremove", "")
      .Argument("ID", removed.get(), "")
      .Hide()
      .Does([removed](Session& session) {
        return AutoRemove(session, *removed);
      });
}

}  // namespace bulkhead::cli
