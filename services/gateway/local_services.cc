#include "services/gateway/local_services.h"

#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <optional>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "lib/base/status_macros.h"
#include "lib/filters/filters.h"
#include "lib/log/log.h"
#include "lib/os/fd.h"
#include "lib/os/socket.h"
#include "proto/containerd/services/introspection/v1/introspection.pb.h"
#include "proto/containerd/services/version/v1/version.pb.h"

namespace bulkhead::gateway {
namespace {

namespace introspection = ::containerd::services::introspection::v1;

constexpr char kVersionService[] = "containerd.services.version.v1.Version";
constexpr char kIntrospectionService[] =
    "containerd.services.introspection.v1.Introspection";
constexpr char kHealthService[] = "grpc.health.v1.Health";
constexpr char kRevision[] = "bulkhead";
constexpr char kTasksService[] = "containerd.services.tasks.v1.Tasks";
constexpr char kRuntimeType[] = "io.containerd.runtime.v2";
constexpr char kUuidFile[] = "/server-uuid";

constexpr int kInvalidArgument = 3;
constexpr int kNotFound = 5;
constexpr int kUnimplemented = 12;
constexpr int kUnavailable = 14;

LocalReply UnknownMethod(const std::string& service,
                         const std::string& method) {
  return {kUnimplemented,
          absl::StrCat("unknown method ", method, " for service ", service),
          ""};
}

// The `service` field (1) of a HealthCheckRequest; nullopt: not well formed.
// The message is too small to be worth a generated class.
std::optional<std::string> HealthRequestService(const std::string& request) {
  if (request.empty()) return "";
  if (request.size() < 2 || request[0] != 0x0a ||
      static_cast<unsigned char>(request[1]) > 127 ||
      request.size() != 2 + static_cast<size_t>(request[1])) {
    return std::nullopt;
  }
  return request.substr(2);
}

bool Answers(const std::string& socket_path) {
  return os::ConnectUnix(socket_path).ok();
}

struct Entry {
  const char* type;
  const char* id;
  // The gRPC service whose backend it lives in; null: here, always up.
  const char* service;
  const char* requirement = nullptr;
};

constexpr char kSnapshotterType[] = "io.containerd.snapshotter.v1";
constexpr char kSnapshots[] = "containerd.services.snapshots.v1.Snapshots";

// What clients look for in `ctr plugins ls`, and where it lives here.
constexpr Entry kEntries[] = {
    {"io.containerd.content.v1", "content",
     "containerd.services.content.v1.Content"},
    {"io.containerd.event.v1", "exchange",
     "containerd.services.events.v1.Events"},
    {"io.containerd.metadata.v1", "bolt",
     "containerd.services.containers.v1.Containers",
     "io.containerd.content.v1"},
    {"io.containerd.gc.v1", "scheduler",
     "containerd.services.containers.v1.Containers",
     "io.containerd.metadata.v1"},
    {"io.containerd.differ.v1", "walking", "containerd.services.diff.v1.Diff",
     "io.containerd.metadata.v1"},
    {"io.containerd.lease.v1", "manager",
     "containerd.services.leases.v1.Leases", "io.containerd.metadata.v1"},
    {"io.containerd.runtime.v2", "task", "containerd.services.tasks.v1.Tasks",
     "io.containerd.metadata.v1"},
    {"io.containerd.sandbox.controller.v1", "shim",
     "containerd.services.sandbox.v1.Controller", "io.containerd.runtime.v2"},
    {"io.containerd.sandbox.store.v1", "local",
     "containerd.services.sandbox.v1.Store", "io.containerd.metadata.v1"},
    {"io.containerd.transfer.v1", "local",
     "containerd.services.transfer.v1.Transfer", "io.containerd.metadata.v1"},
    {"io.containerd.streaming.v1", "manager",
     "containerd.services.streaming.v1.Streaming"},
    {"io.containerd.grpc.v1", "containers",
     "containerd.services.containers.v1.Containers"},
    {"io.containerd.grpc.v1", "content",
     "containerd.services.content.v1.Content"},
    {"io.containerd.grpc.v1", "diff", "containerd.services.diff.v1.Diff"},
    {"io.containerd.grpc.v1", "events", "containerd.services.events.v1.Events"},
    {"io.containerd.grpc.v1", "healthcheck", nullptr},
    {"io.containerd.grpc.v1", "images", "containerd.services.images.v1.Images"},
    {"io.containerd.grpc.v1", "introspection", nullptr},
    {"io.containerd.grpc.v1", "leases", "containerd.services.leases.v1.Leases"},
    {"io.containerd.grpc.v1", "mounts", "containerd.services.mounts.v1.Mounts"},
    {"io.containerd.grpc.v1", "namespaces",
     "containerd.services.namespaces.v1.Namespaces"},
    {"io.containerd.grpc.v1", "sandbox-controllers",
     "containerd.services.sandbox.v1.Controller"},
    {"io.containerd.grpc.v1", "sandboxes",
     "containerd.services.sandbox.v1.Store"},
    {"io.containerd.grpc.v1", "snapshots", kSnapshots},
    {"io.containerd.grpc.v1", "streaming",
     "containerd.services.streaming.v1.Streaming"},
    {"io.containerd.grpc.v1", "tasks", "containerd.services.tasks.v1.Tasks"},
    {"io.containerd.grpc.v1", "transfer",
     "containerd.services.transfer.v1.Transfer"},
    {"io.containerd.grpc.v1", "version", nullptr},
};

bool HasPlatform(const std::string& type) {
  return type == kSnapshotterType || type == "io.containerd.differ.v1" ||
         type == "io.containerd.runtime.v2" ||
         type == "io.containerd.transfer.v1";
}

// "linux/amd64[/variant]" into the message; empty is this machine.
void SetPlatform(const std::string& text, introspection::Plugin* plugin) {
  auto* platform = plugin->add_platforms();
  const size_t first = text.find('/');
  if (first == std::string::npos) {
    platform->set_os("linux");
    platform->set_architecture("amd64");
    return;
  }
  const size_t second = text.find('/', first + 1);
  platform->set_os(text.substr(0, first));
  platform->set_architecture(text.substr(
      first + 1, second == std::string::npos ? second : second - first - 1));
  if (second != std::string::npos) {
    platform->set_variant(text.substr(second + 1));
  }
}

// Probes each socket at most once a call.
class Prober {
 public:
  void Check(const std::string& path, introspection::Plugin* plugin) {
    const auto [at, fresh] = up_.try_emplace(path, false);
    if (fresh) at->second = Answers(path);
    if (at->second) return;
    plugin->mutable_init_err()->set_code(kUnavailable);
    plugin->mutable_init_err()->set_message(
        absl::StrCat("nobody answers on ", path));
  }

 private:
  std::map<std::string, bool> up_;
};

// The plugins that `wanted` says yes to. Only their services are asked whether
// they answer: each costs as much as a call.
std::vector<introspection::Plugin> Plugins(
    const config::Config& config, const RouteTable& routes,
    const std::function<bool(const introspection::Plugin&)>& wanted) {
  std::vector<introspection::Plugin> plugins;
  Prober prober;
  for (const Entry& entry : kEntries) {
    introspection::Plugin plugin;
    plugin.set_type(entry.type);
    plugin.set_id(entry.id);
    if (entry.requirement != nullptr) plugin.add_requires(entry.requirement);
    if (HasPlatform(entry.type)) SetPlatform("", &plugin);
    if (plugin.id() == "bolt") {
      (*plugin.mutable_exports())["policy"] =
          config.metadata.content_sharing_policy;
    }
    if (plugin.type() == "io.containerd.content.v1") {
      (*plugin.mutable_exports())["root"] = config.RootDir("content");
    }
    if (entry.service != nullptr) {
      const auto route = routes.find(entry.service);
      if (route == routes.end()) continue;
      if (!wanted(plugin)) continue;
      prober.Check(route->second, &plugin);
    } else if (!wanted(plugin)) {
      continue;
    }
    plugins.push_back(std::move(plugin));
  }
  for (const std::string& name : config.snapshotter.snapshotters) {
    introspection::Plugin plugin;
    plugin.set_type(kSnapshotterType);
    plugin.set_id(name);
    SetPlatform("", &plugin);
    if (name == "overlayfs" || name == "erofs") {
      plugin.add_capabilities("remap-ids");
      plugin.add_capabilities("rebase");
    }
    (*plugin.mutable_exports())["root"] =
        absl::StrCat(config.RootDir("snapshotter"), "/", name);
    if (!wanted(plugin)) continue;
    prober.Check(config.Socket("snapshotter"), &plugin);
    plugins.push_back(std::move(plugin));
  }
  for (const auto& [name, proxy] : config.proxy_plugins) {
    introspection::Plugin plugin;
    std::string type = proxy.type;
    if (type == "snapshot") type = "snapshotter";
    if (type == "diff") type = "differ";
    if (type == "sandbox") type = "sandbox.controller";
    plugin.set_type(absl::StrCat("io.containerd.", type, ".v1"));
    plugin.set_id(name);
    SetPlatform(proxy.platform, &plugin);
    for (const std::string& capability : proxy.capabilities) {
      plugin.add_capabilities(capability);
    }
    for (const auto& [key, value] : proxy.exports) {
      (*plugin.mutable_exports())[key] = value;
    }
    (*plugin.mutable_exports())["address"] = proxy.address;
    if (!wanted(plugin)) continue;
    prober.Check(proxy.address, &plugin);
    plugins.push_back(std::move(plugin));
  }
  return plugins;
}

filters::Adaptor AdaptPlugin(const introspection::Plugin& plugin) {
  return
      [&plugin](const filters::FieldPath& path) -> std::optional<std::string> {
        if (path.empty()) return std::nullopt;
        if (path[0] == "type") return plugin.type();
        if (path[0] == "id") return plugin.id();
        if (path[0] == "platforms") {
          std::vector<std::string> all;
          for (const auto& platform : plugin.platforms()) {
            all.push_back(
                absl::StrCat(platform.os(), "/", platform.architecture()));
          }
          return absl::StrJoin(all, ",");
        }
        if (path[0] == "capabilities") {
          return absl::StrJoin(plugin.capabilities(), ",");
        }
        return std::nullopt;
      };
}

}  // namespace

bool LocalServices::Serves(const std::string& service) const {
  return service == kVersionService || service == kIntrospectionService ||
         service == kHealthService;
}

LocalReply LocalServices::Call(const std::string& service,
                               const std::string& method,
                               const std::string& request,
                               const RouteTable& routes) {
  if (service == kVersionService) {
    if (method != "Version") return UnknownMethod(service, method);
    ::containerd::services::version::v1::VersionResponse response;
    response.set_version(version_);
    response.set_revision(kRevision);
    return {0, "", response.SerializeAsString()};
  }
  if (service == kHealthService) {
    if (method != "Check") return UnknownMethod(service, method);
    const std::optional<std::string> name = HealthRequestService(request);
    if (!name.has_value()) {
      return {kInvalidArgument, "not a HealthCheckRequest", ""};
    }
    const std::string serving("\x08\x01", 2);
    const std::string not_serving("\x08\x02", 2);
    if (name->empty() || Serves(*name)) return {0, "", serving};
    const auto route = routes.find(*name);
    if (route == routes.end()) return {kNotFound, "unknown service", ""};
    return {0, "", Answers(route->second) ? serving : not_serving};
  }
  return Introspection(method, request, routes);
}

LocalReply LocalServices::Introspection(const std::string& method,
                                        const std::string& request,
                                        const RouteTable& routes) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (method == "Server") {
    introspection::ServerResponse response;
    response.set_uuid(uuid_);
    response.set_pid(static_cast<uint64_t>(::getpid()));
    struct stat pidns {};
    if (::stat("/proc/self/ns/pid", &pidns) == 0) {
      response.set_pidns(pidns.st_ino);
    }
    return {0, "", response.SerializeAsString()};
  }
  if (method == "Plugins") {
    introspection::PluginsRequest wanted;
    if (!wanted.ParseFromString(request)) {
      return {kInvalidArgument, "not a PluginsRequest", ""};
    }
    const auto filter = filters::Filter::Parse(wanted.filters());
    if (!filter.ok()) {
      return {kInvalidArgument,
              absl::StrCat(MessageOf(filter.status()), ": invalid argument"),
              ""};
    }
    introspection::PluginsResponse response;
    for (auto& plugin : Plugins(config_, routes, [&](const auto& one) {
           return filter->Match(AdaptPlugin(one));
         })) {
      *response.add_plugins() = std::move(plugin);
    }
    return {0, "", response.SerializeAsString()};
  }
  if (method == "PluginInfo") {
    introspection::PluginInfoRequest wanted;
    if (!wanted.ParseFromString(request)) {
      return {kInvalidArgument, "not a PluginInfoRequest", ""};
    }
    for (auto& plugin : Plugins(config_, routes, [&](const auto& one) {
           return one.type() == wanted.type() && one.id() == wanted.id();
         })) {
      const auto runtime = routes.find(kTasksService);
      if (wanted.has_options() && plugin.type() == kRuntimeType &&
          runtime != routes.end()) {
        // Its shims know.
        LocalReply reply;
        reply.forward_to = runtime->second;
        return reply;
      }
      if (wanted.has_options()) {
        return {kUnimplemented, "plugin info with options: not implemented",
                ""};
      }
      introspection::PluginInfoResponse response;
      *response.mutable_plugin() = std::move(plugin);
      return {0, "", response.SerializeAsString()};
    }
    return {
        kNotFound,
        absl::StrCat("plugin ", wanted.type(), ".", wanted.id(), ": not found"),
        ""};
  }
  return UnknownMethod(kIntrospectionService, method);
}

std::string LoadServerUuid(const std::string& root) {
  const std::string path = absl::StrCat(root, kUuidFile);
  constexpr size_t kUuidBytes = 36;
  const absl::StatusOr<std::string> stored = os::ReadFile(path, 4096);
  if (stored.ok() && stored->size() >= kUuidBytes) {
    return stored->substr(0, kUuidBytes);
  }
  unsigned char b[16] = {};
  (void)!::getrandom(b, sizeof(b), 0);  // Never short for 16 bytes.
  b[6] = static_cast<unsigned char>((b[6] & 0x0f) | 0x40);
  b[8] = static_cast<unsigned char>((b[8] & 0x3f) | 0x80);
  std::string uuid;
  for (int i = 0; i < 16; ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) uuid += '-';
    absl::StrAppendFormat(&uuid, "%02x", b[i]);
  }
  absl::Status written = os::MakeDirs(root, 0700);
  if (written.ok()) written = os::WriteFileAtomic(path, uuid, 0644);
  if (!written.ok()) {
    log::Warn("the server's UUID could not be stored",
              {{"error", MessageOf(written)}});
  }
  return uuid;
}

}  // namespace bulkhead::gateway
