// ps, inspect, logs.
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "cli/commands.h"
#include "cli/container.h"
#include "cli/format.h"
#include "cli/image.h"
#include "cli/logs.h"
#include "cli/names.h"
#include "cli/spec/options.h"
#include "lib/base/status_macros.h"
#include "lib/oci/reference.h"
#include "lib/os/fd.h"

namespace bulkhead::cli {
namespace {

using ::nlohmann::json;
namespace types = containerd::v1::types;

constexpr size_t kCommandWidth = 20;
constexpr size_t kStatFileBytesMax = 64 << 10;

json SpecOf(const ContainerRecord& record) {
  json spec = json::parse(record.spec().value(), nullptr, false);
  if (!spec.is_object()) spec = json::object();
  return spec;
}

std::vector<std::string> ArgsOf(const json& spec) {
  std::vector<std::string> args;
  if (!spec.contains("process") || !spec["process"].is_object() ||
      !spec["process"].contains("args") ||
      !spec["process"]["args"].is_array()) {
    return args;
  }
  for (const json& arg : spec["process"]["args"]) {
    if (arg.is_string()) args.push_back(arg.get<std::string>());
  }
  return args;
}

// When a process of this machine started; unknown if it is not visible.
absl::Time StartOf(uint32_t pid) {
  const absl::StatusOr<std::string> stat =
      os::ReadFile(absl::StrCat("/proc/", pid, "/stat"), kStatFileBytesMax);
  const absl::StatusOr<std::string> system =
      os::ReadFile("/proc/stat", 4 << 20);
  if (!stat.ok() || !system.ok()) return absl::InfinitePast();
  const size_t paren = stat->rfind(')');
  const size_t boot_at = system->find("btime ");
  if (paren == std::string::npos || boot_at == std::string::npos) {
    return absl::InfinitePast();
  }
  // The fields after the name; the twenty-second of all is the start time.
  const std::vector<std::string> fields =
      absl::StrSplit(stat->substr(paren + 2), ' ');
  int64_t ticks = 0;
  int64_t boot = 0;
  const std::string boot_text = system->substr(boot_at + 6);
  if (fields.size() < 20 || !absl::SimpleAtoi(fields[19], &ticks) ||
      !absl::SimpleAtoi(boot_text.substr(0, boot_text.find('\n')), &boot)) {
    return absl::InfinitePast();
  }
  return absl::FromUnixSeconds(boot) +
         absl::Seconds(static_cast<double>(ticks) /
                       static_cast<double>(::sysconf(_SC_CLK_TCK)));
}

struct State {
  std::string word = "created";  // Docker's: created running paused exited.
  std::string text = "Created";
  uint32_t pid = 0;
  int64_t exit_code = 0;
  absl::Time started_at = absl::InfinitePast();
  absl::Time exited_at = absl::InfinitePast();
};

State StateOf(const ContainerRecord& record, const TaskRecord* task) {
  State state;
  const auto exited = [&] {
    state.word = "exited";
    state.text = absl::StrCat("Exited (", state.exit_code, ")");
    if (state.exited_at != absl::InfinitePast()) {
      absl::StrAppend(&state.text, " ",
                      HumanDuration(absl::Now() - state.exited_at), " ago");
    }
  };
  if (task == nullptr) {
    if (!absl::SimpleAtoi(LabelOf(record, kLabelExitStatus),
                          &state.exit_code)) {
      return state;
    }
    (void)absl::ParseTime(absl::RFC3339_full, LabelOf(record, kLabelExitedAt),
                          &state.exited_at, nullptr);  // Stays unknown.
    exited();
    return state;
  }
  state.pid = task->pid();
  if (task->status() == types::STOPPED) {
    state.pid = 0;
    state.exit_code = task->exit_status();
    if (task->has_exited_at() && task->exited_at().seconds() > 0) {
      state.exited_at =
          ToTime(task->exited_at().seconds(), task->exited_at().nanos());
    }
    exited();
    return state;
  }
  if (task->status() == types::CREATED) return state;
  if (task->status() == types::UNKNOWN) {
    state.word = "unknown";
    state.text = "Unknown";
    return state;
  }
  state.started_at = StartOf(task->pid());
  state.word = "running";
  state.text = "Up";
  if (state.started_at != absl::InfinitePast()) {
    absl::StrAppend(&state.text, " ",
                    HumanDuration(absl::Now() - state.started_at));
  }
  if (task->status() == types::PAUSED || task->status() == types::PAUSING) {
    state.word = "paused";
    state.text += " (Paused)";
  }
  return state;
}

struct PsOptions {
  bool all = false;
  bool quiet = false;
  bool no_trunc = false;
  bool latest = false;
  std::string format;
  std::vector<std::string> filters;
};

bool Matches(const ContainerRecord& record, const State& state,
             const std::vector<std::string>& filters) {
  for (const std::string& filter : filters) {
    const auto [key, value] = SplitPair(filter);
    bool ok = false;
    if (key == "name") {
      ok = absl::StrContains(NameOf(record), value);
    } else if (key == "id") {
      ok = absl::StartsWith(record.id(), value);
    } else if (key == "status") {
      ok = state.word == value;
    } else if (key == "ancestor") {
      ok =
          record.image() == value || oci::FamiliarName(record.image()) == value;
    } else if (key == "label") {
      const auto [name, wanted] = SplitPair(value);
      ok = record.labels().contains(name) &&
           (wanted.empty() || LabelOf(record, name) == wanted);
    }
    if (!ok) return false;
  }
  return true;
}

int Ps(Session& session, const PsOptions& options) {
  for (const std::string& filter : options.filters) {
    const std::string key = SplitPair(filter).first;
    if (key != "name" && key != "id" && key != "status" && key != "ancestor" &&
        key != "label") {
      return Report(
          absl::InvalidArgumentError(absl::StrCat(
              "--filter '", filter, "': name, id, status, ancestor or label")),
          kExitUsage);
    }
  }
  Client& client = session.client();
  const absl::StatusOr<std::map<std::string, TaskRecord>> tasks =
      ListTasks(client);
  if (!tasks.ok()) return Report(tasks.status());
  absl::StatusOr<std::vector<ContainerRecord>> all = ListContainers(client);
  if (!all.ok()) return Report(all.status());
  std::sort(
      all->begin(), all->end(),
      [](const ContainerRecord& a, const ContainerRecord& b) {
        return std::pair(a.created_at().seconds(), a.created_at().nanos()) >
               std::pair(b.created_at().seconds(), b.created_at().nanos());
      });
  if (options.latest && all->size() > 1) all->resize(1);
  Listing listing({{"CONTAINER ID", "ID"},
                   {"IMAGE", "Image"},
                   {"COMMAND", "Command"},
                   {"CREATED", "RunningFor"},
                   {"STATUS", "Status"},
                   {"NAMES", "Names"},
                   {"", "CreatedAt"},
                   {"", "State"},
                   {"", "Pid"},
                   {"", "Labels"},
                   {"", "Runtime"},
                   {"", "Networks"}});
  for (const ContainerRecord& record : *all) {
    const auto task = tasks->find(record.id());
    const State state =
        StateOf(record, task == tasks->end() ? nullptr : &task->second);
    const bool alive = state.word == "running" || state.word == "paused";
    // A status that was asked for is shown without -a.
    const bool wanted =
        options.all || options.latest ||
        std::any_of(options.filters.begin(), options.filters.end(),
                    [](const std::string& filter) {
                      return absl::StartsWith(filter, "status=");
                    });
    if (!alive && !wanted) continue;
    if (!Matches(record, state, options.filters)) continue;
    const std::string id =
        options.no_trunc ? record.id() : ShortId(record.id());
    if (options.quiet) {
      std::printf("%s\n", id.c_str());
      continue;
    }
    std::string command = absl::StrJoin(ArgsOf(SpecOf(record)), " ");
    if (!options.no_trunc) command = Shorten(command, kCommandWidth);
    const absl::Time created =
        ToTime(record.created_at().seconds(), record.created_at().nanos());
    std::vector<std::string> labels;
    for (const auto& [key, value] : record.labels()) {
      labels.push_back(key + "=" + value);
    }
    std::sort(labels.begin(), labels.end());
    listing.Add({id, oci::FamiliarName(record.image()), "\"" + command + "\"",
                 HumanDuration(absl::Now() - created) + " ago", state.text,
                 NameOf(record), absl::FormatTime(created), state.word,
                 absl::StrCat(state.pid), absl::StrJoin(labels, ","),
                 record.runtime().name(), LabelOf(record, kLabelNetwork)});
  }
  if (options.quiet) return kExitOk;
  const absl::StatusOr<std::string> text = listing.Render(options.format);
  if (!text.ok()) return Report(text.status(), kExitUsage);
  std::fputs(text->c_str(), stdout);
  return kExitOk;
}

std::string TimeText(absl::Time time) {
  return time == absl::InfinitePast()
             ? ""
             : absl::FormatTime(absl::RFC3339_full, time, absl::UTCTimeZone());
}

absl::StatusOr<json> InspectContainer(Client& client,
                                      const ContainerRecord& record) {
  ASSIGN_OR_RETURN(const std::optional<TaskRecord> task,
                   GetTask(client, record.id()));
  const State state = StateOf(record, task ? &*task : nullptr);
  const json spec = SpecOf(record);
  std::vector<std::string> args = ArgsOf(spec);
  json labels = json::object();
  for (const auto& [key, value] : record.labels()) labels[key] = value;
  const std::string path = args.empty() ? "" : args[0];
  if (!args.empty()) args.erase(args.begin());
  return json{{"Id", record.id()},
              {"Name", NameOf(record)},
              {"Created", TimeText(ToTime(record.created_at().seconds(),
                                          record.created_at().nanos()))},
              {"Path", path},
              {"Args", args},
              {"State",
               {{"Status", state.word},
                {"Running", state.word == "running" || state.word == "paused"},
                {"Paused", state.word == "paused"},
                {"Pid", state.pid},
                {"ExitCode", state.exit_code},
                {"StartedAt", TimeText(state.started_at)},
                {"FinishedAt", TimeText(state.exited_at)}}},
              {"Image", record.image()},
              {"LogPath", LabelOf(record, kLabelLogPath)},
              {"Runtime", record.runtime().name()},
              {"Snapshotter", record.snapshotter()},
              {"SnapshotKey", record.snapshot_key()},
              {"NetworkMode", LabelOf(record, kLabelNetwork)},
              {"Labels", labels},
              {"Spec", spec}};
}

absl::StatusOr<json> InspectImage(Client& client, const ImageRecord& record) {
  ASSIGN_OR_RETURN(const ImageInfo info,
                   LoadImage(client, record, oci::HostPlatform()));
  json layers = json::array();
  for (size_t i = 0; i < info.manifest.layers.size(); ++i) {
    const oci::Descriptor& layer = info.manifest.layers[i];
    layers.push_back({{"Digest", layer.digest.str()},
                      {"MediaType", layer.media_type},
                      {"Size", layer.size_bytes},
                      {"ChainID", info.chain_ids[i]}});
  }
  json labels = json::object();
  for (const auto& [key, value] : record.labels()) labels[key] = value;
  json config = json::parse(info.config_json, nullptr, false);
  return json{{"Id", record.target().digest()},
              {"Name", record.name()},
              {"MediaType", record.target().media_type()},
              {"Created", info.config.created},
              {"Platform", oci::FormatPlatform(info.config.platform)},
              {"CompressedSize", info.compressed_bytes},
              {"Layers", layers},
              {"Labels", labels},
              {"ImageConfig", config.is_discarded() ? json() : config}};
}

// "State.Status" within a document; null if there is no such field.
std::string FieldOf(const json& document, const std::string& path) {
  const json* at = &document;
  for (const std::string& name :
       std::vector<std::string>(absl::StrSplit(path, '.', absl::SkipEmpty()))) {
    if (!at->is_object() || !at->contains(name)) return "<no value>";
    at = &(*at)[name];
  }
  return at->is_string() ? at->get<std::string>() : at->dump();
}

std::string RenderDocument(const std::string& shape, const json& document) {
  std::string out;
  size_t at = 0;
  for (;;) {
    const size_t open = shape.find("{{", at);
    const size_t close = shape.find("}}", open);
    if (open == std::string::npos || close == std::string::npos) break;
    out.append(shape, at, open - at);
    std::string name(
        absl::StripAsciiWhitespace(shape.substr(open + 2, close - open - 2)));
    const bool as_json = absl::StartsWith(name, "json ");
    if (as_json) name = name.substr(5);
    if (name == ".") {
      out += document.dump();
    } else {
      const std::string value = FieldOf(document, name);
      out += as_json ? json(value).dump() : value;
    }
    at = close + 2;
  }
  return out + shape.substr(at);
}

int Inspect(Session& session, const std::vector<std::string>& names,
            const std::string& format, const std::string& type) {
  if (!type.empty() && type != "container" && type != "image") {
    return Report(absl::InvalidArgumentError("--type: 'container' or 'image'"),
                  kExitUsage);
  }
  Client& client = session.client();
  json found = json::array();
  int code = kExitOk;
  for (const std::string& name : names) {
    absl::StatusOr<json> document = absl::NotFoundError("");
    const absl::StatusOr<ContainerRecord> container =
        type == "image" ? absl::NotFoundError("") : FindContainer(client, name);
    if (container.ok()) {
      document = InspectContainer(client, *container);
    } else if (!absl::IsNotFound(container.status())) {
      document = container.status();
    } else {
      const absl::StatusOr<ImageRecord> image = type == "container"
                                                    ? absl::NotFoundError("")
                                                    : FindImage(client, name);
      if (image.ok()) {
        document = InspectImage(client, *image);
      } else if (!absl::IsNotFound(image.status())) {
        document = image.status();
      } else {
        document = absl::NotFoundError(
            absl::StrCat("No such ", type.empty() ? "container or image" : type,
                         ": ", name));
      }
    }
    if (document.ok()) {
      found.push_back(*document);
    } else {
      code = Report(document.status());
    }
  }
  if (format.empty() || format == "json") {
    std::printf("%s\n", found
                            .dump(format.empty() ? 4 : -1, ' ', false,
                                  json::error_handler_t::replace)
                            .c_str());
  } else {
    for (const json& document : found) {
      std::printf("%s\n", RenderDocument(format, document).c_str());
    }
  }
  return code;
}

struct LogsOptions {
  bool follow = false;
  bool timestamps = false;
  std::string tail = "all";
  std::string since;
  std::string until;
  std::string name;
};

int Logs(Session& session, const LogsOptions& options) {
  Client& client = session.client();
  const absl::StatusOr<ContainerRecord> record =
      FindContainer(client, options.name);
  if (!record.ok()) return Report(record.status());
  const std::string path = LabelOf(*record, kLabelLogPath);
  struct stat info {};
  if (path.empty()) {
    return Report(absl::NotFoundError(absl::StrCat(
        "container ", options.name, " has no log: another client made it")));
  }
  LogOptions print;
  print.timestamps = options.timestamps;
  print.follow = options.follow;
  if (options.tail != "all" &&
      (!absl::SimpleAtoi(options.tail, &print.tail) || print.tail < 0)) {
    return Report(absl::InvalidArgumentError("--tail: a number or 'all'"),
                  kExitUsage);
  }
  for (const auto& [text, when] : {std::pair(options.since, &print.since),
                                   std::pair(options.until, &print.until)}) {
    if (text.empty()) continue;
    const absl::StatusOr<absl::Time> parsed = ParseWhen(text, absl::Now());
    if (!parsed.ok()) return Report(parsed.status(), kExitUsage);
    *when = *parsed;
  }
  const bool as_json = LabelOf(*record, kLabelLogFormat) == "json";
  const absl::StatusOr<std::optional<TaskRecord>> task =
      GetTask(client, record->id());
  const bool alive = task.ok() && task->has_value() && IsAlive(**task);
  if (!alive) print.follow = false;
  if (!alive && ::stat(path.c_str(), &info) != 0) {
    if (errno == EACCES) {
      return Report(absl::PermissionDeniedError(
          absl::StrCat(path, " is not readable for you — try as root")));
    }
    return kExitOk;  // It never wrote anything.
  }
  // Following ends with the container.
  auto* stop = new os::UniqueFd(::eventfd(0, EFD_CLOEXEC));
  if (print.follow) {
    std::thread([&client, stop, id = record->id()] {
      (void)WaitTask(client, id);  // Over either way.
      const uint64_t one = 1;
      (void)!::write(stop->get(), &one, sizeof(one));  // Cannot fail.
    }).detach();
  }
  const absl::Status printed = PrintLog(path, as_json, print, stop->get());
  return printed.ok() ? kExitOk : Report(printed);
}

}  // namespace

void DeclareInspect(Command& parent, Completes completes,
                    const std::string& type) {
  struct InspectOptions {
    std::vector<std::string> names;
    std::string format;
    std::string type;
  };
  auto options = std::make_shared<InspectOptions>();
  options->type = type;
  Command command = parent.Sub(
      "inspect",
      absl::StrCat("Show everything about ",
                   type.empty() ? "containers or images" : type + "s",
                   ", as JSON"));
  if (type.empty()) {
    command.Option("--type", &options->type, "container or image", "TYPE");
  }
  command
      .Option("-f,--format", &options->format, "json, or a template", "FORMAT")
      .Arguments("NAME", &options->names, "Names, ids or digests")
      .Complete(completes)
      .Examples(type == "image"
                    ? "  bulkhead image inspect -f '{{.Platform}}' debian:12"
                    : "  bulkhead inspect web\n"
                      "  bulkhead inspect -f '{{.State.Pid}}' web")
      .Does([options](Session& session) {
        return Inspect(session, options->names, options->format, options->type);
      });
}

void AddListCommands(Command& root) {
  auto ps = std::make_shared<PsOptions>();
  root.Sub("ps", "List containers")
      .Flag("-a,--all", &ps->all, "Those that are not running, too")
      .Flag("-q,--quiet", &ps->quiet, "Only ids")
      .Flag("-l,--latest", &ps->latest, "Only the newest")
      .Flag("--no-trunc", &ps->no_trunc, "Cut nothing")
      .Option("-f,--filter", &ps->filters,
              "name, id, status, ancestor or label", "KEY=VALUE")
      .Option("--format", &ps->format, "json, or a template", "FORMAT")
      .Examples(
          "  bulkhead ps -a\n"
          "  bulkhead ps --format '{{.Names}}: {{.Status}}'")
      .Does([ps](Session& session) { return Ps(session, *ps); });

  DeclareInspect(root, Completes::kContainers, "");

  auto logs = std::make_shared<LogsOptions>();
  root.Sub("logs", "Show what a container printed")
      .Flag("-f,--follow", &logs->follow, "Go on until it ends")
      .Flag("-t,--timestamps", &logs->timestamps, "Show when")
      .Option("--tail", &logs->tail, "Only the last lines", "N|all")
      .Option("--since", &logs->since, "Only later output", "TIME|10m")
      .Option("--until", &logs->until, "Only earlier output", "TIME|10m")
      .Argument("CONTAINER", &logs->name, "Name or id")
      .Complete(Completes::kContainers)
      .Examples("  bulkhead logs -f --tail 20 web")
      .Does([logs](Session& session) { return Logs(session, *logs); });
}

}  // namespace bulkhead::cli
