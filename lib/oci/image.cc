#include "lib/oci/image.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"

namespace bulkhead::oci {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr int64_t kInlineDataBytesMax = 1 << 20;

absl::Status Bad(const std::string& where, const std::string& why) {
  return absl::InvalidArgumentError(absl::StrCat(where, ": ", why));
}

absl::StatusOr<json> ParseObject(const std::string& text,
                                 const std::string& what) {
  if (static_cast<int64_t>(text.size()) > kDocumentBytesMax) {
    return absl::ResourceExhaustedError(
        absl::StrCat(what, ": ", text.size(), " bytes, more than the limit of ",
                     kDocumentBytesMax));
  }
  if (JsonTooDeep(text)) {
    return absl::ResourceExhaustedError(absl::StrCat(
        what, ": nested deeper than the limit of ", kJsonDepthMax));
  }
  json value = json::parse(text, nullptr, false);
  if (value.is_discarded()) return Bad(what, "not valid JSON");
  if (!value.is_object()) return Bad(what, "not a JSON object");
  return value;
}

// A missing or null member leaves `out` alone, as Go's decoder does.
const json* Member(const json& object, const char* key) {
  const auto it = object.find(key);
  if (it == object.end() || it->is_null()) return nullptr;
  return &*it;
}

absl::Status Get(const json& object, const char* key, std::string* out) {
  const json* member = Member(object, key);
  if (member == nullptr) return absl::OkStatus();
  if (!member->is_string()) return Bad(key, "not a string");
  *out = member->get<std::string>();
  return absl::OkStatus();
}

absl::Status Get(const json& object, const char* key, int64_t* out) {
  const json* member = Member(object, key);
  if (member == nullptr) return absl::OkStatus();
  if (!member->is_number_integer()) return Bad(key, "not an integer");
  if (member->is_number_unsigned() &&
      member->get<uint64_t>() >
          static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    return Bad(key, "out of range");
  }
  *out = member->get<int64_t>();
  return absl::OkStatus();
}

absl::Status Get(const json& object, const char* key, bool* out) {
  const json* member = Member(object, key);
  if (member == nullptr) return absl::OkStatus();
  if (!member->is_boolean()) return Bad(key, "not true or false");
  *out = member->get<bool>();
  return absl::OkStatus();
}

absl::Status CheckCount(const char* key, size_t count, size_t count_max) {
  if (count <= count_max) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat(
      key, ": ", count, " entries, more than the limit of ", count_max));
}

absl::Status Get(const json& object, const char* key,
                 std::vector<std::string>* out) {
  const json* member = Member(object, key);
  if (member == nullptr) return absl::OkStatus();
  if (!member->is_array()) return Bad(key, "not a list");
  RETURN_IF_ERROR(CheckCount(key, member->size(), kListEntriesMax));
  out->reserve(member->size());
  for (const json& item : *member) {
    if (!item.is_string()) return Bad(key, "an entry is not a string");
    out->push_back(item.get<std::string>());
  }
  return absl::OkStatus();
}

absl::Status Get(const json& object, const char* key,
                 std::map<std::string, std::string>* out) {
  const json* member = Member(object, key);
  if (member == nullptr) return absl::OkStatus();
  if (!member->is_object()) return Bad(key, "not an object");
  RETURN_IF_ERROR(CheckCount(key, member->size(), kListEntriesMax));
  for (const auto& [name, value] : member->items()) {
    if (value.is_null()) continue;
    if (!value.is_string()) return Bad(key, "a value is not a string");
    (*out)[name] = value.get<std::string>();
  }
  return absl::OkStatus();
}

// The keys of {"/data":{}}.
absl::Status GetKeys(const json& object, const char* key,
                     std::vector<std::string>* out) {
  const json* member = Member(object, key);
  if (member == nullptr) return absl::OkStatus();
  if (!member->is_object()) return Bad(key, "not an object");
  RETURN_IF_ERROR(CheckCount(key, member->size(), kListEntriesMax));
  for (const auto& [name, value] : member->items()) out->push_back(name);
  return absl::OkStatus();
}

absl::Status GetPlatform(const json& object, Platform* out) {
  RETURN_IF_ERROR(Get(object, "os", &out->os));
  RETURN_IF_ERROR(Get(object, "architecture", &out->architecture));
  RETURN_IF_ERROR(Get(object, "variant", &out->variant));
  RETURN_IF_ERROR(Get(object, "os.version", &out->os_version));
  return Get(object, "os.features", &out->os_features);
}

absl::StatusOr<Descriptor> GetDescriptor(const json& object) {
  if (!object.is_object()) return Bad("descriptor", "not an object");
  Descriptor out;
  std::string digest;
  std::string data;
  RETURN_IF_ERROR(Get(object, "mediaType", &out.media_type));
  RETURN_IF_ERROR(Get(object, "digest", &digest));
  RETURN_IF_ERROR(Get(object, "size", &out.size_bytes));
  RETURN_IF_ERROR(Get(object, "urls", &out.urls));
  RETURN_IF_ERROR(Get(object, "annotations", &out.annotations));
  RETURN_IF_ERROR(Get(object, "artifactType", &out.artifact_type));
  RETURN_IF_ERROR(Get(object, "data", &data));
  if (const json* platform = Member(object, "platform")) {
    if (!platform->is_object()) return Bad("platform", "not an object");
    RETURN_IF_ERROR(GetPlatform(*platform, &out.platform));
  }
  absl::StatusOr<Digest> parsed = Digest::Parse(digest);
  if (!parsed.ok()) {
    return Bad(absl::StrCat("digest \"", digest.substr(0, 160), "\""),
               MessageOf(parsed.status()));
  }
  out.digest = *std::move(parsed);
  if (out.size_bytes < 0) return Bad("size", "negative");
  if (!data.empty() &&
      static_cast<int64_t>(data.size()) <= kInlineDataBytesMax &&
      !absl::Base64Unescape(data, &out.data)) {
    out.data.clear();
  }
  return out;
}

absl::Status GetDescriptors(const json& object, const char* key, int count_max,
                            std::vector<Descriptor>* out) {
  const json* member = Member(object, key);
  if (member == nullptr) return absl::OkStatus();
  if (!member->is_array()) return Bad(key, "not a list");
  RETURN_IF_ERROR(CheckCount(key, member->size(), count_max));
  out->reserve(member->size());
  for (const json& item : *member) {
    absl::StatusOr<Descriptor> descriptor = GetDescriptor(item);
    if (!descriptor.ok()) return Annotate(descriptor.status(), key);
    out->push_back(*std::move(descriptor));
  }
  return absl::OkStatus();
}

absl::Status RefuseSchema1(const json& object, const std::string& media_type) {
  const json* version = Member(object, "schemaVersion");
  const bool one = version != nullptr && version->is_number_integer() &&
                   version->get<int64_t>() == 1;
  if (!one && !object.contains("fsLayers") && !IsSchema1Type(media_type)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      "the image is in Docker's schema 1 format, which is no longer "
      "supported: push it again with a current client");
}

ordered_json ToJson(const Platform& platform) {
  ordered_json out;
  out["architecture"] = platform.architecture;
  out["os"] = platform.os;
  if (!platform.os_version.empty()) out["os.version"] = platform.os_version;
  if (!platform.os_features.empty()) out["os.features"] = platform.os_features;
  if (!platform.variant.empty()) out["variant"] = platform.variant;
  return out;
}

ordered_json ToJson(const Descriptor& descriptor) {
  ordered_json out;
  out["mediaType"] = descriptor.media_type;
  out["digest"] = descriptor.digest.str();
  out["size"] = descriptor.size_bytes;
  if (!descriptor.urls.empty()) out["urls"] = descriptor.urls;
  if (!descriptor.annotations.empty()) {
    out["annotations"] = descriptor.annotations;
  }
  if (!descriptor.data.empty()) {
    std::string encoded;
    absl::Base64Escape(descriptor.data, &encoded);
    out["data"] = encoded;
  }
  if (!descriptor.platform.empty()) {
    out["platform"] = ToJson(descriptor.platform);
  }
  if (!descriptor.artifact_type.empty()) {
    out["artifactType"] = descriptor.artifact_type;
  }
  return out;
}

ordered_json ToJson(const std::vector<Descriptor>& descriptors) {
  ordered_json out = ordered_json::array();
  for (const Descriptor& descriptor : descriptors) {
    out.push_back(ToJson(descriptor));
  }
  return out;
}

// Bytes that are not UTF-8 are replaced, never thrown about.
std::string Dump(const ordered_json& value) {
  return value.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

ordered_json KeysToJson(const std::vector<std::string>& keys) {
  ordered_json out = ordered_json::object();
  for (const std::string& key : keys) out[key] = ordered_json::object();
  return out;
}

}  // namespace

bool JsonTooDeep(const std::string& text) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (++depth > kJsonDepthMax) return true;
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  return false;
}

bool IsManifestType(const std::string& media_type) {
  return media_type == kOciManifest || media_type == kDockerManifest;
}

bool IsIndexType(const std::string& media_type) {
  return media_type == kOciIndex || media_type == kDockerList;
}

bool IsConfigType(const std::string& media_type) {
  return media_type == kOciConfig || media_type == kDockerConfig ||
         media_type == "application/vnd.docker.container.image.rootfs.config";
}

bool IsLayerType(const std::string& media_type) {
  return absl::StartsWith(media_type, "application/vnd.oci.image.layer.") ||
         absl::StartsWith(media_type, kDockerLayer) ||
         absl::StartsWith(
             media_type,
             "application/vnd.docker.image.rootfs.foreign.diff.tar");
}

bool IsSchema1Type(const std::string& media_type) {
  return media_type == kDockerSchema1 || media_type == kDockerSchema1Signed ||
         absl::StartsWith(media_type, "text/plain");
}

namespace {

// The digest of "subject", if there is one.
absl::Status GetSubject(const json& object, Digest* out) {
  const json* subject = Member(object, "subject");
  if (subject == nullptr || subject->is_null()) return absl::OkStatus();
  absl::StatusOr<Descriptor> descriptor = GetDescriptor(*subject);
  if (!descriptor.ok()) return Annotate(descriptor.status(), "subject");
  *out = std::move(descriptor->digest);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Manifest> ParseManifest(const std::string& text) {
  ASSIGN_OR_RETURN(const json object, ParseObject(text, "manifest"));
  Manifest out;
  RETURN_IF_ERROR(
      Annotate(Get(object, "mediaType", &out.media_type), "manifest"));
  RETURN_IF_ERROR(RefuseSchema1(object, out.media_type));
  if (object.contains("manifests") || IsIndexType(out.media_type)) {
    return Bad("manifest", "this is an index");
  }
  RETURN_IF_ERROR(
      Annotate(Get(object, "artifactType", &out.artifact_type), "manifest"));
  RETURN_IF_ERROR(
      Annotate(Get(object, "annotations", &out.annotations), "manifest"));
  RETURN_IF_ERROR(Annotate(GetSubject(object, &out.subject), "manifest"));
  const json* config = Member(object, "config");
  if (config == nullptr) return Bad("manifest", "no config");
  absl::StatusOr<Descriptor> descriptor = GetDescriptor(*config);
  if (!descriptor.ok()) {
    return Annotate(descriptor.status(), "manifest: config");
  }
  out.config = *std::move(descriptor);
  RETURN_IF_ERROR(Annotate(
      GetDescriptors(object, "layers", kLayersMax, &out.layers), "manifest"));
  return out;
}

absl::StatusOr<Index> ParseIndex(const std::string& text) {
  ASSIGN_OR_RETURN(const json object, ParseObject(text, "index"));
  Index out;
  RETURN_IF_ERROR(Annotate(Get(object, "mediaType", &out.media_type), "index"));
  RETURN_IF_ERROR(RefuseSchema1(object, out.media_type));
  if (object.contains("config") || object.contains("layers") ||
      IsManifestType(out.media_type)) {
    return Bad("index", "this is a manifest");
  }
  RETURN_IF_ERROR(
      Annotate(Get(object, "artifactType", &out.artifact_type), "index"));
  RETURN_IF_ERROR(
      Annotate(Get(object, "annotations", &out.annotations), "index"));
  RETURN_IF_ERROR(Annotate(GetSubject(object, &out.subject), "index"));
  RETURN_IF_ERROR(Annotate(
      GetDescriptors(object, "manifests", kIndexEntriesMax, &out.manifests),
      "index"));
  return out;
}

absl::StatusOr<ImageConfig> ParseImageConfig(const std::string& text) {
  constexpr char kWhat[] = "image config";
  ASSIGN_OR_RETURN(const json object, ParseObject(text, kWhat));
  ImageConfig out;
  RETURN_IF_ERROR(Annotate(GetPlatform(object, &out.platform), kWhat));
  RETURN_IF_ERROR(Annotate(Get(object, "created", &out.created), kWhat));
  RETURN_IF_ERROR(Annotate(Get(object, "author", &out.author), kWhat));
  if (const json* config = Member(object, "config")) {
    if (!config->is_object()) return Bad(kWhat, "config: not an object");
    RunConfig& run = out.config;
    absl::Status status = Get(*config, "User", &run.user);
    status.Update(Get(*config, "Env", &run.env));
    status.Update(Get(*config, "Entrypoint", &run.entrypoint));
    status.Update(Get(*config, "Cmd", &run.cmd));
    status.Update(Get(*config, "WorkingDir", &run.working_dir));
    status.Update(Get(*config, "StopSignal", &run.stop_signal));
    status.Update(GetKeys(*config, "Volumes", &run.volumes));
    status.Update(GetKeys(*config, "ExposedPorts", &run.exposed_ports));
    status.Update(Get(*config, "Labels", &run.labels));
    RETURN_IF_ERROR(Annotate(status, kWhat));
  }
  if (const json* rootfs = Member(object, "rootfs")) {
    if (!rootfs->is_object()) return Bad(kWhat, "rootfs: not an object");
    std::vector<std::string> diff_ids;
    RETURN_IF_ERROR(Annotate(Get(*rootfs, "diff_ids", &diff_ids), kWhat));
    RETURN_IF_ERROR(
        Annotate(CheckCount("diff_ids", diff_ids.size(), kLayersMax), kWhat));
    for (const std::string& text_id : diff_ids) {
      absl::StatusOr<Digest> digest = Digest::Parse(text_id);
      if (!digest.ok()) {
        return Bad(kWhat, absl::StrCat("diff_id \"", text_id.substr(0, 160),
                                       "\": ", MessageOf(digest.status())));
      }
      out.diff_ids.push_back(*std::move(digest));
    }
  }
  if (const json* history = Member(object, "history")) {
    if (!history->is_array()) return Bad(kWhat, "history: not a list");
    RETURN_IF_ERROR(Annotate(
        CheckCount("history", history->size(), kListEntriesMax), kWhat));
    for (const json& item : *history) {
      if (!item.is_object()) return Bad(kWhat, "history: not an object");
      History entry;
      absl::Status status = Get(item, "created", &entry.created);
      status.Update(Get(item, "created_by", &entry.created_by));
      status.Update(Get(item, "comment", &entry.comment));
      status.Update(Get(item, "empty_layer", &entry.empty_layer));
      RETURN_IF_ERROR(Annotate(status, kWhat));
      out.history.push_back(std::move(entry));
    }
  }
  return out;
}

std::string GuessMediaType(const std::string& text) {
  if (static_cast<int64_t>(text.size()) > kDocumentBytesMax ||
      JsonTooDeep(text)) {
    return "";
  }
  const json object = json::parse(text, nullptr, false);
  if (object.is_discarded() || !object.is_object()) return "";
  if (object.contains("fsLayers")) return kDockerSchema1;
  std::string media_type;
  if (!Get(object, "mediaType", &media_type).ok()) return "";
  if (IsManifestType(media_type) || IsIndexType(media_type)) return media_type;
  if (object.contains("manifests")) return kOciIndex;
  if (object.contains("config")) return kOciManifest;
  return "";
}

std::string WriteManifest(const Manifest& manifest) {
  ordered_json out;
  out["schemaVersion"] = 2;
  if (!manifest.media_type.empty()) out["mediaType"] = manifest.media_type;
  if (!manifest.artifact_type.empty()) {
    out["artifactType"] = manifest.artifact_type;
  }
  out["config"] = ToJson(manifest.config);
  out["layers"] = ToJson(manifest.layers);
  if (!manifest.annotations.empty()) out["annotations"] = manifest.annotations;
  return Dump(out);
}

std::string WriteIndex(const Index& index) {
  ordered_json out;
  out["schemaVersion"] = 2;
  if (!index.media_type.empty()) out["mediaType"] = index.media_type;
  out["manifests"] = ToJson(index.manifests);
  if (!index.annotations.empty()) out["annotations"] = index.annotations;
  return Dump(out);
}

std::string WriteImageConfig(const ImageConfig& image) {
  ordered_json out;
  if (!image.created.empty()) out["created"] = image.created;
  if (!image.author.empty()) out["author"] = image.author;
  const ordered_json platform = ToJson(image.platform);
  for (const auto& [key, value] : platform.items()) {
    out[key] = value;
  }
  const RunConfig& run = image.config;
  ordered_json config = ordered_json::object();
  if (!run.user.empty()) config["User"] = run.user;
  if (!run.exposed_ports.empty()) {
    config["ExposedPorts"] = KeysToJson(run.exposed_ports);
  }
  if (!run.env.empty()) config["Env"] = run.env;
  if (!run.entrypoint.empty()) config["Entrypoint"] = run.entrypoint;
  if (!run.cmd.empty()) config["Cmd"] = run.cmd;
  if (!run.volumes.empty()) config["Volumes"] = KeysToJson(run.volumes);
  if (!run.working_dir.empty()) config["WorkingDir"] = run.working_dir;
  if (!run.labels.empty()) config["Labels"] = run.labels;
  if (!run.stop_signal.empty()) config["StopSignal"] = run.stop_signal;
  out["config"] = std::move(config);
  ordered_json diff_ids = ordered_json::array();
  for (const Digest& digest : image.diff_ids) diff_ids.push_back(digest.str());
  out["rootfs"] = {{"type", "layers"}, {"diff_ids", std::move(diff_ids)}};
  ordered_json history = ordered_json::array();
  for (const History& entry : image.history) {
    ordered_json item = ordered_json::object();
    if (!entry.created.empty()) item["created"] = entry.created;
    if (!entry.created_by.empty()) item["created_by"] = entry.created_by;
    if (!entry.comment.empty()) item["comment"] = entry.comment;
    if (entry.empty_layer) item["empty_layer"] = true;
    history.push_back(std::move(item));
  }
  if (!history.empty()) out["history"] = std::move(history);
  return Dump(out);
}

Digest ChainId(const Digest& parent, const Digest& diff_id) {
  if (parent.empty()) return diff_id;
  return Digest::Of(absl::StrCat(parent.str(), " ", diff_id.str()));
}

std::vector<Digest> ChainIds(const std::vector<Digest>& diff_ids) {
  std::vector<Digest> out;
  out.reserve(diff_ids.size());
  Digest parent;
  for (const Digest& diff_id : diff_ids) {
    parent = ChainId(parent, diff_id);
    out.push_back(parent);
  }
  return out;
}

std::string RefKey(const Descriptor& descriptor) {
  const std::string& type = descriptor.media_type;
  const char* prefix = "unknown-";
  if (IsManifestType(type)) {
    prefix = "manifest-";
  } else if (IsIndexType(type)) {
    prefix = "index-";
  } else if (IsLayerType(type)) {
    prefix = "layer-";
  } else if (IsConfigType(type)) {
    prefix = "config-";
  } else if (type == "application/vnd.in-toto+json") {
    prefix = "attestation-";
  }
  return prefix + descriptor.digest.str();
}

std::map<std::string, std::string> ChildLabels(
    const std::vector<Descriptor>& children) {
  std::map<std::string, std::string> out;
  std::map<std::string, int> counts;
  for (const Descriptor& child : children) {
    std::string key = "containerd.io/gc.ref.content.";
    if (IsManifestType(child.media_type)) {
      key += "m.";
    } else if (IsLayerType(child.media_type)) {
      key += "l.";
    } else if (IsConfigType(child.media_type)) {
      key += "config";
    }
    const int count = counts[key]++;
    if (count > 0 || key.back() == '.') absl::StrAppend(&key, count);
    out[key] = child.digest.str();
  }
  return out;
}

}  // namespace bulkhead::oci
