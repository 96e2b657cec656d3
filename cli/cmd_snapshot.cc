// snapshot ls, tree, usage, diff, mount, rm.
#include "cli/cmd_snapshot.h"

#include <google/protobuf/empty.pb.h>

#include <climits>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "cli/client.h"
#include "cli/format.h"
#include "cli/image.h"
#include "cli/names.h"
#include "cli/rootfs_view.h"
#include "cli/run_options.h"
#include "cli/tree_diff.h"
#include "lib/base/status_macros.h"
#include "lib/os/mount.h"
#include "proto/containerd/services/snapshots/v1/snapshots.pb.h"

namespace bulkhead::cli {
namespace {

namespace v1 = containerd::services::snapshots::v1;
using ::nlohmann::json;
using Names = std::vector<std::string>;
using Infos = std::map<std::string, v1::Info>;
using Specs = std::vector<os::MountSpec>;

constexpr size_t kShortDigits = 12;
constexpr char kDigestPrefix[] = "sha256:";
constexpr char kRootLabel[] = "containerd.io/gc.root";

int Done(const absl::Status& status) {
  return status.ok() ? kExitOk : Report(status);
}

const char* KindOf(const v1::Info& info) {
  switch (info.kind()) {
    case v1::VIEW:
      return "view";
    case v1::ACTIVE:
      return "active";
    case v1::COMMITTED:
      return "committed";
    default:
      return "unknown";
  }
}

// Digests cut as Docker cuts them; other names whole.
std::string Short(const std::string& name) {
  constexpr size_t kPrefix = sizeof(kDigestPrefix) - 1;
  if (absl::StartsWith(name, kDigestPrefix) &&
      name.size() > kPrefix + kShortDigits) {
    return name.substr(kPrefix, kShortDigits);
  }
  return Printable(name);
}

std::string TimeText(const google::protobuf::Timestamp& at) {
  return absl::FormatTime(
      "%Y-%m-%dT%H:%M:%SZ",
      absl::FromUnixSeconds(at.seconds()) + absl::Nanoseconds(at.nanos()),
      absl::UTCTimeZone());
}

// One snapshotter of the suite, as the commands use it.
class Snapshots {
 public:
  Snapshots(Client& client, const std::string& text)
      : client_(client), snapshotter_(DefaultSnapshotter(client, text)) {}

  const std::string& snapshotter() const { return snapshotter_; }

  absl::StatusOr<Infos> List() {
    Infos found;
    const absl::Status status = RetryRead(client_, [&]() -> absl::Status {
      found.clear();
      v1::ListSnapshotsRequest request;
      request.set_snapshotter(snapshotter_);
      const std::unique_ptr<Stream> stream =
          client_.ServerStream(std::string(kSnapshots) + "List", request);
      v1::ListSnapshotsResponse batch;
      while (stream->Read(&batch)) {
        for (const v1::Info& info : batch.info()) found[info.name()] = info;
      }
      return stream->Finish();
    });
    RETURN_IF_ERROR(status);
    return found;
  }

  // `text` is a name, or enough of its beginning; "sha256:" may be left out.
  static absl::StatusOr<v1::Info> Find(const Infos& all,
                                       const std::string& text) {
    const auto exact = all.find(text);
    if (exact != all.end()) return exact->second;
    std::vector<v1::Info> found;
    for (const auto& [name, info] : all) {
      if (!text.empty() && (absl::StartsWith(name, text) ||
                            absl::StartsWith(name, kDigestPrefix + text))) {
        found.push_back(info);
      }
    }
    if (found.size() == 1) return found[0];
    if (found.empty()) {
      return absl::NotFoundError(absl::StrCat("no snapshot ", text));
    }
    return absl::InvalidArgumentError(absl::StrCat(
        found.size(), " snapshots begin with ", text, " — give more of it"));
  }

  absl::StatusOr<v1::UsageResponse> Usage(const std::string& key) {
    v1::UsageRequest request;
    request.set_snapshotter(snapshotter_);
    request.set_key(key);
    v1::UsageResponse response;
    RETURN_IF_ERROR(Call("Usage", request, &response));
    return response;
  }

  absl::StatusOr<Specs> MountsOf(const std::string& key) {
    v1::MountsRequest request;
    request.set_snapshotter(snapshotter_);
    request.set_key(key);
    v1::MountsResponse response;
    RETURN_IF_ERROR(Call("Mounts", request, &response));
    return SpecsOf(response.mounts());
  }

  // A view of the committed `parent`.
  absl::StatusOr<Specs> View(const std::string& key, const std::string& parent,
                             bool lasting) {
    v1::ViewSnapshotRequest request;
    request.set_snapshotter(snapshotter_);
    request.set_key(key);
    request.set_parent(parent);
    if (lasting) (*request.mutable_labels())[kRootLabel] = "cli";
    v1::ViewSnapshotResponse response;
    RETURN_IF_ERROR(Call("View", request, &response));
    return SpecsOf(response.mounts());
  }

  absl::Status Remove(const std::string& key) {
    v1::RemoveSnapshotRequest request;
    request.set_snapshotter(snapshotter_);
    request.set_key(key);
    google::protobuf::Empty unused;
    return Call("Remove", request, &unused);
  }

 private:
  template <typename Mounts>
  static Specs SpecsOf(const Mounts& mounts) {
    Specs specs;
    for (const auto& mount : mounts) {
      specs.push_back({mount.type(),
                       mount.source(),
                       mount.target(),
                       {mount.options().begin(), mount.options().end()}});
    }
    return specs;
  }
  absl::Status Call(const char* method,
                    const google::protobuf::MessageLite& request,
                    google::protobuf::MessageLite* response) {
    return client_.Call(std::string(kSnapshots) + method, request, response);
  }

  Client& client_;
  const std::string snapshotter_;
};

struct ListOptions {
  std::string snapshotter;
  std::string format;
  bool quiet = false;
};

absl::Status List(Session& session, const ListOptions& options) {
  Snapshots snapshots(session.client(), options.snapshotter);
  ASSIGN_OR_RETURN(const Infos all, snapshots.List());
  if (options.quiet) {
    for (const auto& [name, info] : all) {
      std::printf("%s\n", Printable(name).c_str());
    }
    return absl::OkStatus();
  }
  Listing listing({{"NAME", "ShortName"},
                   {"PARENT", "ShortParent"},
                   {"KIND", "Kind"},
                   {"CREATED", "CreatedAt"},
                   {"", "Name"},
                   {"", "Parent"},
                   {"", "Snapshotter"},
                   {"", "Labels"}});
  for (const auto& [name, info] : all) {
    listing.Add({Short(name), Short(info.parent()), KindOf(info),
                 TimeText(info.created_at()), name, info.parent(),
                 snapshots.snapshotter(),
                 absl::StrJoin(std::map<std::string, std::string>(
                                   info.labels().begin(), info.labels().end()),
                               ",", absl::PairFormatter("="))});
  }
  ASSIGN_OR_RETURN(const std::string text, listing.Render(options.format));
  std::fputs(text.c_str(), stdout);
  return absl::OkStatus();
}

using Children = std::multimap<std::string, const v1::Info*>;

json TreeJson(const Children& children, const std::string& parent) {
  json out = json::array();
  const auto [begin, end] = children.equal_range(parent);
  for (auto it = begin; it != end; ++it) {
    out.push_back({{"Name", it->second->name()},
                   {"Kind", KindOf(*it->second)},
                   {"Children", TreeJson(children, it->second->name())}});
  }
  return out;
}

void PrintTree(const Children& children, const std::string& parent,
               const std::string& indent) {
  const auto [begin, end] = children.equal_range(parent);
  for (auto it = begin; it != end; ++it) {
    const bool last = std::next(it) == end;
    const v1::Info& info = *it->second;
    const bool top = parent.empty();
    std::printf("%s%s%s  (%s)\n", indent.c_str(),
                top    ? ""
                : last ? "└─ "
                       : "├─ ",
                Short(info.name()).c_str(), KindOf(info));
    PrintTree(children, info.name(),
              top ? indent : indent + (last ? "   " : "│  "));
  }
}

absl::Status Tree(Session& session, const ListOptions& options) {
  Snapshots snapshots(session.client(), options.snapshotter);
  ASSIGN_OR_RETURN(const Infos all, snapshots.List());
  Children children;
  for (const auto& [name, info] : all) {
    // One whose parent another namespace owns stands at the top.
    const bool known = all.contains(info.parent());
    children.emplace(known ? info.parent() : "", &info);
  }
  if (options.format == "json") {
    std::printf("%s\n", TreeJson(children, "")
                            .dump(2, ' ', false, json::error_handler_t::replace)
                            .c_str());
    return absl::OkStatus();
  }
  if (!options.format.empty()) {
    return absl::InvalidArgumentError(
        "--format of a tree is json, or not given");
  }
  PrintTree(children, "", "");
  return absl::OkStatus();
}

absl::Status Usage(Session& session, const ListOptions& options,
                   const Names& names) {
  Snapshots snapshots(session.client(), options.snapshotter);
  ASSIGN_OR_RETURN(const Infos all, snapshots.List());
  Names wanted;
  for (const std::string& text : names) {
    ASSIGN_OR_RETURN(const v1::Info info, Snapshots::Find(all, text));
    wanted.push_back(info.name());
  }
  if (names.empty()) {
    for (const auto& [name, info] : all) wanted.push_back(name);
  }
  Listing listing({{"NAME", "ShortName"},
                   {"KIND", "Kind"},
                   {"SIZE", "HumanSize"},
                   {"INODES", "Inodes"},
                   {"", "Name"},
                   {"", "Size"}});
  for (const std::string& name : wanted) {
    const absl::StatusOr<v1::UsageResponse> usage = snapshots.Usage(name);
    if (absl::IsNotFound(usage.status()) && names.empty()) continue;  // Gone.
    RETURN_IF_ERROR(usage.status());
    listing.Add({Short(name), KindOf(all.at(name)),
                 HumanBytes(static_cast<double>(usage->size())),
                 absl::StrCat(usage->inodes()), name,
                 absl::StrCat(usage->size())});
  }
  ASSIGN_OR_RETURN(const std::string text, listing.Render(options.format));
  std::fputs(text.c_str(), stdout);
  return absl::OkStatus();
}

// How to look at a snapshot; a committed one by a view that the client's lease
// lets go of.
absl::StatusOr<Specs> Look(Snapshots& snapshots, const v1::Info& info) {
  if (info.kind() != v1::COMMITTED) return snapshots.MountsOf(info.name());
  return snapshots.View("bulkhead-look-" + NewId().substr(0, 16), info.name(),
                        false);
}

absl::Status Diff(Session& session, const std::string& snapshotter,
                  const std::string& name, const std::string& other) {
  Client& client = session.client();
  Snapshots snapshots(client, snapshotter);
  ASSIGN_OR_RETURN(const Infos all, snapshots.List());
  ASSIGN_OR_RETURN(const v1::Info info, Snapshots::Find(all, name));
  std::string base = info.parent();
  if (!other.empty()) {
    ASSIGN_OR_RETURN(const v1::Info found, Snapshots::Find(all, other));
    base = found.name();
  }
  ASSIGN_OR_RETURN(const std::unique_ptr<ScopedLease> lease,
                   ScopedLease::Create(client));
  ASSIGN_OR_RETURN(const Specs now, Look(snapshots, info));
  Specs before;
  if (!base.empty()) {
    const auto found = all.find(base);
    if (found == all.end()) {
      return absl::NotFoundError(absl::StrCat("no snapshot ", base));
    }
    ASSIGN_OR_RETURN(before, Look(snapshots, found->second));
  }
  return WithMounted(now, false, [&](int root) -> absl::Status {
    bool changed = false;
    if (before.empty()) return PrintChanges(-1, root, "", 0, &changed);
    return WithMounted(before, false, [&](int old) {
      return PrintChanges(old, root, "", 0, &changed);
    });
  });
}

struct MountOptions {
  std::string snapshotter;
  std::string name;
  std::string dir;
  bool print = false;
};

absl::Status MountOn(Session& session, const MountOptions& options) {
  Snapshots snapshots(session.client(), options.snapshotter);
  ASSIGN_OR_RETURN(const Infos all, snapshots.List());
  ASSIGN_OR_RETURN(const v1::Info info, Snapshots::Find(all, options.name));
  char resolved[PATH_MAX];
  if (::realpath(options.dir.c_str(), resolved) == nullptr) {
    return absl::NotFoundError(absl::StrCat("no directory ", options.dir));
  }
  const std::string dir = resolved;
  Specs mounts;
  std::string view;
  if (info.kind() == v1::COMMITTED) {
    view = absl::StrCat("mount-", NewId().substr(0, kShortDigits));
    ASSIGN_OR_RETURN(mounts, snapshots.View(view, info.name(), true));
  } else {
    ASSIGN_OR_RETURN(mounts, snapshots.MountsOf(info.name()));
  }
  absl::Status status;
  if (options.print) {
    for (const os::MountSpec& mount : mounts) {
      std::printf("mount -t %s %s %s -o %s\n", mount.type.c_str(),
                  mount.source.c_str(), dir.c_str(),
                  absl::StrJoin(mount.options, ",").c_str());
    }
  } else {
    status = os::MountAll(mounts, dir);
  }
  if (!status.ok()) {
    if (!view.empty()) (void)snapshots.Remove(view);  // The first error counts.
    return status;
  }
  if (!view.empty()) {
    std::fprintf(stderr,
                 "read-only, by a view: when done, umount %s && bulkhead "
                 "snapshot rm %s\n",
                 dir.c_str(), view.c_str());
  }
  return absl::OkStatus();
}

int Remove(Session& session, const std::string& snapshotter,
           const Names& names) {
  Snapshots snapshots(session.client(), snapshotter);
  const absl::StatusOr<Infos> all = snapshots.List();
  if (!all.ok()) return Report(all.status());
  int code = kExitOk;
  for (const std::string& text : names) {
    const absl::StatusOr<v1::Info> info = Snapshots::Find(*all, text);
    const absl::Status removed =
        info.ok() ? snapshots.Remove(info->name()) : info.status();
    if (removed.ok()) {
      std::printf("%s\n", Printable(info->name()).c_str());
    } else {
      code = Report(removed);
    }
  }
  return code;
}

constexpr char kSnapshotterHelp[] = "Which snapshotter [the default one]";

}  // namespace

void AddSnapshotCommands(Command& root) {
  Command group = root.Sub("snapshot", "Look at and remove snapshots");

  auto list = std::make_shared<ListOptions>();
  group.Sub("ls", "List snapshots")
      .Flag("-q,--quiet", &list->quiet, "Only whole names")
      .Option("--snapshotter", &list->snapshotter, kSnapshotterHelp, "NAME")
      .Option("--format", &list->format, "json, or a template", "FORMAT")
      .Examples(
          "  bulkhead snapshot ls\n"
          "  bulkhead snapshot ls --snapshotter erofs --format json")
      .Does([list](Session& session) { return Done(List(session, *list)); });

  auto tree = std::make_shared<ListOptions>();
  group.Sub("tree", "Show which snapshot is on top of which")
      .Option("--snapshotter", &tree->snapshotter, kSnapshotterHelp, "NAME")
      .Option("--format", &tree->format, "json", "FORMAT")
      .Examples("  bulkhead snapshot tree")
      .Does([tree](Session& session) { return Done(Tree(session, *tree)); });

  auto usage = std::make_shared<ListOptions>();
  auto used = std::make_shared<Names>();
  group.Sub("usage", "Show what snapshots take on disk, without their parents")
      .Option("--snapshotter", &usage->snapshotter, kSnapshotterHelp, "NAME")
      .Option("--format", &usage->format, "json, or a template", "FORMAT")
      .Arguments("NAME", used.get(), "Names, or how they begin [all]", false)
      .Examples(
          "  bulkhead snapshot usage\n"
          "  bulkhead snapshot usage --format json web")
      .Does([usage, used](Session& session) {
        return Done(Usage(session, *usage, *used));
      });

  struct DiffOptions {
    std::string snapshotter, name, other;
  };
  auto diff = std::make_shared<DiffOptions>();
  group.Sub("diff", "List what a snapshot changes in its parent, or another")
      .Option("--snapshotter", &diff->snapshotter, kSnapshotterHelp, "NAME")
      .Argument("NAME", &diff->name, "Name, or how it begins")
      .Argument("OTHER", &diff->other, "Compare with this [its parent]", false)
      .Examples(
          "  bulkhead snapshot diff web     (A added, C changed, D "
          "deleted)")
      .Does([diff](Session& session) {
        return Done(Diff(session, diff->snapshotter, diff->name, diff->other));
      });

  auto mount = std::make_shared<MountOptions>();
  group.Sub("mount", "Mount a snapshot on a directory")
      .Flag("--print", &mount->print, "Print the mount commands instead")
      .Option("--snapshotter", &mount->snapshotter, kSnapshotterHelp, "NAME")
      .Argument("NAME", &mount->name, "Name, or how it begins")
      .Argument("DIRECTORY", &mount->dir, "Where")
      .Examples("  bulkhead snapshot mount web /mnt && ls /mnt && umount /mnt")
      .Does(
          [mount](Session& session) { return Done(MountOn(session, *mount)); });

  struct RemoveOptions {
    std::string snapshotter;
    Names names;
  };
  auto removed = std::make_shared<RemoveOptions>();
  group.Sub("rm", "Remove snapshots that nothing is on top of")
      .Option("--snapshotter", &removed->snapshotter, kSnapshotterHelp, "NAME")
      .Arguments("NAME", &removed->names, "Names, or how they begin")
      .Examples("  bulkhead snapshot rm web-old")
      .Does([removed](Session& session) {
        return Remove(session, removed->snapshotter, removed->names);
      });
}

}  // namespace bulkhead::cli
