#include "services/distribution/import.h"

#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "lib/base/status_macros.h"
#include "lib/log/log.h"
#include "lib/oci/reference.h"
#include "lib/os/fd.h"

namespace bulkhead::distribution {
namespace {

using nlohmann::json;
using oci::Descriptor;

constexpr char kNameAnnotation[] = "io.containerd.image.name";
constexpr char kRefAnnotation[] = "org.opencontainers.image.ref.name";
constexpr char kUncompressed[] = "containerd.io/uncompressed";
constexpr int64_t kAdvanceBytes = 1 << 20;
constexpr size_t kBufferBytes = 256 << 10;
constexpr int kLinksMax = 10;
constexpr absl::Duration kLockedWait = absl::Milliseconds(100);

bool IsLocked(const absl::Status& status) {
  return absl::IsUnavailable(status) &&
         absl::StartsWith(MessageOf(status), "ref ");
}

std::string RandomName() {
  std::random_device random;
  return absl::StrCat(absl::Hex(random(), absl::kZeroPad8),
                      absl::Hex(random(), absl::kZeroPad8));
}

// "blobs/sha256/<hex>" -> its digest, else empty.
Digest DigestOfPath(const std::string& name) {
  if (!absl::StartsWith(name, "blobs/")) return Digest();
  std::string text = name.substr(6);
  const size_t slash = text.find('/');
  if (slash == std::string::npos) return Digest();
  text[slash] = ':';
  absl::StatusOr<Digest> digest = Digest::Parse(text);
  return digest.ok() ? *digest : Digest();
}

class Importer {
 public:
  Importer(const FetchContext& context, const ByteSource& archive,
           bool force_compress)
      : context_(context),
        reader_(archive),
        force_compress_(force_compress),
        session_(RandomName()) {}

  // Takes in every entry; `found` becomes the archive's index.
  absl::StatusOr<Descriptor> ReadIndex() {
    ArchiveEntry entry;
    for (;;) {
      absl::StatusOr<bool> more = reader_.Next(&entry);
      if (!more.ok()) return more.status();
      if (!*more) break;
      if (context_.stop->Stopped()) {
        return absl::CancelledError("the transfer was cancelled");
      }
      if (entry.name.empty()) continue;
      if (entry.type == '1' || entry.type == '2') {
        links_[entry.name] = {entry.type, entry.link_name};
        continue;
      }
      if (entry.type != '0') continue;
      RETURN_IF_ERROR(Annotate(File(entry), entry.name));
    }
    if (has_layout_ && !index_json_.empty()) {
      absl::StatusOr<oci::Index> index = oci::ParseIndex(index_json_);
      if (!index.ok()) return Annotate(index.status(), "index.json");
      index_ = *std::move(index);
    } else if (!manifest_json_.empty()) {
      RETURN_IF_ERROR(Annotate(FromDocker(), "manifest.json"));
    } else {
      return absl::InvalidArgumentError(
          "the archive holds no image: neither oci-layout with index.json nor "
          "manifest.json");
    }
    if (index_.manifests.size() > kArchiveImagesMax) {
      return absl::ResourceExhaustedError(
          absl::StrCat("more than ", kArchiveImagesMax, " images"));
    }
    return StoreText(index_json_, oci::kOciIndex);
  }

  const oci::Index& index() const { return index_; }

 private:
  struct Link {
    char type;
    std::string target;
  };

  ByteSource Current() {
    return [this](char* out, size_t size) { return reader_.Read(out, size); };
  }

  absl::Status File(const ArchiveEntry& entry) {
    std::string* text = nullptr;
    if (entry.name == "oci-layout") {
      has_layout_ = true;
      return absl::OkStatus();
    }
    if (entry.name == "index.json") text = &index_json_;
    if (entry.name == "manifest.json") text = &manifest_json_;
    if (text != nullptr) {
      text->clear();
      return ReadAll(Current(), oci::kDocumentBytesMax, text);
    }
    // Legacy parts of docker's archives that no image refers to.
    if (entry.name == "repositories" || absl::EndsWith(entry.name, "/VERSION"))
      return absl::OkStatus();
    absl::StatusOr<Descriptor> stored =
        Ingest(DigestOfPath(entry.name), entry.size_bytes, Current());
    if (!stored.ok()) return stored.status();
    files_[entry.name] = *std::move(stored);
    return absl::OkStatus();
  }

  // One file into the store, under the digest it has; `expected` if known.
  // Size -1: as much as comes.
  absl::StatusOr<Descriptor> Ingest(const Digest& expected, int64_t size,
                                    const ByteSource& source,
                                    const Labels& labels = {}) {
    Descriptor out;
    out.digest = expected;
    out.size_bytes = size;
    const std::string ref =
        expected.empty() ? absl::StrCat("import-", session_, "-", ++files_read_)
                         : absl::StrCat("import-", expected.str());
    absl::StatusOr<std::unique_ptr<dataplane::Ingest>> opened;
    for (;;) {
      opened = context_.store->OpenIngest(ref, std::max<int64_t>(size, 0),
                                          expected.str());
      if (!IsLocked(opened.status())) break;
      if (context_.stop->Stopped()) {
        return absl::CancelledError("the transfer was cancelled");
      }
      absl::SleepFor(kLockedWait);  // Another import brings the same blob.
    }
    if (absl::IsAlreadyExists(opened.status())) return out;
    RETURN_IF_ERROR(opened.status());
    dataplane::Ingest& ingest = **opened;
    const int64_t there = ingest.opened().offset_bytes;
    if (there != size) {
      if (there != 0) RETURN_IF_ERROR(ingest.Truncate(0));
      std::vector<char> buffer(kBufferBytes);
      int64_t offset = 0;
      int64_t advanced = 0;
      if (size < 0) out.size_bytes = 0;
      for (;;) {
        if (context_.stop->Stopped()) {
          return absl::CancelledError("the transfer was cancelled");
        }
        size_t have = 0;  // Whole buffers: the stream's pieces are small.
        bool over = false;
        while (have < buffer.size() && !over) {
          ASSIGN_OR_RETURN(const size_t got,
                           source(buffer.data() + have, buffer.size() - have));
          have += got;
          over = got == 0;
        }
        RETURN_IF_ERROR(
            os::PWriteFull(ingest.fd(), buffer.data(), have, offset));
        offset += static_cast<int64_t>(have);
        if (size < 0) out.size_bytes = offset;
        if (over) break;
        if (offset - advanced >= kAdvanceBytes) {
          advanced = offset;
          RETURN_IF_ERROR(ingest.Advance(offset));
        }
      }
    }
    auto done = ingest.Commit(out.size_bytes, expected.str(), labels);
    if (absl::IsAlreadyExists(done.status()) && !expected.empty()) return out;
    if (absl::IsFailedPrecondition(done.status())) {
      (void)ingest.Abort();
      return absl::DataLossError(absl::StrCat("the archive's bytes are wrong: ",
                                              MessageOf(done.status())));
    }
    if (absl::IsAlreadyExists(done.status())) {
      // Somebody else's: its digest is only in the message.
      const std::string text = MessageOf(done.status());
      const size_t at = text.find("sha256:");
      ASSIGN_OR_RETURN(
          out.digest,
          Digest::Parse(at == std::string::npos ? text
                                                : text.substr(at, 7 + 64)));
      // Takes it into the lease.
      auto again =
          context_.store->OpenIngest(ref, out.size_bytes, out.digest.str());
      if (again.ok()) return absl::AbortedError("the blob has just gone");
      return out;
    }
    RETURN_IF_ERROR(done.status());
    ASSIGN_OR_RETURN(out.digest, Digest::Parse(done->digest));
    return out;
  }

  absl::StatusOr<Descriptor> StoreText(const std::string& text,
                                       const std::string& media_type) {
    size_t at = 0;
    const ByteSource source = [&](char* out,
                                  size_t size) -> absl::StatusOr<size_t> {
      const size_t count = std::min(size, text.size() - at);
      text.copy(out, count, at);
      at += count;
      return count;
    };
    ASSIGN_OR_RETURN(
        Descriptor out,
        Ingest(Digest::Of(text), static_cast<int64_t>(text.size()), source));
    out.media_type = media_type;
    return out;
  }

  // The file an archive's name stands for, through links.
  absl::StatusOr<Descriptor> Find(std::string name) {
    for (int i = 0; i < kLinksMax; ++i) {
      const auto file = files_.find(name);
      if (file != files_.end()) return file->second;
      const auto link = links_.find(name);
      if (link == links_.end()) break;
      std::string target = link->second.target;
      if (link->second.type == '2') {
        // "../<id>/layer.tar", relative to the link's folder.
        std::string folder = name.substr(0, name.rfind('/') + 1);
        while (absl::StartsWith(target, "../")) {
          target = target.substr(3);
          if (!folder.empty()) folder.pop_back();
          folder = folder.substr(0, folder.rfind('/') + 1);
        }
        target = folder + target;
      }
      name = target;
    }
    return absl::NotFoundError(
        absl::StrCat("the archive lacks the file ", name.substr(0, 200)));
  }

  // Makes Docker schema 2 manifests of docker's manifest.json.
  absl::Status FromDocker() {
    const json list = json::parse(manifest_json_, nullptr, false);
    if (!list.is_array() || list.size() > kArchiveImagesMax) {
      return absl::InvalidArgumentError("not a list of images");
    }
    for (const json& item : list) {
      if (!item.is_object() || !item.contains("Config") ||
          !item["Config"].is_string() || !item.contains("Layers") ||
          !item["Layers"].is_array() ||
          item["Layers"].size() > oci::kLayersMax) {
        return absl::InvalidArgumentError("an image without Config or Layers");
      }
      oci::Manifest manifest;
      manifest.media_type = oci::kDockerManifest;
      ASSIGN_OR_RETURN(manifest.config,
                       Find(item["Config"].get<std::string>()));
      manifest.config.media_type = oci::kDockerConfig;
      for (const json& layer : item["Layers"]) {
        if (!layer.is_string()) {
          return absl::InvalidArgumentError("a layer that is no string");
        }
        ASSIGN_OR_RETURN(Descriptor desc, Find(layer.get<std::string>()));
        ASSIGN_OR_RETURN(desc.media_type, LayerType(desc));
        if (desc.media_type == oci::kDockerLayer) {
          RETURN_IF_ERROR(Compressed(&desc));
        }
        manifest.layers.push_back(std::move(desc));
      }
      ASSIGN_OR_RETURN(const std::string config_text,
                       ReadStoredDocument(*context_.store, manifest.config));
      ASSIGN_OR_RETURN(const oci::ImageConfig config,
                       oci::ParseImageConfig(config_text));
      ASSIGN_OR_RETURN(Descriptor node, StoreText(oci::WriteManifest(manifest),
                                                  oci::kDockerManifest));
      node.platform = oci::Normalize(config.platform);
      bool named = false;
      const json tags = item.value("RepoTags", json());
      if (tags.is_array()) {
        for (const json& tag : tags) {
          if (!tag.is_string()) continue;
          absl::StatusOr<oci::Reference> reference =
              oci::ParseNormalized(tag.get<std::string>());
          if (!reference.ok()) return reference.status();
          Descriptor copy = node;
          copy.annotations[kNameAnnotation] = reference->str();
          copy.annotations[kRefAnnotation] = reference->tag;
          index_.manifests.push_back(std::move(copy));
          named = true;
        }
      }
      if (!named) index_.manifests.push_back(node);
    }
    index_.media_type = oci::kOciIndex;
    index_json_ = oci::WriteIndex(index_);
    return absl::OkStatus();
  }

  // A plain layer by a compressed blob that unpacks to it, if there is one or
  // one is to be made.
  absl::Status Compressed(Descriptor* layer) {
    const std::string diff_id = layer->digest.str();
    ASSIGN_OR_RETURN(const auto found,
                     context_.store->FindByLabel(kUncompressed, {diff_id}));
    const auto other = found.find(diff_id);
    if (other != found.end() && other->second != layer->digest) {
      // Opening it as an ingest takes it into the lease.
      auto taken = context_.store->OpenIngest(
          absl::StrCat("import-", other->second.str()), 0, other->second.str());
      if (absl::IsAlreadyExists(taken.status())) {
        ASSIGN_OR_RETURN(const dataplane::OpenedBlob blob,
                         context_.store->Open(other->second.str()));
        layer->digest = other->second;
        layer->size_bytes = blob.size_bytes;
        ASSIGN_OR_RETURN(layer->media_type, LayerType(*layer));
        return absl::OkStatus();
      }
      if (taken.ok()) (void)(*taken)->Abort();  // It has just gone.
    }
    if (!force_compress_) return absl::OkStatus();
    ASSIGN_OR_RETURN(const dataplane::OpenedBlob blob,
                     context_.store->Open(diff_id));
    int64_t at = 0;
    const ByteSource plain = [&](char* out,
                                 size_t size) -> absl::StatusOr<size_t> {
      ASSIGN_OR_RETURN(const size_t got,
                       os::PReadFull(blob.fd.get(), out, size, at));
      at += static_cast<int64_t>(got);
      return got;
    };
    ASSIGN_OR_RETURN(Descriptor packed, Ingest(Digest(), -1, Gzipped(plain),
                                               {{kUncompressed, diff_id}}));
    RETURN_IF_ERROR(context_.store->SetBlobLabels(packed.digest.str(),
                                                  {{kUncompressed, diff_id}}));
    packed.media_type = oci::kDockerLayerGzip;
    *layer = std::move(packed);
    return absl::OkStatus();
  }

  absl::StatusOr<std::string> LayerType(const Descriptor& desc) {
    ASSIGN_OR_RETURN(const dataplane::OpenedBlob blob,
                     context_.store->Open(desc.digest.str()));
    unsigned char start[4] = {};
    ASSIGN_OR_RETURN(const size_t got,
                     os::PReadFull(blob.fd.get(), start, sizeof(start), 0));
    if (got >= 2 && start[0] == 0x1f && start[1] == 0x8b) {
      return std::string(oci::kDockerLayerGzip);
    }
    if (got == 4 && start[0] == 0x28 && start[1] == 0xb5 && start[2] == 0x2f &&
        start[3] == 0xfd) {
      return std::string(oci::kOciLayerZstd);
    }
    return std::string(oci::kDockerLayer);
  }

  const FetchContext& context_;
  ArchiveReader reader_;
  const bool force_compress_;
  const std::string session_;
  int files_read_ = 0;
  bool has_layout_ = false;
  std::string index_json_;
  std::string manifest_json_;
  oci::Index index_;
  std::map<std::string, Descriptor> files_;
  std::map<std::string, Link> links_;
};

bool HasPrefix(const std::string& name, const std::string& prefix) {
  return absl::StartsWith(name, prefix) &&
         (name.size() == prefix.size() ||
          absl::StrContains("/:@", name.substr(prefix.size(), 1)));
}

// The name that an extra reference of prefix kind gives to a manifest.
std::string NameFor(const Descriptor& node, const ExtraReference& extra) {
  const auto translate = [&](const std::string& name) -> std::string {
    if (extra.name.empty()) return "";
    if (name.find_first_of("/:@") != std::string::npos) {
      if (!extra.allow_overwrite && !HasPrefix(name, extra.name)) return "";
      return name;
    }
    return extra.name + ":" + name;
  };
  const auto full = node.annotations.find(kNameAnnotation);
  if (full != node.annotations.end() && !full->second.empty()) {
    return translate(full->second) == full->second ? full->second : "";
  }
  const auto tag = node.annotations.find(kRefAnnotation);
  if (tag != node.annotations.end() && !tag->second.empty()) {
    return translate(tag->second);
  }
  return "";
}

std::vector<std::string> NamesFor(const Descriptor& node,
                                  const ImageDestination& image) {
  std::vector<std::string> names;
  bool any_prefix = false;
  for (const ExtraReference& extra : image.extra_references) {
    if (!extra.is_prefix) continue;
    any_prefix = true;
    const std::string name = NameFor(node, extra);
    if (!name.empty()) names.push_back(name);
    if (extra.add_digest && (name.empty() || !extra.skip_named_digest)) {
      names.push_back(absl::StrCat(extra.name, "@", node.digest.str()));
    }
  }
  if (any_prefix || !image.name.empty()) return names;
  // The client leaves it to the archive.
  for (const char* key : {kNameAnnotation, kRefAnnotation}) {
    const auto found = node.annotations.find(key);
    if (found == node.annotations.end() || found->second.empty()) continue;
    if (oci::ParseFull(found->second).ok()) names.push_back(found->second);
    break;
  }
  return names;
}

}  // namespace

absl::Status Import(const FetchContext& context, const ByteSource& archive,
                    const ImportRequest& request, const PullLimits& limits) {
  const ImageDestination& image = request.image;
  context.progress->Event("Importing");
  const ByteSource plain = Decompressed(archive);
  Importer importer(context, plain, request.force_compress);
  ASSIGN_OR_RETURN(const Descriptor index, importer.ReadIndex());
  // To the end of the client's stream, so that it sees no broken pipe.
  char drop[16384];
  for (;;) {
    ASSIGN_OR_RETURN(const size_t got, plain(drop, sizeof(drop)));
    if (got == 0) break;
  }
  context.progress->Event("fetching image content", image.name, &index);
  RETURN_IF_ERROR(FollowImage(context, index, image, limits));
  std::map<std::string, Descriptor> named;
  for (const Descriptor& node : importer.index().manifests) {
    const absl::StatusOr<dataplane::OpenedBlob> there =
        context.store->Open(node.digest.str());
    if (absl::IsNotFound(there.status())) continue;  // Another platform's.
    for (const std::string& name : NamesFor(node, image)) named[name] = node;
  }
  if (context.approve) {
    if (!image.name.empty()) {
      RETURN_IF_ERROR(
          context.approve(RecordNames(image, image.name, index), index));
    }
    for (const auto& [name, node] : named) {
      RETURN_IF_ERROR(context.approve({name}, node));
    }
  }
  if (!image.name.empty()) {
    RETURN_IF_ERROR(SaveImage(context, image, image.name, index));
    context.progress->Event("saved", image.name, &index);
  }
  for (const auto& [name, node] : named) {
    RETURN_IF_ERROR(context.store->PutImage({name, image.labels, node}));
    context.progress->Event("saved", name, &node);
  }
  context.progress->Event("Completed import");
  return absl::OkStatus();
}

}  // namespace bulkhead::distribution
