// gRPC adapters of namespaces, images, containers, leases, sandbox records and
// events: convert, call, map.
#ifndef BULKHEAD_SERVICES_METADATA_OBJECT_SERVICES_H_
#define BULKHEAD_SERVICES_METADATA_OBJECT_SERVICES_H_

#include <grpcpp/impl/codegen/service_type.h>

#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "services/metadata/store.h"

namespace bulkhead::metadata {

// Events.Subscribe with this request header begins behind the event of that
// number (0: with the oldest that is kept); OUT_OF_RANGE if some after it are
// gone, FAILED_PRECONDITION if the number was never given out. Only then does
// each envelope carry its number, as the varint field kSequenceField, which the
// contract does not have and foreign clients skip, and the response headers
// carry the last number so far.
inline constexpr char kEventsAfterHeader[] = "bulkhead-events-after";
inline constexpr char kEventsLastHeader[] = "bulkhead-events-last";
inline constexpr int kSequenceField = 1000;

// Waits for a whole collection that begins after the call.
using CollectNow = std::function<absl::Status()>;

// The six services over one store, which is borrowed. Thread-safe, as gRPC
// needs.
class ObjectServices {
 public:
  ObjectServices(Store& store, CollectNow collect_now);
  ~ObjectServices();
  std::vector<grpc::Service*> services() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace bulkhead::metadata

#endif  // BULKHEAD_SERVICES_METADATA_OBJECT_SERVICES_H_
