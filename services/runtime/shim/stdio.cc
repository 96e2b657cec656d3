#include "services/runtime/shim/stdio.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/os/socket.h"
#include "services/runtime/shim/spawn.h"

namespace bulkhead::shim {
namespace {

constexpr int64_t kBinaryStopMs = 12000;
// How long a logging binary has to end by itself at the end of its input.
constexpr int64_t kBinaryGraceMs = 2000;
// How long output that nobody reads is kept for a reader when its process is
// deleted.
constexpr int64_t kUnreadMs = 1000;
constexpr int64_t kReadDelayMsMax = 32;
constexpr size_t kConsoleNameSizeBytesMax = 4096;

struct Pipe {
  os::UniqueFd read;
  os::UniqueFd write;
};

absl::StatusOr<Pipe> MakePipe() {
  int fds[2];
  if (::pipe2(fds, O_CLOEXEC) != 0) return os::ErrnoStatus(errno, "pipe2");
  return Pipe{os::UniqueFd(fds[0]), os::UniqueFd(fds[1])};
}

// The user of the container owns its streams. It may be refused: then they work
// all the same, they just cannot be opened again by name.
void GiveTo(const os::UniqueFd& fd, uint32_t uid, uint32_t gid) {
  if ((uid != 0 || gid != 0) && ::fchown(fd.get(), uid, gid) != 0) return;
}

void SetNonBlocking(const os::UniqueFd& fd) {
  (void)::fcntl(fd.get(), F_SETFL, ::fcntl(fd.get(), F_GETFL) | O_NONBLOCK);
}

std::string SchemeOf(const std::string& uri) {
  const size_t colon = uri.find("://");
  return colon == std::string::npos ? "fifo" : uri.substr(0, colon);
}

// The path of scheme://path?query, or the whole of a plain path.
std::string PathOf(const std::string& uri) {
  const size_t colon = uri.find("://");
  if (colon == std::string::npos) return uri;
  const size_t end = std::min(uri.find('?'), uri.size());
  return PercentDecode(
      std::string_view(uri).substr(colon + 3, end - colon - 3));
}

absl::StatusOr<std::unique_ptr<Sink>> OpenFifoOrFile(Loop* loop,
                                                     const std::string& uri) {
  const std::string path = PathOf(uri);
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) {
    return os::ErrnoStatus(errno, absl::StrCat("open ", path));
  }
  if (S_ISFIFO(info.st_mode)) {
    return std::make_unique<FifoSink>(loop, path, FifoMode::kKeepReader);
  }
  ASSIGN_OR_RETURN(os::UniqueFd fd, os::Open(path, O_WRONLY | O_APPEND));
  return std::make_unique<FileSink>(std::move(fd));
}

}  // namespace

ProcessIo::~ProcessIo() {
  *alive_ = false;
  loop_->Cancel(read_timer_);
  loop_->Cancel(drain_timer_);
  RemoveConsoleSocket();
  if (binary_ready_.valid()) loop_->Unwatch(binary_ready_.get());
  if (binary_ > 0) {
    const pid_t pid = binary_;
    (void)::kill(pid, SIGTERM);  // It may have ended.
    Loop* const loop = loop_;
    const uint64_t timer =
        loop->After(kBinaryStopMs, [pid] { (void)::kill(pid, SIGKILL); });
    loop->OnExit(pid, [loop, timer](const ExitInfo&) { loop->Cancel(timer); });
  }
}

absl::StatusOr<std::unique_ptr<Sink>> ProcessIo::MakeSink(bool is_stdout) {
  const std::string scheme = SchemeOf(spec_.out);
  const std::string& own = is_stdout ? spec_.out : spec_.err;
  if (scheme == "fifo") return OpenFifoOrFile(loop_, own);
  if (scheme == "file") {
    const std::string path = PathOf(spec_.out);
    const size_t slash = path.rfind('/');
    if (slash != std::string::npos && slash > 0) {
      RETURN_IF_ERROR(os::MakeDirs(path.substr(0, slash), 0755));
    }
    ASSIGN_OR_RETURN(os::UniqueFd fd,
                     os::Open(path, O_WRONLY | O_APPEND | O_CREAT, 0644));
    return std::make_unique<FileSink>(std::move(fd));
  }
  if (scheme == "json-file" || scheme == "cri-file") {
    ASSIGN_OR_RETURN(const LogUri uri, ParseLogUri(scheme, spec_.out));
    if (log_ == nullptr) {
      log_ = std::make_shared<LogFile>(uri.file);
      RETURN_IF_ERROR(log_->Open());
    }
    std::unique_ptr<FifoSink> tee;
    if (SchemeOf(own) == scheme) {
      ASSIGN_OR_RETURN(const LogUri own_uri, ParseLogUri(scheme, own));
      if (!own_uri.tee.empty()) {
        tee = std::make_unique<FifoSink>(loop_, own_uri.tee, FifoMode::kTee);
      }
    }
    const char* stream = is_stdout ? "stdout" : "stderr";
    std::unique_ptr<LogLines> lines;
    if (scheme == "json-file") {
      lines = std::make_unique<JsonLines>(log_.get(), stream);
    } else {
      lines = std::make_unique<CriLines>(log_.get(), stream,
                                         uri.line_size_bytes_max);
    }
    return std::make_unique<LogSink>(log_, std::move(lines), std::move(tee));
  }
  return absl::InvalidArgumentError(
      absl::StrCat("unknown STDIO scheme ", scheme));
}

absl::Status ProcessIo::StartBinary(os::UniqueFd out, os::UniqueFd err) {
  const std::string& uri = spec_.out;
  SpawnRequest request;
  request.argv.push_back(PathOf(uri));
  const size_t question = uri.find('?');
  if (question != std::string::npos) {
    std::string_view query = std::string_view(uri).substr(question + 1);
    std::vector<std::string> seen;
    while (!query.empty()) {
      const size_t end = std::min(query.find('&'), query.size());
      const std::string_view pair = query.substr(0, end);
      query.remove_prefix(std::min(end + 1, query.size()));
      const size_t equals = std::min(pair.find('='), pair.size());
      const std::string key = PercentDecode(pair.substr(0, equals));
      if (std::find(seen.begin(), seen.end(), key) != seen.end()) continue;
      seen.push_back(key);
      request.argv.push_back(key);
      request.argv.push_back(
          PercentDecode(pair.substr(std::min(equals + 1, pair.size()))));
    }
  }
  request.inherit_environment = false;
  request.environment = {
      absl::StrCat("CONTAINER_ID=", spec_.id),
      absl::StrCat("CONTAINER_NAMESPACE=", spec_.name_space)};
  ASSIGN_OR_RETURN(Pipe ready, MakePipe());
  request.fds = {{out.get(), 3}, {err.get(), 4}, {ready.write.get(), 5}};
  request.own_group = true;
  request.die_with_parent = false;
  ASSIGN_OR_RETURN(binary_, Spawn(request));
  loop_->OnExitOfNew(binary_, [this, alive = alive_](const ExitInfo&) {
    if (!*alive) return;
    binary_ = 0;
    CheckDrained();
  });
  binary_must_answer_ = SchemeOf(uri) == "binary-v2";
  SetNonBlocking(ready.read);
  binary_ready_ = std::move(ready.read);
  return loop_->Watch(binary_ready_.get(), EPOLLIN, [this](uint32_t) {
    char byte = 0;
    const ssize_t size = ::read(binary_ready_.get(), &byte, 1);
    if (size < 0 && (errno == EAGAIN || errno == EINTR)) return;
    loop_->Unwatch(binary_ready_.get());
    binary_ready_.Reset();
    absl::Status status;
    if (size <= 0 && binary_must_answer_) {
      status = absl::UnknownError(
          "logging binary did not call ready (it may have crashed or exited "
          "prematurely)");
    }
    if (open_done_) std::exchange(open_done_, nullptr)(status);
  });
}

absl::Status ProcessIo::OpenStreams() {
  const std::string scheme = SchemeOf(spec_.out);
  const bool binary = scheme == "binary" || scheme == "binary-v2";
  // These schemes take both streams, whatever stderr says.
  const bool both = scheme != "fifo" && !spec_.out.empty();
  if (!spec_.in.empty()) {
    ASSIGN_OR_RETURN(Pipe pipe, MakePipe());
    ASSIGN_OR_RETURN(input_, InputCopier::Open(loop_, PathOf(spec_.in)));
    SetNonBlocking(pipe.write);
    GiveTo(pipe.read, spec_.uid, spec_.gid);
    child_[0] = std::move(pipe.read);
    input_->Start(std::move(pipe.write), nullptr);
  }
  os::UniqueFd binary_ends[2];
  for (int i = 1; i <= 2; ++i) {
    if (!both && (i == 1 ? spec_.out : spec_.err).empty()) continue;
    ASSIGN_OR_RETURN(Pipe pipe, MakePipe());
    GiveTo(pipe.write, spec_.uid, spec_.gid);
    child_[i] = std::move(pipe.write);
    if (binary) {
      binary_ends[i - 1] = std::move(pipe.read);
      continue;
    }
    ASSIGN_OR_RETURN(std::unique_ptr<Sink> sink, MakeSink(i == 1));
    SetNonBlocking(pipe.read);
    outputs_.push_back(std::make_unique<OutputCopier>(
        loop_, std::move(pipe.read), std::move(sink), [this, alive = alive_] {
          if (*alive) CheckDrained();
        }));
  }
  if (binary) {
    return StartBinary(std::move(binary_ends[0]), std::move(binary_ends[1]));
  }
  return absl::OkStatus();
}

absl::Status ProcessIo::OpenConsole() {
  const std::string scheme = SchemeOf(spec_.out);
  if (scheme == "binary" || scheme == "binary-v2") {
    ASSIGN_OR_RETURN(Pipe out, MakePipe());
    ASSIGN_OR_RETURN(Pipe err, MakePipe());
    RETURN_IF_ERROR(StartBinary(std::move(out.read), std::move(err.read)));
    SetNonBlocking(out.write);
    console_sink_ = std::make_unique<PipeSink>(loop_, std::move(out.write));
  } else if (!spec_.out.empty()) {
    ASSIGN_OR_RETURN(console_sink_, MakeSink(true));
  } else {
    ASSIGN_OR_RETURN(os::UniqueFd null, os::Open("/dev/null", O_WRONLY));
    console_sink_ = std::make_unique<FileSink>(std::move(null));
  }
  if (!spec_.in.empty()) {
    ASSIGN_OR_RETURN(input_, InputCopier::Open(loop_, PathOf(spec_.in)));
  }
  const char* runtime_dir = ::getenv("XDG_RUNTIME_DIR");
  std::string dir = absl::StrCat(
      runtime_dir != nullptr && *runtime_dir != 0 ? runtime_dir : "/tmp",
      "/ptyXXXXXX");
  if (::mkdtemp(dir.data()) == nullptr) return os::ErrnoStatus(errno, dir);
  console_dir_ = dir;
  console_path_ = dir + "/pty.sock";
  ASSIGN_OR_RETURN(console_listener_, os::ListenUnix(console_path_, {}));
  SetNonBlocking(console_listener_);
  return loop_->Watch(console_listener_.get(), EPOLLIN,
                      [this](uint32_t) { AcceptConsole(); });
}

void ProcessIo::Open(Done done) {
  open_done_ = std::move(done);
  const absl::Status status = spec_.terminal ? OpenConsole() : OpenStreams();
  if (binary_ready_.valid() && status.ok()) return;  // It answers later.
  std::exchange(open_done_, nullptr)(status);
}

void ProcessIo::CloseChildEnds() {
  for (os::UniqueFd& fd : child_) fd.Reset();
}

void ProcessIo::AcceptConsole() {
  const int fd =
      ::accept4(console_listener_.get(), nullptr, nullptr, SOCK_CLOEXEC);
  if (fd < 0) return;
  os::UniqueFd connection(fd);
  absl::StatusOr<os::ReceivedMessage> message =
      os::ReceiveWithFds(connection.get(), kConsoleNameSizeBytesMax);
  if (!message.ok() || message->fds.size() != 1) return;
  RemoveConsoleSocket();
  StartConsole(std::move(message->fds[0]));
}

void ProcessIo::StartConsole(os::UniqueFd master) {
  SetNonBlocking(master);
  absl::StatusOr<os::UniqueFd> for_reading = os::Dup(master.get());
  absl::StatusOr<os::UniqueFd> for_writing = os::Dup(master.get());
  console_ = std::move(master);
  if (!for_reading.ok() || !for_writing.ok()) return;
  outputs_.push_back(std::make_unique<OutputCopier>(
      loop_, std::move(*for_reading), std::move(console_sink_),
      [this, alive = alive_] {
        if (*alive) CheckDrained();
      }));
  outputs_.back()->Start();
  if (input_ != nullptr) {
    input_->Start(std::move(*for_writing), [this, alive = alive_] {
      if (!*alive) return;
      // The client's terminal is gone: hang up ours.
      for (auto& output : outputs_) output.reset();
      outputs_.clear();
      console_.Reset();
      CheckDrained();
    });
  }
}

void ProcessIo::RemoveConsoleSocket() {
  if (console_listener_.valid()) loop_->Unwatch(console_listener_.get());
  console_listener_.Reset();
  if (console_dir_.empty()) return;
  (void)::unlink(console_path_.c_str());
  (void)::rmdir(console_dir_.c_str());
  console_dir_.clear();
}

absl::Status ProcessIo::RuntimeDone() {
  if (!spec_.terminal) {
    for (const auto& output : outputs_) output->Start();
    return absl::OkStatus();
  }
  if (console_.valid()) return absl::OkStatus();
  if (console_listener_.valid()) AcceptConsole();
  if (console_.valid()) return absl::OkStatus();
  RemoveConsoleSocket();
  return absl::UnknownError("failed to retrieve console master");
}

void ProcessIo::CloseStdin() {
  if (input_ != nullptr) input_->CloseWriter();
}

absl::Status ProcessIo::Resize(uint32_t width, uint32_t height) {
  if (!console_.valid()) return absl::OkStatus();
  winsize size{};
  size.ws_col = static_cast<uint16_t>(width);
  size.ws_row = static_cast<uint16_t>(height);
  if (::ioctl(console_.get(), TIOCSWINSZ, &size) != 0) {
    return os::ErrnoStatus(errno, "resize terminal");
  }
  return absl::OkStatus();
}

void ProcessIo::WhenRead(std::function<void()> done) {
  read_ = std::move(done);
  for (const auto& output : outputs_) {
    output->Mark();
    read_left_bytes_ += output->LeftBytes();
  }
  CheckRead();
}

void ProcessIo::CheckRead() {
  int64_t left = 0;
  for (const auto& output : outputs_) {
    const int64_t bytes = output->LeftBytes();
    if (bytes == 0) continue;
    // Not asked at first, when a reader has just been given something.
    if (read_delay_ms_ == 0 || output->HasReader()) left += bytes;
  }
  read_stalled_ms_ =
      left < read_left_bytes_ ? 0 : read_stalled_ms_ + read_delay_ms_;
  read_left_bytes_ = left;
  if (left == 0 || read_waited_ms_ >= kReadMs ||
      read_stalled_ms_ >= kStalledMs) {
    for (const auto& output : outputs_) output->LetGo();
    return std::exchange(read_, nullptr)();
  }
  read_delay_ms_ = std::clamp<int64_t>(read_delay_ms_ * 2, 1, kReadDelayMsMax);
  read_waited_ms_ += read_delay_ms_;
  read_timer_ = loop_->After(read_delay_ms_, [this] { CheckRead(); });
}

void ProcessIo::WhenDrained(int64_t timeout_ms, std::function<void()> done) {
  drained_ = std::move(done);
  bool in_vain = binary_ == 0;
  for (const auto& output : outputs_) {
    in_vain = in_vain &&
              (output->ended() || (output->blocked() && !output->HasReader()));
  }
  if (in_vain) timeout_ms = std::min(timeout_ms, kUnreadMs);
  drain_timer_ = loop_->After(timeout_ms, [this] {
    drain_timer_ = 0;
    drain_timed_out_ = true;
    outputs_.clear();
    CheckDrained();
  });
  if (binary_ > 0) {
    loop_->After(kBinaryGraceMs, [this, alive = alive_] {
      if (*alive && binary_ > 0) (void)::kill(binary_, SIGTERM);
    });
  }
  CheckDrained();
}

void ProcessIo::CheckDrained() {
  if (!drained_) return;
  if (binary_ > 0 && !drain_timed_out_) return;
  for (const auto& output : outputs_) {
    if (!output->ended()) return;
  }
  loop_->Cancel(drain_timer_);
  loop_->After(0, std::exchange(drained_, nullptr));
}

}  // namespace bulkhead::shim
