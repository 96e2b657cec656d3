// gRPC adapter of StreamTable: containerd.services.streaming.v1.
#ifndef BULKHEAD_SERVICES_DISTRIBUTION_STREAMING_SERVICE_H_
#define BULKHEAD_SERVICES_DISTRIBUTION_STREAMING_SERVICE_H_

#include "proto/containerd/services/streaming/v1/streaming.grpc.pb.h"
#include "services/distribution/streams.h"

namespace bulkhead::distribution {

class StreamingService final
    : public containerd::services::streaming::v1::Streaming::Service {
 public:
  // `table` must outlive the service.
  explicit StreamingService(StreamTable* table) : table_(table) {}

  grpc::Status Stream(
      grpc::ServerContext* context,
      grpc::ServerReaderWriter<google::protobuf::Any, google::protobuf::Any>*
          wire) override;

 private:
  StreamTable* const table_;
};

}  // namespace bulkhead::distribution

#endif  // BULKHEAD_SERVICES_DISTRIBUTION_STREAMING_SERVICE_H_
