// From the flags of `run` to a snapshot and a container record.
#include <fcntl.h>
#include <google/protobuf/empty.pb.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cli/create_more.h"
#include "cli/image.h"
#include "cli/logs.h"
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

using Labels = google::protobuf::Map<std::string, std::string>;

// Empty if they cannot be had: they only hold defaults.
Labels NamespaceLabels(Client& client) {
  containerd::services::namespaces::v1::GetNamespaceRequest request;
  request.set_name(client.ns());
  containerd::services::namespaces::v1::GetNamespaceResponse response;
  if (!client.Call(std::string(kNamespaces) + "Get", request, &response).ok()) {
    return {};
  }
  return response.namespace_().labels();
}

std::string LabelIn(const Labels& labels, const std::string& key) {
  const auto found = labels.find(key);
  return found == labels.end() ? "" : found->second;
}

bool ServerIsOurs(Client& client) {
  google::protobuf::Empty empty;
  containerd::services::version::v1::VersionResponse version;
  return client.Call(std::string(kVersion) + "Version", empty, &version).ok() &&
         absl::StrContains(version.version(), "bulkhead");
}

std::string SnapshotterIn(const Labels& labels, const std::string& text) {
  if (!text.empty()) return text;
  const std::string name =
      LabelIn(labels, "containerd.io/defaults/snapshotter");
  return name.empty() ? "overlayfs" : name;
}

RuntimeChoice RuntimeIn(const Labels& labels, bool ours,
                        const std::string& text) {
  if (absl::StartsWith(text, "io.")) return {text, ""};
  const std::string name = LabelIn(labels, "containerd.io/defaults/runtime");
  if (!name.empty()) return {name, text};
  return {ours ? kOurRuntime : kRuncRuntime, text};
}

// What CreateContainer() asks the server before it makes anything. The
// questions do not depend on each other, so they are asked at once.
struct Answers {
  absl::Status name_free;
  Labels labels;
  bool ours = false;
  std::string folder;
  absl::StatusOr<ImageRecord> record = absl::NotFoundError("");
  absl::StatusOr<ImageInfo> image = absl::NotFoundError("");
};

absl::StatusOr<oci::Platform> PlatformOf(const RunOptions& options) {
  if (options.platform.empty()) return oci::HostPlatform();
  return oci::ParsePlatform(options.platform);
}

Answers Ask(Client& client, const RunOptions& options,
            const oci::Platform& platform, const std::string& name,
            const std::string& id) {
  Answers answers;
  std::thread labels([&] { answers.labels = NamespaceLabels(client); });
  std::thread server([&] {
    answers.ours = ServerIsOurs(client);
    answers.folder = ContainerDir(client, id);
  });
  std::thread names([&] { answers.name_free = CheckNameFree(client, name); });
  if (options.pull != "always") {
    answers.record = FindImage(client, options.rest[0]);
    if (answers.record.ok()) {
      answers.image = LoadImage(client, *answers.record, platform);
    }
  }
  labels.join();
  server.join();
  names.join();
  return answers;
}

absl::StatusOr<ImageInfo> ResolveImage(Client& client,
                                       const RunOptions& options,
                                       const oci::Platform& platform,
                                       const std::string& snapshotter,
                                       const Answers& answers) {
  const std::string& text = options.rest[0];
  absl::StatusOr<ImageRecord> record = answers.record;
  if (record.ok()) return answers.image;
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

// The others are looked up in the image's account files.
bool IsRoot(const std::string& user) {
  return user.empty() || user == "0" || user == "root" || user == "0:0";
}

// Names need the image's account files; numbers profit from them.
absl::StatusOr<User> FindUser(const std::string& text, const Mounts& found) {
  if (IsRoot(text)) return User{.home = "/root"};
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
// `shared` is the folder of a container whose network is joined, or empty.
absl::Status AddNetworkFiles(const std::string& folder,
                             const std::string& shared, bool host_network,
                             const std::string& hostname,
                             const RunOptions& options,
                             std::vector<MountSpec>* mounts) {
  std::string hosts = "127.0.0.1\tlocalhost\n::1\tlocalhost\n";
  std::string resolv;
  if (host_network) {
    hosts = os::ReadFile("/etc/hosts", kHostFileBytesMax).value_or(hosts);
    resolv = os::ReadFile("/etc/resolv.conf", kHostFileBytesMax).value_or("");
  } else {
    absl::StrAppend(&hosts, "127.0.0.1\t", hostname, "\n");
  }
  if (!options.dns.empty() || !options.dns_search.empty()) {
    resolv.clear();
    if (!options.dns_search.empty()) {
      absl::StrAppend(&resolv, "search ",
                      absl::StrJoin(options.dns_search, " "), "\n");
    }
    for (const std::string& address : options.dns) {
      absl::StrAppend(&resolv, "nameserver ", address, "\n");
    }
  }
  const std::pair<const char*, const std::string> files[] = {
      {"hosts", hosts}, {"hostname", hostname + "\n"}, {"resolv.conf", resolv}};
  for (const auto& [name, data] : files) {
    const std::string path = absl::StrCat(folder, "/", name);
    const std::string target = absl::StrCat("/etc/", name);
    bool taken = false;
    for (const MountSpec& mount : *mounts) taken |= mount.target == target;
    if (taken) continue;
    const std::string theirs = absl::StrCat(shared, "/", name);
    if (!shared.empty() && ::access(theirs.c_str(), F_OK) == 0) {
      mounts->push_back({"bind", theirs, target, {"rbind", "rprivate", "rw"}});
      continue;
    }
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
  if (options.env_host) {
    for (char** entry = environ; *entry != nullptr; ++entry) {
      env = MergeEnv(env, {*entry});
    }
  }
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
  if (options.network != "host" && options.network != "none" &&
      !absl::StartsWith(options.network, "container:")) {
    return absl::InvalidArgumentError(
        absl::StrCat("--network '", options.network,
                     "': only 'none', 'host' and 'container:NAME' yet"));
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
  explicit Undo(Client& client) : client_(client) {}
  ~Undo() {
    if (kept_) return;
    google::protobuf::Empty empty;
    if (recorded) {
      containerd::services::containers::v1::DeleteContainerRequest request;
      request.set_id(id);
      // The first error counts.
      (void)client_.Call(std::string(kContainers) + "Delete", request, &empty);
    }
    if (prepared) {
      snapshots::RemoveSnapshotRequest request;
      request.set_snapshotter(snapshotter);
      request.set_key(id);
      // Garbage collection takes it when nothing names it.
      (void)client_.Call(std::string(kSnapshots) + "Remove", request, &empty);
    }
    if (!folder.empty()) (void)os::RemoveAll(folder);  // A few small files.
    // Each is empty or a copy of what the image has.
    for (const std::string& name : volumes) {
      (void)Volumes(client_).Remove(name);
    }
  }
  void Keep() { kept_ = true; }

  std::string snapshotter;
  std::string id;
  bool recorded = false;
  bool prepared = false;
  std::string folder;
  std::vector<std::string> volumes;

 private:
  Client& client_;
  bool kept_ = false;
};

// Makes the container's snapshot; unpacks the image first if need be.
absl::StatusOr<Mounts> Prepare(Client& client, const ImageInfo& image,
                               const std::string& snapshotter,
                               const std::string& id, const SpecOptions& spec) {
  snapshots::PrepareSnapshotRequest prepare;
  if (spec.user_ns_size > 0) {
    const std::string map =
        absl::StrCat("0:", spec.user_ns_base, ":", spec.user_ns_size);
    (*prepare.mutable_labels())["containerd.io/snapshot/uidmapping"] = map;
    (*prepare.mutable_labels())["containerd.io/snapshot/gidmapping"] = map;
  }
  prepare.set_snapshotter(snapshotter);
  prepare.set_key(id);
  prepare.set_parent(image.chain_id());
  snapshots::PrepareSnapshotResponse prepared;
  const std::string method = std::string(kSnapshots) + "Prepare";
  absl::Status status = client.Call(method, prepare, &prepared);
  if (absl::IsNotFound(status)) {
    // Nearly always it is there, so nobody asks beforehand.
    ASSIGN_OR_RETURN(const std::unique_ptr<ScopedLease> lease,
                     ScopedLease::Create(client));
    RETURN_IF_ERROR(EnsureUnpacked(client, image, snapshotter));
    status = client.Call(method, prepare, &prepared);
  }
  RETURN_IF_ERROR(status);
  return prepared.mounts();
}

}  // namespace

RuntimeChoice ChooseRuntime(Client& client, const std::string& text) {
  return RuntimeIn(NamespaceLabels(client), ServerIsOurs(client), text);
}

std::string DefaultSnapshotter(Client& client, const std::string& text) {
  if (!text.empty()) return text;
  return SnapshotterIn(NamespaceLabels(client), text);
}

absl::StatusOr<NewContainer> CreateContainer(Client& client,
                                             const RunOptions& options) {
  if (options.pull != "always" && options.pull != "missing" &&
      options.pull != "never") {
    return absl::InvalidArgumentError("--pull: always, missing or never");
  }
  std::string name = options.name.empty() ? RandomName() : options.name;
  RETURN_IF_ERROR(ValidateName(name));
  ASSIGN_OR_RETURN(const oci::Platform platform, PlatformOf(options));
  const std::string id = NewId();
  const Answers answers = Ask(client, options, platform, name, id);
  if (!answers.name_free.ok()) {
    if (!options.name.empty()) return answers.name_free;
    name += "_" + NewId().substr(0, 4);
  }
  const std::string snapshotter =
      SnapshotterIn(answers.labels, options.snapshotter);
  ASSIGN_OR_RETURN(
      const ImageInfo image,
      ResolveImage(client, options, platform, snapshotter, answers));
  const oci::RunConfig& config = image.config.config;
  ASSIGN_OR_RETURN(SpecOptions spec, MakeSpecOptions(options, config));
  std::string shares_files_of;
  RETURN_IF_ERROR(AddRuntimeOptions(client, options, &spec, &shares_files_of));
  ASSIGN_OR_RETURN(const std::string log_options,
                   ParseLogOptions(options.log_options));
  const std::string stop_signal =
      options.stop_signal.empty() ? config.stop_signal : options.stop_signal;
  if (!stop_signal.empty()) {
    RETURN_IF_ERROR(ParseSignal(stop_signal).status());
  }

  Undo undo(client);
  undo.snapshotter = snapshotter;
  undo.id = id;
  const std::string user_text =
      options.user.empty() ? config.user : options.user;
  // A record that names its snapshot before there is one keeps it from garbage
  // collection. Only who must look into the image needs a lease until then.
  NewContainer made;
  std::unique_ptr<ScopedLease> lease;
  if (!IsRoot(user_text) || !options.groups.empty()) {
    ASSIGN_OR_RETURN(lease, ScopedLease::Create(client));
    ASSIGN_OR_RETURN(made.mounts,
                     Prepare(client, image, snapshotter, id, spec));
    undo.prepared = true;
  }
  ASSIGN_OR_RETURN(spec.user, FindUser(user_text, made.mounts));
  for (const std::string& group : options.groups) {
    ASSIGN_OR_RETURN(
        const User as,
        FindUser(absl::StrCat(spec.user.uid, ":", group), made.mounts));
    spec.user.additional_gids.push_back(as.gid);
  }
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

  const std::string& folder = answers.folder;
  RETURN_IF_ERROR(os::MakeDirs(folder, 0700));
  undo.folder = folder;
  std::map<std::string, std::string> restart;
  RETURN_IF_ERROR(AddRestartLabels(
      options, JsonLogUri(folder + "/json.log", log_options, ""), &restart));
  RETURN_IF_ERROR(AddNetworkFiles(
      folder,
      shares_files_of.empty() ? "" : ContainerDir(client, shares_files_of),
      spec.host_network, spec.hostname, options, &spec.mounts));
  std::vector<NewVolume> new_volumes;
  std::vector<std::string> volume_names;
  RETURN_IF_ERROR(ResolveVolumes(client, config.volumes, &spec.mounts,
                                 &new_volumes, &volume_names));
  for (const NewVolume& fresh : new_volumes) {
    undo.volumes.push_back(fresh.volume.name);
  }
  // What is mounted below something else comes after it.
  std::stable_sort(spec.mounts.begin(), spec.mounts.end(),
                   [](const MountSpec& a, const MountSpec& b) {
                     return std::count(a.target.begin(), a.target.end(), '/') <
                            std::count(b.target.begin(), b.target.end(), '/');
                   });
  ASSIGN_OR_RETURN(const nlohmann::json spec_json, MakeSpec(spec));

  const RuntimeChoice runtime =
      RuntimeIn(answers.labels, answers.ours, options.runtime);
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
  if (!log_options.empty()) labels[kLabelLogOptions] = log_options;
  if (!volume_names.empty()) {
    labels[kLabelVolumes] = absl::StrJoin(volume_names, ",");
  }
  if (options.stop_timeout >= 0) {
    labels[kLabelStopTimeout] = absl::StrCat(options.stop_timeout);
  }
  for (const auto& [key, value] : restart) labels[key] = value;
  labels[kLabelLogPath] = folder + "/json.log";
  labels[kLabelLogFormat] = our_shim ? "json" : "raw";
  if (!stop_signal.empty()) labels[kLabelStopSignal] = stop_signal;
  if (options.remove) labels[kLabelAutoRemove] = "true";
  if (options.interactive) labels[kLabelOpenStdin] = "true";
  containerd::services::containers::v1::CreateContainerResponse response;
  RETURN_IF_ERROR(
      client.Call(std::string(kContainers) + "Create", request, &response));
  undo.recorded = true;
  made.record = std::move(*response.mutable_container());
  if (!undo.prepared) {
    ASSIGN_OR_RETURN(made.mounts,
                     Prepare(client, image, snapshotter, id, spec));
  }
  for (const NewVolume& fresh : new_volumes) {
    std::vector<os::MountSpec> root;
    for (const containerd::types::Mount& mount : made.mounts) {
      root.push_back(ToMount(mount));
    }
    RETURN_IF_ERROR(FillVolume(fresh.volume, root, fresh.target));
  }
  undo.Keep();
  return made;
}

}  // namespace bulkhead::cli
