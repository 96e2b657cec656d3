// Namespaces, images, containers, leases and sandbox records: checked as
// facts/core.md says, stored as the wire's own messages, so Any values keep
// their bytes. Every change is on stable storage before the call returns, and
// its event is published before the next change of the same object.
//
// All classes are thread-safe and borrow the store. `ns` is a valid namespace
// name, ids were checked with CheckIdentifier: adapters see to that. Errors
// carry containerd's texts (without the class text that lib/rpc appends).
#ifndef BULKHEAD_SERVICES_METADATA_OBJECTS_H_
#define BULKHEAD_SERVICES_METADATA_OBJECTS_H_

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lib/filters/filters.h"
#include "proto/containerd/services/containers/v1/containers.pb.h"
#include "proto/containerd/services/images/v1/images.pb.h"
#include "proto/containerd/services/leases/v1/leases.pb.h"
#include "proto/containerd/services/namespaces/v1/namespaces.pb.h"
#include "proto/containerd/types/sandbox.pb.h"
#include "services/metadata/listing.h"
#include "services/metadata/store.h"

namespace bulkhead::metadata {

using containerd::services::containers::v1::Container;
using containerd::services::images::v1::Image;
using containerd::services::leases::v1::Lease;
using containerd::services::leases::v1::Resource;
using containerd::services::namespaces::v1::Namespace;
using containerd::types::Sandbox;
using Mask = std::vector<std::string>;  // Empty: no mask was given.

class Namespaces {
 public:
  explicit Namespaces(Store& store) : store_(store) {}
  // Never kNotFound: an unknown name has no labels.
  absl::StatusOr<Namespace> Get(const std::string& name) const;
  absl::StatusOr<std::vector<Namespace>> List() const;
  absl::StatusOr<Namespace> Create(Namespace wanted);
  absl::StatusOr<Namespace> Update(const Namespace& wanted, const Mask& mask);
  // kFailedPrecondition: still has images, blobs, containers or snapshots.
  absl::Status Delete(const std::string& name);

 private:
  Store& store_;
};

class Images {
 public:
  explicit Images(Store& store) : store_(store) {}
  absl::StatusOr<Image> Get(const std::string& ns,
                            const std::string& name) const;
  // Visits matching images in order of name (listing.h), as the others do.
  absl::Status List(const std::string& ns, const filters::Filter& filter,
                    const Visitor<Image>& visitor) const;
  // `epoch`: created_at and updated_at instead of now.
  absl::StatusOr<Image> Create(
      const std::string& ns, Image wanted, const std::string& lease,
      const std::optional<google::protobuf::Timestamp>& epoch);
  absl::StatusOr<Image> Update(
      const std::string& ns, const Image& wanted, const Mask& mask,
      const std::string& lease,
      const std::optional<google::protobuf::Timestamp>& epoch);
  // `target_digest` not empty: only an image with that target.
  absl::Status Delete(const std::string& ns, const std::string& name,
                      const std::string& target_digest,
                      const std::string& lease);

 private:
  Store& store_;
};

class Containers {
 public:
  explicit Containers(Store& store) : store_(store) {}
  absl::StatusOr<Container> Get(const std::string& ns,
                                const std::string& id) const;
  absl::Status List(const std::string& ns, const filters::Filter& filter,
                    const Visitor<Container>& visitor) const;
  absl::StatusOr<Container> Create(const std::string& ns, Container wanted);
  absl::StatusOr<Container> Update(const std::string& ns,
                                   const Container& wanted, const Mask& mask);
  absl::Status Delete(const std::string& ns, const std::string& id);

 private:
  Store& store_;
};

class Leases {
 public:
  explicit Leases(Store& store) : store_(store) {}
  // An empty id is replaced with a generated one.
  absl::StatusOr<Lease> Create(const std::string& ns, Lease wanted);
  absl::Status Delete(const std::string& ns, const std::string& id);
  absl::Status List(const std::string& ns, const filters::Filter& filter,
                    const Visitor<Lease>& visitor) const;
  absl::Status AddResource(const std::string& ns, const std::string& id,
                           const Resource& resource);
  absl::Status DeleteResource(const std::string& ns, const std::string& id,
                              const Resource& resource);
  absl::Status ListResources(
      const std::string& ns, const std::string& id,
      const std::function<bool(Resource&)>& visitor) const;

 private:
  Store& store_;
};

class Sandboxes {
 public:
  explicit Sandboxes(Store& store) : store_(store) {}
  absl::StatusOr<Sandbox> Get(const std::string& ns,
                              const std::string& id) const;
  absl::Status List(const std::string& ns, const filters::Filter& filter,
                    const Visitor<Sandbox>& visitor) const;
  absl::StatusOr<Sandbox> Create(const std::string& ns, Sandbox wanted);
  absl::StatusOr<Sandbox> Update(const std::string& ns, const Sandbox& wanted,
                                 const Mask& fields);
  absl::Status Delete(const std::string& ns, const std::string& id);

 private:
  Store& store_;
};

}  // namespace bulkhead::metadata

#endif  // BULKHEAD_SERVICES_METADATA_OBJECTS_H_
