// From a Create request to a container that waits for its start.
#include <sys/stat.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/os/mount.h"
#include "lib/ttrpc/wire.h"
#include "services/runtime/shim/spec.h"
#include "services/runtime/shim/task_service.h"
#include "services/runtime/shim/task_wire.h"

namespace bulkhead::shim {
namespace {

using ttrpc::WireReader;
using ttrpc::WireWriter;

constexpr size_t kContainersMax = 1024;

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

}  // namespace

void TaskService::Create(const std::string& payload, Reply reply) {
  auto container = std::make_shared<Container>();
  container->init = std::make_shared<Process>();
  std::vector<os::MountSpec> mounts;
  std::string rootfs_fields;  // As the create event repeats them.
  std::string options_any;
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
        container->checkpoint = reader.str();
        break;
      case 9:
        container->parent_checkpoint = reader.str();
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
  const SpecFacts facts = ReadSpecFacts(bundle);
  if (!facts.user.ok()) return refuse(facts.user);
  container->private_pid_namespace = facts.private_pid_namespace;
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
  if (!container->checkpoint.empty()) {
    // Nothing runs before Start(), which restores it.
    return Register(container, rootfs_fields, reply);
  }

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
  Register(container, rootfs_fields, reply);
  Adopt(container, *pid);
}

void TaskService::Register(const ContainerRef& container,
                           const std::string& rootfs_fields,
                           const Reply& reply) {
  const ProcessRef& init = container->init;
  creating_.erase(container->id);
  containers_[container->id] = container;
  WireWriter event;
  event.Str(1, container->id).Str(2, container->bundle);
  const std::string bytes = event.Take() + rootfs_fields;
  WireWriter io;
  io.Str(1, init->stdio.in).Str(2, init->stdio.out).Str(3, init->stdio.err);
  io.Uint(4, init->stdio.terminal);
  WireWriter rest;
  rest.Message(4, io.str()).Str(5, container->checkpoint);
  rest.Uint(6, static_cast<uint64_t>(init->pid));
  Publish("/tasks/create", "TaskCreate", bytes + rest.str());
  WireWriter out;
  out.Uint(1, static_cast<uint64_t>(init->pid));
  reply(absl::OkStatus(), out.Take());
}

void TaskService::Adopt(const ContainerRef& container, pid_t pid) {
  container->init->pid = pid;
  absl::StatusOr<Cgroup> cgroup = Cgroup::OfPid(pid);
  if (cgroup.ok()) {
    cgroup->EnableControllers();
    container->cgroup = std::make_unique<Cgroup>(*cgroup);
    container->oom = std::make_unique<OomWatcher>(
        loop_, *cgroup, [this, id = container->id] {
          WireWriter event;
          event.Str(1, id);
          Publish("/tasks/oom", "TaskOOM", event.str());
        });
  }
  loop_->OnExit(pid, [this, container](const ExitInfo& exit) {
    OnInitExit(container, exit);
  });
}

}  // namespace bulkhead::shim
