#include "lib/config/config.h"

#include <toml++/toml.h>

#include <algorithm>
#include <functional>
#include <initializer_list>
#include <limits>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/os/fd.h"

namespace bulkhead::config {
namespace {

constexpr size_t kConfigBytesMax = 1 << 20;
// With less, transfers that wait for their turn look stalled to registries.
constexpr int64_t kBandwidthMin = 64 << 10;

size_t EditDistance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t above = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1,
                         diagonal + (a[i - 1] == b[j - 1] ? 0 : 1)});
      diagonal = above;
    }
  }
  return row[b.size()];
}

// Reads one table: each key is bound to a variable; what is left unbound is an
// unknown key. The first error wins.
class Table {
 public:
  Table(const toml::table* table, std::string name, absl::Status* error)
      : table_(table), name_(std::move(name)), error_(error) {}

  void Bind(const char* key, std::string* out) {
    const toml::node* node = Take(key);
    if (node == nullptr) return;
    if (const auto value = node->value<std::string>(); node->is_string()) {
      *out = *value;
    } else {
      WrongType(key, "a string", *node);
    }
  }

  void Bind(const char* key, bool* out) {
    const toml::node* node = Take(key);
    if (node == nullptr) return;
    if (!node->is_boolean()) return WrongType(key, "true or false", *node);
    *out = *node->value<bool>();
  }

  template <typename Int>
  void BindInt(const char* key, Int* out, int64_t minimum, int64_t maximum) {
    const toml::node* node = Take(key);
    if (node == nullptr) return;
    if (!node->is_integer()) return WrongType(key, "an integer", *node);
    const int64_t value = *node->value<int64_t>();
    if (value < minimum || value > maximum) {
      return Fail(absl::StrCat("'", Full(key), "' must be between ", minimum,
                               " and ", maximum, ", not ", value),
                  *node);
    }
    *out = static_cast<Int>(value);
  }

  void BindReal(const char* key, double* out, double minimum, double maximum) {
    const toml::node* node = Take(key);
    if (node == nullptr) return;
    if (!node->is_number()) return WrongType(key, "a number", *node);
    const double value = *node->value<double>();
    if (!(value >= minimum && value <= maximum)) {
      return Fail(absl::StrCat("'", Full(key), "' must be between ", minimum,
                               " and ", maximum),
                  *node);
    }
    *out = value;
  }

  void Bind(const char* key, absl::Duration* out) {
    std::string text;
    const toml::node* node = Find(key);
    Bind(key, &text);
    if (node == nullptr || text.empty()) return;
    absl::Duration value;
    if (!absl::ParseDuration(text, &value) || value < absl::ZeroDuration()) {
      return Fail(absl::StrCat("'", Full(key), "' is no duration: \"", text,
                               "\" (write \"250ms\", \"30s\", \"5m\")"),
                  *node);
    }
    *out = value;
  }

  void Bind(const char* key, std::vector<std::string>* out) {
    const toml::node* node = Take(key);
    if (node == nullptr) return;
    const toml::array* array = node->as_array();
    if (array == nullptr) return WrongType(key, "a list of strings", *node);
    out->clear();
    for (const toml::node& item : *array) {
      if (!item.is_string()) {
        return WrongType(key, "a list of strings", item);
      }
      out->push_back(*item.value<std::string>());
    }
  }

  void Bind(const char* key, std::map<std::string, std::string>* out) {
    const toml::node* node = Take(key);
    if (node == nullptr) return;
    const toml::table* table = node->as_table();
    if (table == nullptr) return WrongType(key, "a table of strings", *node);
    for (const auto& [name, item] : *table) {
      if (!item.is_string()) {
        return WrongType(std::string(name.str()).c_str(), "a string", item);
      }
      (*out)[std::string(name.str())] = *item.value<std::string>();
    }
  }

  // One of a few words; `apply` gets its index.
  void BindWord(const char* key, std::initializer_list<const char*> words,
                const std::function<void(size_t)>& apply) {
    const toml::node* node = Find(key);
    std::string text;
    Bind(key, &text);
    if (node == nullptr || !error_->ok()) return;
    std::string choices;
    size_t index = 0;
    for (const char* word : words) {
      if (text == word) return apply(index);
      absl::StrAppend(&choices, choices.empty() ? "" : ", ", word);
      ++index;
    }
    Fail(absl::StrCat("'", Full(key), "' must be one of ", choices, ", not \"",
                      text, "\""),
         *node);
  }

  Table Sub(const char* key) {
    const toml::node* node = Take(key);
    const toml::table* table = nullptr;
    if (node != nullptr) {
      table = node->as_table();
      if (table == nullptr) WrongType(key, "a table", *node);
    }
    return Table(table, Full(key), error_);
  }

  // [[key]]: one Table for each.
  std::vector<Table> SubList(const char* key) {
    std::vector<Table> out;
    const toml::node* node = Take(key);
    if (node == nullptr) return out;
    const toml::array* array = node->as_array();
    if (array == nullptr) {
      WrongType(key, "a list of tables", *node);
      return out;
    }
    for (const toml::node& item : *array) {
      const toml::table* table = item.as_table();
      if (table == nullptr) WrongType(key, "a list of tables", item);
      out.push_back(Table(
          table, absl::StrCat(Full(key), "[", out.size() + 1, "]"), error_));
    }
    return out;
  }

  std::vector<std::string> Names() const {
    std::vector<std::string> names;
    if (table_ == nullptr) return names;
    for (const auto& [name, item] : *table_) {
      names.emplace_back(name.str());
    }
    return names;
  }

  // Reports the first key that nobody asked for.
  void Finish() {
    if (table_ == nullptr) return;
    for (const auto& [name, item] : *table_) {
      const std::string key(name.str());
      if (std::find(known_.begin(), known_.end(), key) != known_.end()) {
        continue;
      }
      std::string message = absl::StrCat("unknown key '", Full(key), "'");
      const auto nearest =
          std::min_element(known_.begin(), known_.end(),
                           [&](const std::string& a, const std::string& b) {
                             return EditDistance(a, key) < EditDistance(b, key);
                           });
      if (nearest != known_.end() &&
          EditDistance(*nearest, key) <= 1 + key.size() / 3) {
        absl::StrAppend(&message, "; did you mean '", Full(*nearest), "'?");
      }
      return Fail(message, item);
    }
  }

 private:
  std::string Full(const std::string& key) const {
    return name_.empty() ? key : absl::StrCat(name_, ".", key);
  }
  const toml::node* Find(const char* key) const {
    return table_ == nullptr ? nullptr : table_->get(key);
  }
  const toml::node* Take(const char* key) {
    known_.emplace_back(key);
    return Find(key);
  }
  void Fail(const std::string& message, const toml::node& node) {
    if (!error_->ok()) return;
    *error_ = absl::InvalidArgumentError(
        absl::StrCat("line ", node.source().begin.line, ": ", message));
  }
  void WrongType(const char* key, const char* wanted, const toml::node& node) {
    Fail(absl::StrCat("'", Full(key), "' must be ", wanted), node);
  }

  const toml::table* table_;
  std::string name_;
  absl::Status* error_;
  std::vector<std::string> known_;
};

constexpr int64_t kIntMax = std::numeric_limits<int>::max();

absl::Status AbsolutePaths(const std::vector<std::string>& paths,
                           const std::string& key) {
  for (const std::string& path : paths) {
    if (!absl::StartsWith(path, "/")) {
      return absl::InvalidArgumentError(
          absl::StrCat(key, ": '", path, "' is no absolute path"));
    }
  }
  return absl::OkStatus();
}

// What one table cannot tell of itself.
absl::Status CheckPolicy(const VerifyPolicy& policy) {
  const std::string where =
      absl::StrCat("'distribution.verify' policy '", policy.name, "'");
  if (policy.match.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, " needs a 'match', such as [\"*\"]"));
  }
  for (const std::string& pattern : policy.match) {
    if (!absl::StartsWith(pattern, "*") && !absl::StrContains(pattern, "/")) {
      return absl::InvalidArgumentError(absl::StrCat(
          where, ": the pattern '", pattern,
          "' names no registry; write docker.io/library/", pattern));
    }
  }
  const bool has_trust =
      !policy.cosign_keys.empty() || !policy.notation_roots.empty();
  if (policy.action == VerifyPolicy::Action::kRequire && !has_trust) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, " needs 'cosign_keys' or 'notation_roots'"));
  }
  if (policy.action != VerifyPolicy::Action::kRequire && has_trust) {
    return absl::InvalidArgumentError(absl::StrCat(
        where, " has keys or roots, but its action is not \"require\""));
  }
  RETURN_IF_ERROR(AbsolutePaths(policy.cosign_keys, where));
  return AbsolutePaths(policy.notation_roots, where);
}

void ReadTrust(Table* distribution, Config* config, absl::Status* error) {
  auto& out = config->distribution;
  distribution->Bind("pins", &out.pins);
  distribution->BindWord("verify_default", {"allow", "deny"},
                         [&](size_t i) { out.verify_default_allow = i == 0; });
  for (Table& table : distribution->SubList("verify")) {
    VerifyPolicy policy;
    policy.name = absl::StrCat("#", out.verify.size() + 1);
    table.Bind("name", &policy.name);
    table.Bind("match", &policy.match);
    bool has_action = false;
    table.BindWord("action", {"allow", "deny", "require"}, [&](size_t i) {
      has_action = true;
      policy.action = static_cast<VerifyPolicy::Action>(i);
    });
    table.Bind("cosign_keys", &policy.cosign_keys);
    table.Bind("notation_roots", &policy.notation_roots);
    table.Bind("notation_subjects", &policy.notation_subjects);
    table.Bind("identity", &policy.identity);
    table.Finish();
    if (error->ok() && !has_action) {
      *error = absl::InvalidArgumentError(absl::StrCat(
          "'distribution.verify' policy '", policy.name, "' has no 'action'"));
    }
    if (error->ok()) *error = CheckPolicy(policy);
    out.verify.push_back(std::move(policy));
  }
  Table verifier = distribution->Sub("image_verifier");
  verifier.Bind("bin_dir", &out.image_verifier.bin_dir);
  verifier.BindInt("max_verifiers", &out.image_verifier.max_verifiers, -1,
                   1000);
  verifier.Bind("per_verifier_timeout",
                &out.image_verifier.per_verifier_timeout);
  verifier.Bind("interpreters", &out.image_verifier.interpreters);
  verifier.Finish();
  std::vector<std::string> paths = out.image_verifier.interpreters;
  if (!out.image_verifier.bin_dir.empty()) {
    paths.push_back(out.image_verifier.bin_dir);
  }
  if (error->ok()) {
    *error = AbsolutePaths(paths, "'distribution.image_verifier'");
  }
}

void ReadServices(Table* root, Config* config, absl::Status* error) {
  Table gateway = root->Sub("gateway");
  gateway.Bind("address", &config->gateway.address);
  gateway.BindInt("uid", &config->gateway.uid, 0, 4294967294);
  gateway.BindInt("gid", &config->gateway.gid, 0, 4294967294);
  gateway.BindInt("mode", &config->gateway.mode, 0, 0777);
  gateway.Bind("routes", &config->gateway.routes);
  gateway.Bind("connect_timeout", &config->gateway.connect_timeout);
  gateway.Finish();

  Table content = root->Sub("content");
  content.Bind("verify_on_open", &config->content.verify_on_open);
  content.Finish();

  Table metadata = root->Sub("metadata");
  metadata.BindWord("content_sharing_policy", {"shared", "isolated"},
                    [&](size_t i) {
                      config->metadata.content_sharing_policy =
                          i == 0 ? "shared" : "isolated";
                    });
  metadata.Bind("default_snapshotter", &config->metadata.default_snapshotter);
  metadata.Bind("gc_schedule_delay", &config->metadata.gc_schedule_delay);
  metadata.Bind("gc_startup_delay", &config->metadata.gc_startup_delay);
  metadata.BindInt("gc_mutation_threshold",
                   &config->metadata.gc_mutation_threshold, 0, kIntMax);
  metadata.BindInt("gc_deletion_threshold",
                   &config->metadata.gc_deletion_threshold, 0, kIntMax);
  metadata.BindReal("gc_pause_threshold", &config->metadata.gc_pause_threshold,
                    0.0001, 0.5);
  metadata.BindInt("events_kept_max", &config->metadata.events_kept_max, 0,
                   10'000'000);
  metadata.Bind("retention_unused_max", &config->metadata.retention_unused_max);
  metadata.BindInt("retention_free_min_percent",
                   &config->metadata.retention_free_min_percent, 0, 99);
  metadata.Bind("retention_namespaces", &config->metadata.retention_namespaces);
  metadata.Finish();

  Table snapshotter = root->Sub("snapshotter");
  snapshotter.Bind("snapshotters", &config->snapshotter.snapshotters);
  snapshotter.Bind("overlay_mount_options",
                   &config->snapshotter.overlay_mount_options);
  snapshotter.Bind("upperdir_label", &config->snapshotter.upperdir_label);
  snapshotter.BindInt("layer_bytes_max", &config->snapshotter.layer_bytes_max,
                      1, std::numeric_limits<int64_t>::max());
  snapshotter.BindInt("layer_entries_max",
                      &config->snapshotter.layer_entries_max, 1,
                      std::numeric_limits<int64_t>::max());
  snapshotter.Finish();

  Table distribution = root->Sub("distribution");
  distribution.Bind("config_path", &config->distribution.config_path);
  distribution.BindInt("max_concurrent_downloads",
                       &config->distribution.max_concurrent_downloads, 1, 64);
  distribution.BindInt("max_concurrent_unpacks",
                       &config->distribution.max_concurrent_unpacks, 1, 64);
  distribution.BindInt("max_concurrent_uploads",
                       &config->distribution.max_concurrent_uploads, 1, 64);
  distribution.BindInt("max_streams_per_layer",
                       &config->distribution.max_streams_per_layer, 1, 64);
  distribution.BindInt("max_connections_per_host",
                       &config->distribution.max_connections_per_host, 0, 1024);
  distribution.BindInt("bandwidth_limit", &config->distribution.bandwidth_limit,
                       0, int64_t{1} << 40);
  const int64_t limit = config->distribution.bandwidth_limit;
  if (limit > 0 && limit < kBandwidthMin && error->ok()) {
    *error = absl::InvalidArgumentError(absl::StrCat(
        "'distribution.bandwidth_limit' is bytes a second: 0 for no limit, or ",
        kBandwidthMin, " at least, not ", limit));
  }
  distribution.Bind("stall_timeout", &config->distribution.stall_timeout);
  ReadTrust(&distribution, config, error);
  distribution.Finish();

  Table runtime = root->Sub("runtime");
  runtime.Bind("default_runtime", &config->runtime.default_runtime);
  runtime.Bind("oci_runtime", &config->runtime.oci_runtime);
  runtime.Bind("oci_root", &config->runtime.oci_root);
  runtime.Bind("shim_paths", &config->runtime.shim_paths);
  runtime.Finish();

  Table metrics = root->Sub("metrics");
  metrics.Bind("address", &config->metrics.address);
  metrics.Bind("interval", &config->metrics.interval);
  metrics.Finish();
}

void ReadProxyPlugins(Table* root, Config* config, absl::Status* error) {
  Table plugins = root->Sub("proxy_plugins");
  for (const std::string& name : plugins.Names()) {
    Table plugin = plugins.Sub(name.c_str());
    ProxyPlugin proxy;
    plugin.BindWord("type", {"snapshot", "content", "diff", "sandbox"},
                    [&](size_t i) {
                      static constexpr const char* kTypes[] = {
                          "snapshot", "content", "diff", "sandbox"};
                      proxy.type = kTypes[i];
                    });
    plugin.Bind("address", &proxy.address);
    plugin.Bind("platform", &proxy.platform);
    plugin.Bind("capabilities", &proxy.capabilities);
    plugin.Bind("exports", &proxy.exports);
    plugin.Finish();
    if (error->ok() && (proxy.type.empty() || proxy.address.empty())) {
      *error = absl::InvalidArgumentError(absl::StrCat(
          "'proxy_plugins.", name, "' needs a 'type' and an 'address'"));
    }
    config->proxy_plugins[name] = std::move(proxy);
  }
  plugins.Finish();
}

void ReadStreamProcessors(Table* root, Config* config, absl::Status* error) {
  Table processors = root->Sub("stream_processors");
  for (const std::string& name : processors.Names()) {
    Table table = processors.Sub(name.c_str());
    StreamProcessor processor;
    table.Bind("accepts", &processor.accepts);
    table.Bind("returns", &processor.returns);
    table.Bind("path", &processor.path);
    table.Bind("args", &processor.args);
    table.Bind("env", &processor.env);
    table.Finish();
    if (error->ok() && (processor.accepts.empty() ||
                        processor.returns.empty() || processor.path.empty())) {
      *error = absl::InvalidArgumentError(
          absl::StrCat("'stream_processors.", name,
                       "' needs 'accepts', 'returns' and 'path'"));
    }
    config->stream_processors[name] = std::move(processor);
  }
  processors.Finish();
}

}  // namespace

std::string Config::ServiceDir(const std::string& service) const {
  return absl::StrCat(state, "/", service);
}
std::string Config::Socket(const std::string& service) const {
  return absl::StrCat(state, "/", service, "/", service, ".sock");
}
std::string Config::DataSocket(const std::string& service) const {
  return absl::StrCat(state, "/", service, "/data.sock");
}
std::string Config::StatsSocket(const std::string& service) const {
  return absl::StrCat(state, "/", service, "/stats.sock");
}
std::string Config::GatewayAddress() const {
  return gateway.address.empty() ? absl::StrCat(state, "/bulkhead.sock")
                                 : gateway.address;
}
std::string Config::TtrpcAddress() const {
  return absl::StrCat(GatewayAddress(), ".ttrpc");
}
std::string Config::OciRoot() const {
  return runtime.oci_root.empty() ? absl::StrCat(state, "/runc")
                                  : runtime.oci_root;
}
std::string Config::RootDir(const std::string& service) const {
  return absl::StrCat(root, "/", service);
}

std::map<std::string, std::string> Routes(const Config& config) {
  std::map<std::string, std::string> routes;
  const auto add = [&](const char* service,
                       std::initializer_list<const char*> names) {
    for (const char* name : names) {
      routes[absl::StrCat("containerd.services.", name)] =
          config.Socket(service);
    }
  };
  add("metadata",
      {"namespaces.v1.Namespaces", "images.v1.Images",
       "containers.v1.Containers", "leases.v1.Leases", "events.v1.Events",
       "content.v1.Content", "snapshots.v1.Snapshots", "sandbox.v1.Store"});
  add("snapshotter", {"diff.v1.Diff", "mounts.v1.Mounts"});
  add("distribution", {"transfer.v1.Transfer", "streaming.v1.Streaming"});
  add("runtime", {"tasks.v1.Tasks", "sandbox.v1.Controller"});
  routes["bulkhead.admin.v1.Admin"] = config.Socket("metadata");  // Ours.
  for (const auto& [service, path] : config.gateway.routes) {
    routes[service] = path;
  }
  return routes;
}

absl::StatusOr<Config> Parse(const std::string& text,
                             const std::string& file_name) {
  const toml::parse_result parsed = toml::parse(text);
  if (!parsed) {
    const auto& where = parsed.error().source().begin;
    return absl::InvalidArgumentError(absl::StrCat(
        file_name, ": line ", where.line, ", column ", where.column, ": ",
        std::string(parsed.error().description())));
  }
  Config config;
  absl::Status error;
  Table root(&parsed.table(), "", &error);
  root.Bind("root", &config.root);
  root.Bind("state", &config.state);
  Table log = root.Sub("log");
  log.BindWord("level", {"debug", "info", "warn", "error"}, [&](size_t i) {
    config.log.level = static_cast<log::Level>(i);
  });
  log.BindWord("format", {"text", "json"}, [&](size_t i) {
    config.log.format = i == 0 ? log::Format::kText : log::Format::kJson;
  });
  log.Finish();
  ReadServices(&root, &config, &error);
  ReadProxyPlugins(&root, &config, &error);
  ReadStreamProcessors(&root, &config, &error);
  root.Finish();
  for (const std::string* path : {&config.root, &config.state}) {
    if (error.ok() && !absl::StartsWith(*path, "/")) {
      error = absl::InvalidArgumentError(absl::StrCat(
          "'root' and 'state' must be absolute, not \"", *path, "\""));
    }
  }
  if (!error.ok()) return Annotate(error, file_name);
  return config;
}

absl::StatusOr<Config> Load(const std::string& path) {
  ASSIGN_OR_RETURN(std::string text, os::ReadFile(path, kConfigBytesMax));
  return Parse(text, path);
}

}  // namespace bulkhead::config
