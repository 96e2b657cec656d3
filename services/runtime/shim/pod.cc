#include "services/runtime/shim/pod.h"

#include <fcntl.h>
#include <grp.h>
#include <linux/memfd.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "lib/base/status_macros.h"
#include "lib/os/fd.h"
#include "lib/ttrpc/wire.h"
#include "services/runtime/shim/pod_init_bytes.h"
#include "services/runtime/shim/spawn.h"
#include "services/runtime/shim/task_wire.h"

namespace bulkhead::shim {
namespace {

using ttrpc::WireReader;
using ttrpc::WireWriter;

// Descriptors of the helper: what to do, and what came of it.
constexpr int kConfigFd = 3;
constexpr int kReportFd = 4;
constexpr size_t kConfigSizeBytesMax = 1 << 20;
constexpr size_t kReportSizeBytesMax = 4096;
constexpr uid_t kNobody = 65534;
constexpr int kCapabilitiesMax = 64;

std::string Encode(const PodConfig& config) {
  WireWriter out;
  out.Str(1, config.netns_path).Uint(2, config.new_ipc);
  out.Uint(3, config.new_uts).Uint(4, config.new_pid).Str(5, config.hostname);
  for (const auto& [name, value] : config.sysctls) {
    WireWriter pair;
    pair.Str(1, name).Str(2, value);
    out.Message(6, pair.str());
  }
  return out.Take();
}

std::pair<std::string, std::string> DecodePair(std::string_view bytes) {
  std::pair<std::string, std::string> pair;
  WireReader reader(bytes);
  while (reader.Next()) {
    if (reader.field() == 1) pair.first = reader.str();
    if (reader.field() == 2) pair.second = reader.str();
  }
  return pair;
}

PodConfig Decode(std::string_view bytes) {
  PodConfig config;
  config.new_ipc = config.new_uts = false;
  WireReader reader(bytes);
  while (reader.Next()) {
    if (reader.field() == 1) config.netns_path = reader.str();
    if (reader.field() == 2) config.new_ipc = reader.flag();
    if (reader.field() == 3) config.new_uts = reader.flag();
    if (reader.field() == 4) config.new_pid = reader.flag();
    if (reader.field() == 5) config.hostname = reader.str();
    if (reader.field() == 6) {
      config.sysctls.push_back(DecodePair(reader.bytes()));
    }
  }
  return config;
}

absl::Status SetSysctl(const std::string& name, const std::string& value) {
  // Dots separate, unless slashes do; then dots are parts of names.
  std::string path = name;
  if (path.find('/') == std::string::npos) {
    path = absl::StrReplaceAll(path, {{".", "/"}});
  }
  if (absl::StrContains(path, "..")) {
    return absl::InvalidArgumentError(absl::StrCat("sysctl ", name));
  }
  ASSIGN_OR_RETURN(const os::UniqueFd file,
                   os::Open("/proc/sys/" + path, O_WRONLY));
  const absl::Status written =
      os::WriteFull(file.get(), value.data(), value.size());
  if (written.ok()) return written;
  return absl::UnknownError(
      absl::StrCat("sysctl ", name, "=", value, ": ", MessageOf(written)));
}

// The program of the pod's process as a file without a name that nobody can
// change.
absl::StatusOr<os::UniqueFd> InitProgram() {
  constexpr unsigned kExec = 0x10;  // MFD_EXEC, which older kernels lack.
  constexpr unsigned kFlags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
  os::UniqueFd program(::memfd_create("pod", kFlags | kExec));
  if (!program.valid()) program.Reset(::memfd_create("pod", kFlags));
  if (!program.valid()) return os::ErrnoStatus(errno, "memfd_create");
  RETURN_IF_ERROR(
      os::WriteFull(program.get(), kPodInitBytes, sizeof(kPodInitBytes)));
  if (::fcntl(program.get(), F_ADD_SEALS,
              F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) != 0) {
    return os::ErrnoStatus(errno, "seal");
  }
  return program;
}

// Leaves everything of the host behind. Only in the pod's process.
absl::Status Confine() {
  const auto failed = [](const char* what) {
    return os::ErrnoStatus(errno, what);
  };
  if (::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) {
    return failed("make mounts private");
  }
  // Any folder serves as the place of an empty root; this one is everywhere.
  constexpr unsigned long kFlags = MS_NOSUID | MS_NODEV | MS_NOEXEC;
  if (::mount("pod", "/proc", "tmpfs", kFlags,
              "size=4k,nr_inodes=2,mode=555") != 0) {
    return failed("mount an empty root");
  }
  if (::chdir("/proc") != 0) return failed("chdir");
  if (::syscall(SYS_pivot_root, ".", ".") != 0) return failed("pivot_root");
  if (::umount2(".", MNT_DETACH) != 0) return failed("let go of the host");
  if (::chdir("/") != 0) return failed("chdir");
  if (::mount(nullptr, "/", nullptr, MS_REMOUNT | MS_RDONLY | kFlags,
              nullptr) != 0) {
    return failed("make the root read-only");
  }
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) {
    return failed("no_new_privs");
  }
  for (int capability = 0; capability < kCapabilitiesMax; ++capability) {
    (void)::prctl(PR_CAPBSET_DROP, capability, 0, 0, 0);  // EINVAL past the
                                                          // last one.
  }
  if (::setgroups(0, nullptr) != 0) return failed("setgroups");
  if (::setresgid(kNobody, kNobody, kNobody) != 0) return failed("setresgid");
  if (::setresuid(kNobody, kNobody, kNobody) != 0) return failed("setresuid");
  (void)::setsid();  // It may lead a group already.
  // After the change of user, which clears it.
  if (::prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) != 0) {
    return failed("PR_SET_PDEATHSIG");
  }
  ::signal(SIGCHLD, SIG_IGN);
  return absl::OkStatus();
}

absl::StatusOr<pid_t> MakePod(const PodConfig& config) {
  ASSIGN_OR_RETURN(const os::UniqueFd program, InitProgram());
  if (!config.netns_path.empty()) {
    ASSIGN_OR_RETURN(const os::UniqueFd netns,
                     os::Open(config.netns_path, O_RDONLY));
    if (::setns(netns.get(), CLONE_NEWNET) != 0) {
      return os::ErrnoStatus(errno, "setns " + config.netns_path);
    }
  }
  const int flags = CLONE_NEWNS | (config.new_ipc ? CLONE_NEWIPC : 0) |
                    (config.new_uts ? CLONE_NEWUTS : 0) |
                    (config.new_pid ? CLONE_NEWPID : 0);
  if (::unshare(flags) != 0) return os::ErrnoStatus(errno, "unshare");
  if (config.new_uts && !config.hostname.empty() &&
      ::sethostname(config.hostname.data(), config.hostname.size()) != 0) {
    return os::ErrnoStatus(errno, "sethostname " + config.hostname);
  }
  for (const auto& [name, value] : config.sysctls) {
    RETURN_IF_ERROR(SetSysctl(name, value));
  }
  int fds[2];
  if (::pipe2(fds, O_CLOEXEC) != 0) return os::ErrnoStatus(errno, "pipe2");
  const os::UniqueFd read_end(fds[0]);
  os::UniqueFd write_end(fds[1]);
  // The shim becomes its parent.
  const long pid =
      ::syscall(SYS_clone, CLONE_PARENT | SIGCHLD, 0, nullptr, nullptr, 0);
  if (pid < 0) return os::ErrnoStatus(errno, "clone");
  if (pid == 0) {
    absl::Status status = Confine();
    if (status.ok()) {
      char name[] = "bulkhead-pod";
      char* const argv[] = {name, nullptr};
      char* const envp[] = {nullptr};
      (void)::syscall(SYS_close_range, 3, ~0u, 4u /* CLOSE_RANGE_CLOEXEC */);
      ::syscall(SYS_execveat, program.get(), "", argv, envp, AT_EMPTY_PATH);
      status = os::ErrnoStatus(errno, "execveat");
    }
    const std::string text = MessageOf(status);
    (void)!::write(write_end.get(), text.data(), text.size());
    ::_exit(1);
  }
  write_end.Reset();
  std::string text(kReportSizeBytesMax, '\0');
  ASSIGN_OR_RETURN(const size_t size,
                   os::ReadFull(read_end.get(), text.data(), text.size()));
  if (size > 0) return absl::UnknownError(text.substr(0, size));
  return static_cast<pid_t>(pid);
}

}  // namespace

absl::StatusOr<PodConfig> ParsePodConfig(std::string_view options_any) {
  constexpr uint64_t kModePod = 0;   // runtime.v1.NamespaceMode
  constexpr uint64_t kModeNode = 2;  //
  PodConfig config;
  std::string type;
  std::string_view value;
  WireReader any(options_any);
  while (any.Next()) {
    if (any.field() == 1) type = any.str();
    if (any.field() == 2) value = any.bytes();
  }
  if (!any.ok()) return absl::InvalidArgumentError("malformed sandbox options");
  if (!absl::EndsWith(type, "PodSandboxConfig") || value.empty()) return config;
  uint64_t network = kModePod;
  uint64_t pid = kModePod;
  uint64_t ipc = kModePod;
  bool own_user = false;
  WireReader pod(value);
  while (pod.Next()) {
    if (pod.field() == 2) config.hostname = pod.str();
    if (pod.field() != 8) continue;
    WireReader linux_config(pod.bytes());
    while (linux_config.Next()) {
      if (linux_config.field() == 1) config.cgroup_parent = linux_config.str();
      if (linux_config.field() == 3) {
        config.sysctls.push_back(DecodePair(linux_config.bytes()));
      }
      if (linux_config.field() != 2) continue;
      WireReader security(linux_config.bytes());
      while (security.Next()) {
        if (security.field() != 1) continue;
        WireReader namespaces(security.bytes());
        while (namespaces.Next()) {
          if (namespaces.field() == 1) network = namespaces.value();
          if (namespaces.field() == 2) pid = namespaces.value();
          if (namespaces.field() == 3) ipc = namespaces.value();
          if (namespaces.field() != 5) continue;
          uint64_t mode = kModePod;
          WireReader user(namespaces.bytes());
          while (user.Next()) {
            if (user.field() == 1) mode = user.value();
          }
          own_user = mode == kModePod;
        }
      }
    }
  }
  if (!pod.ok())
    return absl::InvalidArgumentError("malformed PodSandboxConfig");
  if (own_user) {
    return absl::UnimplementedError("user namespaces of pods");
  }
  config.new_uts = network != kModeNode;
  config.new_ipc = ipc != kModeNode;
  config.new_pid = pid == kModePod;
  return config;
}

bool SysctlIsOfPod(const PodConfig& config, const std::string& name) {
  const std::string dotted = absl::StrReplaceAll(name, {{"/", "."}});
  if (absl::StartsWith(dotted, "net.")) return !config.netns_path.empty();
  if (absl::StartsWith(dotted, "fs.mqueue.") ||
      absl::StartsWith(dotted, "kernel.shm") ||
      absl::StartsWith(dotted, "kernel.msg") || dotted == "kernel.sem") {
    return config.new_ipc;
  }
  return dotted == "kernel.domainname" && config.new_uts;
}

void StartPod(Loop* loop, const PodConfig& config,
              std::function<void(absl::StatusOr<pid_t>)> done) {
  const auto refuse = [loop, &done](const absl::Status& status) {
    loop->After(0, [done = std::move(done), status] { done(status); });
  };
  for (const auto& [name, value] : config.sysctls) {
    if (SysctlIsOfPod(config, name)) continue;
    return refuse(absl::InvalidArgumentError(absl::StrCat(
        "sysctl \"", name, "\" is not of a namespace of this pod's own")));
  }
  absl::StatusOr<os::UniqueFd> input = MemoryFile(Encode(config));
  absl::StatusOr<os::UniqueFd> report = MemoryFile("");
  if (!input.ok()) return refuse(input.status());
  if (!report.ok()) return refuse(report.status());
  SpawnRequest request;
  request.argv = {"/proc/self/exe", "-namespace", "-", "pod"};
  request.fds = {{input->get(), kConfigFd}, {report->get(), kReportFd}};
  const absl::StatusOr<pid_t> helper = Spawn(request);
  if (!helper.ok()) return refuse(helper.status());
  loop->KeepExits();
  loop->OnExitOfNew(*helper, [loop, done = std::move(done),
                              report = std::make_shared<os::UniqueFd>(
                                  *std::move(report))](const ExitInfo& exit) {
    std::string text(kReportSizeBytesMax, '\0');
    const absl::StatusOr<size_t> size =
        os::PReadFull(report->get(), text.data(), text.size(), 0);
    text.resize(size.ok() ? *size : 0);
    const long pid = std::strtol(text.c_str(), nullptr, 10);
    if (exit.status == 0 && pid > 0) {
      done(static_cast<pid_t>(pid));
    } else {
      done(absl::UnknownError(absl::StrCat(
          "the pod's process: ",
          text.empty() ? absl::StrCat("exit status ", exit.status) : text)));
    }
    loop->ReleaseExits();
  });
}

absl::Status RunPod() {
  (void)::fcntl(kConfigFd, F_SETFD, FD_CLOEXEC);
  (void)::fcntl(kReportFd, F_SETFD, FD_CLOEXEC);
  std::string bytes(kConfigSizeBytesMax, '\0');
  ASSIGN_OR_RETURN(const size_t size,
                   os::PReadFull(kConfigFd, bytes.data(), bytes.size(), 0));
  bytes.resize(size);
  const absl::StatusOr<pid_t> pid = MakePod(Decode(bytes));
  const std::string text =
      pid.ok() ? absl::StrCat(*pid) : MessageOf(pid.status());
  RETURN_IF_ERROR(os::WriteFull(kReportFd, text.data(), text.size()));
  return pid.status();
}

}  // namespace bulkhead::shim
