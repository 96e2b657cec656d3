#include "services/metadata/content_service.h"

#include "lib/digest/digest.h"
#include "lib/rpc/context.h"
#include "services/metadata/reply.h"

namespace bulkhead::metadata {
namespace {

using content_v1::WriteContentRequest;
using content_v1::WriteContentResponse;
using google::protobuf::Empty;
using grpc::ServerContext;
using rpc::ContextOf;
using rpc::RequireNamespace;
using rpc::ToGrpc;

constexpr int kListBatchMax = 100;
constexpr size_t kReadChunkBytes = 1 << 20;

// One Write stream: the state that its messages share.
class WriteSession {
 public:
  WriteSession(Content& content, rpc::CallContext call)
      : content_(content), call_(std::move(call)) {}

  absl::Status Open(const WriteContentRequest& first) {
    if (first.ref().empty()) {
      return absl::InvalidArgumentError("first message must have a reference");
    }
    WriterRequest request;
    request.ns = call_.ns;
    request.lease = call_.lease;
    request.ref = first.ref();
    request.total_bytes = total_ = first.total();
    request.expected = expected_ = first.expected();
    ASSIGN_OR_RETURN(writer_, content_.OpenWriter(request));
    offset_ = writer_->opened().offset_bytes;
    if (total_ == 0) total_ = writer_->opened().total_bytes;
    // Every reply has them.
    *response_.mutable_started_at() =
        ToTimestamp(absl::FromUnixNanos(writer_->opened().started_at_ns));
    *response_.mutable_updated_at() =
        ToTimestamp(absl::FromUnixNanos(writer_->opened().updated_at_ns));
    if (offset_ == 0 && !writer_->is_virtual()) SetDigestOfNothing();
    return absl::OkStatus();
  }

  // Sets `done` after a commit.
  absl::Status Handle(const WriteContentRequest& request, bool first,
                      bool* done) {
    if (!first) {
      if (request.total() > 0) total_ = request.total();
      if (!request.expected().empty()) {
        expected_ = request.expected();
        RETURN_IF_ERROR(CheckExpected());
      }
    }
    response_.set_action(request.action());
    switch (request.action()) {
      case content_v1::STAT:
        response_.set_total(total_);
        break;
      case content_v1::WRITE:
        RETURN_IF_ERROR(Append(request));
        break;
      case content_v1::COMMIT: {
        RETURN_IF_ERROR(Append(request));
        ASSIGN_OR_RETURN(const dataplane::CommitResult result,
                         writer_->Commit(total_ > 0 ? total_ : offset_,
                                         expected_, request.labels()));
        response_.set_offset(result.size_bytes);
        response_.set_digest(result.digest);
        *done = true;
        return absl::OkStatus();
      }
      default:
        return absl::InvalidArgumentError(absl::StrCat(
            "unknown write action ", static_cast<int>(request.action())));
    }
    response_.set_offset(offset_);
    return SetDigest();
  }

  const WriteContentResponse& response() const { return response_; }

 private:
  absl::Status CheckExpected() {
    const absl::StatusOr<Digest> digest = Digest::Parse(expected_);
    if (!digest.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat(Quoted(expected_), " failed validation"));
    }
    const absl::Status absent =
        content_.CheckAbsent(call_.ns, call_.lease, expected_);
    if (!absl::IsAlreadyExists(absent)) return absent;
    RETURN_IF_ERROR(writer_->Abort());
    return absl::AlreadyExistsError(absl::StrCat("blob with expected digest ",
                                                 Quoted(expected_), " exists"));
  }

  absl::Status Append(const WriteContentRequest& request) {
    if (request.offset() < 0 ||
        (request.offset() > 0 && request.offset() != offset_)) {
      return absl::OutOfRangeError(
          absl::StrCat("write @", request.offset(),
                       " must occur at current offset ", offset_));
    }
    if (request.offset() == 0 && offset_ > 0) {
      RETURN_IF_ERROR(writer_->Truncate(0));
      offset_ = 0;
      SetDigestOfNothing();
    }
    if (request.data().empty()) return absl::OkStatus();
    RETURN_IF_ERROR(writer_->Append(offset_, request.data()));
    offset_ += static_cast<int64_t>(request.data().size());
    *response_.mutable_updated_at() = Now();
    return absl::OkStatus();
  }

  void SetDigestOfNothing() {
    response_.set_digest(Digest::Of("").str());
    digest_at_ = 0;
  }

  // The content service hashes what it is given; nobody does it twice.
  absl::Status SetDigest() {
    if (digest_at_ != offset_) {
      ASSIGN_OR_RETURN(*response_.mutable_digest(), writer_->DigestSoFar());
      digest_at_ = offset_;
    }
    return absl::OkStatus();
  }

  Content& content_;
  const rpc::CallContext call_;
  std::unique_ptr<ContentWriter> writer_;
  int64_t offset_ = 0;
  int64_t digest_at_ = -1;  // The offset that the digest in response_ is for.
  int64_t total_ = 0;
  std::string expected_;
  WriteContentResponse response_;  // Fields stay from message to message.
};

}  // namespace

grpc::Status ContentService::Info(ServerContext* context,
                                  const content_v1::InfoRequest* request,
                                  content_v1::InfoResponse* response) {
  ASSIGN_OR_REPLY(const std::string ns, RequireNamespace(*context));
  ASSIGN_OR_REPLY(*response->mutable_info(),
                  content_.Info(ns, request->digest()));
  return grpc::Status::OK;
}

grpc::Status ContentService::Update(ServerContext* context,
                                    const content_v1::UpdateRequest* request,
                                    content_v1::UpdateResponse* response) {
  ASSIGN_OR_REPLY(const std::string ns, RequireNamespace(*context));
  const std::vector<std::string> mask(request->update_mask().paths().begin(),
                                      request->update_mask().paths().end());
  ASSIGN_OR_REPLY(*response->mutable_info(),
                  content_.Update(ns, request->info(), mask));
  return grpc::Status::OK;
}

grpc::Status ContentService::List(
    ServerContext* context, const content_v1::ListContentRequest* request,
    grpc::ServerWriter<content_v1::ListContentResponse>* writer) {
  ASSIGN_OR_REPLY(const std::string ns, RequireNamespace(*context));
  ASSIGN_OR_REPLY(const filters::Filter filter,
                  filters::Filter::Parse(request->filters()));
  content_v1::ListContentResponse batch;
  bool open = true;
  REPLY_IF_ERROR(content_.List(ns, filter, [&](content_v1::Info& info) {
    *batch.add_info() = std::move(info);
    if (batch.info_size() < kListBatchMax) return true;
    open = writer->Write(batch);
    batch.Clear();
    return open;
  }));
  if (open && batch.info_size() > 0) writer->Write(batch);
  return grpc::Status::OK;
}

grpc::Status ContentService::Delete(
    ServerContext* context, const content_v1::DeleteContentRequest* request,
    Empty*) {
  ASSIGN_OR_REPLY(const std::string ns, RequireNamespace(*context));
  return ToGrpc(
      content_.Delete(ns, request->digest(), ContextOf(*context).lease));
}

grpc::Status ContentService::Read(
    ServerContext* context, const content_v1::ReadContentRequest* request,
    grpc::ServerWriter<content_v1::ReadContentResponse>* writer) {
  ASSIGN_OR_REPLY(const std::string ns, RequireNamespace(*context));
  ASSIGN_OR_REPLY(const std::unique_ptr<BackendBlob> blob,
                  content_.Open(ns, request->digest()));
  const int64_t offset = std::max<int64_t>(request->offset(), 0);
  if (offset > blob->size_bytes()) {
    return ToGrpc(absl::OutOfRangeError(absl::StrCat(
        "read past object length ", blob->size_bytes(), " bytes")));
  }
  int64_t size = blob->size_bytes() - offset;
  if (request->size() > 0) size = std::min(size, request->size());
  // Offsets of the pieces count from the request's.
  int64_t sent = 0;
  content_v1::ReadContentResponse piece;
  return ToGrpc(
      blob->Read(offset, size, kReadChunkBytes, [&](std::string& data) {
        piece.set_offset(sent);
        piece.mutable_data()->swap(data);
        sent += static_cast<int64_t>(piece.data().size());
        return writer->Write(piece);
      }));
}

grpc::Status ContentService::Status(ServerContext* context,
                                    const content_v1::StatusRequest* request,
                                    content_v1::StatusResponse* response) {
  ASSIGN_OR_REPLY(const std::string ns, RequireNamespace(*context));
  ASSIGN_OR_REPLY(*response->mutable_status(),
                  content_.Status(ns, request->ref()));
  return grpc::Status::OK;
}

grpc::Status ContentService::ListStatuses(
    ServerContext* context, const content_v1::ListStatusesRequest* request,
    content_v1::ListStatusesResponse* response) {
  ASSIGN_OR_REPLY(const std::string ns, RequireNamespace(*context));
  ASSIGN_OR_REPLY(const filters::Filter filter,
                  filters::Filter::Parse(request->filters()));
  ASSIGN_OR_REPLY(std::vector<content_v1::Status> all,
                  content_.ListStatuses(ns, filter));
  for (content_v1::Status& each : all) {
    *response->add_statuses() = std::move(each);
  }
  return grpc::Status::OK;
}

grpc::Status ContentService::Write(
    ServerContext* context,
    grpc::ServerReaderWriter<WriteContentResponse, WriteContentRequest>*
        stream) {
  ASSIGN_OR_REPLY(const std::string ns, RequireNamespace(*context));
  WriteSession session(content_, ContextOf(*context));
  WriteContentRequest request;
  bool first = true;
  bool done = false;
  while (!done && stream->Read(&request)) {
    if (first) REPLY_IF_ERROR(session.Open(request));
    REPLY_IF_ERROR(session.Handle(request, first, &done));
    first = false;
    if (!stream->Write(session.response())) break;
  }
  return grpc::Status::OK;
}

grpc::Status ContentService::Abort(ServerContext* context,
                                   const content_v1::AbortRequest* request,
                                   Empty*) {
  ASSIGN_OR_REPLY(const std::string ns, RequireNamespace(*context));
  return ToGrpc(content_.Abort(ns, request->ref(), ContextOf(*context).lease));
}

}  // namespace bulkhead::metadata
