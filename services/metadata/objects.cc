#include "services/metadata/objects.h"

#include <random>

#include "absl/strings/match.h"
#include "lib/digest/digest.h"
#include "proto/containerd/events/container.pb.h"
#include "proto/containerd/events/image.pb.h"
#include "proto/containerd/events/namespace.pb.h"
#include "services/metadata/util.h"

namespace bulkhead::metadata {
namespace {

namespace events = containerd::events;
namespace image_events = containerd::services::images::v1;
using AnyMap = google::protobuf::Map<std::string, google::protobuf::Any>;

// map[key] = from[key]; absent deletes.
void SetAny(const std::string& key, const AnyMap& from, AnyMap* map) {
  auto it = from.find(key);
  if (it == from.end()) {
    map->erase(key);
  } else {
    (*map)[key] = it->second;
  }
}

}  // namespace

// --- namespaces ---

absl::StatusOr<Namespace> Namespaces::Get(const std::string& name) const {
  ASSIGN_OR_RETURN(std::optional<Namespace> found,
                   store_.Get<Namespace>(Key(kind::kNamespace, {name})));
  Namespace result = found.value_or(Namespace());
  result.set_name(name);
  return result;
}

absl::StatusOr<std::vector<Namespace>> Namespaces::List() const {
  std::vector<Namespace> all;
  RETURN_IF_ERROR(store_.Scan<Namespace>(
      Prefix(kind::kNamespace, {}),
      [&all](const std::vector<std::string>& key, Namespace& record) {
        record.set_name(key[0]);
        all.push_back(std::move(record));
        return true;
      }));
  return all;
}

absl::StatusOr<Namespace> Namespaces::Create(Namespace wanted) {
  RETURN_IF_ERROR(CheckLabels(wanted.labels(), "namespace.Labels"));
  DropEmpty(wanted.mutable_labels());
  const std::string key = Key(kind::kNamespace, {wanted.name()});
  Txn txn(store_, wanted.name(), {key});
  ASSIGN_OR_RETURN(const bool exists, txn.Has(key));
  if (exists) {
    return absl::AlreadyExistsError(
        absl::StrCat("namespace ", Quoted(wanted.name())));
  }
  txn.Put(key, wanted);
  events::NamespaceCreate event;
  event.set_name(wanted.name());
  *event.mutable_labels() = wanted.labels();
  txn.Publish("/namespaces/create", event);
  RETURN_IF_ERROR(txn.Commit());
  return wanted;
}

absl::StatusOr<Namespace> Namespaces::Update(const Namespace& wanted,
                                             const Mask& mask) {
  RETURN_IF_ERROR(CheckLabels(wanted.labels(), "namespace.Labels"));
  const std::string key = Key(kind::kNamespace, {wanted.name()});
  Txn txn(store_, wanted.name(), {key});
  ASSIGN_OR_RETURN(std::optional<Namespace> found, txn.Get<Namespace>(key));
  Namespace updated = found.value_or(Namespace());
  updated.set_name(wanted.name());
  if (mask.empty()) *updated.mutable_labels() = wanted.labels();
  for (const std::string& path : mask) {
    std::string label;
    if (!MaskKey(path, "labels", &label)) {
      return absl::InvalidArgumentError(
          absl::StrCat("cannot update ", Quoted(path), " field"));
    }
    SetLabel(label, wanted.labels(), updated.mutable_labels());
  }
  DropEmpty(updated.mutable_labels());
  txn.Put(key, updated);
  events::NamespaceUpdate event;
  event.set_name(wanted.name());
  *event.mutable_labels() = updated.labels();
  txn.Publish("/namespaces/update", event);
  RETURN_IF_ERROR(txn.Commit());
  return updated;
}

absl::Status Namespaces::Delete(const std::string& name) {
  RETURN_IF_ERROR(store_.Exclusive([&]() -> absl::Status {
    Db& db = store_.db();
    const std::string key = Key(kind::kNamespace, {name});
    ASSIGN_OR_RETURN(std::optional<std::string> found, db.Get(key));
    if (!found.has_value()) {
      return absl::NotFoundError(absl::StrCat("namespace ", Quoted(name)));
    }
    std::vector<std::string> left;
    const std::pair<char, const char*> kinds[] = {
        {kind::kImage, "images"},
        {kind::kBlob, "blobs"},
        {kind::kContainer, "containers"}};
    for (const auto& [kind, what] : kinds) {
      ASSIGN_OR_RETURN(const bool any, store_.Any(Prefix(kind, {name})));
      if (any) left.push_back(what);
    }
    std::string previous;
    RETURN_IF_ERROR(db.Scan(Prefix(kind::kSnapshot, {name}),
                            [&](std::string_view record, std::string_view) {
                              const std::string snapshotter = Split(record)[1];
                              if (snapshotter != previous) {
                                left.push_back(absl::StrCat("snapshots on ",
                                                            Quoted(snapshotter),
                                                            " snapshotter"));
                                previous = snapshotter;
                              }
                              return true;
                            }));
    if (!left.empty()) {
      std::string list = left[0];
      for (size_t i = 1; i < left.size(); ++i) list += ", " + left[i];
      return absl::FailedPreconditionError(
          absl::StrCat("namespace ", Quoted(name),
                       " must be empty, but it still has ", list));
    }
    Batch batch;
    batch.Delete(key);
    for (const char kind : {kind::kLease, kind::kLeaseResource, kind::kIngest,
                            kind::kSandbox, kind::kIndex, kind::kImageUse}) {
      RETURN_IF_ERROR(
          db.Scan(Prefix(kind, {name}),
                  [&batch](std::string_view record, std::string_view) {
                    batch.Delete(std::string(record));
                    return true;
                  }));
    }
    events::NamespaceDelete event;
    event.set_name(name);
    std::vector<Envelope> envelopes;
    envelopes.push_back(
        MakeEnvelope(name, "/namespaces/delete", PackEvent(event)));
    EventBus::Staged staged =
        store_.events().Stage(std::move(envelopes), &batch);
    const absl::Status written = db.Write(batch, true);
    store_.events().Finish(std::move(staged), written.ok());
    return written;
  }));
  ++store_.deletions;
  if (store_.on_change) store_.on_change();
  return absl::OkStatus();
}

// --- images ---

namespace {

absl::Status CheckImage(const Image& image) {
  if (image.name().empty()) {
    return absl::InvalidArgumentError("image name must not be empty");
  }
  RETURN_IF_ERROR(CheckComponent(image.name(), "image name"));
  RETURN_IF_ERROR(CheckLabels(image.labels(), "image.Labels"));
  const auto& target = image.target();
  const absl::StatusOr<Digest> digest = Digest::Parse(target.digest());
  if (!digest.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("Target.Digest ", Quoted(target.digest()),
                     " invalid: ", MessageOf(digest.status())));
  }
  if (target.size() <= 0) {
    return absl::InvalidArgumentError("Target.Size must be greater than zero");
  }
  if (target.media_type().empty()) {
    return absl::InvalidArgumentError("Target.MediaType must be set");
  }
  return absl::OkStatus();
}

std::optional<std::string> ImageField(const Image& image,
                                      const filters::FieldPath& path) {
  if (path[0] == "name") return image.name();
  if (path[0] == "labels") return filters::MapField(image.labels(), path);
  if (path[0] == "annotations") {
    return filters::MapField(image.target().annotations(), path);
  }
  if (path[0] == "target" && path.size() >= 2) {
    if (path[1] == "digest") return image.target().digest();
    if (path[1] == "mediatype") return image.target().media_type();
  }
  return std::nullopt;
}

absl::Status NoImage(const std::string& name) {
  return absl::NotFoundError(absl::StrCat("image ", Quoted(name)));
}

std::vector<std::string> ImageKeys(const std::string& ns,
                                   const std::string& name,
                                   const std::string& lease) {
  std::vector<std::string> keys = {Key(kind::kImage, {ns, name})};
  if (!lease.empty()) keys.push_back(Key(kind::kLease, {ns, lease}));
  return keys;
}

// Writes of images that expire join the lease.
absl::Status LeaseImage(Txn& txn, const Image& image,
                        const std::string& lease) {
  if (!image.labels().contains(kLabelExpire)) return absl::OkStatus();
  return txn.AddToLease(lease, "images", image.name());
}

}  // namespace

absl::StatusOr<Image> Images::Get(const std::string& ns,
                                  const std::string& name) const {
  ASSIGN_OR_RETURN(std::optional<Image> image,
                   store_.Get<Image>(Key(kind::kImage, {ns, name})));
  if (!image.has_value()) return NoImage(name);
  return *std::move(image);
}

absl::Status Images::List(const std::string& ns, const filters::Filter& filter,
                          const Visitor<Image>& visitor) const {
  return ListRecords<Image>(store_, kind::kImage, ns, filter, ImageField,
                            visitor);
}

absl::StatusOr<Image> Images::Create(
    const std::string& ns, Image wanted, const std::string& lease,
    const std::optional<google::protobuf::Timestamp>& epoch) {
  RETURN_IF_ERROR(CheckImage(wanted));
  DropEmpty(wanted.mutable_labels());
  DropEmpty(wanted.mutable_target()->mutable_annotations());
  *wanted.mutable_created_at() = epoch.has_value() ? *epoch : Now();
  *wanted.mutable_updated_at() = wanted.created_at();
  const std::string key = Key(kind::kImage, {ns, wanted.name()});
  Txn txn(store_, ns, ImageKeys(ns, wanted.name(), lease));
  RETURN_IF_ERROR(LeaseImage(txn, wanted, lease));
  ASSIGN_OR_RETURN(const bool exists, txn.Has(key));
  if (exists) {
    return absl::AlreadyExistsError(
        absl::StrCat("image ", Quoted(wanted.name())));
  }
  txn.Put(key, wanted);
  image_events::ImageCreate event;
  event.set_name(wanted.name());
  *event.mutable_labels() = wanted.labels();
  txn.Publish("/images/create", event);
  RETURN_IF_ERROR(txn.Commit());
  return wanted;
}

absl::StatusOr<Image> Images::Update(
    const std::string& ns, const Image& wanted, const Mask& mask,
    const std::string& lease,
    const std::optional<google::protobuf::Timestamp>& epoch) {
  if (wanted.name().empty()) {
    return absl::InvalidArgumentError("image name is required for update");
  }
  RETURN_IF_ERROR(CheckComponent(wanted.name(), "image name"));
  const std::string key = Key(kind::kImage, {ns, wanted.name()});
  Txn txn(store_, ns, ImageKeys(ns, wanted.name(), lease));
  ASSIGN_OR_RETURN(std::optional<Image> found, txn.Get<Image>(key));
  if (!found.has_value()) return NoImage(wanted.name());
  Image updated = *found;
  if (mask.empty()) {
    *updated.mutable_labels() = wanted.labels();
    *updated.mutable_target() = wanted.target();
  }
  for (const std::string& path : mask) {
    std::string label;
    if (MaskKey(path, "labels", &label)) {
      SetLabel(label, wanted.labels(), updated.mutable_labels());
    } else if (MaskKey(path, "annotations", &label)) {
      SetLabel(label, wanted.target().annotations(),
               updated.mutable_target()->mutable_annotations());
    } else if (path == "labels") {
      *updated.mutable_labels() = wanted.labels();
    } else if (path == "target") {
      // Annotations of the old target would be wrong on a new one.
      *updated.mutable_target() = wanted.target();
    } else if (path == "annotations") {
      *updated.mutable_target()->mutable_annotations() =
          wanted.target().annotations();
    } else {
      return absl::InvalidArgumentError(
          absl::StrCat("cannot update ", Quoted(path), " field on image ",
                       Quoted(wanted.name())));
    }
  }
  RETURN_IF_ERROR(CheckImage(updated));
  DropEmpty(updated.mutable_labels());
  DropEmpty(updated.mutable_target()->mutable_annotations());
  *updated.mutable_updated_at() = epoch.has_value() ? *epoch : Now();
  RETURN_IF_ERROR(LeaseImage(txn, updated, lease));
  txn.Put(key, updated);
  image_events::ImageUpdate event;
  event.set_name(updated.name());
  *event.mutable_labels() = updated.labels();
  txn.Publish("/images/update", event);
  RETURN_IF_ERROR(txn.Commit());
  return updated;
}

absl::Status Images::Delete(const std::string& ns, const std::string& name,
                            const std::string& target_digest,
                            const std::string& lease) {
  const std::string key = Key(kind::kImage, {ns, name});
  Txn txn(store_, ns, ImageKeys(ns, name, lease));
  ASSIGN_OR_RETURN(std::optional<Image> found, txn.Get<Image>(key));
  if (!found.has_value()) return NoImage(name);
  if (!target_digest.empty() && found->target().digest() != target_digest) {
    return absl::NotFoundError(
        absl::StrCat("image ", Quoted(name), " has target ",
                     found->target().digest(), ", not ", target_digest));
  }
  txn.Delete(key);
  txn.RemoveFromLease(lease, "images", name);
  txn.NoteDeletion();
  image_events::ImageDelete event;
  event.set_name(name);
  txn.Publish("/images/delete", event);
  return txn.Commit();
}

// --- containers ---

namespace {

absl::Status CheckContainer(const Container& container) {
  const absl::Status id = CheckIdentifier(container.id());
  if (!id.ok()) return Annotate(id, "container.ID");
  for (const auto& [key, value] : container.extensions()) {
    if (key.empty()) {
      return absl::InvalidArgumentError(
          "container.Extension keys must not be empty");
    }
  }
  RETURN_IF_ERROR(CheckLabels(container.labels(), "containers.Labels"));
  if (container.runtime().name().empty()) {
    return absl::InvalidArgumentError("container.Runtime.Name must be set");
  }
  if (!container.has_spec()) {
    return absl::InvalidArgumentError("container.Spec must be set");
  }
  if (!container.snapshot_key().empty() && container.snapshotter().empty()) {
    return absl::InvalidArgumentError(
        "container.Snapshotter must be set if container.SnapshotKey is set");
  }
  return CheckComponent(container.snapshot_key(), "container.SnapshotKey");
}

std::optional<std::string> ContainerField(const Container& container,
                                          const filters::FieldPath& path) {
  if (path[0] == "id") {
    if (container.id().empty()) return std::nullopt;
    return container.id();
  }
  if (path[0] == "runtime") {
    if (path.size() < 2 || path[1] != "name" ||
        container.runtime().name().empty()) {
      return std::nullopt;
    }
    return container.runtime().name();
  }
  if (path[0] == "image") {
    if (container.image().empty()) return std::nullopt;
    return container.image();
  }
  if (path[0] == "labels") return filters::MapField(container.labels(), path);
  return std::nullopt;
}

}  // namespace

absl::StatusOr<Container> Containers::Get(const std::string& ns,
                                          const std::string& id) const {
  ASSIGN_OR_RETURN(std::optional<Container> found,
                   store_.Get<Container>(Key(kind::kContainer, {ns, id})));
  if (!found.has_value()) {
    return absl::NotFoundError(
        absl::StrCat("container ", Quoted(id), " in namespace ", Quoted(ns)));
  }
  return *std::move(found);
}

absl::Status Containers::List(const std::string& ns,
                              const filters::Filter& filter,
                              const Visitor<Container>& visitor) const {
  return ListRecords<Container>(store_, kind::kContainer, ns, filter,
                                ContainerField, visitor);
}

absl::StatusOr<Container> Containers::Create(const std::string& ns,
                                             Container wanted) {
  RETURN_IF_ERROR(CheckContainer(wanted));
  DropEmpty(wanted.mutable_labels());
  *wanted.mutable_created_at() = Now();
  *wanted.mutable_updated_at() = wanted.created_at();
  const std::string key = Key(kind::kContainer, {ns, wanted.id()});
  Txn txn(store_, ns, {key});
  ASSIGN_OR_RETURN(const bool exists, txn.Has(key));
  if (exists) {
    return absl::AlreadyExistsError(
        absl::StrCat("container ", Quoted(wanted.id())));
  }
  txn.Put(key, wanted);
  events::ContainerCreate event;
  event.set_id(wanted.id());
  event.set_image(wanted.image());
  event.mutable_runtime()->set_name(wanted.runtime().name());
  if (wanted.runtime().has_options()) {
    *event.mutable_runtime()->mutable_options() = wanted.runtime().options();
  }
  txn.Publish("/containers/create", event);
  RETURN_IF_ERROR(txn.Commit());
  return wanted;
}

absl::StatusOr<Container> Containers::Update(const std::string& ns,
                                             const Container& wanted,
                                             const Mask& mask) {
  if (wanted.id().empty()) {
    return absl::InvalidArgumentError("must specify a container id");
  }
  RETURN_IF_ERROR(CheckComponent(wanted.id(), "container.ID"));
  const std::string key = Key(kind::kContainer, {ns, wanted.id()});
  Txn txn(store_, ns, {key});
  ASSIGN_OR_RETURN(std::optional<Container> found, txn.Get<Container>(key));
  if (!found.has_value()) {
    return absl::NotFoundError(absl::StrCat("container ", Quoted(wanted.id())));
  }
  Container updated = *found;
  Mask paths = mask;
  if (paths.empty()) {
    paths = {"labels", "spec", "extensions", "image", "snapshotkey"};
    if (wanted.snapshotter() != updated.snapshotter()) {
      return absl::InvalidArgumentError(
          "container.Snapshotter field is immutable");
    }
    if (wanted.runtime().name() != updated.runtime().name()) {
      return absl::InvalidArgumentError(
          "container.Runtime.Name field is immutable");
    }
  }
  for (const std::string& path : paths) {
    std::string name;
    if (MaskKey(path, "labels", &name)) {
      SetLabel(name, wanted.labels(), updated.mutable_labels());
    } else if (MaskKey(path, "extensions", &name)) {
      SetAny(name, wanted.extensions(), updated.mutable_extensions());
    } else if (path == "labels") {
      *updated.mutable_labels() = wanted.labels();
    } else if (path == "spec") {
      updated.clear_spec();
      if (wanted.has_spec()) *updated.mutable_spec() = wanted.spec();
    } else if (path == "extensions") {
      *updated.mutable_extensions() = wanted.extensions();
    } else if (path == "image") {
      updated.set_image(wanted.image());
    } else if (path == "snapshotkey") {
      updated.set_snapshot_key(wanted.snapshot_key());
    } else {
      return absl::InvalidArgumentError(absl::StrCat(
          "cannot update ", Quoted(path), " field on ", Quoted(wanted.id())));
    }
  }
  RETURN_IF_ERROR(CheckContainer(updated));
  DropEmpty(updated.mutable_labels());
  *updated.mutable_updated_at() = Now();
  txn.Put(key, updated);
  events::ContainerUpdate event;
  event.set_id(updated.id());
  event.set_image(updated.image());
  *event.mutable_labels() = updated.labels();
  event.set_snapshot_key(updated.snapshot_key());
  txn.Publish("/containers/update", event);
  RETURN_IF_ERROR(txn.Commit());
  return updated;
}

absl::Status Containers::Delete(const std::string& ns, const std::string& id) {
  const std::string key = Key(kind::kContainer, {ns, id});
  Txn txn(store_, ns, {key});
  ASSIGN_OR_RETURN(const bool exists, txn.Has(key));
  if (!exists) {
    ASSIGN_OR_RETURN(const bool any,
                     store_.Any(Prefix(kind::kContainer, {ns})));
    return absl::NotFoundError(
        any ? absl::StrCat("container ", id)
            : absl::StrCat("cannot delete container ", id));
  }
  txn.Delete(key);
  txn.NoteDeletion();
  events::ContainerDelete event;
  event.set_id(id);
  txn.Publish("/containers/delete", event);
  return txn.Commit();
}

// --- leases ---

namespace {

std::optional<std::string> LeaseField(const Lease& lease,
                                      const filters::FieldPath& path) {
  if (path[0] == "id") return lease.id();
  if (path[0] == "labels") return filters::MapField(lease.labels(), path);
  return std::nullopt;
}

absl::Status NoLease(const std::string& id) {
  return absl::NotFoundError(absl::StrCat("lease ", Quoted(id)));
}

// As containerd's: nanoseconds, and a few random characters.
std::string GenerateLeaseId() {
  static constexpr char kAlphabet[] =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
  std::random_device device;
  std::string id =
      absl::StrCat(absl::ToUnixNanos(absl::Now()) % 1'000'000'000, "-");
  for (int i = 0; i < 4; ++i) id.push_back(kAlphabet[device() % 64]);
  return id;
}

absl::Status CheckResource(const Resource& resource) {
  const std::string& type = resource.type();
  RETURN_IF_ERROR(CheckComponent(resource.id(), "lease resource id"));
  RETURN_IF_ERROR(CheckComponent(type, "lease resource type"));
  const std::string base = type.substr(0, type.find('/'));
  const bool parts = base.size() != type.size();
  if (base == "content" || base == "images" || base == "ingests") {
    if (parts) {
      return absl::InvalidArgumentError(
          absl::StrCat("invalid ", base, " resource type ", type));
    }
    if (base == "content") {
      const absl::Status digest = Digest::Parse(resource.id()).status();
      if (!digest.ok()) {
        return absl::InvalidArgumentError(
            absl::StrCat("invalid content resource id ", resource.id(), ": ",
                         MessageOf(digest)));
      }
    }
    return absl::OkStatus();
  }
  if (base == "snapshots") {
    if (!parts || type.size() == base.size() + 1 ||
        type.find('/', base.size() + 1) != std::string::npos) {
      return absl::InvalidArgumentError(
          absl::StrCat("invalid snapshot resource type ", type));
    }
    return absl::OkStatus();
  }
  return absl::UnimplementedError(
      absl::StrCat("resource type ", type, " not supported yet"));
}

}  // namespace

absl::StatusOr<Lease> Leases::Create(const std::string& ns, Lease wanted) {
  if (wanted.id().empty()) wanted.set_id(GenerateLeaseId());
  RETURN_IF_ERROR(CheckComponent(wanted.id(), "lease id"));
  DropEmpty(wanted.mutable_labels());
  *wanted.mutable_created_at() = Now();
  const std::string key = Key(kind::kLease, {ns, wanted.id()});
  Txn txn(store_, ns, {key});
  ASSIGN_OR_RETURN(const bool exists, txn.Has(key));
  if (exists) {
    return absl::AlreadyExistsError(
        absl::StrCat("lease ", Quoted(wanted.id())));
  }
  txn.Put(key, wanted);
  RETURN_IF_ERROR(txn.Commit());
  return wanted;
}

absl::Status Leases::Delete(const std::string& ns, const std::string& id) {
  const std::string key = Key(kind::kLease, {ns, id});
  Txn txn(store_, ns, {key});
  ASSIGN_OR_RETURN(const bool exists, txn.Has(key));
  if (!exists) return NoLease(id);
  txn.Delete(key);
  RETURN_IF_ERROR(
      store_.db().Scan(Prefix(kind::kLeaseResource, {ns, id}),
                       [&txn](std::string_view resource, std::string_view) {
                         txn.Delete(std::string(resource));
                         return true;
                       }));
  txn.NoteDeletion();
  return txn.Commit();
}

absl::Status Leases::List(const std::string& ns, const filters::Filter& filter,
                          const Visitor<Lease>& visitor) const {
  return ListRecords<Lease>(store_, kind::kLease, ns, filter, LeaseField,
                            visitor);
}

absl::Status Leases::AddResource(const std::string& ns, const std::string& id,
                                 const Resource& resource) {
  const std::string key = Key(kind::kLease, {ns, id});
  Txn txn(store_, ns, {key});
  ASSIGN_OR_RETURN(const bool exists, txn.Has(key));
  if (!exists) return NoLease(id);
  RETURN_IF_ERROR(CheckResource(resource));
  RETURN_IF_ERROR(txn.AddToLease(id, resource.type(), resource.id()));
  return txn.Commit();
}

absl::Status Leases::DeleteResource(const std::string& ns,
                                    const std::string& id,
                                    const Resource& resource) {
  const std::string key = Key(kind::kLease, {ns, id});
  Txn txn(store_, ns, {key});
  ASSIGN_OR_RETURN(const bool exists, txn.Has(key));
  if (!exists) return NoLease(id);
  RETURN_IF_ERROR(CheckResource(resource));
  txn.RemoveFromLease(id, resource.type(), resource.id());
  txn.NoteDeletion();
  return txn.Commit();
}

absl::Status Leases::ListResources(
    const std::string& ns, const std::string& id,
    const std::function<bool(Resource&)>& visitor) const {
  ASSIGN_OR_RETURN(std::optional<Lease> lease,
                   store_.Get<Lease>(Key(kind::kLease, {ns, id})));
  if (!lease.has_value()) return NoLease(id);
  return store_.db().Scan(Prefix(kind::kLeaseResource, {ns, id}),
                          [&visitor](std::string_view key, std::string_view) {
                            const std::vector<std::string> parts = Split(key);
                            Resource resource;
                            resource.set_type(parts[2]);
                            resource.set_id(parts[3]);
                            return visitor(resource);
                          });
}

// --- sandboxes ---

namespace {

absl::Status NoSandbox(const std::string& id) {
  return absl::NotFoundError(absl::StrCat("sandbox ", Quoted(id)));
}

std::optional<std::string> SandboxField(const Sandbox& sandbox,
                                        const filters::FieldPath& path) {
  if (path[0] == "id") return sandbox.sandbox_id();
  if (path[0] == "labels") return filters::MapField(sandbox.labels(), path);
  return std::nullopt;
}

}  // namespace

absl::StatusOr<Sandbox> Sandboxes::Get(const std::string& ns,
                                       const std::string& id) const {
  ASSIGN_OR_RETURN(std::optional<Sandbox> found,
                   store_.Get<Sandbox>(Key(kind::kSandbox, {ns, id})));
  if (!found.has_value()) return NoSandbox(id);
  return *std::move(found);
}

absl::Status Sandboxes::List(const std::string& ns,
                             const filters::Filter& filter,
                             const Visitor<Sandbox>& visitor) const {
  return ListRecords<Sandbox>(store_, kind::kSandbox, ns, filter, SandboxField,
                              visitor);
}

absl::StatusOr<Sandbox> Sandboxes::Create(const std::string& ns,
                                          Sandbox wanted) {
  DropEmpty(wanted.mutable_labels());
  *wanted.mutable_created_at() = Now();
  *wanted.mutable_updated_at() = wanted.created_at();
  const std::string key = Key(kind::kSandbox, {ns, wanted.sandbox_id()});
  Txn txn(store_, ns, {key});
  ASSIGN_OR_RETURN(const bool exists, txn.Has(key));
  if (exists) {
    return absl::AlreadyExistsError(absl::StrCat(
        "sandbox bucket ", Quoted(wanted.sandbox_id()), " already exists"));
  }
  txn.Put(key, wanted);
  RETURN_IF_ERROR(txn.Commit());
  return wanted;
}

absl::StatusOr<Sandbox> Sandboxes::Update(const std::string& ns,
                                          const Sandbox& wanted,
                                          const Mask& fields) {
  const std::string key = Key(kind::kSandbox, {ns, wanted.sandbox_id()});
  Txn txn(store_, ns, {key});
  ASSIGN_OR_RETURN(std::optional<Sandbox> found, txn.Get<Sandbox>(key));
  if (!found.has_value()) return NoSandbox(wanted.sandbox_id());
  Sandbox updated = *found;
  Mask paths = fields;
  if (paths.empty()) {
    paths = {"labels", "extensions", "spec", "runtime"};
    if (wanted.runtime().name() != updated.runtime().name()) {
      return absl::InvalidArgumentError(
          "sandbox.Runtime.Name field is immutable");
    }
  }
  for (const std::string& path : paths) {
    std::string name;
    if (MaskKey(path, "labels", &name)) {
      SetLabel(name, wanted.labels(), updated.mutable_labels());
    } else if (MaskKey(path, "extensions", &name)) {
      SetAny(name, wanted.extensions(), updated.mutable_extensions());
    } else if (path == "labels") {
      *updated.mutable_labels() = wanted.labels();
    } else if (path == "extensions") {
      *updated.mutable_extensions() = wanted.extensions();
    } else if (path == "runtime") {
      if (wanted.runtime().name() != updated.runtime().name()) {
        return absl::InvalidArgumentError(
            "sandbox.Runtime.Name field is immutable");
      }
      *updated.mutable_runtime() = wanted.runtime();
    } else if (path == "spec") {
      updated.clear_spec();
      if (wanted.has_spec()) *updated.mutable_spec() = wanted.spec();
    } else {
      return absl::InvalidArgumentError(
          absl::StrCat("cannot update ", Quoted(path), " field on sandbox ",
                       Quoted(wanted.sandbox_id())));
    }
  }
  DropEmpty(updated.mutable_labels());
  *updated.mutable_updated_at() = Now();
  txn.Put(key, updated);
  RETURN_IF_ERROR(txn.Commit());
  return updated;
}

absl::Status Sandboxes::Delete(const std::string& ns, const std::string& id) {
  const std::string key = Key(kind::kSandbox, {ns, id});
  Txn txn(store_, ns, {key});
  ASSIGN_OR_RETURN(const bool exists, txn.Has(key));
  if (!exists) return NoSandbox(id);
  txn.Delete(key);
  txn.NoteDeletion();
  return txn.Commit();
}

}  // namespace bulkhead::metadata
