// containerd.services.content.v1.Content on a Store: converts, calls, maps.
#ifndef BULKHEAD_SERVICES_CONTENT_CONTENT_SERVICE_H_
#define BULKHEAD_SERVICES_CONTENT_CONTENT_SERVICE_H_

#include "proto/containerd/services/content/v1/content.grpc.pb.h"
#include "services/content/store.h"

namespace bulkhead::content {

constexpr int kListBatchMax = 100;
constexpr int64_t kReadChunkBytes = 1 << 20;

// A backend: no namespaces, and no labels (Update is UNIMPLEMENTED; labels of a
// commit are ignored), as containerd's own store behind its metadata.
class ContentService final
    : public ::containerd::services::content::v1::Content::Service {
 public:
  // `store` is borrowed.
  explicit ContentService(Store* store) : store_(*store) {}

  grpc::Status Info(
      grpc::ServerContext* context,
      const ::containerd::services::content::v1::InfoRequest* request,
      ::containerd::services::content::v1::InfoResponse* response) override;
  grpc::Status Update(
      grpc::ServerContext* context,
      const ::containerd::services::content::v1::UpdateRequest* request,
      ::containerd::services::content::v1::UpdateResponse* response) override;
  grpc::Status List(
      grpc::ServerContext* context,
      const ::containerd::services::content::v1::ListContentRequest* request,
      grpc::ServerWriter<
          ::containerd::services::content::v1::ListContentResponse>* writer)
      override;
  grpc::Status Delete(
      grpc::ServerContext* context,
      const ::containerd::services::content::v1::DeleteContentRequest* request,
      ::google::protobuf::Empty* response) override;
  grpc::Status Read(
      grpc::ServerContext* context,
      const ::containerd::services::content::v1::ReadContentRequest* request,
      grpc::ServerWriter<
          ::containerd::services::content::v1::ReadContentResponse>* writer)
      override;
  grpc::Status Status(
      grpc::ServerContext* context,
      const ::containerd::services::content::v1::StatusRequest* request,
      ::containerd::services::content::v1::StatusResponse* response) override;
  grpc::Status ListStatuses(
      grpc::ServerContext* context,
      const ::containerd::services::content::v1::ListStatusesRequest* request,
      ::containerd::services::content::v1::ListStatusesResponse* response)
      override;
  grpc::Status Write(
      grpc::ServerContext* context,
      grpc::ServerReaderWriter<
          ::containerd::services::content::v1::WriteContentResponse,
          ::containerd::services::content::v1::WriteContentRequest>* stream)
      override;
  grpc::Status Abort(
      grpc::ServerContext* context,
      const ::containerd::services::content::v1::AbortRequest* request,
      ::google::protobuf::Empty* response) override;

 private:
  Store& store_;
};

}  // namespace bulkhead::content

#endif  // BULKHEAD_SERVICES_CONTENT_CONTENT_SERVICE_H_
