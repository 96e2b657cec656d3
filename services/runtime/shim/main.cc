// containerd-shim-bulkhead-v1: flags, objects, the loop.
#include <fcntl.h>
#include <malloc.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "lib/base/status_macros.h"
#include "lib/os/fd.h"
#include "services/runtime/shim/bootstrap.h"
#include "services/runtime/shim/events.h"
#include "services/runtime/shim/loop.h"
#include "services/runtime/shim/pod.h"
#include "services/runtime/shim/sandbox_service.h"
#include "services/runtime/shim/server.h"
#include "services/runtime/shim/task_service.h"

// Set by the linker: where the program starts and its code ends.
extern "C" {
extern char __executable_start;
extern char etext;
}

namespace bulkhead::shim {
namespace {

constexpr int64_t kEventDrainMs = 5000;

// The daemon reads a FIFO named `log` in the bundle and makes it our stderr's.
void OpenLog() {
  absl::StatusOr<os::UniqueFd> log = os::Open("log", O_WRONLY | O_NONBLOCK);
  if (log.ok()) (void)::dup2(log->get(), STDERR_FILENO);
}

// Gives back what a quiet shim does not need: free heap, and the pages of the
// program itself, which stay in the page cache and are mapped again when
// touched. Start-up and the last calls have touched most of them.
void ReleasePages() {
  ::malloc_trim(0);
  constexpr uintptr_t kPageMask = 4095;
  const uintptr_t from =
      (reinterpret_cast<uintptr_t>(&__executable_start) + kPageMask) &
      ~kPageMask;
  const uintptr_t to = reinterpret_cast<uintptr_t>(&etext) & ~kPageMask;
  if (from < to) {
    (void)::madvise(reinterpret_cast<void*>(from), to - from, MADV_DONTNEED);
  }
}

absl::Status Serve(const Flags& flags) {
  struct stat info {};
  if (::fstat(kListenerFd, &info) != 0 || !S_ISSOCK(info.st_mode)) {
    return absl::FailedPreconditionError(
        "no socket to serve: a daemon runs this program with \"start\"");
  }
  (void)::fcntl(kListenerFd, F_SETFD, FD_CLOEXEC);
  os::UniqueFd listener(kListenerFd);
  OpenLog();
  const char* socket = ::getenv("BULKHEAD_SHIM_SOCKET");
  const std::string socket_path = socket != nullptr ? socket : "";
  ::unsetenv("BULKHEAD_SHIM_SOCKET");
  const char* ttrpc_address = ::getenv("TTRPC_ADDRESS");

  Loop loop;
  RETURN_IF_ERROR(loop.Init());
  EventPublisher events(&loop, ttrpc_address != nullptr ? ttrpc_address : "",
                        flags.name_space);
  const auto shut_down = [&] {
    // From now on nobody finds this shim; a new one may take the name.
    if (!socket_path.empty()) (void)::unlink(socket_path.c_str());
    events.Drain(kEventDrainMs, [&loop] { loop.Stop(); });
  };
  SandboxService* pods = nullptr;
  TaskService tasks(&loop, &events, flags.name_space, [&] {
    // The end of a pod's last container is not the end of the pod.
    if (!pods->present()) shut_down();
  });
  SandboxService sandbox(&loop, &tasks, shut_down);
  pods = &sandbox;
  Server server(&loop, std::move(listener),
                [&](const std::string& service, const std::string& method,
                    const std::string& payload, Reply reply) {
                  if (service == kSandboxService) {
                    return sandbox.Handle(method, payload, std::move(reply));
                  }
                  tasks.Handle(service, method, payload, std::move(reply));
                });
  RETURN_IF_ERROR(server.Start());
  loop.OnTerminate(shut_down);
  loop.OnDump([&tasks] { std::fputs(tasks.Describe().c_str(), stderr); });
  loop.OnQuiet(ReleasePages);
  loop.Run();
  server.Stop();
  // Streams of containers that live on go with the process; destructors have
  // nothing to add.
  std::_Exit(0);
}

int Main(int argc, char** argv) {
  // Copy buffers come and go; give their pages back.
  ::mallopt(M_TRIM_THRESHOLD, 64 << 10);
  ::mallopt(M_TOP_PAD, 16 << 10);
  absl::StatusOr<Flags> flags = ParseFlags(argc, argv);
  absl::Status status = flags.status();
  if (status.ok()) {
    if (flags->version) {
      std::printf("%s:\n  Version:  0.1.0\n  Revision: \n", argv[0]);
      return 0;
    }
    if (flags->info) {
      status = RunInfo();
    } else if (flags->action == "start") {
      status = RunStart(*flags);
    } else if (flags->action == "delete") {
      status = RunDelete(*flags);
    } else if (flags->action == "pod") {
      status = RunPod();
    } else {
      status = Serve(*flags);
    }
  }
  if (status.ok()) return 0;
  std::fprintf(stderr, "%s: %s\n", argv[0], MessageOf(status).c_str());
  return 1;
}

}  // namespace
}  // namespace bulkhead::shim

int main(int argc, char** argv) { return bulkhead::shim::Main(argc, argv); }
