#include "services/runtime/shim/oci_runtime.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <memory>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "lib/os/fd.h"
#include "lib/ttrpc/wire.h"
#include "services/runtime/shim/json_scan.h"
#include "services/runtime/shim/spawn.h"

namespace bulkhead::shim {
namespace {

constexpr size_t kOutputSizeBytesMax = 1 << 20;
// `runc exec` is over in some 30 ms, of which it spent three collecting garbage
// from a heap of 4 MB: from 20 MB on is soon enough. (It makes no create
// shorter.)
constexpr char kGoCollectsLater[] = "GOGC=400";

std::string FromEnvironment(const char* name, const char* otherwise) {
  const char* value = ::getenv(name);
  return value != nullptr && *value != 0 ? value : otherwise;
}

// `BinaryName = "crun"` and the like from the TOML section that the CRI puts
// into runtimeoptions.v1.Options.
std::string TomlValue(const std::string& toml, const std::string& key) {
  for (size_t at = 0; at < toml.size();) {
    size_t end = toml.find('\n', at);
    if (end == std::string::npos) end = toml.size();
    const std::string line = toml.substr(at, end - at);
    at = end + 1;
    const size_t start = line.find_first_not_of(" \t");
    if (start == std::string::npos || line.compare(start, key.size(), key)) {
      continue;
    }
    const size_t equals = line.find_first_not_of(" \t", start + key.size());
    if (equals == std::string::npos || line[equals] != '=') continue;
    const size_t from = line.find_first_not_of(" \t\"'", equals + 1);
    if (from == std::string::npos) return "";
    return line.substr(from, line.find_last_not_of(" \t\"'\r") + 1 - from);
  }
  return "";
}

// Of a JSON member: there is none, or nothing in it.
bool IsUnset(std::string_view raw) {
  return raw.empty() || raw == "null" || raw == "[]" || raw == "{}" ||
         raw == "\"\"";
}

// Whether a spec asks crun for something that others do not know.
bool HasCrunAnnotations(const std::string& spec) {
  const std::string_view annotations = JsonMember(spec, "annotations");
  if (IsUnset(annotations)) return false;
  bool found = false;
  const bool understood =
      JsonMembers(annotations, [&found](const std::string& key, auto) {
        found = found || absl::StartsWith(key, "run.oci.");
      });
  return found || !understood;
}

}  // namespace

void RuntimeOptions::FillDefaults() {
  if (binary_name.empty()) {
    binary_name = FromEnvironment("BULKHEAD_OCI_RUNTIME", "runc");
  }
  if (root.empty()) {
    root = FromEnvironment("BULKHEAD_OCI_ROOT", "/run/containerd/runc");
  }
}

std::string RuntimeOptions::ToJson() const {
  std::string out = "{";
  const auto key = [&out](const char* name) {
    if (out.size() > 1) out.push_back(',');
    AppendJsonString(name, &out);
    out.push_back(':');
  };
  const auto text = [&](const char* name, const std::string& value) {
    if (value.empty()) return;
    key(name);
    AppendJsonString(value, &out);
  };
  const auto flag = [&](const char* name, bool value) {
    if (!value) return;
    key(name);
    out.append("true");
  };
  const auto number = [&](const char* name, uint32_t value) {
    if (value == 0) return;
    key(name);
    absl::StrAppend(&out, value);
  };
  flag("no_pivot_root", no_pivot_root);
  flag("no_new_keyring", no_new_keyring);
  text("shim_cgroup", shim_cgroup);
  number("io_uid", io_uid);
  number("io_gid", io_gid);
  text("binary_name", binary_name);
  text("root", root);
  flag("systemd_cgroup", systemd_cgroup);
  text("criu_image_path", criu_image_path);
  text("criu_work_path", criu_work_path);
  return out.append("}");
}

RuntimeOptions RuntimeOptions::FromJson(std::string_view json) {
  RuntimeOptions options;
  options.binary_name = JsonString(JsonMember(json, "binary_name"));
  options.root = JsonString(JsonMember(json, "root"));
  options.systemd_cgroup = JsonMember(json, "systemd_cgroup") == "true";
  return options;
}

absl::StatusOr<RuntimeOptions> ParseOptions(std::string_view any) {
  std::string type;
  std::string_view value;
  ttrpc::WireReader reader(any);
  while (reader.Next()) {
    if (reader.field() == 1) type = reader.str();
    if (reader.field() == 2) value = reader.bytes();
  }
  RuntimeOptions options;
  type = type.substr(type.rfind('/') + 1);
  ttrpc::WireReader fields(value);
  if (reader.ok() && !value.empty() &&
      absl::StartsWith(type, "runtimeoptions.v1.")) {
    while (fields.Next()) {
      if (fields.field() != 3) continue;
      const std::string toml = fields.str();
      options.binary_name = TomlValue(toml, "BinaryName");
      options.root = TomlValue(toml, "Root");
      options.systemd_cgroup = TomlValue(toml, "SystemdCgroup") == "true";
    }
  } else if (reader.ok() && !value.empty()) {
    if (type != "containerd.runc.v1.Options") {
      return absl::InvalidArgumentError(
          absl::StrCat("unsupported option type \"", type, "\""));
    }
    while (fields.Next()) {
      switch (fields.field()) {
        case 1:
          options.no_pivot_root = fields.flag();
          break;
        case 2:
          options.no_new_keyring = fields.flag();
          break;
        case 3:
          options.shim_cgroup = fields.str();
          break;
        case 4:
          options.io_uid = static_cast<uint32_t>(fields.value());
          break;
        case 5:
          options.io_gid = static_cast<uint32_t>(fields.value());
          break;
        case 6:
          options.binary_name = fields.str();
          break;
        case 7:
          options.root = fields.str();
          break;
        case 9:
          options.systemd_cgroup = fields.flag();
          break;
        case 10:
          options.criu_image_path = fields.str();
          break;
        case 11:
          options.criu_work_path = fields.str();
          break;
        default:
          break;
      }
    }
  }
  if (!reader.ok() || !fields.ok()) {
    return absl::InvalidArgumentError("malformed runtime options");
  }
  options.FillDefaults();
  return options;
}

OciRuntime::OciRuntime(Loop* loop, RuntimeOptions options,
                       const std::string& name_space, std::string bundle)
    : loop_(loop),
      options_(std::move(options)),
      root_(absl::StrCat(options_.root, "/", name_space)),
      bundle_(std::move(bundle)) {
  const std::string base =
      options_.binary_name.substr(options_.binary_name.rfind('/') + 1);
  signals_directly_ =
      absl::StartsWith(base, "runc") || absl::StartsWith(base, "crun");
  is_like_runc_ = absl::StartsWith(base, "runc");
  is_runc_ = base == "runc";  // Not a wrapper of it.
  is_crun_ = base == "crun";
}

std::vector<std::string> OciRuntime::GlobalArgs() const {
  std::vector<std::string> args = {
      options_.binary_name,  "--root",       root_, "--log",
      bundle_ + "/log.json", "--log-format", "json"};
  if (options_.systemd_cgroup) args.push_back("--systemd-cgroup");
  return args;
}

std::string OciRuntime::LastError(int64_t log_offset_bytes) const {
  absl::StatusOr<std::string> log = os::ReadFile(bundle_ + "/log.json");
  if (!log.ok()) return "";
  std::string_view rest = *log;
  rest.remove_prefix(
      std::min<size_t>(static_cast<size_t>(log_offset_bytes), rest.size()));
  std::string last;
  for (;;) {
    const std::string_view entry = JsonTake(&rest);
    if (entry.empty()) return last;
    if (JsonString(JsonMember(entry, "level")) == "error") {
      last = JsonString(JsonMember(entry, "msg"));
    }
  }
}

void OciRuntime::Run(const Command& command,
                     std::function<void(const Result&)> done) {
  SpawnRequest request;
  request.argv = GlobalArgs();
  request.argv.insert(request.argv.end(), command.args.begin(),
                      command.args.end());
  if (is_runc_ && command.args[0] == "exec" && ::getenv("GOGC") == nullptr) {
    request.environment.push_back(kGoCollectsLater);
  }
  request.stdin_fd = command.stdin_fd;
  auto output = std::make_shared<os::UniqueFd>();
  if (command.has_streams) {
    request.stdout_fd = command.stdout_fd;
    request.stderr_fd = command.stderr_fd;
  } else {
    // A file and not a pipe: nobody has to read it meanwhile.
    output->Reset(::memfd_create("runtime-output", MFD_CLOEXEC));
    request.stdout_fd = output->get();
    request.stderr_fd = output->get();
  }
  struct stat info {};
  const std::string log = bundle_ + "/log.json";
  const int64_t offset = ::stat(log.c_str(), &info) == 0 ? info.st_size : 0;
  const absl::StatusOr<pid_t> pid = Spawn(request);
  if (!pid.ok()) {
    Result result;
    result.error = std::string(pid.status().message());
    loop_->After(0, [done = std::move(done), result] { done(result); });
    return;
  }
  loop_->OnExitOfNew(*pid, [this, output, offset,
                            done = std::move(done)](const ExitInfo& exit) {
    Result result;
    result.ok = exit.status == 0;
    if (output->valid()) {
      result.output.resize(kOutputSizeBytesMax);
      absl::StatusOr<size_t> size = os::PReadFull(
          output->get(), result.output.data(), result.output.size(), 0);
      result.output.resize(size.ok() ? *size : 0);
    }
    if (!result.ok) {
      result.error = LastError(offset);
      std::string_view printed = result.output;
      while (!printed.empty() && printed.back() == '\n') {
        printed.remove_suffix(1);
      }
      if (result.error.empty()) result.error = std::string(printed);
      if (result.error.empty()) {
        result.error = exit.status > 128
                           ? absl::StrCat("signal ", exit.status - 128)
                           : absl::StrCat("exit status ", exit.status);
      }
    }
    done(result);
  });
}

bool OciRuntime::StartCrun(const std::string& id) const {
  const std::string folder = absl::StrCat(root_, "/", id);
  const absl::StatusOr<std::string> spec =
      os::ReadFile(folder + "/config.json");
  if (!spec.ok() || !IsUnset(JsonMember(*spec, "hooks")) ||
      HasCrunAnnotations(*spec)) {
    return false;
  }
  const std::string path = folder + "/exec.fifo";
  // Fails unless init has opened the other end.
  const absl::StatusOr<os::UniqueFd> fifo =
      os::Open(path, O_WRONLY | O_NONBLOCK | O_NOFOLLOW);
  struct stat info {};
  if (!fifo.ok() || ::fstat(fifo->get(), &info) != 0 ||
      !S_ISFIFO(info.st_mode) || ::unlink(path.c_str()) != 0) {
    return false;
  }
  const char byte = 0;
  // If init has died meanwhile, its exit is what there is to be told.
  (void)os::WriteFull(fifo->get(), &byte, 1);
  return true;
}

void OciRuntime::Start(const std::string& id,
                       std::function<void(const Result&)> done) {
  if (is_crun_ && StartCrun(id)) {
    loop_->After(0, [done = std::move(done)] { done({.ok = true}); });
    return;
  }
  const std::string path = absl::StrCat(root_, "/", id, "/exec.fifo");
  struct stat info {};
  auto pending = std::make_unique<PendingStart>();
  if (is_runc_ && pending_ == nullptr) {
    absl::StatusOr<os::UniqueFd> fifo =
        os::Open(path, O_RDONLY | O_NONBLOCK | O_NOFOLLOW);
    if (fifo.ok() && ::fstat(fifo->get(), &info) == 0 &&
        S_ISFIFO(info.st_mode)) {
      pending->fifo = *std::move(fifo);
    }
  }
  // Init, which waits to open the other end, writes one byte and goes on.
  if (!pending->fifo.valid() ||
      !loop_
           ->Watch(pending->fifo.get(), EPOLLIN,
                   [this](uint32_t) { ReadStart(false); })
           .ok()) {
    return Run({.args = {"start", id}}, std::move(done));
  }
  pending->id = id;
  pending->path = path;
  pending->done = std::move(done);
  pending_ = std::move(pending);
}

bool OciRuntime::DeleteStoppedCrun(const std::string& id) const {
  const std::string folder = absl::StrCat(root_, "/", id);
  const absl::StatusOr<std::string> state = os::ReadFile(folder + "/status");
  const absl::StatusOr<std::string> spec =
      os::ReadFile(folder + "/config.json");
  if (!state.ok() || !spec.ok() || !IsUnset(JsonMember(*spec, "hooks")) ||
      HasCrunAnnotations(*spec) ||
      !IsUnset(JsonMember(JsonMember(*spec, "linux"), "intelRdt")) ||
      JsonMember(*state, "systemd-cgroup") != "false" ||
      !IsUnset(JsonMember(*state, "scope"))) {
    return false;
  }
  const std::string cgroup = JsonString(JsonMember(*state, "cgroup-path"));
  if (cgroup.size() < 2 || cgroup[0] != '/' ||
      absl::StrContains(absl::StrCat(cgroup, "/"), "/../")) {
    return false;
  }
  // It puts a container into every hierarchy there is.
  const absl::StatusOr<std::string> ours = os::ReadFile("/proc/self/cgroup");
  if (!ours.ok()) return false;
  for (const absl::string_view line :
       absl::StrSplit(*ours, '\n', absl::SkipEmpty())) {
    const std::vector<std::string> parts =
        absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (parts.size() != 3) return false;
    std::string hierarchy = "/sys/fs/cgroup";
    if (!parts[1].empty()) {
      absl::StrAppend(&hierarchy, "/", absl::StripPrefix(parts[1], "name="));
    } else if (::access("/sys/fs/cgroup/cgroup.procs", F_OK) != 0) {
      absl::StrAppend(&hierarchy, "/unified");
    }
    if (::access((hierarchy + "/cgroup.procs").c_str(), F_OK) != 0) {
      if (parts[1].empty()) continue;  // Not mounted, so not used.
      return false;
    }
    if (::rmdir((hierarchy + cgroup).c_str()) != 0 && errno != ENOENT) {
      return false;
    }
  }
  return os::RemoveAll(folder).ok();
}

bool OciRuntime::DeleteStopped(const std::string& id) const {
  const std::string folder = absl::StrCat(root_, "/", id);
  const absl::StatusOr<std::string> state =
      os::ReadFile(folder + "/state.json");
  if (!state.ok()) return false;
  const std::string_view config = JsonMember(*state, "config");
  const std::string_view cgroups = JsonMember(config, "cgroups");
  if (config.empty() || JsonMember(cgroups, "Systemd") != "false" ||
      JsonMember(cgroups, "Rootless") != "false" ||
      !IsUnset(JsonMember(JsonMember(config, "Hooks"), "poststop")) ||
      !IsUnset(JsonMember(config, "intel_rdt")) ||
      !IsUnset(JsonMember(*state, "intel_rdt_path"))) {
    return false;
  }
  bool removed = true;
  const bool understood = JsonMembers(
      JsonMember(*state, "cgroup_paths"),
      [&removed](const std::string&, std::string_view raw) {
        const std::string path = JsonString(raw);
        removed = removed && absl::StartsWith(path, "/sys/fs/cgroup/") &&
                  !absl::StrContains(path, "/../") &&
                  (::rmdir(path.c_str()) == 0 || errno == ENOENT);
      });
  return understood && removed && os::RemoveAll(folder).ok();
}

void OciRuntime::Delete(const std::string& id, bool stopped,
                        std::function<void(const Result&)> done) {
  if (stopped && ((is_runc_ && DeleteStopped(id)) ||
                  (is_crun_ && DeleteStoppedCrun(id)))) {
    loop_->After(0, [done = std::move(done)] { done({.ok = true}); });
    return;
  }
  Command command;
  command.args = {"delete"};
  if (!stopped) command.args.push_back("--force");
  command.args.push_back(id);
  Run(command, std::move(done));
}

void OciRuntime::InitEnded() {
  if (pending_ != nullptr) ReadStart(true);
}

void OciRuntime::ReadStart(bool last) {
  char byte;
  const ssize_t size = ::read(pending_->fifo.get(), &byte, 1);
  if (size < 0 && errno == EAGAIN && !last) return;
  loop_->Unwatch(pending_->fifo.get());
  const std::unique_ptr<PendingStart> pending = std::move(pending_);
  if (size != 1) {
    // It died first. The runtime says so in its own words.
    return Run({.args = {"start", pending->id}}, std::move(pending->done));
  }
  (void)::unlink(pending->path.c_str());  // For the runtime: it is running.
  Result result;
  result.ok = true;
  pending->done(result);
}

}  // namespace bulkhead::shim
