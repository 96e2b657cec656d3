// stop, kill, pause, unpause, restart, wait, rm.
#include <google/protobuf/empty.pb.h>
#include <signal.h>

#include <cstdio>
#include <functional>
#include <memory>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "cli/commands.h"
#include "cli/container.h"
#include "cli/format.h"
#include "cli/run_options.h"
#include "cli/spec/options.h"
#include "cli/volumes.h"
#include "lib/base/status_macros.h"
#include "proto/containerd/services/tasks/v1/tasks.pb.h"

namespace bulkhead::cli {
namespace {

namespace tasks = containerd::services::tasks::v1;

using Names = std::vector<std::string>;

// Does `action` to each container; prints the name of each that worked.
int ForEach(Client& client, const Names& names,
            const std::function<absl::Status(const ContainerRecord&)>& action) {
  int code = kExitOk;
  for (const std::string& name : names) {
    const absl::StatusOr<ContainerRecord> record = FindContainer(client, name);
    const absl::Status status = record.ok() ? action(*record) : record.status();
    if (status.ok()) {
      std::printf("%s\n", name.c_str());
    } else {
      code = Report(status);
    }
  }
  return code;
}

absl::Status NotRunning(const ContainerRecord& record) {
  return absl::FailedPreconditionError(absl::StrCat(
      "container ", NameOf(record), " is not running — `bulkhead start ",
      NameOf(record), "` starts it"));
}

constexpr double kDefaultSeconds = -1000;
constexpr double kGraceSeconds = 10;

struct StopOptions {
  double seconds = kDefaultSeconds;  // Until told.
  std::string signal;
  Names names;
};

absl::Status Stop(Client& client, const ContainerRecord& record,
                  const StopOptions& options) {
  std::string signal = options.signal;
  if (signal.empty()) signal = LabelOf(record, kLabelStopSignal);
  if (signal.empty()) signal = "TERM";
  ASSIGN_OR_RETURN(const int number, ParseSignal(signal));
  double seconds = options.seconds;
  if (seconds == kDefaultSeconds &&
      !absl::SimpleAtod(LabelOf(record, kLabelStopTimeout), &seconds)) {
    seconds = kGraceSeconds;
  }
  const absl::Duration grace =
      seconds < 0 ? absl::Hours(24 * 365) : absl::Seconds(seconds);
  RETURN_IF_ERROR(WantRunning(client, record, false));
  return StopTask(client, record.id(), number, grace);
}

absl::Status CallNamed(Client& client, const std::string& method,
                       const ContainerRecord& record) {
  google::protobuf::Empty empty;
  absl::Status status;
  if (method == "Pause") {
    tasks::PauseTaskRequest request;
    request.set_container_id(record.id());
    status = client.Call(std::string(kTasks) + method, request, &empty);
  } else {
    tasks::ResumeTaskRequest request;
    request.set_container_id(record.id());
    status = client.Call(std::string(kTasks) + method, request, &empty);
  }
  return absl::IsNotFound(status) ? NotRunning(record) : status;
}

absl::Status Remove(Client& client, const ContainerRecord& record, bool force,
                    bool volumes) {
  // Nothing shall start it between its end and its removal.
  if (force) RETURN_IF_ERROR(WantRunning(client, record, false));
  RETURN_IF_ERROR(RemoveContainer(client, record, force));
  return volumes ? RemoveAnonymousVolumes(client, record) : absl::OkStatus();
}

int Wait(Client& client, const Names& names) {
  int code = kExitOk;
  for (const std::string& name : names) {
    const absl::StatusOr<ContainerRecord> record = FindContainer(client, name);
    if (!record.ok()) {
      code = Report(record.status());
      continue;
    }
    const absl::StatusOr<ExitInfo> exit = WaitTask(client, record->id());
    if (exit.ok()) {
      std::printf("%u\n", exit->status);
      continue;
    }
    const std::string known = LabelOf(*record, kLabelExitStatus);
    if (absl::IsNotFound(exit.status()) && !known.empty()) {
      std::printf("%s\n", known.c_str());
      continue;
    }
    code = Report(absl::IsNotFound(exit.status()) ? NotRunning(*record)
                                                  : exit.status());
  }
  return code;
}

}  // namespace

void AddLifecycleCommands(Command& root) {
  auto stop = std::make_shared<StopOptions>();
  root.Sub("stop", "Ask containers to end, then make them")
      .Option("-t,--time", &stop->seconds, "Grace [10]; -1: for ever",
              "SECONDS")
      .Option("-s,--signal", &stop->signal, "Instead of the image's or TERM",
              "SIGNAL")
      .Arguments("CONTAINER", &stop->names, "Names or ids")
      .Complete(Completes::kContainers)
      .Examples("  bulkhead stop -t 2 web")
      .Does([stop](Session& session) {
        return ForEach(session.client(), stop->names,
                       [&](const ContainerRecord& record) {
                         return Stop(session.client(), record, *stop);
                       });
      });

  auto restart = std::make_shared<StopOptions>();
  root.Sub("restart", "Stop containers and start them again")
      .Option("-t,--time", &restart->seconds, "Grace [10]", "SECONDS")
      .Arguments("CONTAINER", &restart->names, "Names or ids")
      .Complete(Completes::kContainers)
      .Examples("  bulkhead restart web")
      .Does([restart](Session& session) {
        Client& client = session.client();
        return ForEach(client, restart->names,
                       [&](const ContainerRecord& record) -> absl::Status {
                         RETURN_IF_ERROR(Stop(client, record, *restart));
                         RETURN_IF_ERROR(DeleteTask(client, record.id()));
                         return StartDetached(client, record);
                       });
      });

  auto kill = std::make_shared<StopOptions>();
  kill->signal = "KILL";
  root.Sub("kill", "Send a signal to containers")
      .Option("-s,--signal", &kill->signal, "Signal [KILL]", "SIGNAL")
      .Arguments("CONTAINER", &kill->names, "Names or ids")
      .Complete(Completes::kContainers)
      .Examples("  bulkhead kill -s HUP web")
      .Does([kill](Session& session) {
        const absl::StatusOr<int> signal = ParseSignal(kill->signal);
        if (!signal.ok()) return Report(signal.status(), kExitUsage);
        Client& client = session.client();
        return ForEach(client, kill->names,
                       [&](const ContainerRecord& record) -> absl::Status {
                         if (*signal == SIGKILL) {
                           RETURN_IF_ERROR(WantRunning(client, record, false));
                         }
                         const absl::Status killed =
                             KillTask(client, record.id(), *signal);
                         if (absl::IsNotFound(killed)) {
                           return NotRunning(record);
                         }
                         if (killed.ok() && *signal == SIGKILL) {
                           // Over when the command returns.
                           (void)WaitTask(client, record.id(), "",
                                          absl::Seconds(10));
                         }
                         return killed;
                       });
      });

  const std::pair<const char*, const char*> pauses[] = {
      {"pause", "Freeze all processes of containers"},
      {"unpause", "Let frozen containers go on"}};
  for (const auto& [name, summary] : pauses) {
    auto names = std::make_shared<Names>();
    const std::string method =
        std::string(name) == "pause" ? "Pause" : "Resume";
    root.Sub(name, summary)
        .Arguments("CONTAINER", names.get(), "Names or ids")
        .Complete(Completes::kContainers)
        .Examples(absl::StrCat("  bulkhead ", name, " web"))
        .Does([names, method](Session& session) {
          return ForEach(session.client(), *names,
                         [&](const ContainerRecord& record) {
                           return CallNamed(session.client(), method, record);
                         });
        });
  }

  auto waited = std::make_shared<Names>();
  root.Sub("wait", "Wait until containers end and print their exit codes")
      .Arguments("CONTAINER", waited.get(), "Names or ids")
      .Complete(Completes::kContainers)
      .Examples("  bulkhead wait job")
      .Does([waited](Session& session) {
        return Wait(session.client(), *waited);
      });

  struct RemoveOptions {
    bool force = false;
    bool volumes = false;
    Names names;
  };
  auto remove = std::make_shared<RemoveOptions>();
  root.Sub("rm", "Remove containers")
      .Flag("-f,--force", &remove->force, "Kill it first if it is running")
      .Flag("-v,--volumes", &remove->volumes, "Its anonymous volumes, too")
      .Arguments("CONTAINER", &remove->names, "Names or ids")
      .Complete(Completes::kContainers)
      .Examples("  bulkhead rm -f web\n  bulkhead rm $(bulkhead ps -aq)")
      .Does([remove](Session& session) {
        Client& client = session.client();
        if (!remove->force) {
          return ForEach(
              client, remove->names, [&](const ContainerRecord& record) {
                return Remove(client, record, false, remove->volumes);
              });
        }
        // With -f what is already gone is as it should be.
        int code = kExitOk;
        for (const std::string& name : remove->names) {
          const absl::StatusOr<ContainerRecord> record =
              FindContainer(client, name);
          if (absl::IsNotFound(record.status())) {
            Report(record.status());
            continue;
          }
          code |= ForEach(client, {name}, [&](const ContainerRecord& found) {
            return Remove(client, found, true, remove->volumes);
          });
        }
        return code;
      });
}

}  // namespace bulkhead::cli
