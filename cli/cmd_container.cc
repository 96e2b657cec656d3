// rename, update, cp, export, diff, commit, container prune.
#include <dirent.h>
#include <fcntl.h>
#include <google/protobuf/empty.pb.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <tuple>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "cli/commands.h"
#include "cli/container.h"
#include "cli/container_root.h"
#include "cli/format.h"
#include "cli/image.h"
#include "cli/names.h"
#include "cli/rootfs_view.h"
#include "cli/spec/options.h"
#include "cli/tree_diff.h"
#include "cli/volumes.h"
#include "lib/base/status_macros.h"
#include "lib/oci/reference.h"
#include "lib/os/fd.h"
#include "proto/containerd/services/content/v1/content.pb.h"
#include "proto/containerd/services/diff/v1/diff.pb.h"
#include "proto/containerd/services/snapshots/v1/snapshots.pb.h"
#include "proto/containerd/services/tasks/v1/tasks.pb.h"

namespace bulkhead::cli {
namespace {

using ::nlohmann::json;
namespace content = containerd::services::content::v1;
namespace diff_v1 = containerd::services::diff::v1;
namespace images = containerd::services::images::v1;
namespace snapshots = containerd::services::snapshots::v1;
namespace tasks = containerd::services::tasks::v1;

constexpr char kResourcesType[] =
    "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";
constexpr int64_t kCpuPeriodMicros = 100'000;

// A view of what the container's snapshot is made on; gone with the object.
class ParentView {
 public:
  static absl::StatusOr<std::unique_ptr<ParentView>> Make(
      Client& client, const ContainerRecord& record) {
    snapshots::StatSnapshotRequest stat;
    stat.set_snapshotter(record.snapshotter());
    stat.set_key(record.snapshot_key());
    snapshots::StatSnapshotResponse info;
    RETURN_IF_ERROR(client.Call(std::string(kSnapshots) + "Stat", stat, &info));
    auto view = std::make_unique<ParentView>(client);
    if (info.info().parent().empty()) return view;  // Made on nothing.
    snapshots::ViewSnapshotRequest request;
    request.set_snapshotter(record.snapshotter());
    request.set_key("bulkhead-view-" + NewId().substr(0, 16));
    request.set_parent(info.info().parent());
    snapshots::ViewSnapshotResponse response;
    RETURN_IF_ERROR(
        client.Call(std::string(kSnapshots) + "View", request, &response));
    view->remove_.set_snapshotter(request.snapshotter());
    view->remove_.set_key(request.key());
    view->mounts_ = response.mounts();
    return view;
  }
  explicit ParentView(Client& client) : client_(client) {}
  ~ParentView() {
    if (remove_.key().empty()) return;
    google::protobuf::Empty empty;
    // Else garbage collection takes it when the lease is gone.
    (void)client_.Call(std::string(kSnapshots) + "Remove", remove_, &empty);
  }
  const Mounts& mounts() const { return mounts_; }

 private:
  Client& client_;
  snapshots::RemoveSnapshotRequest remove_;
  Mounts mounts_;
};

int Rename(Session& session, const std::string& name, const std::string& to) {
  Client& client = session.client();
  const absl::StatusOr<ContainerRecord> record = FindContainer(client, name);
  if (!record.ok()) return Report(record.status());
  absl::Status status = ValidateName(to);
  if (status.ok()) status = CheckNameFree(client, to);
  if (status.ok()) {
    status = SetLabels(client, record->id(), {{kLabelName, to}});
  }
  return status.ok() ? kExitOk : Report(status);
}

struct UpdateOptions {
  std::string memory;
  std::string memory_swap;
  double cpus = 0;
  int64_t cpu_shares = 0;
  int64_t pids_max = 0;
  std::string cpuset_cpus;
  std::string restart;
  std::vector<std::string> names;
};

// Only what is to change.
absl::StatusOr<json> UpdatedResources(const UpdateOptions& options) {
  json resources = json::object();
  if (!options.memory.empty()) {
    ASSIGN_OR_RETURN(const int64_t limit, ParseBytes(options.memory));
    resources["memory"]["limit"] = limit;
    resources["memory"]["swap"] = limit * 2;
  }
  if (options.memory_swap == "-1") {
    resources["memory"]["swap"] = -1;
  } else if (!options.memory_swap.empty()) {
    ASSIGN_OR_RETURN(const int64_t swap, ParseBytes(options.memory_swap));
    resources["memory"]["swap"] = swap;
  }
  if (options.cpus > 0) {
    resources["cpu"]["quota"] = static_cast<int64_t>(
        options.cpus * static_cast<double>(kCpuPeriodMicros));
    resources["cpu"]["period"] = kCpuPeriodMicros;
  }
  if (options.cpu_shares > 0) resources["cpu"]["shares"] = options.cpu_shares;
  if (!options.cpuset_cpus.empty()) {
    resources["cpu"]["cpus"] = options.cpuset_cpus;
  }
  if (options.pids_max != 0) resources["pids"]["limit"] = options.pids_max;
  return resources;
}

absl::Status Update(Client& client, const std::string& name,
                    const UpdateOptions& options) {
  ASSIGN_OR_RETURN(ContainerRecord record, FindContainer(client, name));
  ASSIGN_OR_RETURN(const json resources, UpdatedResources(options));
  if (!options.restart.empty()) {
    if (options.restart == "no") {
      RETURN_IF_ERROR(
          SetLabels(client, record.id(),
                    {{kLabelRestartPolicy, ""}, {kLabelRestartStatus, ""}}));
    } else {
      RETURN_IF_ERROR(SetLabels(client, record.id(),
                                {{kLabelRestartPolicy, options.restart},
                                 {kLabelRestartStatus, "running"}}));
    }
  }
  if (resources.empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::optional<TaskRecord> task,
                   GetTask(client, record.id()));
  if (task.has_value() && IsAlive(*task)) {
    tasks::UpdateTaskRequest request;
    request.set_container_id(record.id());
    request.mutable_resources()->set_type_url(kResourcesType);
    request.mutable_resources()->set_value(resources.dump());
    google::protobuf::Empty empty;
    RETURN_IF_ERROR(
        client.Call(std::string(kTasks) + "Update", request, &empty));
  }
  // For its next start.
  json spec = json::parse(record.spec().value(), nullptr, false);
  if (!spec.is_object()) return absl::OkStatus();
  spec["linux"]["resources"].merge_patch(resources);
  containerd::services::containers::v1::UpdateContainerRequest request;
  *request.mutable_container() = record;
  request.mutable_container()->mutable_spec()->set_value(
      spec.dump(-1, ' ', false, json::error_handler_t::replace));
  request.mutable_update_mask()->add_paths("spec");
  containerd::services::containers::v1::UpdateContainerResponse response;
  return client.Call(std::string(kContainers) + "Update", request, &response);
}

// A layer blob with what the container has beyond `left`, under the caller's
// lease.
absl::StatusOr<containerd::types::Descriptor> MakeLayer(
    Client& client, const ContainerRecord& record, const Mounts& left,
    const std::string& media_type) {
  diff_v1::DiffRequest request;
  *request.mutable_left() = left;
  ASSIGN_OR_RETURN(*request.mutable_right(), MountsOf(client, record));
  request.set_media_type(media_type);
  request.set_ref("bulkhead-diff-" + NewId().substr(0, 16));
  diff_v1::DiffResponse response;
  RETURN_IF_ERROR(client.Call(std::string(kDiff) + "Diff", request, &response));
  return response.diff();
}

absl::Status StreamBlob(Client& client, const std::string& digest, int fd) {
  content::ReadContentRequest request;
  request.set_digest(digest);
  const std::unique_ptr<Stream> stream =
      client.ServerStream(std::string(kContent) + "Read", request);
  content::ReadContentResponse part;
  while (stream->Read(&part)) {
    RETURN_IF_ERROR(os::WriteFull(fd, part.data().data(), part.data().size()));
  }
  return stream->Finish();
}

absl::Status Export(Client& client, const std::string& name,
                    const std::string& output) {
  if (output.empty() && ::isatty(STDOUT_FILENO)) {
    return absl::InvalidArgumentError(
        "an archive is nothing for a terminal — use -o FILE or redirect the "
        "output");
  }
  ASSIGN_OR_RETURN(const ContainerRecord record, FindContainer(client, name));
  ASSIGN_OR_RETURN(const std::unique_ptr<ScopedLease> lease,
                   ScopedLease::Create(client));
  // Against nothing: everything.
  ASSIGN_OR_RETURN(const containerd::types::Descriptor layer,
                   MakeLayer(client, record, {}, oci::kOciLayer));
  if (output.empty()) {
    return StreamBlob(client, layer.digest(), STDOUT_FILENO);
  }
  ASSIGN_OR_RETURN(
      const os::UniqueFd file,
      os::Open(output, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW, 0600));
  return StreamBlob(client, layer.digest(), file.get());
}

absl::Status PrintDiff(Client& client, const std::string& name) {
  ASSIGN_OR_RETURN(const ContainerRecord record, FindContainer(client, name));
  ASSIGN_OR_RETURN(const std::unique_ptr<ScopedLease> lease,
                   ScopedLease::Create(client));
  ASSIGN_OR_RETURN(const std::unique_ptr<ParentView> parent,
                   ParentView::Make(client, record));
  ASSIGN_OR_RETURN(const Mounts mounts, MountsOf(client, record));
  return WithMounted(SpecsOf(mounts), false, [&](int now) -> absl::Status {
    bool changed = false;
    if (parent->mounts().empty()) {
      return PrintChanges(-1, now, "", 0, &changed);
    }
    return WithMounted(SpecsOf(parent->mounts()), false, [&](int before) {
      return PrintChanges(before, now, "", 0, &changed);
    });
  });
}

struct CommitOptions {
  std::string name;
  std::string image;
  std::string author;
  std::string message;
  std::vector<std::string> changes;
  bool pause = true;
};

// `words` as JSON says them, or else as a shell is to read them.
json WordsOf(const std::string& words) {
  json list = json::parse(words, nullptr, false);
  if (list.is_array()) return list;
  return json::array({"/bin/sh", "-c", words});
}

// "A=b C='d e'" as pairs; "A b c" as one. Quotes as a Dockerfile has them.
std::vector<std::pair<std::string, std::string>> PairsOf(
    const std::string& text) {
  const size_t equals = text.find('=');
  const size_t space = text.find(' ');
  if (equals == std::string::npos || space < equals) {
    if (space == std::string::npos) return {{text, ""}};
    return {{text.substr(0, space), text.substr(space + 1)}};
  }
  std::vector<std::pair<std::string, std::string>> pairs;
  std::string word;
  char quote = 0;
  const auto end_word = [&] {
    const size_t at = word.find('=');
    if (!word.empty()) {
      pairs.emplace_back(word.substr(0, at),
                         at == std::string::npos ? "" : word.substr(at + 1));
    }
    word.clear();
  };
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (quote == 0 && c == ' ') {
      end_word();
    } else if (quote == 0 && (c == '"' || c == '\'')) {
      quote = c;
    } else if (c == quote) {
      quote = 0;
    } else {
      const bool escape = c == '\\' && quote != '\'' && i + 1 < text.size();
      word += escape ? text[++i] : c;
    }
  }
  end_word();
  return pairs;
}

// One Dockerfile instruction on an image's "config".
absl::Status ApplyChange(const std::string& change, json* config) {
  const size_t space = change.find(' ');
  std::string key = absl::AsciiStrToUpper(change.substr(0, space));
  std::string rest = space == std::string::npos ? "" : change.substr(space + 1);
  absl::StripAsciiWhitespace(&rest);
  if (rest.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--change \"", change, "\": nothing after ", key));
  }
  if (key == "CMD") {
    (*config)["Cmd"] = WordsOf(rest);
  } else if (key == "ENTRYPOINT") {
    (*config)["Entrypoint"] = WordsOf(rest);
  } else if (key == "USER") {
    (*config)["User"] = rest;
  } else if (key == "WORKDIR") {
    const std::string old = config->value("WorkingDir", "/");
    (*config)["WorkingDir"] =
        rest[0] == '/' ? rest : absl::StrCat(old, "/", rest);
  } else if (key == "ONBUILD") {
    (*config)["OnBuild"].push_back(rest);
  } else if (key == "STOPSIGNAL") {
    (*config)["StopSignal"] = rest;
  } else if (key == "LABEL") {
    for (const auto& [name, value] : PairsOf(rest)) {
      (*config)["Labels"][name] = value;
    }
  } else if (key == "ENV") {
    json env = json::array();
    const auto pairs = PairsOf(rest);
    if (config->contains("Env") && (*config)["Env"].is_array()) {
      for (const json& old : (*config)["Env"]) {
        const bool replaced =
            std::any_of(pairs.begin(), pairs.end(), [&](const auto& pair) {
              return old.is_string() &&
                     absl::StartsWith(old.get<std::string>(), pair.first + "=");
            });
        if (!replaced) env.push_back(old);
      }
    }
    for (const auto& [name, value] : pairs) {
      env.push_back(absl::StrCat(name, "=", value));
    }
    (*config)["Env"] = env;
  } else if (key == "EXPOSE") {
    for (const auto view : absl::StrSplit(rest, ' ', absl::SkipEmpty())) {
      std::string port(view.data(), view.size());
      if (port.find('/') == std::string::npos) port += "/tcp";
      (*config)["ExposedPorts"][port] = json::object();
    }
  } else if (key == "VOLUME") {
    json list = json::parse(rest, nullptr, false);
    if (!list.is_array()) {
      list = json::array();
      for (const auto view : absl::StrSplit(rest, ' ', absl::SkipEmpty())) {
        list.push_back(std::string(view.data(), view.size()));
      }
    }
    for (const json& path : list) {
      if (path.is_string()) {
        (*config)["Volumes"][path.get<std::string>()] = json::object();
      }
    }
  } else {
    return absl::InvalidArgumentError(absl::StrCat(
        "--change \"", change, "\": ", key,
        " is none of CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD, STOPSIGNAL, "
        "USER, VOLUME, WORKDIR"));
  }
  return absl::OkStatus();
}

absl::Status WriteBlob(Client& client, const std::string& bytes,
                       const std::map<std::string, std::string>& labels,
                       Digest* digest) {
  *digest = Digest::Of(bytes);
  const std::unique_ptr<Stream> stream =
      client.BidiStream(std::string(kContent) + "Write");
  content::WriteContentRequest request;
  request.set_action(content::COMMIT);
  request.set_ref("bulkhead-commit-" + digest->hex());
  request.set_total(static_cast<int64_t>(bytes.size()));
  request.set_expected(digest->str());
  request.set_data(bytes);
  for (const auto& [key, value] : labels)
    (*request.mutable_labels())[key] = value;
  content::WriteContentResponse response;
  const bool answered = stream->Write(request) && stream->Read(&response);
  stream->WritesDone();
  const absl::Status status = stream->Finish();
  if (absl::IsAlreadyExists(status)) return absl::OkStatus();
  if (status.ok() && !answered) {
    return absl::InternalError("the content store did not answer");
  }
  return status;
}

// The image that a new layer makes of another.
absl::StatusOr<Digest> WriteImage(Client& client, const ImageInfo& base,
                                  const containerd::types::Descriptor& layer,
                                  const std::string& diff_id,
                                  const CommitOptions& options,
                                  const std::string& command,
                                  int64_t* size_bytes) {
  json config = json::parse(base.config_json, nullptr, false);
  if (!config.is_object()) {
    return absl::InvalidArgumentError("the image's config is not JSON");
  }
  const std::string now =
      absl::FormatTime(absl::RFC3339_sec, absl::Now(), absl::UTCTimeZone());
  config["created"] = now;
  if (!options.author.empty()) config["author"] = options.author;
  if (!config["config"].is_object()) config["config"] = json::object();
  for (const std::string& change : options.changes) {
    RETURN_IF_ERROR(ApplyChange(change, &config["config"]));
  }
  if (!config["rootfs"].is_object()) config["rootfs"] = json::object();
  config["rootfs"]["type"] = "layers";
  config["rootfs"]["diff_ids"].push_back(diff_id);
  json step = {{"created", now}, {"created_by", command}};
  if (!options.author.empty()) step["author"] = options.author;
  if (!options.message.empty()) step["comment"] = options.message;
  config["history"].push_back(step);
  const std::string text =
      config.dump(-1, ' ', false, json::error_handler_t::replace);
  Digest config_digest;
  RETURN_IF_ERROR(WriteBlob(client, text, {}, &config_digest));

  // All media types of one family: OCI's, which take Docker's layers' bytes.
  oci::Manifest manifest;
  manifest.media_type = oci::kOciManifest;
  manifest.config.media_type = oci::kOciConfig;
  manifest.config.digest = config_digest;
  manifest.config.size_bytes = static_cast<int64_t>(text.size());
  for (oci::Descriptor below : base.manifest.layers) {
    if (below.media_type == oci::kDockerLayer) {
      below.media_type = oci::kOciLayer;
    } else if (below.media_type == oci::kDockerLayerGzip) {
      below.media_type = oci::kOciLayerGzip;
    }
    manifest.layers.push_back(std::move(below));
  }
  oci::Descriptor top;
  top.media_type = layer.media_type();
  ASSIGN_OR_RETURN(top.digest, Digest::Parse(layer.digest()));
  top.size_bytes = layer.size();
  manifest.layers.push_back(top);
  std::map<std::string, std::string> labels = {
      {"containerd.io/gc.ref.content.config", config_digest.str()}};
  for (size_t i = 0; i < manifest.layers.size(); ++i) {
    labels[absl::StrCat("containerd.io/gc.ref.content.l.", i)] =
        manifest.layers[i].digest.str();
  }
  const std::string document = oci::WriteManifest(manifest);
  *size_bytes = static_cast<int64_t>(document.size());
  Digest digest;
  RETURN_IF_ERROR(WriteBlob(client, document, labels, &digest));
  return digest;
}

absl::Status Commit(Client& client, const CommitOptions& options) {
  ASSIGN_OR_RETURN(const ContainerRecord record,
                   FindContainer(client, options.name));
  ASSIGN_OR_RETURN(const oci::Reference name,
                   oci::ParseNormalized(options.image));
  for (const std::string& change : options.changes) {  // Before any work.
    json nothing = json::object();
    RETURN_IF_ERROR(ApplyChange(change, &nothing));
  }
  ASSIGN_OR_RETURN(const std::unique_ptr<ScopedLease> lease,
                   ScopedLease::Create(client));
  ASSIGN_OR_RETURN(const ImageRecord base_record,
                   FindImage(client, record.image()));
  ASSIGN_OR_RETURN(const ImageInfo base,
                   LoadImage(client, base_record, oci::HostPlatform()));
  ASSIGN_OR_RETURN(const std::unique_ptr<ParentView> parent,
                   ParentView::Make(client, record));
  // Files that change meanwhile would be torn.
  ASSIGN_OR_RETURN(const std::optional<TaskRecord> task,
                   GetTask(client, record.id()));
  const bool pause = options.pause && task.has_value() &&
                     task->status() == containerd::v1::types::RUNNING;
  google::protobuf::Empty empty;
  if (pause) {
    tasks::PauseTaskRequest request;
    request.set_container_id(record.id());
    RETURN_IF_ERROR(
        client.Call(std::string(kTasks) + "Pause", request, &empty));
  }
  const absl::StatusOr<containerd::types::Descriptor> layer =
      MakeLayer(client, record, parent->mounts(), oci::kOciLayerGzip);
  if (pause) {
    tasks::ResumeTaskRequest request;
    request.set_container_id(record.id());
    RETURN_IF_ERROR(
        client.Call(std::string(kTasks) + "Resume", request, &empty));
  }
  if (!layer.ok()) return layer.status();
  content::InfoRequest asked;
  asked.set_digest(layer->digest());
  content::InfoResponse info;
  RETURN_IF_ERROR(client.Call(std::string(kContent) + "Info", asked, &info));
  const auto found = info.info().labels().find("containerd.io/uncompressed");
  if (found == info.info().labels().end()) {
    return absl::InternalError("the new layer has no diff id");
  }
  std::string command = "bulkhead commit";
  const json spec = json::parse(record.spec().value(), nullptr, false);
  if (spec.is_object() && spec.contains("process") &&
      spec["process"].is_object() && spec["process"].contains("args") &&
      spec["process"]["args"].is_array()) {
    command.clear();
    for (const json& word : spec["process"]["args"]) {
      if (!word.is_string()) continue;
      absl::StrAppend(&command, command.empty() ? "" : " ",
                      word.get<std::string>());
    }
  }
  int64_t size_bytes = 0;
  ASSIGN_OR_RETURN(const Digest digest,
                   WriteImage(client, base, *layer, found->second, options,
                              command, &size_bytes));
  images::CreateImageRequest create;
  create.mutable_image()->set_name(name.str());
  auto* target = create.mutable_image()->mutable_target();
  target->set_media_type(oci::kOciManifest);
  target->set_digest(digest.str());
  target->set_size(size_bytes);
  images::CreateImageResponse created;
  absl::Status status =
      client.Call(std::string(kImages) + "Create", create, &created);
  if (absl::IsAlreadyExists(status)) {
    images::UpdateImageRequest update;
    *update.mutable_image() = create.image();
    images::UpdateImageResponse updated;
    status = client.Call(std::string(kImages) + "Update", update, &updated);
  }
  RETURN_IF_ERROR(status);
  std::printf("%s\n", digest.str().c_str());
  return absl::OkStatus();
}

int Prune(Session& session) {
  Client& client = session.client();
  const absl::StatusOr<std::vector<ContainerRecord>> all =
      ListContainers(client);
  if (!all.ok()) return Report(all.status());
  const absl::StatusOr<std::map<std::string, TaskRecord>> tasks =
      ListTasks(client);
  if (!tasks.ok()) return Report(tasks.status());
  int code = kExitOk;
  for (const ContainerRecord& record : *all) {
    // Those of other clients are theirs to remove.
    if (LabelOf(record, kLabelName).empty()) continue;
    const auto task = tasks->find(record.id());
    if (task != tasks->end() && IsAlive(task->second)) continue;
    if (LabelOf(record, kLabelRestartStatus) == "running") continue;
    const absl::Status removed = RemoveContainer(client, record, false);
    if (removed.ok()) {
      std::printf("%s\n", record.id().c_str());
    } else {
      code = Report(removed);
    }
  }
  return code;
}

int Done(const absl::Status& status) {
  return status.ok() ? kExitOk : Report(status);
}

}  // namespace

void AddContainerCommands(Command& root) {
  auto rename = std::make_shared<std::pair<std::string, std::string>>();
  root.Sub("rename", "Give a container another name")
      .Argument("CONTAINER", &rename->first, "Name or id")
      .Argument("NAME", &rename->second, "Its new name")
      .Complete(Completes::kContainers)
      .Examples("  bulkhead rename web old-web")
      .Does([rename](Session& session) {
        return Rename(session, rename->first, rename->second);
      });

  auto update = std::make_shared<UpdateOptions>();
  root.Sub("update", "Change limits of containers, running or not")
      .Option("-m,--memory", &update->memory, "Memory limit", "BYTES[k|m|g]")
      .Option("--memory-swap", &update->memory_swap,
              "Memory and swap together; -1: no limit", "BYTES[k|m|g]")
      .Option("--cpus", &update->cpus, "Processors, such as 1.5")
      .Option("-c,--cpu-shares", &update->cpu_shares, "Weight (1024: normal)")
      .Option("--cpuset-cpus", &update->cpuset_cpus,
              "Processors, such as 0-2,4", "LIST")
      .Option("--pids-limit", &update->pids_max, "Most processes; -1: no limit")
      .Option("--restart", &update->restart, "Restart policy", "POLICY")
      .Arguments("CONTAINER", &update->names, "Names or ids")
      .Complete(Completes::kContainers)
      .Examples("  bulkhead update --memory 512m --cpus 0.5 web")
      .Does([update](Session& session) {
        int code = kExitOk;
        for (const std::string& name : update->names) {
          const absl::Status status = Update(session.client(), name, *update);
          if (status.ok()) {
            std::printf("%s\n", name.c_str());
          } else {
            code = Report(status);
          }
        }
        return code;
      });

  AddCopyCommand(root);

  auto exported = std::make_shared<std::pair<std::string, std::string>>();
  root.Sub("export", "Write a container's file system as a tar archive")
      .Option("-o,--output", &exported->second, "File [standard output]",
              "FILE")
      .Argument("CONTAINER", &exported->first, "Name or id")
      .Complete(Completes::kContainers)
      .Examples("  bulkhead export web | tar -t")
      .Does([exported](Session& session) {
        return Done(
            Export(session.client(), exported->first, exported->second));
      });

  auto diff = std::make_shared<std::string>();
  root.Sub("diff", "List what a container changed in its file system")
      .Argument("CONTAINER", diff.get(), "Name or id")
      .Complete(Completes::kContainers)
      .Examples("  bulkhead diff web      (A added, C changed, D deleted)")
      .Does([diff](Session& session) {
        return Done(PrintDiff(session.client(), *diff));
      });

  auto commit = std::make_shared<CommitOptions>();
  auto no_pause = std::make_shared<bool>(false);
  root.Sub("commit", "Make an image of a container")
      .Option("-a,--author", &commit->author, "Who made it", "TEXT")
      .Option("-m,--message", &commit->message, "What for", "TEXT")
      .Option(
          "-c,--change", &commit->changes,
          "Dockerfile instruction on the image's settings: CMD, ENTRYPOINT, "
          "ENV, EXPOSE, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME, WORKDIR",
          "INSTRUCTION")
      .Flag("--no-pause", no_pause.get(), "Let it run meanwhile")
      .Argument("CONTAINER", &commit->name, "Name or id")
      .Argument("IMAGE", &commit->image, "Name of the image")
      .Complete(Completes::kContainers)
      .Examples(
          "  bulkhead commit -m 'with curl' web web:curl\n"
          "  bulkhead commit -c 'CMD [\"nginx\"]' -c 'ENV A=b' web web:2")
      .Does([commit, no_pause](Session& session) {
        commit->pause = !*no_pause;
        return Done(Commit(session.client(), *commit));
      });

  root.Sub("container", "Manage containers")
      .Sub("prune", "Remove all containers that do not run")
      .Examples("  bulkhead container prune")
      .Does([](Session& session) { return Prune(session); });
}

}  // namespace bulkhead::cli
