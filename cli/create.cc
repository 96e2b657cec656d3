// From the flags of `run` to a snapshot and a container record.
#include <fcntl.h>
#include <google/protobuf/empty.pb.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "cli/image.h"
#include "cli/names.h"
#include "cli/pull.h"
#include "cli/rootfs_view.h"
#include "cli/run_options.h"
#include "cli/spec/options.h"
#include "cli/spec/spec.h"
#include "cli/spec/user.h"
#include "cli/terminal.h"
#include "lib/base/status_macros.h"
#include "lib/oci/image.h"
#include "lib/os/fd.h"
#include "proto/containerd/runc/v1/options.pb.h"
#include "proto/containerd/services/introspection/v1/introspection.pb.h"
#include "proto/containerd/services/namespaces/v1/namespaces.pb.h"
#include "proto/containerd/services/snapshots/v1/snapshots.pb.h"
#include "proto/containerd/services/version/v1/version.pb.h"

namespace bulkhead::cli {
namespace {

namespace snapshots = containerd::services::snapshots::v1;

constexpr char kOurRuntime[] = "io.containerd.bulkhead.v1";
constexpr char kRuncRuntime[] = "io.containerd.runc.v2";
constexpr char kDefaultPath[] =
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
constexpr size_t kHostFileBytesMax = 1 << 20;
constexpr size_t kLabelBytesMax = 4096;
constexpr int64_t kMemoryBytesMin = 6 << 20;  // runc cannot start below it.

std::string NamespaceLabel(Client& client, const std::string& key) {
  containerd::services::namespaces::v1::GetNamespaceRequest request;
  request.set_name(client.ns());
  containerd::services::namespaces::v1::GetNamespaceResponse response;
  if (!client.Call(std::string(kNamespaces) + "Get", request, &response).ok()) {
    return "";
  }
  const auto& labels = response.namespace_().labels();
  const auto found = labels.find(key);
  return found == labels.end() ? "" : found->second;
}

absl::StatusOr<ImageInfo> ResolveImage(Client& client,
                                       const RunOptions& options,
                                       const std::string& snapshotter) {
  oci::Platform platform = oci::HostPlatform();
  if (!options.platform.empty()) {
    ASSIGN_OR_RETURN(platform, oci::ParsePlatform(options.platform));
  }
  const std::string& text = options.rest[0];
  absl::StatusOr<ImageRecord> record = absl::NotFoundError("");
  if (options.pull != "always") record = FindImage(client, text);
  if (options.pull == "always" ||
      (options.pull == "missing" && absl::IsNotFound(record.status()))) {
    PullOptions pull;
    pull.reference = text;
    pull.snapshotter = snapshotter;
    pull.platform = options.platform;
    pull.plain_http = options.plain_http;
    const absl::StatusOr<std::string> name = PullImage(client, pull);
    if (!name.ok()) {
      // "No such image" says more than a failed attempt to pull a typo.
      return absl::Status(
          name.status().code(),
          absl::StrCat("no image '", text, "' here, and pulling it failed: ",
                       MessageOf(name.status())));
    }
    record = FindImage(client, *name);
  }
  if (!record.ok()) return record.status();
  return LoadImage(client, *record, platform);
}

os::MountSpec ToMount(const containerd::types::Mount& mount) {
  return {mount.type(),
          mount.source(),
          mount.target(),
          {mount.options().begin(), mount.options().end()}};
}

// Names need the image's account files; numbers profit from them.
absl::StatusOr<User> FindUser(
    const std::string& text,
    const google::protobuf::RepeatedPtrField<containerd::types::Mount>& found) {
  if (text.empty() || text == "0" || text == "root" || text == "0:0") {
    return User{.home = "/root"};
  }
  std::vector<os::MountSpec> mounts;
  for (const containerd::types::Mount& mount : found) {
    mounts.push_back(ToMount(mount));
  }
  absl::StatusOr<std::map<std::string, std::string>> files =
      ReadFilesOf(mounts, {"etc/passwd", "etc/group"}, kAccountFileBytesMax);
  if (!files.ok()) {
    if (!IsNumericUser(text)) {
      return Annotate(files.status(),
                      "looking up user '" + text + "' in the image");
    }
    files = std::map<std::string, std::string>();
  }
  return ResolveUser(text, (*files)["etc/passwd"], (*files)["etc/group"]);
}

absl::StatusOr<std::vector<MountSpec>> UserMounts(const RunOptions& options) {
  std::vector<MountSpec> mounts;
  for (const std::string& text : options.tmpfs) {
    ASSIGN_OR_RETURN(MountSpec mount, ParseTmpfs(text));
    mounts.push_back(std::move(mount));
  }
  for (const std::string& text : options.volumes) {
    ASSIGN_OR_RETURN(MountSpec mount, ParseVolume(text));
    mounts.push_back(std::move(mount));
  }
  for (const std::string& text : options.mounts) {
    ASSIGN_OR_RETURN(MountSpec mount, ParseMount(text));
    mounts.push_back(std::move(mount));
  }
  for (const MountSpec& mount : mounts) {
    if (mount.type != "bind" || ::access(mount.source.c_str(), F_OK) == 0) {
      continue;
    }
    if (!mount.make_source) {
      return absl::NotFoundError(
          absl::StrCat("bind source ", mount.source,
                       " does not exist — make it first, or "
                       "use -v, which makes it"));
    }
    RETURN_IF_ERROR(os::MakeDirs(mount.source, 0755));
  }
  return mounts;
}

absl::Status WriteFile(const std::string& path, const std::string& data) {
  ASSIGN_OR_RETURN(
      const os::UniqueFd file,
      os::Open(path, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW, 0644));
  // Readable in the container for everybody, whatever the umask.
  if (::fchmod(file.get(), 0644) != 0) {
    return os::ErrnoStatus(errno, "fchmod " + path);
  }
  return os::WriteFull(file.get(), data.data(), data.size());
}

// hosts, hostname and resolv.conf, which every container expects in /etc.
absl::Status AddNetworkFiles(const std::string& folder, bool host_network,
                             const std::string& hostname,
                             std::vector<MountSpec>* mounts) {
  std::string hosts = "127.0.0.1\tlocalhost\n::1\tlocalhost\n";
  std::string resolv;
  if (host_network) {
    hosts = os::ReadFile("/etc/hosts", kHostFileBytesMax).value_or(hosts);
    resolv = os::ReadFile("/etc/resolv.conf", kHostFileBytesMax).value_or("");
  } else {
    absl::StrAppend(&hosts, "127.0.0.1\t", hostname, "\n");
  }
  const std::pair<const char*, const std::string> files[] = {
      {"hosts", hosts}, {"hostname", hostname + "\n"}, {"resolv.conf", resolv}};
  for (const auto& [name, data] : files) {
    const std::string path = absl::StrCat(folder, "/", name);
    const std::string target = absl::StrCat("/etc/", name);
    bool taken = false;
    for (const MountSpec& mount : *mounts) taken |= mount.target == target;
    if (taken) continue;
    RETURN_IF_ERROR(WriteFile(path, data));
    mounts->push_back({"bind", path, target, {"rbind", "rprivate", "rw"}});
  }
  return absl::OkStatus();
}

absl::StatusOr<SpecOptions> MakeSpecOptions(const RunOptions& options,
                                            const oci::RunConfig& config) {
  SpecOptions spec;
  // The command line replaces Cmd; --entrypoint also drops the image's Cmd.
  const std::vector<std::string> words(options.rest.begin() + 1,
                                       options.rest.end());
  if (options.entrypoint_set) {
    if (!options.entrypoint.empty()) spec.args = {options.entrypoint};
  } else {
    spec.args = config.entrypoint;
  }
  const bool use_cmd = words.empty() && !options.entrypoint_set;
  const std::vector<std::string>& tail = use_cmd ? config.cmd : words;
  spec.args.insert(spec.args.end(), tail.begin(), tail.end());
  if (spec.args.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "image ", options.rest[0], " has no command; give one: `bulkhead run ",
        options.rest[0], " COMMAND`"));
  }

  std::vector<std::string> env = {kDefaultPath};
  if (options.tty) env.push_back("TERM=xterm");
  env = MergeEnv(env, config.env);
  for (const std::string& path : options.env_files) {
    ASSIGN_OR_RETURN(const std::vector<std::string> more, ReadEnvFile(path));
    env = MergeEnv(env, more);
  }
  for (const std::string& text : options.env) {
    ASSIGN_OR_RETURN(const std::string entry, ResolveEnv(text));
    if (!entry.empty()) env = MergeEnv(env, {entry});
  }
  spec.env = std::move(env);

  spec.cwd = !options.workdir.empty()      ? options.workdir
             : !config.working_dir.empty() ? config.working_dir
                                           : "/";
  if (spec.cwd[0] != '/') {
    return absl::InvalidArgumentError(
        absl::StrCat("--workdir '", spec.cwd, "' must be absolute"));
  }
  if (options.network != "host" && options.network != "none") {
    return absl::InvalidArgumentError(absl::StrCat(
        "--network '", options.network, "': only 'none' and 'host' yet"));
  }
  spec.host_network = options.network == "host";
  spec.terminal = options.tty;
  spec.privileged = options.privileged;
  spec.read_only = options.read_only;
  spec.cap_add = options.cap_add;
  spec.cap_drop = options.cap_drop;
  for (const std::string& text : options.security) {
    if (text == "no-new-privileges" || text == "no-new-privileges=true" ||
        text == "no-new-privileges:true") {
      spec.no_new_privileges = true;
    } else if (text == "seccomp=unconfined" || text == "seccomp:unconfined") {
      spec.seccomp = false;
    } else if (text != "seccomp=builtin") {
      return absl::InvalidArgumentError(
          absl::StrCat("--security-opt '", text,
                       "': seccomp=unconfined or no-new-privileges"));
    }
  }
  for (const std::string& text : options.devices) {
    ASSIGN_OR_RETURN(DeviceSpec device, ParseDevice(text));
    spec.devices.push_back(std::move(device));
  }
  for (const std::string& text : options.ulimits) {
    ASSIGN_OR_RETURN(UlimitSpec limit, ParseUlimit(text));
    spec.ulimits.push_back(std::move(limit));
  }
  if (!options.shm_size.empty()) {
    ASSIGN_OR_RETURN(spec.shm_bytes, ParseBytes(options.shm_size));
  }
  if (!options.memory.empty()) {
    ASSIGN_OR_RETURN(spec.memory_bytes, ParseBytes(options.memory));
    if (spec.memory_bytes < kMemoryBytesMin) {
      return absl::InvalidArgumentError("--memory: at least 6m");
    }
  }
  if (options.cpus < 0 || options.cpus > 65536) {
    return absl::InvalidArgumentError("--cpus: a positive number");
  }
  spec.cpus = options.cpus;
  spec.cpu_shares = options.cpu_shares;
  spec.pids_max = options.pids_max;
  spec.cgroup2 = HostHasCgroup2();
  ASSIGN_OR_RETURN(spec.mounts, UserMounts(options));
  return spec;
}

// Whether an image may give its containers this label: not ours or the
// daemon's, and not so long that the record would be refused.
bool IsForImages(const std::string& key, const std::string& value) {
  return !absl::StartsWith(key, "bulkhead/") &&
         !absl::StartsWith(key, "containerd.io/") &&
         !absl::StartsWith(key, "io.cri-containerd") && !value.empty() &&
         key.size() + value.size() <= kLabelBytesMax;
}

// Undoes what was made, unless told to keep it.
class Undo {
 public:
  Undo(Client& client, std::string snapshotter, std::string key)
      : client_(client),
        snapshotter_(std::move(snapshotter)),
        key_(std::move(key)) {}
  ~Undo() {
    if (kept_) return;
    if (prepared) {
      snapshots::RemoveSnapshotRequest request;
      request.set_snapshotter(snapshotter_);
      request.set_key(key_);
      google::protobuf::Empty empty;
      // Garbage collection takes it when the lease is gone.
      (void)client_.Call(std::string(kSnapshots) + "Remove", request, &empty);
    }
    if (!folder.empty()) (void)os::RemoveAll(folder);  // A few small files.
  }
  void Keep() { kept_ = true; }

  bool prepared = false;
  std::string folder;

 private:
  Client& client_;
  std::string snapshotter_;
  std::string key_;
  bool kept_ = false;
};

}  // namespace

RuntimeChoice ChooseRuntime(Client& client, const std::string& text) {
  if (absl::StartsWith(text, "io.")) return {text, ""};
  RuntimeChoice choice;
  choice.binary = text;
  choice.name = NamespaceLabel(client, "containerd.io/defaults/runtime");
  if (!choice.name.empty()) return choice;
  google::protobuf::Empty empty;
  containerd::services::version::v1::VersionResponse version;
  const bool ours =
      client.Call(std::string(kVersion) + "Version", empty, &version).ok() &&
      absl::StrContains(version.version(), "bulkhead");
  choice.name = ours ? kOurRuntime : kRuncRuntime;
  return choice;
}

std::string DefaultSnapshotter(Client& client, const std::string& text) {
  if (!text.empty()) return text;
  const std::string name =
      NamespaceLabel(client, "containerd.io/defaults/snapshotter");
  return name.empty() ? "overlayfs" : name;
}

absl::StatusOr<ContainerRecord> CreateContainer(Client& client,
                                                const RunOptions& options) {
  if (options.pull != "always" && options.pull != "missing" &&
      options.pull != "never") {
    return absl::InvalidArgumentError("--pull: always, missing or never");
  }
  std::string name = options.name;
  if (name.empty()) {
    name = RandomName();
    if (!CheckNameFree(client, name).ok()) {
      name += "_" + NewId().substr(0, 4);
    }
  } else {
    RETURN_IF_ERROR(ValidateName(name));
    RETURN_IF_ERROR(CheckNameFree(client, name));
  }
  const std::string snapshotter =
      DefaultSnapshotter(client, options.snapshotter);
  ASSIGN_OR_RETURN(const ImageInfo image,
                   ResolveImage(client, options, snapshotter));
  const oci::RunConfig& config = image.config.config;
  ASSIGN_OR_RETURN(SpecOptions spec, MakeSpecOptions(options, config));
  const std::string stop_signal =
      options.stop_signal.empty() ? config.stop_signal : options.stop_signal;
  if (!stop_signal.empty()) {
    RETURN_IF_ERROR(ParseSignal(stop_signal).status());
  }

  const std::string id = NewId();
  ASSIGN_OR_RETURN(const std::unique_ptr<ScopedLease> lease,
                   ScopedLease::Create(client));
  Undo undo(client, snapshotter, id);
  RETURN_IF_ERROR(EnsureUnpacked(client, image, snapshotter));
  snapshots::PrepareSnapshotRequest prepare;
  prepare.set_snapshotter(snapshotter);
  prepare.set_key(id);
  prepare.set_parent(image.chain_id());
  snapshots::PrepareSnapshotResponse prepared;
  RETURN_IF_ERROR(
      client.Call(std::string(kSnapshots) + "Prepare", prepare, &prepared));
  undo.prepared = true;

  const std::string user_text =
      options.user.empty() ? config.user : options.user;
  ASSIGN_OR_RETURN(spec.user, FindUser(user_text, prepared.mounts()));
  if (!spec.user.home.empty()) {
    spec.env = MergeEnv({"HOME=" + spec.user.home}, spec.env);
  }
  spec.ns = client.ns();
  spec.id = id;
  char host_name[256] = "";
  ::gethostname(host_name, sizeof(host_name) - 1);
  spec.hostname = !options.hostname.empty() ? options.hostname
                  : spec.host_network       ? host_name
                                            : ShortId(id);
  spec.env = MergeEnv({"HOSTNAME=" + spec.hostname}, spec.env);
  const TerminalSize size = SizeOf(STDIN_FILENO);
  spec.rows = size.rows;
  spec.columns = size.columns;

  const std::string folder = ContainerDir(client, id);
  RETURN_IF_ERROR(os::MakeDirs(folder, 0700));
  undo.folder = folder;
  RETURN_IF_ERROR(
      AddNetworkFiles(folder, spec.host_network, spec.hostname, &spec.mounts));
  ASSIGN_OR_RETURN(const nlohmann::json spec_json, MakeSpec(spec));

  const RuntimeChoice runtime = ChooseRuntime(client, options.runtime);
  const bool our_shim = runtime.name == kOurRuntime;
  containerd::services::containers::v1::CreateContainerRequest request;
  ContainerRecord* record = request.mutable_container();
  record->set_id(id);
  record->set_image(image.record.name());
  record->mutable_runtime()->set_name(runtime.name);
  if (!runtime.binary.empty()) {
    containerd::runc::v1::Options runc;
    runc.set_binary_name(runtime.binary);
    record->mutable_runtime()->mutable_options()->set_type_url(
        runc.GetTypeName());
    record->mutable_runtime()->mutable_options()->set_value(
        runc.SerializeAsString());
  }
  record->mutable_spec()->set_type_url(kSpecTypeUrl);
  record->mutable_spec()->set_value(
      spec_json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  record->set_snapshotter(snapshotter);
  record->set_snapshot_key(id);
  auto& labels = *record->mutable_labels();
  for (const auto& [key, value] : config.labels) {
    if (IsForImages(key, value)) labels[key] = value;
  }
  for (const std::string& text : options.labels) {
    const auto [key, value] = SplitPair(text);
    labels[key] = value;
  }
  labels[kLabelName] = name;
  labels[kLabelNetwork] = options.network;
  labels[kLabelLogPath] = folder + "/json.log";
  labels[kLabelLogFormat] = our_shim ? "json" : "raw";
  if (!stop_signal.empty()) labels[kLabelStopSignal] = stop_signal;
  if (options.remove) labels[kLabelAutoRemove] = "true";
  if (options.interactive) labels[kLabelOpenStdin] = "true";
  containerd::services::containers::v1::CreateContainerResponse response;
  RETURN_IF_ERROR(
      client.Call(std::string(kContainers) + "Create", request, &response));
  undo.Keep();
  return response.container();
}

}  // namespace bulkhead::cli
