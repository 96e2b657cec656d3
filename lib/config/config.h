// The one configuration file of the suite (TOML). Every key is documented in
// deploy/config.toml; an unknown key is an error that names it.
#ifndef BULKHEAD_LIB_CONFIG_CONFIG_H_
#define BULKHEAD_LIB_CONFIG_CONFIG_H_

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "lib/log/log.h"

namespace bulkhead::config {

// [proxy_plugins.<name>]: somebody else's service in place of ours.
struct ProxyPlugin {
  std::string type;     // "snapshot", "content", "diff" or "sandbox".
  std::string address;  // Path of its Unix socket.
  std::string platform;
  std::vector<std::string> capabilities;
  std::map<std::string, std::string> exports;
};

// [stream_processors.<name>]: a program that turns layers of one media type
// into another, as in containerd's configuration.
struct StreamProcessor {
  std::vector<std::string> accepts;  // Media types.
  std::string returns;               // A media type.
  std::string path;                  // Of the program, or its name.
  std::vector<std::string> args;
  std::vector<std::string> env;  // NAME=VALUE
};

// [[distribution.verify]]: what an image must show to be taken in. The first
// whose pattern matches decides.
struct VerifyPolicy {
  enum class Action { kAllow, kDeny, kRequire };
  std::string name;  // For messages; never empty.
  // "*" for any run of characters; against "host/repository" and
  // "host/repository:tag". Each has a '/' or begins with "*".
  std::vector<std::string> match;
  Action action = Action::kRequire;
  // kRequire: one good signature by any of these is needed.
  std::vector<std::string> cosign_keys;        // Absolute paths, PEM.
  std::vector<std::string> notation_roots;     // Absolute paths, PEM.
  std::vector<std::string> notation_subjects;  // Empty: whoever the roots name.
  // What a cosign payload must call the image: "repository": as it is pulled;
  // "any"; else this repository.
  std::string identity = "repository";
};

struct Config {
  std::string root = "/var/lib/bulkhead";  // root
  std::string state = "/run/bulkhead";     // state

  struct {  // [log]
    log::Level level = log::Level::kInfo;
    log::Format format = log::Format::kText;
  } log;

  struct {                // [gateway]
    std::string address;  // Default STATE/bulkhead.sock.
    uid_t uid = 0;
    gid_t gid = 0;
    mode_t mode = 0660;
    // [gateway.routes]: full gRPC service name = socket path, over the
    // defaults below (DefaultRoutes).
    std::map<std::string, std::string> routes;
    absl::Duration connect_timeout = absl::Seconds(1);
  } gateway;

  struct {  // [content]
    // Extra verification of a blob's bytes when it is opened: off by default.
    bool verify_on_open = false;
  } content;

  struct {                                          // [metadata]
    std::string content_sharing_policy = "shared";  // Or "isolated".
    std::string default_snapshotter = "overlayfs";
    absl::Duration gc_schedule_delay = absl::ZeroDuration();
    absl::Duration gc_startup_delay = absl::Milliseconds(100);
    int gc_mutation_threshold = 100;
    int gc_deletion_threshold = 0;
    double gc_pause_threshold = 0.02;
    int events_kept_max = 10000;
    // Images nobody runs; zero: no limit. Empty namespaces: all.
    absl::Duration retention_unused_max = absl::ZeroDuration();
    int retention_free_min_percent = 0;
    std::vector<std::string> retention_namespaces;
  } metadata;

  struct {  // [snapshotter]
    std::vector<std::string> snapshotters = {"overlayfs", "native"};
    std::vector<std::string> overlay_mount_options;
    bool upperdir_label = false;
    int64_t layer_bytes_max = int64_t{1} << 40;
    int64_t layer_entries_max = 10'000'000;
  } snapshotter;

  struct {                                                // [distribution]
    std::string config_path = "/etc/containerd/certs.d";  // hosts.toml trees.
    int max_concurrent_downloads = 6;
    int max_concurrent_unpacks = 2;
    int max_concurrent_uploads = 3;
    int max_streams_per_layer = 6;
    int max_connections_per_host = 64;
    int64_t bandwidth_limit = 0;  // Bytes a second each way; 0: none.
    absl::Duration stall_timeout = absl::Seconds(30);
    // [distribution.pins]: full reference with a tag = digest.
    std::map<std::string, std::string> pins;
    std::vector<VerifyPolicy> verify;
    bool verify_default_allow = true;  // verify_default: "allow" or "deny".
    struct {                           // [distribution.image_verifier]
      std::string bin_dir;             // Empty: none; else absolute.
      int max_verifiers = 10;          // Negative: all.
      absl::Duration per_verifier_timeout = absl::Seconds(10);
      std::vector<std::string> interpreters;  // Absolute paths.
    } image_verifier;
  } distribution;

  struct {  // [runtime]
    std::string default_runtime = "io.containerd.bulkhead.v1";
    std::string oci_runtime = "runc";  // For our shim: name or path.
    // Where the OCI runtime keeps its state; default STATE/runc. Ours, so
    // that it never collides with containerd's.
    std::string oci_root;
    // Folders searched for shims before $PATH.
    std::vector<std::string> shim_paths;
  } runtime;

  struct {                // [metrics]
    std::string address;  // "127.0.0.1:9323" or a socket path; empty:
                          // STATE/metrics/http.sock.
    absl::Duration interval = absl::Seconds(10);
  } metrics;

  std::map<std::string, ProxyPlugin> proxy_plugins;
  std::map<std::string, StreamProcessor> stream_processors;

  // Paths below `state`. `service` is the folder name under services/.
  std::string ServiceDir(const std::string& service) const;  // STATE/<svc>
  std::string Socket(
      const std::string& service) const;  // STATE/<svc>/<svc>.sock
  // STATE/<svc>/data.sock: lib/dataplane. For content, metadata, snapshotter.
  std::string DataSocket(const std::string& service) const;
  std::string StatsSocket(const std::string& service) const;
  // The socket clients use, and the ttrpc one for shims beside it
  // (<gateway address>.ttrpc, owned by the runtime service).
  std::string GatewayAddress() const;
  std::string TtrpcAddress() const;
  std::string OciRoot() const;
  // ROOT/<service>: what that service owns.
  std::string RootDir(const std::string& service) const;
};

// Full gRPC service name -> socket path: DefaultRoutes with [gateway.routes]
// over it.
std::map<std::string, std::string> Routes(const Config& config);

// Errors: kInvalidArgument: bad TOML (line and column), unknown key (its full
//   name and the nearest known one), wrong type, value out of range.
absl::StatusOr<Config> Parse(const std::string& toml,
                             const std::string& file_name);
// Reads and parses `path`; a missing file is kNotFound.
absl::StatusOr<Config> Load(const std::string& path);

}  // namespace bulkhead::config

#endif  // BULKHEAD_LIB_CONFIG_CONFIG_H_
