// A snapshotter as metadata uses it: keys are wrapped, there are no namespaces.
// No gRPC here; grpc_snapshot_backend.h has the real one.
#ifndef BULKHEAD_SERVICES_METADATA_SNAPSHOT_BACKEND_H_
#define BULKHEAD_SERVICES_METADATA_SNAPSHOT_BACKEND_H_

#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/containerd/services/snapshots/v1/snapshots.pb.h"
#include "services/metadata/parallel.h"
#include "services/metadata/util.h"

namespace bulkhead::metadata {

namespace snapshots_v1 = containerd::services::snapshots::v1;
using Mounts = std::vector<containerd::types::Mount>;

// Where the backend takes only one in a call.
inline constexpr size_t kRemovalsAtOnce = 8;

// Thread-safe; calls block on the service and return its errors.
class SnapshotBackend {
 public:
  virtual ~SnapshotBackend() = default;
  virtual absl::StatusOr<Mounts> Prepare(const std::string& key,
                                         const std::string& parent,
                                         const LabelMap& labels) = 0;
  virtual absl::StatusOr<Mounts> View(const std::string& key,
                                      const std::string& parent,
                                      const LabelMap& labels) = 0;
  virtual absl::StatusOr<Mounts> MountsOf(const std::string& key) = 0;
  virtual absl::Status Commit(const std::string& name, const std::string& key,
                              const std::string& parent,
                              const LabelMap& labels) = 0;
  virtual absl::Status Remove(const std::string& key) = 0;
  // Of snapshots that are not each other's parents. One result each, in the
  // same order. Several at a time: a snapshotter that syncs its records does so
  // once for all that come at once.
  virtual std::vector<absl::Status> RemoveMany(
      const std::vector<std::string>& keys) {
    std::vector<absl::Status> results(keys.size());
    InParallel(keys.size(), kRemovalsAtOnce,
               [&](size_t i) { results[i] = Remove(keys[i]); });
    return results;
  }
  virtual absl::StatusOr<snapshots_v1::Info> Stat(const std::string& key) = 0;
  virtual absl::Status Update(const snapshots_v1::Info& info,
                              const std::vector<std::string>& mask) = 0;
  // The backend may ignore the filters.
  virtual absl::Status List(
      const std::vector<std::string>& filters,
      const std::function<void(const snapshots_v1::Info&)>& visitor) = 0;
  virtual absl::StatusOr<snapshots_v1::UsageResponse> Usage(
      const std::string& key) = 0;
  virtual absl::Status Cleanup() = 0;
};

}  // namespace bulkhead::metadata

#endif  // BULKHEAD_SERVICES_METADATA_SNAPSHOT_BACKEND_H_
