// The keys of the metadata database and what is under them. A key is one kind
// character and components separated by NUL bytes, so a prefix scan walks a
// namespace (or a snapshotter, or a lease) in bytewise order. No component may
// contain a NUL (CheckComponent).
//
//   kind key                          value (protobuf)
//   v    -                            schema version, decimal text
//   q    -                            next sequence number not yet reserved
//   n    ns                           namespaces.v1.Namespace
//   i    ns, name                     images.v1.Image
//   c    ns, id                       containers.v1.Container
//   x    ns, id                       types.Sandbox
//   l    ns, id                       leases.v1.Lease
//   r    ns, lease, type, id          empty: what the lease holds; type is
//                                     content, images, ingests or
//                                     snapshots/<snapshotter>
//   b    ns, digest                   content.v1.Info
//   g    ns, ref                      IngestRecord
//   s    ns, snapshotter, key         SnapshotRecord
//   k    ns, snapshotter, parent, key empty: children of a snapshot
//   w    snapshotter, backend key, ns, key
//                                     empty: which snapshot names a backend key
//   p    snapshotter, backend key     CommitRecord: a commit under way, under
//                                     the backend key it makes
//   e    sequence, 16 hex digits      types.Envelope: the event log
//   y    ns, kind, hash, id           empty: an index entry (index.h) of the
//                                     image, container or blob `id`; hash is
//                                     of a field and its value
//   u    ns, name                     ImageUse: when an image was last in use
//   z    a whole key                  the bytes of a record that does not parse
//
// The key of an object of the kinds i c x b g s is also its name in garbage
// collection.
#ifndef BULKHEAD_SERVICES_METADATA_SCHEMA_H_
#define BULKHEAD_SERVICES_METADATA_SCHEMA_H_

#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"

namespace bulkhead::metadata {

// 2: has index entries (y).
inline constexpr int kSchemaVersion = 2;

namespace kind {
inline constexpr char kVersion = 'v';
inline constexpr char kSequence = 'q';
inline constexpr char kNamespace = 'n';
inline constexpr char kImage = 'i';
inline constexpr char kContainer = 'c';
inline constexpr char kSandbox = 'x';
inline constexpr char kLease = 'l';
inline constexpr char kLeaseResource = 'r';
inline constexpr char kBlob = 'b';
inline constexpr char kIngest = 'g';
inline constexpr char kSnapshot = 's';
inline constexpr char kSnapshotChild = 'k';
inline constexpr char kSnapshotBackend = 'w';
inline constexpr char kSnapshotCommit = 'p';
inline constexpr char kEvent = 'e';
inline constexpr char kIndex = 'y';
inline constexpr char kImageUse = 'u';
inline constexpr char kDamaged = 'z';
}  // namespace kind

// Longest component: names, keys, refs.
constexpr size_t kComponentBytesMax = 16 << 10;

inline std::string Key(char kind,
                       std::initializer_list<std::string_view> components) {
  std::string key(1, kind);
  for (std::string_view component : components) {
    key.push_back('\0');
    key.append(component);
  }
  return key;
}

// The prefix of every key below `components`.
inline std::string Prefix(char kind,
                          std::initializer_list<std::string_view> components) {
  std::string key = Key(kind, components);
  key.push_back('\0');
  return key;
}

// The components of a key.
inline std::vector<std::string> Split(std::string_view key) {
  std::vector<std::string> parts;
  size_t begin = 2;
  while (begin <= key.size()) {
    size_t end = key.find('\0', begin);
    if (end == std::string_view::npos) end = key.size();
    parts.emplace_back(key.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

// kInvalidArgument: has a NUL byte or is too long.
inline absl::Status CheckComponent(const std::string& component,
                                   const char* what) {
  if (component.find('\0') != std::string::npos) {
    return absl::InvalidArgumentError(std::string(what) +
                                      " must not contain NUL");
  }
  if (component.size() > kComponentBytesMax) {
    return absl::InvalidArgumentError(std::string(what) + " is too long");
  }
  return absl::OkStatus();
}

}  // namespace bulkhead::metadata

#endif  // BULKHEAD_SERVICES_METADATA_SCHEMA_H_
