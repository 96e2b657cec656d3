// gRPC adapter of client-facing Content.
#ifndef BULKHEAD_SERVICES_METADATA_CONTENT_SERVICE_H_
#define BULKHEAD_SERVICES_METADATA_CONTENT_SERVICE_H_

#include <grpcpp/server_context.h>

#include "proto/containerd/services/content/v1/content.grpc.pb.h"
#include "services/metadata/content.h"

namespace bulkhead::metadata {

class ContentService final : public content_v1::Content::Service {
 public:
  explicit ContentService(Content& content) : content_(content) {}

  grpc::Status Info(grpc::ServerContext* context,
                    const content_v1::InfoRequest* request,
                    content_v1::InfoResponse* response) override;
  grpc::Status Update(grpc::ServerContext* context,
                      const content_v1::UpdateRequest* request,
                      content_v1::UpdateResponse* response) override;
  grpc::Status List(
      grpc::ServerContext* context,
      const content_v1::ListContentRequest* request,
      grpc::ServerWriter<content_v1::ListContentResponse>* writer) override;
  grpc::Status Delete(grpc::ServerContext* context,
                      const content_v1::DeleteContentRequest* request,
                      google::protobuf::Empty* response) override;
  grpc::Status Read(
      grpc::ServerContext* context,
      const content_v1::ReadContentRequest* request,
      grpc::ServerWriter<content_v1::ReadContentResponse>* writer) override;
  grpc::Status Status(grpc::ServerContext* context,
                      const content_v1::StatusRequest* request,
                      content_v1::StatusResponse* response) override;
  grpc::Status ListStatuses(
      grpc::ServerContext* context,
      const content_v1::ListStatusesRequest* request,
      content_v1::ListStatusesResponse* response) override;
  grpc::Status Write(grpc::ServerContext* context,
                     grpc::ServerReaderWriter<content_v1::WriteContentResponse,
                                              content_v1::WriteContentRequest>*
                         stream) override;
  grpc::Status Abort(grpc::ServerContext* context,
                     const content_v1::AbortRequest* request,
                     google::protobuf::Empty* response) override;

 private:
  Content& content_;
};

}  // namespace bulkhead::metadata

#endif  // BULKHEAD_SERVICES_METADATA_CONTENT_SERVICE_H_
