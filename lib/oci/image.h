// OCI (and Docker v2 schema 2) image documents: descriptors, manifests,
// indexes, configs; platform matching; chain ids. Parsing untrusted JSON with
// limits; unknown fields are ignored. No gRPC, no I/O. Everything here is a
// plain value; functions are pure and thread-safe.
#ifndef BULKHEAD_LIB_OCI_IMAGE_H_
#define BULKHEAD_LIB_OCI_IMAGE_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lib/digest/digest.h"

namespace bulkhead::oci {

// Limits; past one of them parsing is kResourceExhausted.
constexpr int64_t kDocumentBytesMax = 4 << 20;  // Manifest, index, config.
constexpr int kJsonDepthMax = 64;
constexpr int kLayersMax = 1024;        // In one manifest or config.
constexpr int kIndexEntriesMax = 4096;  // In one index.
constexpr int kListEntriesMax = 65536;  // Env, labels, annotations, ...

// Media types.
inline constexpr char kOciManifest[] =
    "application/vnd.oci.image.manifest.v1+json";
inline constexpr char kOciIndex[] = "application/vnd.oci.image.index.v1+json";
inline constexpr char kOciConfig[] = "application/vnd.oci.image.config.v1+json";
inline constexpr char kOciLayer[] = "application/vnd.oci.image.layer.v1.tar";
inline constexpr char kOciLayerGzip[] =
    "application/vnd.oci.image.layer.v1.tar+gzip";
inline constexpr char kOciLayerZstd[] =
    "application/vnd.oci.image.layer.v1.tar+zstd";
inline constexpr char kDockerManifest[] =
    "application/vnd.docker.distribution.manifest.v2+json";
inline constexpr char kDockerList[] =
    "application/vnd.docker.distribution.manifest.list.v2+json";
inline constexpr char kDockerConfig[] =
    "application/vnd.docker.container.image.v1+json";
inline constexpr char kDockerLayer[] =
    "application/vnd.docker.image.rootfs.diff.tar";
inline constexpr char kDockerLayerGzip[] =
    "application/vnd.docker.image.rootfs.diff.tar.gzip";
inline constexpr char kDockerSchema1[] =
    "application/vnd.docker.distribution.manifest.v1+json";
inline constexpr char kDockerSchema1Signed[] =
    "application/vnd.docker.distribution.manifest.v1+prettyjws";

bool IsManifestType(const std::string& media_type);
bool IsIndexType(const std::string& media_type);
bool IsConfigType(const std::string& media_type);
// Any tar layer, whatever its compression, foreign and nondistributable too.
bool IsLayerType(const std::string& media_type);
bool IsSchema1Type(const std::string& media_type);

struct Platform {
  std::string os;
  std::string architecture;
  std::string variant;
  std::string os_version;
  std::vector<std::string> os_features;

  bool empty() const { return os.empty() && architecture.empty(); }
  friend bool operator==(const Platform&, const Platform&) = default;
};

// linux and this machine's architecture.
Platform HostPlatform();
// Lower case, aliases resolved (x86_64 -> amd64, aarch64 -> arm64, ...), the
// default variant of arm64 (v8) dropped and of arm (v7) added.
Platform Normalize(const Platform& platform);
// "linux/arm64/v8" as "os/arch[/variant]"; "amd64" or "linux" alone take the
// rest from the host. kInvalidArgument for anything else.
absl::StatusOr<Platform> ParsePlatform(const std::string& text);
std::string FormatPlatform(const Platform& platform);
// How well an image built for `offered` suits `wanted`: -1 not at all, else
// larger is worse (0: exactly; arm v7 takes v6 and v5, amd64 v3 takes v2 ...).
// Features that `offered` needs must be among those of `wanted`; if that names
// none, each makes the image suit less well.
int PlatformDistance(const Platform& wanted, const Platform& offered);
inline bool PlatformMatches(const Platform& wanted, const Platform& offered) {
  return PlatformDistance(wanted, offered) >= 0;
}

struct Descriptor {
  std::string media_type;
  Digest digest;
  int64_t size_bytes = 0;
  std::vector<std::string> urls;
  std::map<std::string, std::string> annotations;
  Platform platform;  // Empty: none was given.
  std::string artifact_type;
  std::string data;  // Decoded; empty if absent or not valid base64.
};

struct Manifest {
  std::string media_type;  // May be empty in the JSON.
  std::string artifact_type;
  Descriptor config;
  std::vector<Descriptor> layers;
  std::map<std::string, std::string> annotations;
  Digest subject;  // What an artifact is about; empty: nothing.
};

struct Index {
  std::string media_type;
  std::string artifact_type;
  std::vector<Descriptor> manifests;
  std::map<std::string, std::string> annotations;
  Digest subject;
};

// The part of the config that says how to run the image.
struct RunConfig {
  std::string user;
  std::vector<std::string> env;  // "KEY=value".
  std::vector<std::string> entrypoint;
  std::vector<std::string> cmd;
  std::string working_dir;
  std::string stop_signal;
  std::vector<std::string> volumes;        // Paths.
  std::vector<std::string> exposed_ports;  // "80/tcp".
  std::map<std::string, std::string> labels;
};

struct History {
  std::string created;
  std::string created_by;
  std::string comment;
  bool empty_layer = false;
};

struct ImageConfig {
  Platform platform;
  std::string created;  // RFC 3339, as written.
  std::string author;
  RunConfig config;
  std::vector<Digest> diff_ids;  // rootfs.diff_ids
  std::vector<History> history;
};

// Errors: kInvalidArgument: not JSON, wrong types, bad digests, negative
//   sizes, a document of the other kind (an index parsed as a manifest ...),
//   schema 1 (the message says what to do). kResourceExhausted: a limit.
absl::StatusOr<Manifest> ParseManifest(const std::string& json);
absl::StatusOr<Index> ParseIndex(const std::string& json);
absl::StatusOr<ImageConfig> ParseImageConfig(const std::string& json);

// True if brackets nest deeper than kJsonDepthMax; builds nothing, so it is the
// check to make before anything is built of untrusted JSON.
bool JsonTooDeep(const std::string& json);

// The media type of a manifest or index whose sender did not say: its own
// "mediaType", else guessed from its fields; "" if it is neither.
std::string GuessMediaType(const std::string& json);

// Compact JSON with the fields in the specification's order.
std::string WriteManifest(const Manifest& manifest);
std::string WriteIndex(const Index& index);
std::string WriteImageConfig(const ImageConfig& config);

// The chain id of the first n+1 layers, for each n; empty for none.
std::vector<Digest> ChainIds(const std::vector<Digest>& diff_ids);
// sha256("<parent> <diff id>"), or the diff id itself without a parent.
Digest ChainId(const Digest& parent, const Digest& diff_id);

// The ref under which an image part is ingested and progress is reported:
// "manifest-<digest>", "index-", "layer-", "config-", "unknown-".
std::string RefKey(const Descriptor& descriptor);

// The labels that keep a manifest's or index's children alive
// (containerd.io/gc.ref.content.config, .l.0, .m.0, ...) -> digest.
std::map<std::string, std::string> ChildLabels(
    const std::vector<Descriptor>& children);

}  // namespace bulkhead::oci

#endif  // BULKHEAD_LIB_OCI_IMAGE_H_
