#include "services/distribution/verifier_programs.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "lib/base/status_macros.h"
#include "lib/log/log.h"
#include "lib/os/fd.h"
#include "lib/os/pidfd.h"

extern char** environ;

namespace bulkhead::distribution {
namespace {

constexpr char kDescriptorType[] = "application/vnd.oci.descriptor.v1+json";
constexpr absl::Duration kCancelTick = absl::Milliseconds(200);
constexpr size_t kReasonBytesMax = 500;
constexpr size_t kProgramsMax = 1000;

struct Pipe {
  os::UniqueFd read;
  os::UniqueFd write;
};

absl::StatusOr<Pipe> MakePipe() {
  int fds[2];
  if (::pipe2(fds, O_CLOEXEC) != 0) return os::ErrnoStatus(errno, "pipe2");
  return Pipe{os::UniqueFd(fds[0]), os::UniqueFd(fds[1])};
}

void SetNonBlocking(const os::UniqueFd& fd) {
  (void)::fcntl(fd.get(), F_SETFL, O_NONBLOCK);  // Cannot fail on a pipe.
}

// One line that can do no harm in a terminal or a log.
std::string Clean(const std::string& text) {
  std::string out;
  for (const char c : text.substr(0, kReasonBytesMax)) {
    out += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? ' ' : c;
  }
  return std::string(absl::StripAsciiWhitespace(out));
}

// Takes what is there; false at the end. What is over the limit is dropped.
bool Drain(const os::UniqueFd& fd, std::string* out) {
  char buffer[16 << 10];
  for (;;) {
    const ssize_t got = ::read(fd.get(), buffer, sizeof(buffer));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return errno == EAGAIN;
    if (got == 0) return false;
    const size_t room = kVerifierOutputBytesMax - out->size();
    out->append(buffer, std::min(room, static_cast<size_t>(got)));
    // One that never stops printing must not keep us from the clock.
    if (static_cast<size_t>(got) < sizeof(buffer)) return true;
    if (out->size() == kVerifierOutputBytesMax) return true;
  }
}

// The service's environment, but for what belongs to it alone.
std::vector<char*> Environment() {
  std::vector<char*> out;
  for (char** each = environ; *each != nullptr; ++each) {
    const std::string text(*each);
    if (absl::StartsWith(text, "LISTEN_") ||
        absl::StartsWith(text, "NOTIFY_") ||
        absl::StartsWith(text, "WATCHDOG_")) {
      continue;
    }
    out.push_back(*each);
  }
  out.push_back(nullptr);
  return out;
}

// A running program in a process group of its own; gone with this object.
class Program {
 public:
  ~Program() {
    if (pid_ > 0 && !reaped_) (void)KillAndReap();
  }

  absl::Status Start(const std::string& path, std::vector<std::string> args) {
    ASSIGN_OR_RETURN(Pipe in, MakePipe());
    ASSIGN_OR_RETURN(Pipe out, MakePipe());
    ASSIGN_OR_RETURN(Pipe err, MakePipe());
    std::vector<char*> argv;
    for (std::string& arg : args) argv.push_back(arg.data());
    argv.push_back(nullptr);
    std::vector<char*> environment = Environment();
    posix_spawn_file_actions_t actions;
    ::posix_spawn_file_actions_init(&actions);
    ::posix_spawn_file_actions_adddup2(&actions, in.read.get(), STDIN_FILENO);
    ::posix_spawn_file_actions_adddup2(&actions, out.write.get(),
                                       STDOUT_FILENO);
    ::posix_spawn_file_actions_adddup2(&actions, err.write.get(),
                                       STDERR_FILENO);
    ::posix_spawn_file_actions_addchdir_np(&actions, "/");
    posix_spawnattr_t attributes;
    ::posix_spawnattr_init(&attributes);
    sigset_t none;
    sigset_t all;
    ::sigemptyset(&none);
    ::sigfillset(&all);
    ::posix_spawnattr_setsigmask(&attributes, &none);
    ::posix_spawnattr_setsigdefault(&attributes, &all);
    ::posix_spawnattr_setpgroup(&attributes, 0);
    ::posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP |
                                                POSIX_SPAWN_SETSIGMASK |
                                                POSIX_SPAWN_SETSIGDEF);
    const int error = ::posix_spawn(&pid_, path.c_str(), &actions, &attributes,
                                    argv.data(), environment.data());
    ::posix_spawnattr_destroy(&attributes);
    ::posix_spawn_file_actions_destroy(&actions);
    if (error != 0) {
      pid_ = 0;
      std::string text = MessageOf(os::ErrnoStatus(error, "it cannot be run"));
      if (error == EACCES) {
        absl::StrAppend(&text,
                        " (not executable, or its interpreter is not among "
                        "distribution.image_verifier.interpreters, or the "
                        "folder was made after the service had started)");
      }
      return absl::FailedPreconditionError(text);
    }
    in_ = std::move(in.write);
    out_ = std::move(out.read);
    err_ = std::move(err.read);
    for (const os::UniqueFd* fd : {&in_, &out_, &err_}) SetNonBlocking(*fd);
    pidfd_ = os::OpenPidfd(pid_);
    if (!pidfd_.valid()) return os::ErrnoStatus(errno, "pidfd_open");
    return absl::OkStatus();
  }

  // Its exit code, or 128 + signal.
  absl::StatusOr<int> Finish(const std::string& input, absl::Duration timeout,
                             const std::function<bool()>& cancelled) {
    const absl::Time deadline = absl::Now() + timeout;
    size_t written = 0;
    for (;;) {
      if (cancelled && cancelled()) {
        return absl::CancelledError("the transfer was cancelled");
      }
      const absl::Duration left = deadline - absl::Now();
      if (left <= absl::ZeroDuration()) {
        return absl::DeadlineExceededError(
            absl::StrCat("no answer within ", absl::FormatDuration(timeout)));
      }
      pollfd fds[4] = {{pidfd_.get(), POLLIN, 0},
                       {out_.get(), POLLIN, 0},
                       {err_.get(), POLLIN, 0},
                       {in_.get(), POLLOUT, 0}};
      const int wait = static_cast<int>(absl::ToInt64Milliseconds(
          std::min(left, kCancelTick) + absl::Milliseconds(1)));
      if (::poll(fds, 4, wait) < 0 && errno != EINTR) {
        return os::ErrnoStatus(errno, "poll");
      }
      if (fds[3].revents != 0) Feed(input, &written);
      if (fds[1].revents != 0 && !Drain(out_, &output)) out_.Reset();
      if (fds[2].revents != 0 && !Drain(err_, &errors)) err_.Reset();
      if (fds[0].revents == 0) continue;
      // What it printed last; what its children still print is nobody's.
      if (out_.valid()) (void)Drain(out_, &output);
      if (err_.valid()) (void)Drain(err_, &errors);
      const int status = KillAndReap();
      return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }
  }

  std::string output;
  std::string errors;

 private:
  // Its whole group: while it is not reaped, its number is nobody else's.
  int KillAndReap() {
    ::kill(-pid_, SIGKILL);
    int status = 0;
    while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
    }
    reaped_ = true;
    return status;
  }

  // One that does not read its input may still judge. SIGPIPE is ignored in
  // our services.
  void Feed(const std::string& input, size_t* written) {
    const ssize_t put =
        ::write(in_.get(), input.data() + *written, input.size() - *written);
    if (put < 0 && (errno == EINTR || errno == EAGAIN)) return;
    if (put > 0) *written += static_cast<size_t>(put);
    if (put <= 0 || *written == input.size()) in_.Reset();
  }

  pid_t pid_ = 0;
  bool reaped_ = false;
  os::UniqueFd pidfd_;
  os::UniqueFd in_;
  os::UniqueFd out_;
  os::UniqueFd err_;
};

absl::StatusOr<std::vector<std::string>> Names(const std::string& folder) {
  const std::unique_ptr<DIR, int (*)(DIR*)> dir(::opendir(folder.c_str()),
                                                ::closedir);
  if (dir == nullptr) {
    return absl::FailedPreconditionError(MessageOf(os::ErrnoStatus(
        errno, absl::StrCat("the folder of image verifiers '", folder, "'"))));
  }
  std::vector<std::string> names;
  errno = 0;
  while (const dirent* const entry = ::readdir(dir.get())) {
    const std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(name);
    if (names.size() > kProgramsMax) break;
    errno = 0;
  }
  if (errno != 0) {
    return absl::FailedPreconditionError(MessageOf(
        os::ErrnoStatus(errno, absl::StrCat("reading '", folder, "'"))));
  }
  if (names.size() > kProgramsMax) {
    return absl::FailedPreconditionError(absl::StrCat(
        "more than ", kProgramsMax, " image verifiers in '", folder, "'"));
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::string DescriptorJson(const oci::Descriptor& image) {
  nlohmann::ordered_json out;
  out["mediaType"] = image.media_type;
  out["digest"] = image.digest.str();
  out["size"] = image.size_bytes;
  return out.dump(-1, ' ', false,
                  nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace

absl::Status RunVerifierPrograms(const VerifierPrograms& programs,
                                 const std::string& reference,
                                 const oci::Descriptor& image,
                                 const std::function<bool()>& cancelled) {
  ASSIGN_OR_RETURN(std::vector<std::string> names, Names(programs.bin_dir));
  if (programs.programs_max >= 0 &&
      names.size() > static_cast<size_t>(programs.programs_max)) {
    names.resize(static_cast<size_t>(programs.programs_max));
  }
  const std::string input = DescriptorJson(image);
  for (const std::string& name : names) {
    const std::string who = absl::StrCat("image verifier '", name, "'");
    const std::string path = absl::StrCat(programs.bin_dir, "/", name);
    Program program;
    const absl::Status started = program.Start(
        path, {path, "-name", reference, "-digest", image.digest.str(),
               "-stdin-media-type", kDescriptorType});
    if (!started.ok()) return Annotate(started, who);
    const absl::StatusOr<int> code =
        program.Finish(input, programs.timeout, cancelled);
    if (!program.errors.empty()) {
      log::Debug("image verifier says on stderr",
                 {{"verifier", name}, {"text", Clean(program.errors)}});
    }
    if (!code.ok()) return Annotate(code.status(), who);
    std::string reason = Clean(program.output);
    if (reason.empty()) reason = "no reason given";
    if (*code != 0) {
      return absl::PermissionDeniedError(absl::StrCat(
          who, " refused it with exit code ", *code, ": ", reason));
    }
    log::Info("image verifier allowed an image",
              {{"verifier", name}, {"image", reference}, {"reason", reason}});
  }
  return absl::OkStatus();
}

std::vector<std::string> ExecutablePaths(
    const std::string& bin_dir, const std::vector<std::string>& interpreters) {
  std::vector<std::string> out;
  if (bin_dir.empty()) return out;
  out.push_back(bin_dir);
  out.insert(out.end(), interpreters.begin(), interpreters.end());
  for (const char* loader :
       {"/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1",
        "/lib/ld-musl-x86_64.so.1", "/lib/ld-musl-aarch64.so.1"}) {
    out.push_back(loader);
  }
  return out;
}

}  // namespace bulkhead::distribution
