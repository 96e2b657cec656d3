// volume ls, create, inspect, rm.
#include "cli/cmd_volume.h"

#include <cstdio>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>

#include "absl/strings/str_cat.h"
#include "cli/command.h"
#include "cli/container.h"
#include "cli/format.h"
#include "cli/spec/options.h"
#include "cli/volumes.h"

namespace bulkhead::cli {
namespace {

using ::nlohmann::json;
using Names = std::vector<std::string>;

int List(Session& session, bool quiet, const std::string& format) {
  const absl::StatusOr<std::vector<Volume>> all =
      Volumes(session.client()).List();
  if (!all.ok()) return Report(all.status());
  Listing listing(
      {{"VOLUME NAME", "Name"}, {"CREATED", "CreatedAt"}, {"", "Mountpoint"}});
  for (const Volume& volume : *all) {
    if (quiet) std::printf("%s\n", volume.name.c_str());
    listing.Add({volume.name, volume.created_at, volume.path});
  }
  if (quiet) return kExitOk;
  const absl::StatusOr<std::string> text = listing.Render(format);
  if (!text.ok()) return Report(text.status(), kExitUsage);
  std::fputs(text->c_str(), stdout);
  return kExitOk;
}

int Inspect(Session& session, const Names& names) {
  const Volumes volumes(session.client());
  json found = json::array();
  int code = kExitOk;
  for (const std::string& name : names) {
    const absl::StatusOr<Volume> volume = volumes.Find(name);
    if (!volume.ok()) {
      code = Report(volume.status());
      continue;
    }
    found.push_back({{"Name", volume->name},
                     {"Mountpoint", volume->path},
                     {"CreatedAt", volume->created_at},
                     {"Anonymous", volume->anonymous},
                     {"Labels", volume->labels}});
  }
  std::printf(
      "%s\n",
      found.dump(4, ' ', false, json::error_handler_t::replace).c_str());
  return code;
}

int Remove(Session& session, const Names& names) {
  Client& client = session.client();
  const absl::StatusOr<std::vector<ContainerRecord>> all =
      ListContainers(client);
  if (!all.ok()) return Report(all.status());
  std::map<std::string, std::string> users;
  for (const ContainerRecord& record : *all) {
    for (const std::string& name : VolumesOf(record)) {
      users[name] = NameOf(record);
    }
  }
  const Volumes volumes(client);
  int code = kExitOk;
  for (const std::string& name : names) {
    const auto user = users.find(name);
    const absl::Status removed =
        user == users.end() ? volumes.Remove(name)
                            : absl::FailedPreconditionError(absl::StrCat(
                                  "volume ", name, " is used by container ",
                                  user->second, " — remove that first"));
    if (removed.ok()) {
      std::printf("%s\n", name.c_str());
    } else {
      code = Report(removed);
    }
  }
  return code;
}

struct CreateOptions {
  std::string name;
  Names labels;
};

int Create(Session& session, const CreateOptions& options) {
  std::map<std::string, std::string> labels;
  for (const std::string& text : options.labels) {
    const auto [key, value] = SplitPair(text);
    labels[key] = value;
  }
  bool made = false;
  const absl::StatusOr<Volume> volume =
      Volumes(session.client()).Create(options.name, labels, &made);
  if (!volume.ok()) return Report(volume.status());
  std::printf("%s\n", volume->name.c_str());
  return kExitOk;
}

}  // namespace

void AddVolumeCommands(Command& root) {
  Command group = root.Sub("volume", "Manage volumes");

  auto quiet = std::make_shared<bool>(false);
  auto format = std::make_shared<std::string>();
  group.Sub("ls", "List volumes")
      .Flag("-q,--quiet", quiet.get(), "Only names")
      .Option("--format", format.get(), "json, or a template", "FORMAT")
      .Examples("  bulkhead volume ls")
      .Does([quiet, format](Session& session) {
        return List(session, *quiet, *format);
      });

  auto create = std::make_shared<CreateOptions>();
  group.Sub("create", "Make a volume; one that is there stays as it is")
      .Option("-l,--label", &create->labels, "Label", "KEY=VALUE")
      .Argument("NAME", &create->name, "Name [a random one]", false)
      .Examples("  bulkhead volume create data")
      .Does([create](Session& session) { return Create(session, *create); });

  auto inspected = std::make_shared<Names>();
  group.Sub("inspect", "Show everything about volumes, as JSON")
      .Arguments("NAME", inspected.get(), "Names")
      .Examples("  bulkhead volume inspect data")
      .Does([inspected](Session& session) {
        return Inspect(session, *inspected);
      });

  auto removed = std::make_shared<Names>();
  group.Sub("rm", "Remove volumes that no container uses")
      .Arguments("NAME", removed.get(), "Names")
      .Examples("  bulkhead volume rm data")
      .Does([removed](Session& session) { return Remove(session, *removed); });
}

}  // namespace bulkhead::cli
