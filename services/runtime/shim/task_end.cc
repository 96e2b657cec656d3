// The ends of processes: in which order exits are told, and Delete.
#include <fcntl.h>
#include <unistd.h>

#include <memory>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/os/fd.h"
#include "lib/os/mount.h"
#include "lib/ttrpc/wire.h"
#include "services/runtime/shim/task_service.h"
#include "services/runtime/shim/task_wire.h"

namespace bulkhead::shim {
namespace {

using ttrpc::WireWriter;

constexpr int64_t kDrainTimeoutMs = 10000;
// A shim of one container is gone before.
constexpr int64_t kLetGoMs = 200;

// Takes the root file system away. The last to let go of an overlay waits until
// all of the disk below it is written; whoever asked for Delete need not.
absl::Status UnmountRoot(Loop* loop, const std::string& rootfs) {
  absl::StatusOr<os::UniqueFd> root =
      os::Open(rootfs, O_PATH | O_DIRECTORY | O_NOFOLLOW);
  RETURN_IF_ERROR(os::UnmountTree(rootfs));
  if (!root.ok()) return absl::OkStatus();
  auto held = std::make_shared<os::UniqueFd>(*std::move(root));
  loop->After(kLetGoMs, [held] { held->Reset(); });
  return absl::OkStatus();
}

}  // namespace

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
  WhenRead(init, [this, container] {
    container->init->read = true;
    MaybeFinishInit(container);
  });
}

void TaskService::OnExecExit(const ContainerRef& container,
                             const ProcessRef& process, const ExitInfo& exit) {
  process->reaped = true;
  process->exit = exit;
  WhenRead(process, [this, container, process] {
    process->read = true;
    Finish(container, process);
    MaybeFinishInit(container);
  });
}

void TaskService::WhenRead(const ProcessRef& process,
                           std::function<void()> done) {
  if (process->io == nullptr) return done();
  process->io->WhenRead(std::move(done));
}

void TaskService::MaybeFinishInit(const ContainerRef& container) {
  const ProcessRef& init = container->init;
  if (!init->reaped || !init->read || init->starting ||
      init->state == State::kStopped) {
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
  container->runtime->Delete(
      container->id, container->init->state == State::kStopped,
      [this, container, reply,
       done = std::move(done)](const OciRuntime::Result& result) {
        const ProcessRef& init = container->init;
        init->io.reset();
        if (init->reaped && !init->read) {  // Never started: nobody waits.
          init->read = true;
          MaybeFinishInit(container);
        }
        container->oom.reset();
        absl::Status status;
        if (!result.ok && !absl::StrContains(result.error, "does not exist")) {
          status = RuntimeError("failed to delete task", result.error);
        }
        if (container->mounted) {
          const absl::Status unmounted =
              UnmountRoot(loop_, container->bundle + "/rootfs");
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

}  // namespace bulkhead::shim
