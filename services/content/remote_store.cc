#include "services/content/remote_store.h"

#include <utility>

#include "lib/rpc/context.h"
#include "lib/rpc/status.h"
#include "proto/containerd/services/content/v1/content.grpc.pb.h"

namespace bulkhead::content {
namespace {

namespace v1 = ::containerd::services::content::v1;

absl::Time TimeOf(const google::protobuf::Timestamp& time) {
  return absl::FromUnixSeconds(time.seconds()) +
         absl::Nanoseconds(time.nanos());
}

absl::StatusOr<BlobInfo> FromProto(const v1::Info& info) {
  BlobInfo result;
  ASSIGN_OR_RETURN(result.digest, Digest::Parse(info.digest()));
  result.size_bytes = info.size();
  result.created_at = TimeOf(info.created_at());
  result.updated_at = TimeOf(info.updated_at());
  result.labels = {info.labels().begin(), info.labels().end()};
  return result;
}

IngestInfo FromProto(const v1::Status& status) {
  return IngestInfo{status.ref(), status.offset(), status.total(),
                    TimeOf(status.started_at()), TimeOf(status.updated_at())};
}

class RemoteWriter final : public Writer {
 public:
  RemoteWriter(v1::Content::Stub* stub, std::unique_ptr<grpc::ClientContext> c,
               OpenOptions options)
      : context_(std::move(c)),
        options_(std::move(options)),
        stream_(stub->Write(context_.get())) {}

  ~RemoteWriter() override {
    if (stream_ == nullptr) return;
    stream_->WritesDone();
    v1::WriteContentResponse rest;
    while (stream_->Read(&rest)) {
    }
    (void)stream_->Finish();  // Nobody is left to tell.
  }

  absl::Status Begin() {
    v1::WriteContentRequest request;
    request.set_action(v1::STAT);
    request.set_ref(options_.ref);
    request.set_total(options_.total_bytes);
    request.set_expected(options_.expected.str());
    return Exchange(request);
  }

  absl::StatusOr<IngestInfo> Info() override {
    v1::WriteContentRequest request;
    request.set_action(v1::STAT);
    RETURN_IF_ERROR(Exchange(request));
    return IngestInfo{options_.ref, reply_.offset(), reply_.total(),
                      TimeOf(reply_.started_at()), TimeOf(reply_.updated_at())};
  }

  absl::StatusOr<Digest> DigestSoFar() override {
    if (!committed_.empty()) return committed_;
    RETURN_IF_ERROR(Info().status());
    return Digest::Parse(reply_.digest());
  }

  absl::Status Append(absl::string_view data) override {
    v1::WriteContentRequest request;
    request.set_action(v1::WRITE);
    request.set_offset(reply_.offset());
    request.set_data(std::string(data));
    return Exchange(request);
  }

  absl::Status Truncate(int64_t size_bytes) override {
    if (size_bytes != 0) return absl::UnimplementedError("truncate");
    v1::WriteContentRequest request;
    request.set_action(v1::WRITE);
    return Exchange(request);
  }

  absl::StatusOr<BlobInfo> Commit(const CommitOptions& options) override {
    v1::WriteContentRequest request;
    request.set_action(v1::COMMIT);
    request.set_offset(reply_.offset());
    request.set_total(options.size_bytes);
    request.set_expected(options.expected.str());
    request.mutable_labels()->insert(options.labels.begin(),
                                     options.labels.end());
    RETURN_IF_ERROR(Exchange(request));
    ASSIGN_OR_RETURN(committed_, Digest::Parse(reply_.digest()));
    return BlobInfo{committed_, reply_.offset(), TimeOf(reply_.updated_at()),
                    TimeOf(reply_.updated_at()), options.labels};
  }

 private:
  absl::Status Exchange(const v1::WriteContentRequest& request) {
    if (stream_ == nullptr) {
      return absl::FailedPreconditionError("the stream has failed before");
    }
    if (stream_->Write(request) && stream_->Read(&reply_)) {
      return absl::OkStatus();
    }
    const absl::Status status = rpc::FromGrpc(stream_->Finish());
    stream_ = nullptr;
    return status.ok() ? absl::UnknownError("the stream has ended") : status;
  }

  const std::unique_ptr<grpc::ClientContext> context_;
  const OpenOptions options_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::WriteContentRequest,
                                           v1::WriteContentResponse>>
      stream_;
  v1::WriteContentResponse reply_;
  Digest committed_;
};

class RemoteStore;

class RemoteBlob final : public BlobReader {
 public:
  RemoteBlob(RemoteStore* store, BlobInfo info)
      : store_(store), info_(std::move(info)) {}
  int64_t size_bytes() const override { return info_.size_bytes; }
  absl::Status ReadAt(int64_t offset_bytes, int64_t size_bytes,
                      std::string* data) const override;

 private:
  RemoteStore* const store_;
  const BlobInfo info_;
};

class RemoteStore final : public Store {
 public:
  RemoteStore(std::shared_ptr<grpc::Channel> channel, std::string ns,
              std::shared_ptr<void> keep_alive, std::string lease)
      : keep_alive_(std::move(keep_alive)),
        ns_(std::move(ns)),
        lease_(std::move(lease)),
        stub_(v1::Content::NewStub(channel)) {}

  absl::StatusOr<BlobInfo> Info(const Digest& digest) override {
    v1::InfoRequest request;
    request.set_digest(digest.str());
    v1::InfoResponse response;
    RETURN_IF_ERROR(
        rpc::FromGrpc(stub_->Info(Context().get(), request, &response)));
    return FromProto(response.info());
  }

  absl::Status List(
      const std::function<absl::Status(const BlobInfo&)>& visit) override {
    const auto context = Context();
    const auto stream = stub_->List(context.get(), {});
    v1::ListContentResponse batch;
    absl::Status visited;
    while (stream->Read(&batch)) {
      for (const v1::Info& info : batch.info()) {
        ASSIGN_OR_RETURN(const BlobInfo blob, FromProto(info));
        if (visited.ok()) visited = visit(blob);
      }
    }
    RETURN_IF_ERROR(rpc::FromGrpc(stream->Finish()));
    return visited;
  }

  absl::Status Delete(const Digest& digest) override {
    v1::DeleteContentRequest request;
    request.set_digest(digest.str());
    google::protobuf::Empty response;
    return rpc::FromGrpc(stub_->Delete(Context().get(), request, &response));
  }

  absl::StatusOr<std::unique_ptr<BlobReader>> OpenBlob(
      const Digest& digest) override {
    ASSIGN_OR_RETURN(BlobInfo info, Info(digest));
    return std::unique_ptr<BlobReader>(
        std::make_unique<RemoteBlob>(this, std::move(info)));
  }

  absl::Status Read(const Digest& digest, int64_t offset_bytes,
                    int64_t size_bytes, std::string* data) {
    v1::ReadContentRequest request;
    request.set_digest(digest.str());
    request.set_offset(offset_bytes);
    request.set_size(size_bytes);
    const auto context = Context();
    const auto stream = stub_->Read(context.get(), request);
    v1::ReadContentResponse chunk;
    data->clear();
    while (stream->Read(&chunk)) *data += chunk.data();
    return rpc::FromGrpc(stream->Finish());
  }

  absl::StatusOr<std::unique_ptr<Writer>> OpenWriter(
      const OpenOptions& options) override {
    auto writer =
        std::make_unique<RemoteWriter>(stub_.get(), Context(), options);
    RETURN_IF_ERROR(writer->Begin());
    return std::unique_ptr<Writer>(std::move(writer));
  }

  absl::StatusOr<IngestInfo> Status(const std::string& ref) override {
    v1::StatusRequest request;
    request.set_ref(ref);
    v1::StatusResponse response;
    RETURN_IF_ERROR(
        rpc::FromGrpc(stub_->Status(Context().get(), request, &response)));
    return FromProto(response.status());
  }

  absl::StatusOr<std::vector<IngestInfo>> ListStatuses() override {
    v1::ListStatusesResponse response;
    RETURN_IF_ERROR(
        rpc::FromGrpc(stub_->ListStatuses(Context().get(), {}, &response)));
    std::vector<IngestInfo> infos;
    for (const v1::Status& status : response.statuses()) {
      infos.push_back(FromProto(status));
    }
    return infos;
  }

  absl::Status Abort(const std::string& ref) override {
    v1::AbortRequest request;
    request.set_ref(ref);
    google::protobuf::Empty response;
    return rpc::FromGrpc(stub_->Abort(Context().get(), request, &response));
  }

 private:
  std::unique_ptr<grpc::ClientContext> Context() const {
    return rpc::MakeClientContext({ns_, lease_}, absl::Seconds(60));
  }

  const std::shared_ptr<void> keep_alive_;
  const std::string ns_;
  const std::string lease_;
  const std::unique_ptr<v1::Content::Stub> stub_;
};

absl::Status RemoteBlob::ReadAt(int64_t offset_bytes, int64_t size_bytes,
                                std::string* data) const {
  return store_->Read(info_.digest, offset_bytes, size_bytes, data);
}

}  // namespace

std::unique_ptr<Store> OpenRemoteStore(std::shared_ptr<grpc::Channel> channel,
                                       const std::string& ns,
                                       std::shared_ptr<void> keep_alive,
                                       const std::string& lease) {
  return std::make_unique<RemoteStore>(std::move(channel), ns,
                                       std::move(keep_alive), lease);
}

}  // namespace bulkhead::content
