// What a metadata service should do, said as simply as it can be: sets and
// maps, no disk, no threads. For model_test.cc, which runs the same operations
// on both.
#ifndef BULKHEAD_SERVICES_METADATA_MODEL_H_
#define BULKHEAD_SERVICES_METADATA_MODEL_H_

#include <map>
#include <set>
#include <string>
#include <utility>

#include "absl/status/status.h"

namespace bulkhead::metadata {

// One namespace. Every method answers with the code that the service should.
class Model {
 public:
  using Labels = std::map<std::string, std::string>;
  using Code = absl::StatusCode;

  struct Image {
    std::string digest;
    Labels labels;
    bool operator==(const Image&) const = default;
  };
  struct Snapshot {
    std::string parent;
    int kind = 0;  // As on the wire: 1 view, 2 active, 3 committed.
    Labels labels;
    bool operator==(const Snapshot&) const = default;
  };
  struct Ingest {
    std::string expected;
    bool expires = false;  // In a day, that is after the test.
    bool operator==(const Ingest&) const = default;
  };
  struct Lease {
    Labels labels;
    std::set<std::pair<std::string, std::string>> resources;  // Type, id.
    bool operator==(const Lease&) const = default;
  };

  bool exists = false;
  Labels labels;
  std::map<std::string, Image> images;
  std::map<std::string, std::string> containers;  // To snapshot keys.
  std::map<std::string, Labels> container_labels;
  std::map<std::string, Labels> sandboxes;
  std::map<std::string, Labels> blobs;
  std::map<std::string, Snapshot> snapshots;
  std::map<std::string, Ingest> ingests;
  std::map<std::string, Lease> leases;

  bool operator==(const Model&) const = default;

  Code CreateNamespace(const Labels& wanted);
  Code UpdateNamespace(const std::string& label, const std::string& value);
  Code DeleteNamespace();
  Code CreateImage(const std::string& name, const Image& image,
                   const std::string& lease);
  Code UpdateImage(const std::string& name, const Image& image,
                   const std::string& lease);
  Code DeleteImage(const std::string& name, const std::string& lease);
  Code CreateContainer(const std::string& id, const std::string& snapshot,
                       const Labels& wanted);
  Code UpdateContainer(const std::string& id, const Labels& wanted);
  Code DeleteContainer(const std::string& id);
  Code CreateSandbox(const std::string& id, const Labels& wanted);
  Code UpdateSandbox(const std::string& id, const Labels& wanted);
  Code DeleteSandbox(const std::string& id);
  Code AddBlob(const std::string& digest, const Labels& wanted,
               const std::string& lease);
  Code UpdateBlob(const std::string& digest, const Labels& wanted);
  Code DeleteBlob(const std::string& digest, const std::string& lease);
  Code OpenIngest(const std::string& ref, const std::string& expected,
                  const std::string& lease);
  Code Abort(const std::string& ref, const std::string& lease);
  Code Prepare(const std::string& key, const std::string& parent, bool view,
               const std::string& lease);
  Code CommitSnapshot(const std::string& name, const std::string& key,
                      const Labels& wanted, const std::string& lease);
  Code RemoveSnapshot(const std::string& key, const std::string& lease);
  Code UpdateSnapshot(const std::string& key, const Labels& wanted);
  Code CreateLease(const std::string& id, const Labels& wanted);
  Code DeleteLease(const std::string& id);
  Code AddResource(const std::string& lease, const std::string& type,
                   const std::string& id);
  Code DeleteResource(const std::string& lease, const std::string& type,
                      const std::string& id);

  // What must survive a collection now, as "b digest", "i name", "s key",
  // "g ref", "c id", "x id" (whether or not such an object is there).
  std::set<std::string> Live() const;
  // Removes what Live() does not name, and expired leases.
  void Collect();

 private:
  bool NoLease(const std::string& lease) const {
    return !lease.empty() && !leases.contains(lease);
  }
  void Join(const std::string& lease, const std::string& type,
            const std::string& id);
  void Leave(const std::string& lease, const std::string& type,
             const std::string& id);
};

}  // namespace bulkhead::metadata

#endif  // BULKHEAD_SERVICES_METADATA_MODEL_H_
