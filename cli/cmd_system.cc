// events, info, version, namespace, snapshot, content.
#include <google/protobuf/empty.pb.h>
#include <google/protobuf/unknown_field_set.h>

#include <cstdio>
#include <memory>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "cli/commands.h"
#include "cli/container.h"
#include "cli/event_text.h"
#include "cli/format.h"
#include "cli/image.h"
#include "cli/names.h"
#include "cli/run_options.h"
#include "cli/spec/options.h"
#include "lib/base/status_macros.h"
#include "proto/containerd/services/content/v1/content.pb.h"
#include "proto/containerd/services/events/v1/events.pb.h"
#include "proto/containerd/services/introspection/v1/introspection.pb.h"
#include "proto/containerd/services/namespaces/v1/namespaces.pb.h"
#include "proto/containerd/services/version/v1/version.pb.h"

namespace bulkhead::cli {
namespace {

namespace namespaces = containerd::services::namespaces::v1;
using ::google::protobuf::Empty;

constexpr char kClientVersion[] = "0.1.0";

struct EventsOptions {
  std::string format;
  std::vector<std::string> filters;
  bool all_namespaces = false;
  int64_t since = -1;
};

// The number of an event, which the suite sends beside containerd's own fields
// to those who ask for it (services/metadata/object_services.h).
uint64_t SequenceOf(const containerd::types::Envelope& envelope) {
  constexpr int kSequenceField = 1000;
  const auto& unknown = envelope.GetReflection()->GetUnknownFields(envelope);
  for (int i = 0; i < unknown.field_count(); ++i) {
    if (unknown.field(i).number() == kSequenceField &&
        unknown.field(i).type() ==
            google::protobuf::UnknownField::TYPE_VARINT) {
      return unknown.field(i).varint();
    }
  }
  return 0;
}

int Events(Session& session, const EventsOptions& options) {
  Client& client = session.client();
  containerd::services::events::v1::SubscribeRequest request;
  for (const std::string& filter : options.filters) {
    request.add_filters(filter);
  }
  if (options.since >= 0) {
    client.AddHeader("bulkhead-events-after", absl::StrCat(options.since));
  }
  const std::unique_ptr<Stream> stream =
      client.ServerStream(std::string(kEvents) + "Subscribe", request);
  containerd::types::Envelope envelope;
  while (stream->Read(&envelope)) {
    if (!options.all_namespaces && envelope.namespace_() != client.ns()) {
      continue;
    }
    const absl::StatusOr<std::string> line =
        EventLine(envelope, options.format);
    if (!line.ok()) return Report(line.status(), kExitUsage);
    if (options.since >= 0) {
      std::printf("%llu ",
                  static_cast<unsigned long long>(SequenceOf(envelope)));
    }
    std::printf("%s\n", line->c_str());
    std::fflush(stdout);
  }
  const absl::Status status = stream->Finish();
  return status.ok() ? kExitOk : Report(status);
}

absl::StatusOr<std::pair<std::string, std::string>> ServerVersion(
    Client& client) {
  Empty empty;
  containerd::services::version::v1::VersionResponse response;
  RETURN_IF_ERROR(client.Call(std::string(kVersion) + "Version", empty,
                              &response, absl::Seconds(10)));
  return std::pair(response.version(), response.revision());
}

int Version(Session& session, const std::string& format) {
  const auto server = ServerVersion(session.client());
  if (!format.empty()) {
    Listing listing(
        {{"CLIENT", "Client"}, {"SERVER", "Server"}, {"REVISION", "Revision"}});
    listing.Add({kClientVersion, server.ok() ? server->first : "",
                 server.ok() ? server->second : ""});
    const absl::StatusOr<std::string> text = listing.Render(format);
    if (!text.ok()) return Report(text.status(), kExitUsage);
    std::fputs(text->c_str(), stdout);
  } else {
    std::printf("Client: %s\n", kClientVersion);
    if (server.ok()) {
      std::printf("Server: %s (revision %s)\n", server->first.c_str(),
                  server->second.c_str());
    }
  }
  return server.ok() ? kExitOk : Report(server.status());
}

int Info(Session& session) {
  Client& client = session.client();
  const auto version = ServerVersion(client);
  if (!version.ok()) return Report(version.status());
  const auto containers = ListContainers(client);
  if (!containers.ok()) return Report(containers.status());
  const auto tasks = ListTasks(client);
  if (!tasks.ok()) return Report(tasks.status());
  const auto images = ListImages(client);
  if (!images.ok()) return Report(images.status());
  int running = 0;
  int paused = 0;
  for (const auto& [id, task] : *tasks) {
    running += task.status() == containerd::v1::types::RUNNING;
    paused += task.status() == containerd::v1::types::PAUSED;
  }
  std::printf("Address: %s\nNamespace: %s\nServer version: %s\n",
              client.address().c_str(), client.ns().c_str(),
              version->first.c_str());
  std::printf("Containers: %zu (%d running, %d paused)\nImages: %zu\n",
              containers->size(), running, paused, images->size());
  std::printf("Default runtime: %s\nDefault snapshotter: %s\n",
              ChooseRuntime(client, "").name.c_str(),
              DefaultSnapshotter(client, "").c_str());
  namespace introspection = containerd::services::introspection::v1;
  Empty empty;
  introspection::ServerResponse server;
  if (client.Call(std::string(kIntrospection) + "Server", empty, &server)
          .ok()) {
    std::printf("Server id: %s\n", server.uuid().c_str());
  }
  introspection::PluginsRequest request;
  introspection::PluginsResponse plugins;
  const absl::Status status =
      client.Call(std::string(kIntrospection) + "Plugins", request, &plugins);
  if (!status.ok()) return Report(status);
  std::vector<std::string> snapshotters;
  std::vector<std::string> broken;
  for (const auto& plugin : plugins.plugins()) {
    if (plugin.init_err().code() != 0) {
      if (!absl::StrContains(plugin.init_err().message(), "skip plugin")) {
        broken.push_back(plugin.type() + "/" + plugin.id() + ": " +
                         plugin.init_err().message());
      }
      continue;
    }
    if (plugin.type() == "io.containerd.snapshotter.v1") {
      snapshotters.push_back(plugin.id());
    }
  }
  std::printf("Snapshotters: %s\n", absl::StrJoin(snapshotters, " ").c_str());
  for (const std::string& line : broken) {
    std::printf("Not working: %s\n", Printable(line).c_str());
  }
  return kExitOk;
}

int NamespaceList(Session& session, bool quiet, const std::string& format) {
  namespaces::ListNamespacesRequest request;
  namespaces::ListNamespacesResponse response;
  const absl::Status status = session.client().Call(
      std::string(kNamespaces) + "List", request, &response);
  if (!status.ok()) return Report(status);
  Listing listing({{"NAME", "Name"}, {"LABELS", "Labels"}});
  for (const auto& entry : response.namespaces()) {
    if (quiet) {
      std::printf("%s\n", entry.name().c_str());
      continue;
    }
    std::vector<std::string> labels;
    for (const auto& [key, value] : entry.labels()) {
      labels.push_back(key + "=" + value);
    }
    listing.Add({entry.name(), absl::StrJoin(labels, ",")});
  }
  if (quiet) return kExitOk;
  const absl::StatusOr<std::string> text = listing.Render(format);
  if (!text.ok()) return Report(text.status(), kExitUsage);
  std::fputs(text->c_str(), stdout);
  return kExitOk;
}

struct NamespaceOptions {
  std::string name;
  std::vector<std::string> names;
  std::vector<std::string> labels;
};

int NamespaceCreate(Session& session, const NamespaceOptions& options) {
  namespaces::CreateNamespaceRequest request;
  request.mutable_namespace_()->set_name(options.name);
  for (const std::string& label : options.labels) {
    const auto [key, value] = SplitPair(label);
    (*request.mutable_namespace_()->mutable_labels())[key] = value;
  }
  namespaces::CreateNamespaceResponse response;
  const absl::Status status = session.client().Call(
      std::string(kNamespaces) + "Create", request, &response);
  return status.ok() ? kExitOk : Report(status);
}

int NamespaceLabel(Session& session, const NamespaceOptions& options) {
  namespaces::UpdateNamespaceRequest request;
  request.mutable_namespace_()->set_name(options.name);
  for (const std::string& label : options.labels) {
    const auto [key, value] = SplitPair(label);
    (*request.mutable_namespace_()->mutable_labels())[key] = value;
    request.mutable_update_mask()->add_paths("labels." + key);
  }
  namespaces::UpdateNamespaceResponse response;
  const absl::Status status = session.client().Call(
      std::string(kNamespaces) + "Update", request, &response);
  return status.ok() ? kExitOk : Report(status);
}

int NamespaceRemove(Session& session, const NamespaceOptions& options) {
  int code = kExitOk;
  for (const std::string& name : options.names) {
    namespaces::DeleteNamespaceRequest request;
    request.set_name(name);
    Empty empty;
    const absl::Status status = session.client().Call(
        std::string(kNamespaces) + "Delete", request, &empty);
    if (status.ok()) {
      std::printf("%s\n", name.c_str());
    } else {
      code = Report(status);
    }
  }
  return code;
}

int ContentList(Session& session) {
  namespace content = containerd::services::content::v1;
  content::ListContentRequest request;
  const std::unique_ptr<Stream> stream =
      session.client().ServerStream(std::string(kContent) + "List", request);
  Listing listing({{"DIGEST", "Digest"},
                   {"SIZE", "Size"},
                   {"CREATED", "Created"},
                   {"LABELS", "Labels"}});
  content::ListContentResponse response;
  while (stream->Read(&response)) {
    for (const content::Info& info : response.info()) {
      std::vector<std::string> labels;
      for (const auto& [key, value] : info.labels()) {
        labels.push_back(key + "=" + value);
      }
      listing.Add(
          {info.digest(), HumanBytes(static_cast<double>(info.size())),
           HumanDuration(absl::Now() - ToTime(info.created_at().seconds(), 0)) +
               " ago",
           absl::StrJoin(labels, ",")});
    }
  }
  const absl::Status status = stream->Finish();
  if (!status.ok()) return Report(status);
  std::fputs(listing.Render("").value_or("").c_str(), stdout);
  return kExitOk;
}

void AddNamespaceCommands(Command& root) {
  Command group = root.Sub("namespace", "Manage namespaces");
  auto quiet = std::make_shared<std::pair<bool, std::string>>();
  group.Sub("ls", "List namespaces")
      .Flag("-q,--quiet", &quiet->first, "Only names")
      .Option("--format", &quiet->second, "json, or a template", "FORMAT")
      .Examples("  bulkhead namespace ls")
      .Does([quiet](Session& session) {
        return NamespaceList(session, quiet->first, quiet->second);
      });
  auto create = std::make_shared<NamespaceOptions>();
  group.Sub("create", "Make a namespace")
      .Option("-l,--label", &create->labels, "Label", "KEY=VALUE")
      .Argument("NAME", &create->name, "Its name")
      .Examples("  bulkhead namespace create work")
      .Does([create](Session& session) {
        return NamespaceCreate(session, *create);
      });
  auto remove = std::make_shared<NamespaceOptions>();
  group.Sub("rm", "Remove empty namespaces")
      .Arguments("NAME", &remove->names, "Names")
      .Complete(Completes::kNamespaces)
      .Examples("  bulkhead namespace rm work")
      .Does([remove](Session& session) {
        return NamespaceRemove(session, *remove);
      });
  auto label = std::make_shared<NamespaceOptions>();
  group.Sub("label", "Set labels of a namespace (an empty value removes)")
      .Argument("NAME", &label->name, "Its name")
      .Arguments("KEY=VALUE", &label->labels, "Labels")
      .Complete(Completes::kNamespaces)
      .Examples(
          "  bulkhead namespace label work containerd.io/defaults/"
          "snapshotter=native")
      .Does([label](Session& session) {
        return NamespaceLabel(session, *label);
      });
}

}  // namespace

absl::StatusOr<std::vector<std::string>> ListNamespaceNames(Client& client) {
  namespaces::ListNamespacesRequest request;
  namespaces::ListNamespacesResponse response;
  RETURN_IF_ERROR(
      client.Call(std::string(kNamespaces) + "List", request, &response));
  std::vector<std::string> names;
  for (const auto& entry : response.namespaces()) {
    names.push_back(entry.name());
  }
  return names;
}

void AddSystemCommands(Command& root) {
  auto events = std::make_shared<EventsOptions>();
  root.Sub("events", "Show what happens, as it happens")
      .Option("--format", &events->format, "json, or a template", "FORMAT")
      .Option("-f,--filter", &events->filters,
              "Such as topic~=^/tasks/ or event.container_id==ID", "FILTER")
      .Flag("-A,--all-namespaces", &events->all_namespaces,
            "Other namespaces' events, too")
      .Option("--since-seq", &events->since,
              "Begin behind the event of this number (0: with the oldest "
              "kept), and show numbers")
      .Examples(
          "  bulkhead events\n"
          "  bulkhead events -f 'topic==/tasks/exit' --format json")
      .Does([events](Session& session) { return Events(session, *events); });

  root.Sub("info", "Describe the suite")
      .Examples("  bulkhead info")
      .Does([](Session& session) { return Info(session); });

  auto format = std::make_shared<std::string>();
  root.Sub("version", "Show the versions of client and server")
      .Option("--format", format.get(), "json, or a template", "FORMAT")
      .Examples("  bulkhead version")
      .Does([format](Session& session) { return Version(session, *format); });

  AddNamespaceCommands(root);

  // Not "content": that is the service of this name.
  root.Sub("blob", "Look at the content store")
      .Sub("ls", "List blobs")
      .Examples("  bulkhead blob ls")
      .Does([](Session& session) { return ContentList(session); });
}

}  // namespace bulkhead::cli
