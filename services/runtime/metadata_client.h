// What the runtime service asks of metadata, over gRPC.
#ifndef BULKHEAD_SERVICES_RUNTIME_METADATA_CLIENT_H_
#define BULKHEAD_SERVICES_RUNTIME_METADATA_CLIENT_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/containerd/types/event.pb.h"
#include "services/runtime/sandbox_manager.h"
#include "services/runtime/task_manager.h"

namespace bulkhead::runtime {

// Thread-safe. Waits out a restart of metadata, within limits.
class MetadataClient {
 public:
  explicit MetadataClient(const std::string& socket);
  ~MetadataClient();

  // Errors: kNotFound: no such container. kUnavailable: metadata is down.
  absl::StatusOr<ContainerRecord> GetContainer(const std::string& ns,
                                               const std::string& id) const;
  // Errors: as above, of a sandbox in the Store.
  absl::StatusOr<SandboxRecord> GetSandbox(const std::string& ns,
                                           const std::string& id) const;
  // One try, of 5 s at most.
  absl::Status ForwardEvent(const containerd::types::Envelope& envelope) const;

 private:
  struct Stubs;
  std::unique_ptr<Stubs> stubs_;
};

}  // namespace bulkhead::runtime

#endif  // BULKHEAD_SERVICES_RUNTIME_METADATA_CLIENT_H_
