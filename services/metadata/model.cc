#include "services/metadata/model.h"

#include <algorithm>
#include <vector>

namespace bulkhead::metadata {
namespace {

constexpr char kSnapshots[] = "snapshots/fake";
constexpr char kGc[] = "containerd.io/gc.";

std::string At(const Model::Labels& labels, const std::string& key) {
  auto it = labels.find(key);
  return it == labels.end() ? "" : it->second;
}

// The times of these tests are in 2001, in 2999, or rubbish.
bool Past(const Model::Labels& labels) {
  return At(labels, "containerd.io/gc.expire").starts_with("2001-");
}

// The object that `<prefix><kind>[./x]` = value names; empty: another label.
std::string Named(const std::string& label, const std::string& prefix,
                  const std::string& value) {
  if (!label.starts_with(prefix)) return "";
  const std::string rest = label.substr(prefix.size());
  const auto is = [&rest](const std::string& kind) {
    return rest == kind || rest.starts_with(kind + ".") ||
           rest.starts_with(kind + "/");
  };
  if (is("content")) return "b " + value;
  if (is("image")) return "i " + value;
  if (is("container")) return "c " + value;
  if (rest == "snapshot.fake" || rest.starts_with("snapshot.fake/")) {
    return "s " + value;
  }
  return "";
}

}  // namespace

void Model::Join(const std::string& lease, const std::string& type,
                 const std::string& id) {
  if (!lease.empty()) leases[lease].resources.insert({type, id});
}

void Model::Leave(const std::string& lease, const std::string& type,
                  const std::string& id) {
  auto it = leases.find(lease);
  if (it != leases.end()) it->second.resources.erase({type, id});
}

Model::Code Model::CreateNamespace(const Labels& wanted) {
  if (exists) return Code::kAlreadyExists;
  exists = true;
  labels = wanted;
  return Code::kOk;
}

Model::Code Model::UpdateNamespace(const std::string& label,
                                   const std::string& value) {
  exists = true;
  labels.erase(label);
  if (!value.empty()) labels[label] = value;
  return Code::kOk;
}

Model::Code Model::DeleteNamespace() {
  if (!exists) return Code::kNotFound;
  if (!images.empty() || !blobs.empty() || !containers.empty() ||
      !snapshots.empty()) {
    return Code::kFailedPrecondition;
  }
  *this = Model();
  return Code::kOk;
}

Model::Code Model::CreateImage(const std::string& name, const Image& image,
                               const std::string& lease) {
  const bool leased = image.labels.contains("containerd.io/gc.expire");
  if (leased && NoLease(lease)) return Code::kNotFound;
  if (images.contains(name)) return Code::kAlreadyExists;
  images[name] = image;
  if (leased) Join(lease, "images", name);
  exists = true;
  return Code::kOk;
}

Model::Code Model::UpdateImage(const std::string& name, const Image& image,
                               const std::string& lease) {
  if (!images.contains(name)) return Code::kNotFound;
  const bool leased = image.labels.contains("containerd.io/gc.expire");
  if (leased && NoLease(lease)) return Code::kNotFound;
  images[name] = image;
  if (leased) Join(lease, "images", name);
  return Code::kOk;
}

Model::Code Model::DeleteImage(const std::string& name,
                               const std::string& lease) {
  if (images.erase(name) == 0) return Code::kNotFound;
  Leave(lease, "images", name);
  return Code::kOk;
}

Model::Code Model::CreateContainer(const std::string& id,
                                   const std::string& snapshot,
                                   const Labels& wanted) {
  if (containers.contains(id)) return Code::kAlreadyExists;
  containers[id] = snapshot;
  container_labels[id] = wanted;
  exists = true;
  return Code::kOk;
}

Model::Code Model::UpdateContainer(const std::string& id,
                                   const Labels& wanted) {
  if (!containers.contains(id)) return Code::kNotFound;
  container_labels[id] = wanted;
  return Code::kOk;
}

Model::Code Model::DeleteContainer(const std::string& id) {
  if (containers.erase(id) == 0) return Code::kNotFound;
  container_labels.erase(id);
  return Code::kOk;
}

Model::Code Model::CreateSandbox(const std::string& id, const Labels& wanted) {
  if (!sandboxes.emplace(id, wanted).second) return Code::kAlreadyExists;
  exists = true;
  return Code::kOk;
}

Model::Code Model::UpdateSandbox(const std::string& id, const Labels& wanted) {
  if (!sandboxes.contains(id)) return Code::kNotFound;
  sandboxes[id] = wanted;
  return Code::kOk;
}

Model::Code Model::DeleteSandbox(const std::string& id) {
  return sandboxes.erase(id) == 0 ? Code::kNotFound : Code::kOk;
}

Model::Code Model::AddBlob(const std::string& digest, const Labels& wanted,
                           const std::string& lease) {
  if (NoLease(lease)) return Code::kNotFound;
  Join(lease, "content", digest);
  if (blobs.contains(digest)) return Code::kAlreadyExists;
  blobs[digest] = wanted;
  exists = true;
  return Code::kOk;
}

Model::Code Model::UpdateBlob(const std::string& digest, const Labels& wanted) {
  if (!blobs.contains(digest)) return Code::kNotFound;
  blobs[digest] = wanted;
  return Code::kOk;
}

Model::Code Model::DeleteBlob(const std::string& digest,
                              const std::string& lease) {
  if (blobs.erase(digest) == 0) return Code::kNotFound;
  Leave(lease, "content", digest);
  return Code::kOk;
}

Model::Code Model::OpenIngest(const std::string& ref,
                              const std::string& expected,
                              const std::string& lease) {
  if (NoLease(lease)) return Code::kNotFound;
  if (!expected.empty() && blobs.contains(expected)) {
    Join(lease, "content", expected);
    return Code::kAlreadyExists;
  }
  Ingest& ingest = ingests[ref];
  if (!expected.empty()) ingest.expected = expected;
  ingest.expires = lease.empty();
  Join(lease, "ingests", ref);
  exists = true;
  return Code::kOk;
}

Model::Code Model::Abort(const std::string& ref, const std::string& lease) {
  if (ingests.erase(ref) == 0) return Code::kNotFound;
  Leave(lease, "ingests", ref);
  return Code::kOk;
}

Model::Code Model::Prepare(const std::string& key, const std::string& parent,
                           bool view, const std::string& lease) {
  if (NoLease(lease)) return Code::kNotFound;
  if (snapshots.contains(key)) {
    Join(lease, kSnapshots, key);
    return Code::kAlreadyExists;
  }
  if (!parent.empty()) {
    if (!snapshots.contains(parent)) return Code::kNotFound;
    if (snapshots[parent].kind != 3) return Code::kInvalidArgument;
  }
  snapshots[key] = {parent, view ? 1 : 2, {}};
  Join(lease, kSnapshots, key);
  exists = true;
  return Code::kOk;
}

Model::Code Model::CommitSnapshot(const std::string& name,
                                  const std::string& key, const Labels& wanted,
                                  const std::string& lease) {
  if (NoLease(lease)) return Code::kNotFound;
  if (snapshots.contains(name)) {
    Join(lease, kSnapshots, name);
    return Code::kAlreadyExists;
  }
  if (!snapshots.contains(key)) return Code::kNotFound;
  if (snapshots[key].kind != 2) return Code::kFailedPrecondition;
  snapshots[name] = {snapshots[key].parent, 3, wanted};
  snapshots.erase(key);
  Leave(lease, kSnapshots, key);
  Join(lease, kSnapshots, name);
  return Code::kOk;
}

Model::Code Model::RemoveSnapshot(const std::string& key,
                                  const std::string& lease) {
  if (!snapshots.contains(key)) return Code::kNotFound;
  for (const auto& [other, snapshot] : snapshots) {
    if (snapshot.parent == key) return Code::kFailedPrecondition;
  }
  snapshots.erase(key);
  Leave(lease, kSnapshots, key);
  return Code::kOk;
}

Model::Code Model::UpdateSnapshot(const std::string& key,
                                  const Labels& wanted) {
  if (!snapshots.contains(key)) return Code::kNotFound;
  snapshots[key].labels = wanted;
  return Code::kOk;
}

Model::Code Model::CreateLease(const std::string& id, const Labels& wanted) {
  if (leases.contains(id)) return Code::kAlreadyExists;
  leases[id].labels = wanted;
  exists = true;
  return Code::kOk;
}

Model::Code Model::DeleteLease(const std::string& id) {
  return leases.erase(id) == 0 ? Code::kNotFound : Code::kOk;
}

Model::Code Model::AddResource(const std::string& lease,
                               const std::string& type, const std::string& id) {
  if (!leases.contains(lease)) return Code::kNotFound;
  Join(lease, type, id);
  return Code::kOk;
}

Model::Code Model::DeleteResource(const std::string& lease,
                                  const std::string& type,
                                  const std::string& id) {
  if (!leases.contains(lease)) return Code::kNotFound;
  Leave(lease, type, id);
  return Code::kOk;
}

std::set<std::string> Model::Live() const {
  // Everything that has labels, by name.
  std::map<std::string, const Labels*> all;
  for (const auto& [name, image] : images) all["i " + name] = &image.labels;
  for (const auto& [id, held] : container_labels) all["c " + id] = &held;
  for (const auto& [id, held] : sandboxes) all["x " + id] = &held;
  for (const auto& [digest, held] : blobs) all["b " + digest] = &held;
  for (const auto& [key, one] : snapshots) all["s " + key] = &one.labels;

  std::set<std::string> live;
  std::set<std::string> flat;
  for (const auto& [name, held] : all) {
    const bool rooted =
        std::any_of(held->begin(), held->end(), [](const auto& label) {
          return label.first.starts_with("containerd.io/gc.root");
        });
    if (name[0] == 'c' || name[0] == 'x' || (name[0] == 'i' && !Past(*held)) ||
        ((name[0] == 'b' || name[0] == 's') && rooted)) {
      live.insert(name);
    }
  }
  for (const auto& [ref, ingest] : ingests) {
    if (ingest.expires) live.insert("g " + ref);
  }
  for (const auto& [id, lease] : leases) {
    if (Past(lease.labels)) continue;
    const bool is_flat = lease.labels.contains("containerd.io/gc.flat");
    for (const auto& [type, held] : lease.resources) {
      const std::string name = (type == "content"   ? "b "
                                : type == "images"  ? "i "
                                : type == "ingests" ? "g "
                                                    : "s ") +
                               held;
      (is_flat ? flat : live).insert(name);
      if (!is_flat) continue;
      if (auto image = images.find(held);
          type == "images" && image != images.end()) {
        flat.insert("b " + image->second.digest);
      }
      std::string at = type == kSnapshots ? held : "";
      while (!at.empty() && snapshots.contains(at)) {
        flat.insert("s " + at);
        at = snapshots.at(at).parent;
        if (!at.empty()) flat.insert("s " + at);
      }
    }
  }

  // Until nothing new is found.
  for (size_t before = 0; before != live.size();) {
    before = live.size();
    for (const std::string& name : std::set<std::string>(live)) {
      const std::string id = name.substr(2);
      if (auto it = all.find(name); it != all.end()) {
        for (const auto& [label, value] : *it->second) {
          const std::string to = Named(label, std::string(kGc) + "ref.", value);
          if (!to.empty()) live.insert(to);
        }
      }
      if (name[0] == 'i' && images.contains(id)) {
        live.insert("b " + images.at(id).digest);
      }
      if (name[0] == 's' && snapshots.contains(id) &&
          !snapshots.at(id).parent.empty()) {
        live.insert("s " + snapshots.at(id).parent);
      }
      if (name[0] == 'c' && containers.contains(id) &&
          !containers.at(id).empty()) {
        live.insert("s " + containers.at(id));
      }
      if (name[0] == 'g' && ingests.contains(id) &&
          !ingests.at(id).expected.empty()) {
        live.insert("b " + ingests.at(id).expected);
      }
    }
    for (const auto& [name, held] : all) {
      for (const auto& [label, value] : *held) {
        const std::string to = Named(label, std::string(kGc) + "bref.", value);
        if (!to.empty() && live.contains(to)) live.insert(name);
        // These tests know one condition: used within the last 24 hours.
        if ((name[0] == 'i' || name[0] == 'b') &&
            label.starts_with("containerd.io/gc.cond.snapshot.fake")) {
          const std::string key = value.substr(value.find('|') + 1);
          if (live.contains("s " + key) && snapshots.contains(key) &&
              At(snapshots.at(key).labels, "containerd.io/gc.cond.value-usedat")
                  .starts_with("2999-")) {
            live.insert(name);
          }
        }
      }
    }
  }
  live.insert(flat.begin(), flat.end());
  return live;
}

void Model::Collect() {
  const std::set<std::string> live = Live();
  const auto sweep = [&live](char kind, auto* map) {
    std::erase_if(*map, [&](const auto& each) {
      return !live.contains(std::string(1, kind) + " " + each.first);
    });
  };
  sweep('i', &images);
  sweep('b', &blobs);
  sweep('s', &snapshots);
  sweep('g', &ingests);
  std::erase_if(leases,
                [](const auto& each) { return Past(each.second.labels); });
}

}  // namespace bulkhead::metadata
