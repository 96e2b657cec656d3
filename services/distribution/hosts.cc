#include "services/distribution/hosts.h"

#include <dirent.h>
#include <sys/stat.h>
#include <toml++/toml.h>

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "lib/base/status_macros.h"
#include "lib/log/log.h"
#include "lib/os/fd.h"

namespace bulkhead::distribution {
namespace {

constexpr char kDockerHost[] = "docker.io";
constexpr char kDockerRegistry[] = "registry-1.docker.io";
constexpr absl::Duration kDialTimeoutMax = absl::Minutes(10);

std::string PortOf(const std::string& host) {
  const size_t colon = host.rfind(':');
  const size_t bracket = host.rfind(']');
  if (colon == std::string::npos ||
      (bracket != std::string::npos && colon < bracket)) {
    return "";
  }
  return host.substr(colon + 1);
}

bool IsDir(const std::string& path) {
  struct stat info;
  return stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

RegistryHost DefaultHost(const std::string& host,
                         const std::string& default_scheme) {
  RegistryHost out;
  out.path = "/v2";
  out.host = host == kDockerHost ? kDockerRegistry : host;
  out.scheme = "https";
  if (host == kDockerHost) return out;
  const std::string port = PortOf(host);
  if (IsLoopback(host)) {
    out.tls.skip_verify = true;
    if (default_scheme.empty() && !port.empty() && port != "443") {
      out.scheme = "http";
      out.https_first = port != "80";
    }
  }
  if (!default_scheme.empty()) out.scheme = default_scheme;
  return out;
}

std::string Resolve(const std::string& dir, const std::string& path) {
  return absl::StartsWith(path, "/") ? path : absl::StrCat(dir, "/", path);
}

absl::Status Bad(const std::string& what) {
  return absl::InvalidArgumentError(what);
}

// "x" or ["x", "y"].
absl::StatusOr<std::vector<std::string>> Strings(const toml::node& node,
                                                 const std::string& key) {
  std::vector<std::string> out;
  if (const auto* text = node.as_string()) {
    out.push_back(text->get());
    return out;
  }
  const toml::array* list = node.as_array();
  if (list == nullptr) return Bad(key + ": not a string or a list");
  for (const toml::node& item : *list) {
    const auto* text = item.as_string();
    if (text == nullptr) return Bad(key + ": an entry is not a string");
    out.push_back(text->get());
  }
  return out;
}

absl::Status ReadClient(const toml::node& node, const std::string& dir,
                        TlsOptions* tls) {
  // "both.pem" | ["one.pem", ...] | [["cert", "key"], ...]; the first counts.
  if (const auto* text = node.as_string()) {
    tls->client_cert = Resolve(dir, text->get());
    return absl::OkStatus();
  }
  const toml::array* list = node.as_array();
  if (list == nullptr || list->empty()) return Bad("client: not a list");
  if (const auto* text = (*list)[0].as_string()) {
    tls->client_cert = Resolve(dir, text->get());
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(std::vector<std::string> pair,
                   Strings((*list)[0], "client"));
  if (pair.empty() || pair.size() > 2) {
    return Bad("client: want [cert, key] pairs");
  }
  tls->client_cert = Resolve(dir, pair[0]);
  if (pair.size() == 2 && !pair[1].empty()) {
    tls->client_key = Resolve(dir, pair[1]);
  }
  return absl::OkStatus();
}

// Scheme, host and path of `url` into `out`.
absl::Status ReadUrl(const std::string& url, bool override_path,
                     RegistryHost* out) {
  std::string rest = url;
  out->scheme = "https";
  if (absl::StartsWith(url, "http://")) {
    out->scheme = "http";
    rest = url.substr(7);
  } else if (absl::StartsWith(url, "https://")) {
    rest = url.substr(8);
  } else if (absl::StrContains(url, "://")) {
    return Bad(absl::StrCat("\"", url, "\": only http and https"));
  }
  const size_t slash = rest.find('/');
  out->host = rest.substr(0, slash);
  out->path = slash == std::string::npos ? "" : rest.substr(slash);
  while (absl::EndsWith(out->path, "/")) out->path.pop_back();
  if (!override_path && !absl::EndsWith(out->path, "/v2")) out->path += "/v2";
  if (out->host.empty() || absl::StrContains(out->host, "@") ||
      out->path.find_first_of("?#") != std::string::npos) {
    return Bad(absl::StrCat("bad host URL \"", url, "\""));
  }
  return absl::OkStatus();
}

absl::StatusOr<RegistryHost> ReadHost(const toml::table& table,
                                      const std::string& url,
                                      const RegistryHost& fallback,
                                      const std::string& dir) {
  RegistryHost out;
  bool explicit_tls = false;
  bool override_path = false;
  if (const auto* flag = table["override_path"].as_boolean()) {
    override_path = flag->get();
  }
  if (url.empty()) {
    out = fallback;
  } else {
    RETURN_IF_ERROR(ReadUrl(url, override_path, &out));
    if (IsLoopback(out.host)) out.tls.skip_verify = true;
  }
  if (const toml::node* node = table.get("capabilities")) {
    ASSIGN_OR_RETURN(std::vector<std::string> names,
                     Strings(*node, "capabilities"));
    out.pull = out.resolve = out.push = out.referrers = names.empty();
    for (const std::string& name : names) {
      if (name == "pull") {
        out.pull = true;
      } else if (name == "resolve") {
        out.resolve = true;
      } else if (name == "push") {
        out.push = true;
      } else if (name == "referrers") {
        out.referrers = true;
      } else {
        return Bad(absl::StrCat("unknown capability \"", name, "\""));
      }
    }
  }
  if (const toml::node* node = table.get("ca")) {
    ASSIGN_OR_RETURN(out.tls.ca_files, Strings(*node, "ca"));
    for (std::string& file : out.tls.ca_files) file = Resolve(dir, file);
    out.tls.skip_verify = false;
    explicit_tls = true;
  }
  if (const toml::node* node = table.get("client")) {
    RETURN_IF_ERROR(ReadClient(*node, dir, &out.tls));
    explicit_tls = true;
  }
  if (const auto* flag = table["skip_verify"].as_boolean()) {
    out.tls.skip_verify = flag->get();
    explicit_tls = true;
  }
  if (const auto* text = table["dial_timeout"].as_string()) {
    if (!absl::ParseDuration(text->get(), &out.dial_timeout) ||
        out.dial_timeout <= absl::ZeroDuration() ||
        out.dial_timeout > kDialTimeoutMax) {
      return Bad("dial_timeout: want a duration like \"10s\"");
    }
  }
  if (const toml::table* header = table["header"].as_table()) {
    for (const auto& [name, node] : *header) {
      ASSIGN_OR_RETURN(std::vector<std::string> values,
                       Strings(node, "header"));
      for (std::string& value : values) {
        out.headers.emplace_back(std::string(name.str()), std::move(value));
      }
    }
  }
  if (out.scheme == "http" && explicit_tls && PortOf(out.host) != "80") {
    out.https_first = true;
  }
  return out;
}

// *.crt are authorities; x.cert with x.key is ours.
void ReadCertsDir(const std::string& dir, RegistryHost* host) {
  DIR* handle = opendir(dir.c_str());
  if (handle == nullptr) return;
  std::vector<std::string> names;
  while (const dirent* entry = readdir(handle)) names.push_back(entry->d_name);
  closedir(handle);
  std::sort(names.begin(), names.end());
  for (const std::string& name : names) {
    const std::string path = absl::StrCat(dir, "/", name);
    if (absl::EndsWith(name, ".crt")) {
      host->tls.ca_files.push_back(path);
    } else if (absl::EndsWith(name, ".cert") && host->tls.client_cert.empty()) {
      host->tls.client_cert = path;
      host->tls.client_key = path.substr(0, path.size() - 5) + ".key";
    }
  }
  const bool tls =
      !host->tls.ca_files.empty() || !host->tls.client_cert.empty();
  if (tls && host->scheme == "http" && PortOf(host->host) != "80") {
    host->https_first = true;
  }
}

std::string FindDir(const std::string& host, const std::string& config_path) {
  const std::string port = PortOf(host);
  std::vector<std::string> names;
  if (!port.empty()) {
    const std::string name = host.substr(0, host.size() - port.size() - 1);
    names.push_back(absl::StrCat(name, "_", port, "_"));
  }
  names.push_back(host);
  names.push_back("_default");
  const std::vector<std::string> roots = absl::StrSplit(config_path, ':');
  for (const std::string& root : roots) {
    if (root.empty()) continue;
    for (const std::string& name : names) {
      const std::string dir = absl::StrCat(root, "/", name);
      if (IsDir(dir)) return dir;
    }
  }
  return "";
}

}  // namespace

bool IsLoopback(const std::string& host) {
  const std::string port = PortOf(host);
  const std::string name =
      port.empty() ? host : host.substr(0, host.size() - port.size() - 1);
  return name == "localhost" || name == "[::1]" || name == "::1" ||
         (absl::StartsWith(name, "127.") &&
          name.find_first_not_of("0123456789.") == std::string::npos);
}

absl::StatusOr<std::vector<RegistryHost>> ParseHostsToml(
    const std::string& text, const std::string& dir,
    const RegistryHost& default_host) {
  const toml::parse_result parsed = toml::parse(text);
  if (!parsed) {
    return Bad(absl::StrCat("line ", parsed.error().source().begin.line, ": ",
                            std::string(parsed.error().description()).c_str()));
  }
  const toml::table& root = parsed.table();
  struct Entry {
    uint32_t line;
    RegistryHost host;
  };
  std::vector<Entry> entries;
  if (root.contains("host") && !root["host"].is_table()) {
    return Bad("host: not a table");
  }
  if (const toml::table* hosts = root["host"].as_table()) {
    if (hosts->size() > kHostsMax) return Bad("more than 64 hosts");
    for (const auto& [url, node] : *hosts) {
      const toml::table* table = node.as_table();
      if (table == nullptr) return Bad("host: not a table");
      ASSIGN_OR_RETURN(
          RegistryHost host,
          ReadHost(*table, std::string(url.str()), default_host, dir));
      // toml++ sorts keys; the file's order is what counts.
      entries.push_back({url.source().begin.line, std::move(host)});
    }
  }
  std::stable_sort(
      entries.begin(), entries.end(),
      [](const Entry& a, const Entry& b) { return a.line < b.line; });
  std::vector<RegistryHost> out;
  for (Entry& entry : entries) out.push_back(std::move(entry.host));
  std::string server;
  if (const auto* value = root["server"].as_string()) server = value->get();
  ASSIGN_OR_RETURN(RegistryHost last,
                   ReadHost(root, server, default_host, dir));
  out.push_back(std::move(last));
  return out;
}

absl::StatusOr<std::vector<RegistryHost>> HostsFor(
    const std::string& host, const HostsOptions& options) {
  if (!options.default_scheme.empty() && options.default_scheme != "http" &&
      options.default_scheme != "https") {
    return Bad(absl::StrCat("default_scheme \"", options.default_scheme,
                            "\": want http or https"));
  }
  RegistryHost fallback = DefaultHost(host, options.default_scheme);
  const std::string dir = FindDir(host, options.config_path);
  if (dir.empty()) return std::vector<RegistryHost>{fallback};
  const std::string file = dir + "/hosts.toml";
  absl::StatusOr<std::string> text = os::ReadFile(file, kHostsFileBytesMax);
  if (text.ok() && !text->empty()) {
    auto hosts = ParseHostsToml(*text, dir, fallback);
    if (!hosts.ok()) return Annotate(hosts.status(), file);
    return hosts;
  }
  ReadCertsDir(dir, &fallback);
  return std::vector<RegistryHost>{fallback};
}

}  // namespace bulkhead::distribution
