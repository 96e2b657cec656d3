#include "cli/task_io.h"

#include <fcntl.h>
#include <google/protobuf/empty.pb.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cli/terminal.h"
#include "lib/base/status_macros.h"
#include "proto/containerd/services/tasks/v1/tasks.pb.h"

namespace bulkhead::cli {
namespace {

namespace tasks = containerd::services::tasks::v1;

constexpr size_t kCopyBytesMax = 64 << 10;
// How long output may still come after the shim said that all is over.
constexpr absl::Duration kDrainMax = absl::Seconds(5);
// As many interrupts in a row without an end make us give up.
constexpr int kInterruptsMax = 3;

sigset_t ForwardedSignals() {
  sigset_t signals;
  ::sigemptyset(&signals);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2,
                           SIGWINCH, SIGCONT, SIGALRM}) {
    ::sigaddset(&signals, signal);
  }
  return signals;
}

absl::Status MakeFifo(const std::string& path) {
  ::unlink(path.c_str());
  if (::mkfifo(path.c_str(), 0600) != 0) {
    return os::ErrnoStatus(errno, "mkfifo " + path);
  }
  return absl::OkStatus();
}

// Waits for the process in a thread of its own and raises a descriptor.
class Waiter {
 public:
  Waiter(Client& client, const StreamOptions& options)
      : event_(::eventfd(0, EFD_CLOEXEC)), thread_([this, &client, options] {
          absl::StatusOr<ExitInfo> exit =
              WaitTask(client, options.container_id, options.exec_id);
          {
            std::lock_guard<std::mutex> lock(mutex_);
            exit_ = std::move(exit);
          }
          const uint64_t one = 1;
          // Cannot fail: the counter starts at zero.
          (void)!::write(event_.get(), &one, sizeof(one));
        }) {}
  // A call that still waits is left to die with the process.
  ~Waiter() {
    if (done()) {
      thread_.join();
    } else {
      thread_.detach();
    }
  }

  int fd() const { return event_.get(); }
  bool done() {
    std::lock_guard<std::mutex> lock(mutex_);
    return exit_.has_value();
  }
  absl::StatusOr<ExitInfo> exit() {
    std::lock_guard<std::mutex> lock(mutex_);
    return *exit_;
  }

 private:
  os::UniqueFd event_;
  std::mutex mutex_;
  std::optional<absl::StatusOr<ExitInfo>> exit_;
  std::thread thread_;
};

class Streamer {
 public:
  Streamer(Client& client, Fifos& fifos, const StreamOptions& options,
           DetachKeys keys)
      : client_(client),
        fifos_(fifos),
        options_(options),
        keys_(std::move(keys)),
        sources_{{&fifos.out, STDOUT_FILENO}, {&fifos.err, STDERR_FILENO}} {}

  absl::StatusOr<StreamResult> Run(
      const std::function<absl::Status()>& start,
      const std::function<absl::Status(const ExitInfo&)>& on_exit) {
    const sigset_t forwarded = ForwardedSignals();
    signals_ =
        os::UniqueFd(::signalfd(-1, &forwarded, SFD_CLOEXEC | SFD_NONBLOCK));
    stdin_open_ = options_.interactive && fifos_.in.valid();
    // On the heap: a detached thread may outlive this call.
    auto* waiter = new Waiter(client_, options_);
    const absl::Status started = start();
    if (!started.ok()) return started;
    std::optional<RawMode> raw;
    if (options_.terminal) {
      Resize();
      if (options_.interactive) raw.emplace(STDIN_FILENO);
    }
    StreamResult result;
    absl::Time drain_until = absl::InfiniteFuture();
    while (!(over_ && Drained()) && absl::Now() < drain_until) {
      Step(over_ ? -1 : waiter->fd(), drain_until);
      if (detached_) {
        result.detached = true;
        return result;
      }
      if (gave_up_) return absl::CancelledError("interrupted");
      if (!over_ && waiter->done()) {
        over_ = true;
        stdin_open_ = false;
        absl::StatusOr<ExitInfo> exit = waiter->exit();
        if (!exit.ok()) return exit.status();
        result.exit = *exit;
        // Ends the shim's copying, and so our reading.
        RETURN_IF_ERROR(on_exit(*exit));
        drain_until = absl::Now() + kDrainMax;
      }
    }
    delete waiter;
    return result;
  }

 private:
  struct Source {
    os::UniqueFd* from;
    int to;
  };

  bool Drained() const { return !fifos_.out.valid() && !fifos_.err.valid(); }

  // Waits for whatever comes first and handles it.
  void Step(int exit_fd, absl::Time until) {
    pollfd waits[6];
    int count = 0;
    const auto add = [&](int fd, int16_t events) {
      waits[count] = {fd, events, 0};
      return count++;
    };
    const int exit_at = add(exit_fd, POLLIN);  // Negative is ignored.
    const int signal_at = add(signals_.get(), POLLIN);
    const int out_at = add(fifos_.out.get(), POLLIN);
    const int err_at = add(fifos_.err.get(), POLLIN);
    const int typed_at =
        add(stdin_open_ && to_stdin_.empty() ? STDIN_FILENO : -1, POLLIN);
    const int in_at = add(to_stdin_.empty() ? -1 : fifos_.in.get(), POLLOUT);
    (void)exit_at;
    const int timeout_ms =
        until == absl::InfiniteFuture()
            ? -1
            : static_cast<int>(absl::ToInt64Milliseconds(until - absl::Now())) +
                  1;
    if (::poll(waits, static_cast<nfds_t>(count), timeout_ms) <= 0) return;
    if (waits[out_at].revents != 0) Copy(sources_[0]);
    if (waits[err_at].revents != 0) Copy(sources_[1]);
    if (waits[signal_at].revents != 0) HandleSignal();
    if (waits[typed_at].revents != 0) ReadTyped();
    if (waits[in_at].revents != 0) FlushTyped();
  }

  void Copy(const Source& source) {
    char buffer[kCopyBytesMax];
    const ssize_t got = ::read(source.from->get(), buffer, sizeof(buffer));
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) {
      source.from->Reset();
      return;
    }
    if (!os::WriteFull(source.to, buffer, static_cast<size_t>(got)).ok()) {
      return;  // Nobody reads us any more; the container is not to notice.
    }
  }

  void HandleSignal() {
    signalfd_siginfo info{};
    if (::read(signals_.get(), &info, sizeof(info)) != sizeof(info)) return;
    const int signal = static_cast<int>(info.ssi_signo);
    if (signal == SIGWINCH) {
      if (options_.terminal) Resize();
      return;
    }
    if (signal == SIGCONT) return;
    if (signal == SIGINT || signal == SIGTERM) {
      gave_up_ = ++interrupts_ >= kInterruptsMax;
    }
    if (!options_.forward_signals || over_) return;
    // It may be over already; then Wait says so.
    (void)KillTask(client_, options_.container_id, signal, false,
                   options_.exec_id);
  }

  void ReadTyped() {
    char buffer[4096];
    const ssize_t got = ::read(STDIN_FILENO, buffer, sizeof(buffer));
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) {
      stdin_open_ = false;
      CloseStdin();
      return;
    }
    to_stdin_.assign(buffer, static_cast<size_t>(got));
    if (options_.terminal && ::isatty(STDIN_FILENO)) {
      to_stdin_ = keys_.Filter(to_stdin_, &detached_);
    }
    FlushTyped();
  }

  void FlushTyped() {
    if (to_stdin_.empty()) return;
    const ssize_t put =
        ::write(fifos_.in.get(), to_stdin_.data(), to_stdin_.size());
    if (put > 0) to_stdin_.erase(0, static_cast<size_t>(put));
  }

  void CloseStdin() {
    tasks::CloseIORequest request;
    request.set_container_id(options_.container_id);
    request.set_exec_id(options_.exec_id);
    request.set_stdin(true);
    google::protobuf::Empty empty;
    // The process may be over; then there is nothing to close.
    (void)client_.Call(std::string(kTasks) + "CloseIO", request, &empty);
    fifos_.in.Reset();
  }

  void Resize() {
    TerminalSize size = SizeOf(STDIN_FILENO);
    if (size.rows == 0) size = SizeOf(STDOUT_FILENO);
    if (size.rows == 0) return;
    tasks::ResizePtyRequest request;
    request.set_container_id(options_.container_id);
    request.set_exec_id(options_.exec_id);
    request.set_height(size.rows);
    request.set_width(size.columns);
    google::protobuf::Empty empty;
    // A missed change is mended by the next.
    (void)client_.Call(std::string(kTasks) + "ResizePty", request, &empty);
  }

  Client& client_;
  Fifos& fifos_;
  const StreamOptions& options_;
  DetachKeys keys_;
  Source sources_[2];
  os::UniqueFd signals_;
  std::string to_stdin_;  // Typed, not yet taken by the FIFO.
  bool stdin_open_ = false;
  bool detached_ = false;
  bool gave_up_ = false;
  bool over_ = false;
  int interrupts_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Fifos>> Fifos::Create(const std::string& folder,
                                                     const std::string& name,
                                                     Wanted wanted) {
  RETURN_IF_ERROR(os::MakeDirs(folder, 0700));
  auto fifos = std::make_unique<Fifos>();
  fifos->folder_ = folder;
  const auto make = [&](const char* suffix, int flags, std::string* path,
                        os::UniqueFd* fd) -> absl::Status {
    *path = absl::StrCat(folder, "/", name, suffix);
    RETURN_IF_ERROR(MakeFifo(*path));
    ASSIGN_OR_RETURN(*fd, os::Open(*path, flags | O_NONBLOCK));
    return absl::OkStatus();
  };
  if (wanted.in) {
    // Both ways, so that opening and writing never need the other side.
    RETURN_IF_ERROR(make("-stdin", O_RDWR, &fifos->in_path, &fifos->in));
  }
  if (wanted.out) {
    RETURN_IF_ERROR(make("-stdout", O_RDONLY, &fifos->out_path, &fifos->out));
  }
  if (wanted.err) {
    RETURN_IF_ERROR(make("-stderr", O_RDONLY, &fifos->err_path, &fifos->err));
  }
  return fifos;
}

Fifos::~Fifos() {
  if (kept_ || folder_.empty()) return;
  for (const std::string& path : {in_path, out_path, err_path}) {
    if (!path.empty()) ::unlink(path.c_str());
  }
  ::rmdir(folder_.c_str());  // Fails, rightly, while others use it.
}

void BlockForwardedSignals() {
  const sigset_t forwarded = ForwardedSignals();
  ::pthread_sigmask(SIG_BLOCK, &forwarded, nullptr);
  ::signal(SIGPIPE, SIG_IGN);
}

absl::StatusOr<StreamResult> StreamUntilExit(
    Client& client, Fifos& fifos, const StreamOptions& options,
    const std::function<absl::Status()>& start,
    const std::function<absl::Status(const ExitInfo&)>& on_exit) {
  ASSIGN_OR_RETURN(DetachKeys keys, DetachKeys::Parse(options.detach_keys));
  return Streamer(client, fifos, options, std::move(keys)).Run(start, on_exit);
}

}  // namespace bulkhead::cli
