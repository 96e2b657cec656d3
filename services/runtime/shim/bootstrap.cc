#include "services/runtime/shim/bootstrap.h"

#include <fcntl.h>
#include <openssl/sha.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/os/fd.h"
#include "lib/os/mount.h"
#include "lib/os/socket.h"
#include "lib/ttrpc/wire.h"
#include "services/runtime/shim/cgroup.h"
#include "services/runtime/shim/json_scan.h"
#include "services/runtime/shim/loop.h"
#include "services/runtime/shim/oci_runtime.h"
#include "services/runtime/shim/spawn.h"
#include "services/runtime/shim/spec.h"

namespace bulkhead::shim {
namespace {

using ttrpc::WireReader;
using ttrpc::WireWriter;

constexpr size_t kInputSizeBytesMax = 1 << 20;
constexpr size_t kInputPieceSizeBytes = 8 << 10;
constexpr size_t kSocketPathSizeBytesMax = 106;
constexpr char kDefaultSocketDir[] = "/run/containerd/s";
constexpr char kVersion[] = "0.1.0";
constexpr int kListenAttemptsMax = 5;
// A runtime that hangs must not keep a daemon from going on.
constexpr unsigned kRuntimeTimeoutSeconds = 8;

absl::Status Print(const std::string& bytes) {
  return os::WriteFull(STDOUT_FILENO, bytes.data(), bytes.size());
}

std::string ReadInput() {
  std::string bytes;
  if (::isatty(STDIN_FILENO) != 0) return bytes;
  // Piecemeal: touching the most there may be takes a millisecond.
  char piece[kInputPieceSizeBytes];
  while (bytes.size() < kInputSizeBytesMax) {
    const absl::StatusOr<size_t> size =
        os::ReadFull(STDIN_FILENO, piece, sizeof(piece));
    if (!size.ok()) return "";
    bytes.append(piece, *size);
    if (*size < sizeof(piece)) break;
  }
  return bytes;
}

std::string Environment(const char* name) {
  const char* value = ::getenv(name);
  return value != nullptr ? value : "";
}

bool IsOptions(std::string_view any) {
  WireReader reader(any);
  std::string type;
  while (reader.Next()) {
    if (reader.field() == 1) type = reader.str();
  }
  return absl::EndsWith(type, "containerd.runc.v1.Options") ||
         absl::StrContains(type, "runtimeoptions.v1.");
}

// oom_score_adj of the shim: one more than the daemon's, so that the daemon is
// killed last. Without CAP_SYS_RESOURCE a lower value is refused; so be it.
void AdjustOomScore(pid_t pid) {
  const absl::StatusOr<std::string> own =
      os::ReadFile("/proc/self/oom_score_adj", 64);
  if (!own.ok()) return;
  const int score = std::min(std::atoi(own->c_str()) + 1, 1000);
  const absl::StatusOr<os::UniqueFd> file =
      os::Open(absl::StrCat("/proc/", pid, "/oom_score_adj"), O_WRONLY);
  if (!file.ok()) return;
  const std::string text = absl::StrCat(score);
  (void)os::WriteFull(file->get(), text.data(), text.size());
}

// Listens on `path`; an invalid descriptor when a shim already answers there.
absl::StatusOr<os::UniqueFd> ListenOrFind(const std::string& path) {
  absl::Status last;
  for (int attempt = 0; attempt < kListenAttemptsMax; ++attempt) {
    absl::StatusOr<os::UniqueFd> listener = os::ListenUnix(path, {});
    if (listener.ok()) return listener;
    last = listener.status();
    if (os::ConnectUnix(path).ok()) return os::UniqueFd();
  }
  return last;
}

// Appears whole or not at all; need not outlive a crash of the machine.
absl::Status WriteFile(const std::string& path, const std::string& data) {
  const std::string temporary = path + ".tmp";
  ASSIGN_OR_RETURN(
      const os::UniqueFd fd,
      os::Open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW, 0600));
  RETURN_IF_ERROR(os::WriteFull(fd.get(), data.data(), data.size()));
  if (::rename(temporary.c_str(), path.c_str()) != 0) {
    return os::ErrnoStatus(errno, "rename " + path);
  }
  return absl::OkStatus();
}

// Runs a program to its end; its output, or an error with it.
absl::StatusOr<std::string> RunToEnd(const std::vector<std::string>& argv) {
  os::UniqueFd output(::memfd_create("output", MFD_CLOEXEC));
  SpawnRequest request;
  request.argv = argv;
  request.stdout_fd = output.get();
  request.stderr_fd = output.get();
  ASSIGN_OR_RETURN(const pid_t pid, Spawn(request));
  // The default action ends us, and the runtime with us.
  ::alarm(kRuntimeTimeoutSeconds);
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  ::alarm(0);
  std::string text(kInputSizeBytesMax, '\0');
  ASSIGN_OR_RETURN(const size_t size,
                   os::PReadFull(output.get(), text.data(), text.size(), 0));
  text.resize(size);
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    return absl::UnknownError(text);
  }
  return text;
}

}  // namespace

absl::StatusOr<Flags> ParseFlags(int argc, char** argv) {
  Flags flags;
  int i = 1;
  for (; i < argc; ++i) {
    std::string name = argv[i];
    if (name.size() < 2 || name[0] != '-') break;
    name = name.substr(name[1] == '-' ? 2 : 1);
    if (name.empty()) {
      ++i;
      break;
    }
    std::string value;
    const size_t equals = name.find('=');
    const bool inline_value = equals != std::string::npos;
    if (inline_value) {
      value = name.substr(equals + 1);
      name = name.substr(0, equals);
    }
    bool* flag = name == "debug"                    ? &flags.debug
                 : name == "v" || name == "version" ? &flags.version
                 : name == "info"                   ? &flags.info
                                                    : nullptr;
    if (flag != nullptr) {
      *flag = !inline_value || value == "true" || value == "1";
      continue;
    }
    std::string ignored;
    std::string* text = name == "namespace"        ? &flags.name_space
                        : name == "id"             ? &flags.id
                        : name == "address"        ? &flags.grpc_address
                        : name == "publish-binary" ? &flags.publish_binary
                        : name == "bundle"         ? &flags.bundle
                        : name == "socket"         ? &flags.socket
                        : name == "debug-socket"   ? &ignored
                                                   : nullptr;
    if (text == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat("flag provided but not defined: -", name));
    }
    if (!inline_value) {
      if (++i == argc) {
        return absl::InvalidArgumentError(
            absl::StrCat("flag needs an argument: -", name));
      }
      value = argv[i];
    }
    *text = value;
  }
  if (i < argc) flags.action = argv[i];
  if (flags.version || flags.info) return flags;
  if (flags.name_space.empty()) {
    return absl::InvalidArgumentError("shim namespace cannot be empty");
  }
  if (flags.action != "" && flags.action != "start" &&
      flags.action != "delete" && flags.action != "pod") {
    return absl::InvalidArgumentError(
        absl::StrCat("unknown action ", flags.action));
  }
  return flags;
}

BootstrapInput ParseBootstrapInput(const std::string& bytes,
                                   const Flags& flags) {
  BootstrapInput input;
  std::string id;
  std::string name_space;
  WireReader reader(bytes);
  while (reader.Next()) {
    if (reader.field() == 1) id = reader.str();
    if (reader.field() == 2) name_space = reader.str();
    if (reader.field() == 5) input.ttrpc_address = reader.str();
    if (reader.field() == 6) input.grpc_address = reader.str();
    if (reader.field() == 9) input.socket_dir = reader.str();
    if (reader.field() != 8) continue;
    WireReader extension(reader.bytes());
    while (extension.Next()) {
      if (extension.field() == 1 && IsOptions(extension.bytes())) {
        input.options_any = extension.str();
      }
    }
  }
  if (!reader.ok() || id != flags.id || name_space != flags.name_space) {
    BootstrapInput legacy;
    legacy.options_any = bytes;
    return legacy;
  }
  input.has_params = true;
  return input;
}

std::string BootstrapReply(const std::string& address, bool has_params,
                           bool has_version) {
  if (has_params) {
    WireWriter result;
    result.Int(1, 3).Str(2, address).Str(3, "ttrpc");
    return result.Take();
  }
  if (!has_version) return address;
  std::string json = "{\"version\":2,\"address\":";
  AppendJsonString(address, &json);
  return json.append(",\"protocol\":\"ttrpc\"}");
}

std::string SocketPath(const std::string& dir, const std::string& grpc_address,
                       const std::string& name_space,
                       const std::string& group) {
  const std::string text =
      absl::StrCat(grpc_address, "/", name_space, "/", group);
  uint8_t digest[SHA256_DIGEST_LENGTH];
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
  SHA256_CTX context;  // The low-level calls need no provider at run time.
  SHA256_Init(&context);
  SHA256_Update(&context, text.data(), text.size());
  SHA256_Final(digest, &context);
#pragma GCC diagnostic pop
  std::string path = dir + "/";
  for (const uint8_t byte : digest) {
    path.push_back("0123456789abcdef"[byte >> 4]);
    path.push_back("0123456789abcdef"[byte & 15]);
  }
  // A long folder takes a shorter name; 32 digits are still unique.
  if (path.size() > kSocketPathSizeBytesMax) path.resize(dir.size() + 1 + 32);
  return path;
}

absl::Status RunStart(const Flags& flags) {
  const BootstrapInput input = ParseBootstrapInput(ReadInput(), flags);
  RuntimeOptions options;
  // Only ours to judge when they matter here: Create hears of them again.
  if (absl::StatusOr<RuntimeOptions> parsed = ParseOptions(input.options_any);
      parsed.ok()) {
    options = *std::move(parsed);
  }
  const std::string grpc_address =
      flags.grpc_address.empty() ? input.grpc_address : flags.grpc_address;
  std::string dir = input.socket_dir;
  if (dir.empty()) dir = Environment("BULKHEAD_SHIM_SOCKET_DIR");
  if (dir.empty()) dir = kDefaultSocketDir;
  const std::string path =
      SocketPath(dir, grpc_address, flags.name_space, GroupOf(".", flags.id));
  const std::string address = "unix://" + path;
  RETURN_IF_ERROR(os::MakeDirs(dir, 0700));
  ASSIGN_OR_RETURN(os::UniqueFd listener, ListenOrFind(path));
  // Daemons before bootstrap.json find the shim again through this file. It is
  // as short-lived as the socket, so nobody waits for a disk.
  RETURN_IF_ERROR(WriteFile("address", address));
  if (listener.valid()) {
    char self[4096];
    const ssize_t size = ::readlink("/proc/self/exe", self, sizeof(self) - 1);
    if (size <= 0) return os::ErrnoStatus(errno, "/proc/self/exe");
    if (Environment("SCHED_CORE") != "") {
      constexpr int kSchedCore = 62;          // PR_SCHED_CORE
      (void)::prctl(kSchedCore, 1, 0, 2, 0);  // Best effort, as elsewhere.
    }
    SpawnRequest request;
    request.argv = {std::string(self, static_cast<size_t>(size)),
                    "-namespace",
                    flags.name_space,
                    "-id",
                    flags.id,
                    "-address",
                    grpc_address};
    if (flags.debug) request.argv.push_back("-debug");
    if (!input.ttrpc_address.empty()) {
      ::setenv("TTRPC_ADDRESS", input.ttrpc_address.c_str(), 1);
    }
    ::setenv("BULKHEAD_SHIM_SOCKET", path.c_str(), 1);
    request.fds = {{listener.get(), kListenerFd}};
    request.own_group = true;
    request.die_with_parent = false;
    const absl::StatusOr<pid_t> pid = Spawn(request);
    absl::Status status = pid.status();
    if (status.ok() && !options.shim_cgroup.empty()) {
      status = JoinCgroup(kCgroupRoot, IsUnified(), options.shim_cgroup, *pid);
      if (!status.ok()) {
        (void)::kill(*pid, SIGKILL);  // Ours, and not yet reaped.
        status = absl::UnknownError(
            absl::StrCat("failed to join shim to cgroup: ", MessageOf(status)));
      }
    }
    if (!status.ok()) {
      (void)::unlink(path.c_str());
      return status;
    }
    AdjustOomScore(*pid);
  }
  return Print(BootstrapReply(address, input.has_params,
                              ::getenv("MAX_SHIM_VERSION") != nullptr));
}

absl::Status RunDelete(const Flags& flags) {
  const std::string bundle = flags.bundle.empty() ? "." : flags.bundle;
  const absl::StatusOr<std::string> json =
      os::ReadFile(bundle + "/options.json");
  RuntimeOptions options =
      RuntimeOptions::FromJson(json.ok() ? *json : std::string("{}"));
  const absl::StatusOr<std::string> binary = os::ReadFile(bundle + "/runtime");
  if (binary.ok() && !binary->empty()) options.binary_name = *binary;
  options.FillDefaults();
  OciRuntime runtime(nullptr, options, flags.name_space, bundle);
  // After an ordinary delete nothing is left, and starting the runtime to hear
  // so would keep a client waiting.
  const std::string folder = absl::StrCat(runtime.root(), "/", flags.id);
  if (!flags.id.empty() && ::access(folder.c_str(), F_OK) == 0) {
    std::vector<std::string> argv = runtime.GlobalArgs();
    argv.insert(argv.end(), {"delete", "--force", flags.id});
    const absl::StatusOr<std::string> output = RunToEnd(argv);
    if (!output.ok()) {
      std::fprintf(stderr, "delete %s: %s\n", flags.id.c_str(),
                   MessageOf(output.status()).c_str());
    }
  }
  const absl::Status unmounted = os::UnmountTree(bundle + "/rootfs");
  if (!unmounted.ok()) {
    std::fprintf(stderr, "%s\n", MessageOf(unmounted).c_str());
  }
  // A killed shim leaves its socket behind.
  const absl::StatusOr<std::string> address = os::ReadFile(bundle + "/address");
  if (address.ok() && absl::StartsWith(*address, "unix:///")) {
    const std::string path = address->substr(7);
    if (::access(path.c_str(), F_OK) == 0 && !os::ConnectUnix(path).ok()) {
      (void)::unlink(path.c_str());
    }
  }
  int64_t pid = -1;
  const absl::StatusOr<std::string> text =
      os::ReadFile(bundle + "/init.pid", 64);
  if (text.ok() && std::atoll(text->c_str()) > 0) {
    pid = std::atoll(text->c_str());
  }
  const timespec now = Now();
  WireWriter at;
  at.Int(1, now.tv_sec).Int(2, now.tv_nsec);
  WireWriter response;
  response.Uint(1, static_cast<uint32_t>(pid));
  response.Uint(2, 128 + SIGKILL).Message(3, at.str());
  return Print(response.str());
}

absl::Status RunInfo() {
  ASSIGN_OR_RETURN(const RuntimeOptions options, ParseOptions(ReadInput()));
  WireWriter version;
  version.Str(1, kVersion);
  WireWriter info;
  info.Str(1, "io.containerd.bulkhead.v1").Message(2, version.str());
  const absl::StatusOr<std::string> features =
      RunToEnd({options.binary_name, "features"});
  if (features.ok() && !features->empty()) {
    WireWriter any;
    any.Str(1,
            "types.containerd.io/opencontainers/runtime-spec/1/features/"
            "Features");
    any.Str(2, *features);
    info.Message(4, any.str());
  }
  return Print(info.str());
}

}  // namespace bulkhead::shim
