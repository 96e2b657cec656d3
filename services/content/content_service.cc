#include "services/content/content_service.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "lib/filters/filters.h"
#include "lib/rpc/status.h"

namespace bulkhead::content {
namespace {

namespace v1 = ::containerd::services::content::v1;

void SetTime(absl::Time time, google::protobuf::Timestamp* out) {
  const timespec spec = absl::ToTimespec(time);
  out->set_seconds(spec.tv_sec);
  out->set_nanos(static_cast<int32_t>(spec.tv_nsec));
}

}  // namespace

// Found by rpc::Reply() next to their first arguments, so not in the namespace
// without a name.
static void ToProto(const BlobInfo& info, v1::Info* out) {
  out->set_digest(info.digest.str());
  out->set_size(info.size_bytes);
  SetTime(info.created_at, out->mutable_created_at());
  SetTime(info.updated_at, out->mutable_updated_at());
  for (const auto& [key, value] : info.labels) {
    (*out->mutable_labels())[key] = value;
  }
}

static void ToProto(const IngestInfo& info, v1::Status* out) {
  SetTime(info.started_at, out->mutable_started_at());
  SetTime(info.updated_at, out->mutable_updated_at());
  out->set_ref(info.ref);
  out->set_offset(info.offset_bytes);
  out->set_total(info.total_bytes);
}

namespace {

absl::StatusOr<Digest> ParseDigest(const std::string& text) {
  absl::StatusOr<Digest> digest = Digest::Parse(text);
  if (digest.ok()) return digest;
  return absl::InvalidArgumentError(
      absl::StrCat("\"", absl::CEscape(text), "\" failed validation"));
}

bool Matches(const filters::Filter& filter, const BlobInfo& info) {
  return filter.matches_all() ||
         filter.Match(
             [&](const filters::FieldPath& path) -> std::optional<std::string> {
               if (path.size() == 1 && path[0] == "digest") {
                 return info.digest.str();
               }
               if (!path.empty() && path[0] == "labels") {
                 return filters::MapField(info.labels, path);
               }
               return std::nullopt;
             });
}

bool Matches(const filters::Filter& filter, const IngestInfo& info) {
  return filter.matches_all() ||
         filter.Match(
             [&](const filters::FieldPath& path) -> std::optional<std::string> {
               if (path.size() == 1 && path[0] == "ref") return info.ref;
               return std::nullopt;
             });
}

// One Write stream, from its first message to its end.
class WriteSession {
 public:
  explicit WriteSession(Store& store) : store_(store) {}

  // Handles one message; `reply()` is the answer if it is OK.
  absl::Status Handle(const v1::WriteContentRequest& request) {
    if (request.total() > 0) total_ = request.total();
    if (!request.expected().empty()) {
      ASSIGN_OR_RETURN(expected_, ParseDigest(request.expected()));
    }
    if (writer_ == nullptr) {
      ref_ = request.ref();
      ASSIGN_OR_RETURN(writer_, store_.OpenWriter({ref_, total_, expected_}));
      RETURN_IF_ERROR(Describe());
    } else if (!request.expected().empty() && store_.Info(expected_).ok()) {
      writer_.reset();
      (void)store_.Abort(ref_);  // The bytes are elsewhere already.
      return absl::AlreadyExistsError(absl::StrCat("blob with expected digest ",
                                                   expected_.str(), " exists"));
    }
    reply_.set_action(request.action());
    switch (request.action()) {
      case v1::STAT:
        RETURN_IF_ERROR(Describe());
        break;
      case v1::WRITE:
      case v1::COMMIT:
        RETURN_IF_ERROR(Append(request));
        if (request.action() == v1::COMMIT) RETURN_IF_ERROR(Commit(request));
        break;
      default:
        return absl::InvalidArgumentError(
            absl::StrCat("unknown write action ", request.action()));
    }
    ASSIGN_OR_RETURN(const Digest digest, writer_->DigestSoFar());
    reply_.set_digest(digest.str());
    return absl::OkStatus();
  }

  const v1::WriteContentResponse& reply() const { return reply_; }
  bool committed() const { return committed_; }

 private:
  // What the ingest is now, its times among it: every reply has them.
  absl::Status Describe() {
    ASSIGN_OR_RETURN(const IngestInfo info, writer_->Info());
    SetTime(info.started_at, reply_.mutable_started_at());
    SetTime(info.updated_at, reply_.mutable_updated_at());
    reply_.set_offset(info.offset_bytes);
    reply_.set_total(info.total_bytes);
    return absl::OkStatus();
  }

  absl::Status Append(const v1::WriteContentRequest& request) {
    if (request.offset() != 0 && request.offset() != reply_.offset()) {
      return absl::OutOfRangeError(
          absl::StrCat("write @", request.offset(),
                       " must occur at current offset ", reply_.offset()));
    }
    if (request.offset() == 0 && reply_.offset() > 0) {
      RETURN_IF_ERROR(writer_->Truncate(0));
      reply_.set_offset(0);
    }
    if (!request.data().empty()) {
      RETURN_IF_ERROR(writer_->Append(request.data()));
      reply_.set_offset(reply_.offset() +
                        static_cast<int64_t>(request.data().size()));
      SetTime(absl::Now(), reply_.mutable_updated_at());
    }
    return absl::OkStatus();
  }

  absl::Status Commit(const v1::WriteContentRequest& request) {
    CommitOptions options;
    options.size_bytes = total_;
    options.expected = expected_;
    options.labels = {request.labels().begin(), request.labels().end()};
    RETURN_IF_ERROR(writer_->Commit(options).status());
    committed_ = true;
    return absl::OkStatus();
  }

  Store& store_;
  std::string ref_;
  std::unique_ptr<Writer> writer_;
  int64_t total_ = 0;  // Sticky, like `expected_`.
  Digest expected_;
  v1::WriteContentResponse reply_;  // Its fields accumulate.
  bool committed_ = false;
};

}  // namespace

grpc::Status ContentService::Info(grpc::ServerContext*,
                                  const v1::InfoRequest* request,
                                  v1::InfoResponse* response) {
  const absl::StatusOr<Digest> digest = ParseDigest(request->digest());
  if (!digest.ok()) return rpc::ToGrpc(digest.status());
  return rpc::Reply(store_.Info(*digest), response->mutable_info());
}

grpc::Status ContentService::Update(grpc::ServerContext*,
                                    const v1::UpdateRequest*,
                                    v1::UpdateResponse*) {
  return rpc::ToGrpc(absl::UnimplementedError(
      "update not supported on immutable content store"));
}

grpc::Status ContentService::List(
    grpc::ServerContext*, const v1::ListContentRequest* request,
    grpc::ServerWriter<v1::ListContentResponse>* writer) {
  const auto filter = filters::Filter::Parse(request->filters());
  if (!filter.ok()) return rpc::ToGrpc(filter.status());
  v1::ListContentResponse batch;
  const auto flush = [&]() -> absl::Status {
    const bool sent = writer->Write(batch);
    batch.Clear();
    return sent ? absl::OkStatus() : absl::CancelledError("the client left");
  };
  absl::Status status = store_.List([&](const BlobInfo& info) -> absl::Status {
    if (!Matches(*filter, info)) return absl::OkStatus();
    ToProto(info, batch.add_info());
    return batch.info_size() < kListBatchMax ? absl::OkStatus() : flush();
  });
  if (status.ok() && batch.info_size() > 0) status = flush();
  return rpc::ToGrpc(status);
}

grpc::Status ContentService::Delete(grpc::ServerContext*,
                                    const v1::DeleteContentRequest* request,
                                    google::protobuf::Empty*) {
  const absl::StatusOr<Digest> digest = ParseDigest(request->digest());
  if (!digest.ok()) return rpc::ToGrpc(digest.status());
  return rpc::ToGrpc(store_.Delete(*digest));
}

grpc::Status ContentService::Read(
    grpc::ServerContext*, const v1::ReadContentRequest* request,
    grpc::ServerWriter<v1::ReadContentResponse>* writer) {
  const absl::StatusOr<Digest> digest = ParseDigest(request->digest());
  if (!digest.ok()) return rpc::ToGrpc(digest.status());
  const auto blob = store_.OpenBlob(*digest);
  if (!blob.ok()) return rpc::ToGrpc(blob.status());
  const int64_t start = std::max<int64_t>(request->offset(), 0);
  const int64_t size = (*blob)->size_bytes();
  if (start > size) {
    return rpc::ToGrpc(absl::OutOfRangeError(
        absl::StrCat("read past object length ", size, " bytes")));
  }
  int64_t left = size - start;
  if (request->size() > 0) left = std::min(left, request->size());
  v1::ReadContentResponse chunk;
  for (int64_t done = 0; done < left; done += chunk.data().size()) {
    const absl::Status read =
        (*blob)->ReadAt(start + done, std::min(kReadChunkBytes, left - done),
                        chunk.mutable_data());
    if (!read.ok()) return rpc::ToGrpc(read);
    chunk.set_offset(done);
    if (!writer->Write(chunk)) {
      return rpc::ToGrpc(absl::CancelledError("the client left"));
    }
  }
  return grpc::Status::OK;
}

grpc::Status ContentService::Status(grpc::ServerContext*,
                                    const v1::StatusRequest* request,
                                    v1::StatusResponse* response) {
  return rpc::Reply(
      [&]() -> absl::StatusOr<IngestInfo> {
        absl::StatusOr<IngestInfo> info = store_.Status(request->ref());
        if (info.ok()) return info;
        return Annotate(
            info.status(),
            absl::StrCat("could not get status for ref \"",
                         absl::Utf8SafeCEscape(request->ref()), "\""));
      }(),
      response->mutable_status());
}

grpc::Status ContentService::ListStatuses(
    grpc::ServerContext*, const v1::ListStatusesRequest* request,
    v1::ListStatusesResponse* response) {
  const auto filter = filters::Filter::Parse(request->filters());
  if (!filter.ok()) return rpc::ToGrpc(filter.status());
  const auto infos = store_.ListStatuses();
  if (!infos.ok()) return rpc::ToGrpc(infos.status());
  for (const IngestInfo& info : *infos) {
    if (Matches(*filter, info)) ToProto(info, response->add_statuses());
  }
  return grpc::Status::OK;
}

grpc::Status ContentService::Write(
    grpc::ServerContext*,
    grpc::ServerReaderWriter<v1::WriteContentResponse, v1::WriteContentRequest>*
        stream) {
  WriteSession session(store_);
  v1::WriteContentRequest request;
  // A client that leaves, politely or not, leaves a resumable ingest.
  while (stream->Read(&request)) {
    const absl::Status status = session.Handle(request);
    if (!status.ok()) return rpc::ToGrpc(status);
    if (!stream->Write(session.reply())) break;
    if (session.committed()) break;
  }
  return grpc::Status::OK;
}

grpc::Status ContentService::Abort(grpc::ServerContext*,
                                   const v1::AbortRequest* request,
                                   google::protobuf::Empty*) {
  return rpc::ToGrpc(store_.Abort(request->ref()));
}

}  // namespace bulkhead::content
