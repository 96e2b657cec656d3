#include "services/metadata/grpc_content_backend.h"

#include <grpcpp/channel.h>

#include <algorithm>
#include <optional>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/os/fd.h"
#include "lib/rpc/channel.h"
#include "lib/rpc/context.h"
#include "lib/rpc/removal.h"
#include "lib/rpc/status.h"
#include "proto/containerd/services/content/v1/content.grpc.pb.h"
#include "services/metadata/util.h"

namespace bulkhead::metadata {
namespace {

namespace v1 = containerd::services::content::v1;

// For short calls; a service that is being restarted is back within this.
constexpr absl::Duration kCallTimeout = absl::Seconds(30);
constexpr absl::Duration kRetryTimeout = absl::Seconds(3);
// The first piece of an append that the service may hash.
constexpr size_t kFirstPieceBytes = 128 << 10;

class DataBlob final : public BackendBlob {
 public:
  explicit DataBlob(dataplane::OpenedBlob blob) : blob_(std::move(blob)) {}
  int64_t size_bytes() const override { return blob_.size_bytes; }
  int fd() const override { return blob_.fd.get(); }
  absl::Status Read(
      int64_t offset_bytes, int64_t size_bytes, size_t piece_bytes_max,
      const std::function<bool(std::string& piece)>& sink) override {
    std::string piece;
    while (size_bytes > 0) {
      piece.resize(std::min<int64_t>(size_bytes, piece_bytes_max));
      ASSIGN_OR_RETURN(const size_t n,
                       os::PReadFull(blob_.fd.get(), piece.data(), piece.size(),
                                     offset_bytes));
      if (n == 0) return absl::DataLossError("blob is shorter than it was");
      piece.resize(n);
      if (!sink(piece)) return absl::OkStatus();
      offset_bytes += static_cast<int64_t>(n);
      size_bytes -= static_cast<int64_t>(n);
    }
    return absl::OkStatus();
  }

 private:
  dataplane::OpenedBlob blob_;
};

class DataWriter final : public BackendWriter {
 public:
  explicit DataWriter(std::unique_ptr<dataplane::Ingest> ingest)
      : ingest_(std::move(ingest)) {}
  const dataplane::IngestState& opened() const override {
    return ingest_->opened();
  }
  int fd() const override { return ingest_->fd(); }
  absl::Status Append(int64_t offset_bytes, const std::string& data) override {
    // In pieces: the service hashes one while the next is written, which takes
    // half as long.
    size_t piece = kFirstPieceBytes;
    for (size_t done = 0; done < data.size(); piece *= 2) {
      const size_t left = data.size() - done;
      const size_t n = left < 2 * piece ? left : piece;
      RETURN_IF_ERROR(
          os::PWriteFull(ingest_->fd(), data.data() + done, n, offset_bytes));
      done += n;
      offset_bytes += static_cast<int64_t>(n);
      RETURN_IF_ERROR(Advance(offset_bytes));
    }
    return absl::OkStatus();
  }
  absl::Status Advance(int64_t offset_bytes) override {
    return ingest_->Advance(offset_bytes);
  }
  absl::Status Truncate(int64_t offset_bytes) override {
    return ingest_->Truncate(offset_bytes);
  }
  absl::StatusOr<std::string> DigestSoFar() override {
    return ingest_->DigestSoFar();
  }
  absl::StatusOr<dataplane::CommitResult> Commit(
      int64_t size_bytes, const std::string& expected) override {
    return ingest_->Commit(size_bytes, expected, {});
  }
  absl::Status Abort() override { return ingest_->Abort(); }

 private:
  const std::unique_ptr<dataplane::Ingest> ingest_;
};

// A foreign blob, read over gRPC.
class StreamBlob final : public BackendBlob {
 public:
  StreamBlob(v1::Content::Stub* stub, std::string digest, int64_t size_bytes)
      : stub_(stub), digest_(std::move(digest)), size_bytes_(size_bytes) {}
  int64_t size_bytes() const override { return size_bytes_; }
  int fd() const override { return -1; }
  absl::Status Read(
      int64_t offset_bytes, int64_t size_bytes, size_t piece_bytes_max,
      const std::function<bool(std::string& piece)>& sink) override {
    if (size_bytes <= 0) return absl::OkStatus();
    v1::ReadContentRequest request;
    request.set_digest(digest_);
    request.set_offset(offset_bytes);
    request.set_size(size_bytes);
    const auto context = rpc::MakeClientContext({});
    const auto reader = stub_->Read(context.get(), request);
    v1::ReadContentResponse response;
    std::string piece;
    while (reader->Read(&response)) {
      const std::string& data = response.data();
      for (size_t at = 0; at < data.size(); at += piece_bytes_max) {
        piece.assign(data, at, piece_bytes_max);
        if (!sink(piece)) {
          context->TryCancel();
          (void)reader->Finish();  // Cancelled by us.
          return absl::OkStatus();
        }
      }
    }
    return rpc::FromGrpc(reader->Finish());
  }

 private:
  v1::Content::Stub* const stub_;
  const std::string digest_;
  const int64_t size_bytes_;
};

// A foreign ingest, written over gRPC.
class StreamWriter final : public BackendWriter {
 public:
  StreamWriter(v1::Content::Stub* stub, std::string ref)
      : stub_(stub),
        ref_(std::move(ref)),
        context_(rpc::MakeClientContext({})),
        stream_(stub->Write(context_.get())) {}
  ~StreamWriter() override {
    if (!over_) {
      stream_->WritesDone();
      v1::WriteContentResponse response;
      while (stream_->Read(&response)) {
      }
      (void)stream_->Finish();  // The ingest stays, whatever this says.
    }
  }

  absl::Status Open(int64_t total_bytes) {
    v1::WriteContentRequest request;
    request.set_action(v1::STAT);
    request.set_ref(ref_);
    request.set_total(total_bytes);
    ASSIGN_OR_RETURN(const v1::WriteContentResponse response, Call(request));
    opened_.offset_bytes = response.offset();
    opened_.total_bytes = response.total();
    opened_.started_at_ns = absl::ToUnixNanos(ToTime(response.started_at()));
    opened_.updated_at_ns = absl::ToUnixNanos(ToTime(response.updated_at()));
    return absl::OkStatus();
  }
  absl::StatusOr<std::string> DigestSoFar() override { return digest_; }
  const dataplane::IngestState& opened() const override { return opened_; }
  int fd() const override { return -1; }
  absl::Status Append(int64_t offset_bytes, const std::string& data) override {
    v1::WriteContentRequest request;
    request.set_action(v1::WRITE);
    request.set_offset(offset_bytes);
    request.set_data(data);
    return Call(request).status();
  }
  absl::Status Advance(int64_t) override {
    return absl::UnimplementedError("no descriptor to advance");
  }
  absl::Status Truncate(int64_t offset_bytes) override {
    if (offset_bytes != 0) {
      return absl::UnimplementedError("cannot truncate to an offset");
    }
    // An empty write at offset 0 truncates.
    return Append(0, "");
  }
  absl::StatusOr<dataplane::CommitResult> Commit(
      int64_t size_bytes, const std::string& expected) override {
    v1::WriteContentRequest request;
    request.set_action(v1::COMMIT);
    request.set_offset(size_bytes);
    request.set_total(size_bytes);
    request.set_expected(expected);
    ASSIGN_OR_RETURN(const v1::WriteContentResponse response, Call(request));
    return dataplane::CommitResult{response.digest(), response.offset()};
  }
  absl::Status Abort() override {
    context_->TryCancel();
    v1::AbortRequest request;
    request.set_ref(ref_);
    google::protobuf::Empty empty;
    return rpc::FromGrpc(stub_->Abort(
        rpc::MakeClientContext({}, kCallTimeout).get(), request, &empty));
  }

 private:
  absl::StatusOr<v1::WriteContentResponse> Call(
      const v1::WriteContentRequest& request) {
    v1::WriteContentResponse response;
    if (over_) return absl::UnavailableError("content stream is over");
    if (stream_->Write(request) && stream_->Read(&response)) {
      digest_ = response.digest();
      return response;
    }
    over_ = true;
    const absl::Status status = rpc::FromGrpc(stream_->Finish());
    if (!status.ok()) return status;
    return absl::UnavailableError("content stream ended early");
  }

  v1::Content::Stub* const stub_;
  const std::string ref_;
  const std::unique_ptr<grpc::ClientContext> context_;
  const std::unique_ptr<grpc::ClientReaderWriter<v1::WriteContentRequest,
                                                 v1::WriteContentResponse>>
      stream_;
  bool over_ = false;
  dataplane::IngestState opened_;
  std::string digest_;  // As the last reply has it.
};

BackendIngest FromStatus(const v1::Status& status) {
  return {status.ref(), status.offset(), status.total(),
          ToTime(status.started_at()), ToTime(status.updated_at())};
}

class GrpcContentBackend final : public ContentBackend {
 public:
  GrpcContentBackend(const std::string& socket, const std::string& data_socket)
      : channel_(rpc::Connect(socket)),
        stub_(v1::Content::NewStub(channel_)),
        removal_(channel_),
        data_(data_socket),
        has_data_(!data_socket.empty()) {}

  absl::StatusOr<int64_t> Size(const std::string& digest) override {
    v1::InfoRequest request;
    request.set_digest(digest);
    v1::InfoResponse response;
    RETURN_IF_ERROR(Retry([&](grpc::ClientContext* context) {
      return stub_->Info(context, request, &response);
    }));
    return response.info().size();
  }

  absl::StatusOr<std::unique_ptr<BackendBlob>> Open(
      const std::string& digest) override {
    if (has_data_) {
      absl::StatusOr<dataplane::OpenedBlob> blob;
      RETURN_IF_ERROR(rpc::RetryUnavailable(kRetryTimeout, [&] {
        blob = data_.Open(digest);
        return blob.status();
      }));
      return std::make_unique<DataBlob>(*std::move(blob));
    }
    ASSIGN_OR_RETURN(const int64_t size, Size(digest));
    return std::make_unique<StreamBlob>(stub_.get(), digest, size);
  }

  absl::Status ListBlobs(const std::function<void(const std::string&, int64_t)>&
                             visitor) override {
    const auto context = rpc::MakeClientContext({});
    const auto reader = stub_->List(context.get(), {});
    v1::ListContentResponse response;
    while (reader->Read(&response)) {
      for (const v1::Info& info : response.info()) {
        visitor(info.digest(), info.size());
      }
    }
    return rpc::FromGrpc(reader->Finish());
  }

  absl::Status Delete(const std::string& digest) override {
    v1::DeleteContentRequest request;
    request.set_digest(digest);
    google::protobuf::Empty empty;
    return Retry([&](grpc::ClientContext* context) {
      return stub_->Delete(context, request, &empty);
    });
  }

  std::vector<absl::Status> DeleteMany(
      const std::vector<std::string>& digests) override {
    std::optional<rpc::Removed> removed =
        removal_.Remove("", digests, kCallTimeout);
    return removed.has_value() ? *std::move(removed)
                               : ContentBackend::DeleteMany(digests);
  }

  absl::StatusOr<BackendIngest> Status(const std::string& ref) override {
    v1::StatusRequest request;
    request.set_ref(ref);
    v1::StatusResponse response;
    RETURN_IF_ERROR(Retry([&](grpc::ClientContext* context) {
      return stub_->Status(context, request, &response);
    }));
    return FromStatus(response.status());
  }

  absl::StatusOr<std::vector<BackendIngest>> ListIngests() override {
    v1::ListStatusesResponse response;
    RETURN_IF_ERROR(Retry([&](grpc::ClientContext* context) {
      return stub_->ListStatuses(context, {}, &response);
    }));
    std::vector<BackendIngest> all;
    for (const v1::Status& status : response.statuses()) {
      all.push_back(FromStatus(status));
    }
    return all;
  }

  absl::Status Abort(const std::string& ref) override {
    v1::AbortRequest request;
    request.set_ref(ref);
    google::protobuf::Empty empty;
    return Retry([&](grpc::ClientContext* context) {
      return stub_->Abort(context, request, &empty);
    });
  }

  absl::StatusOr<std::unique_ptr<BackendWriter>> OpenWriter(
      const std::string& ref, int64_t total_bytes) override {
    if (has_data_) {
      dataplane::IngestRequest request;
      request.ref = ref;
      request.total_bytes = total_bytes;
      absl::StatusOr<std::unique_ptr<dataplane::Ingest>> ingest;
      RETURN_IF_ERROR(rpc::RetryUnavailable(kRetryTimeout, [&] {
        ingest = data_.OpenIngest(request);
        // A locked ref is an answer, not an outage.
        return absl::StartsWith(MessageOf(ingest.status()), "ref ")
                   ? absl::OkStatus()
                   : ingest.status();
      }));
      RETURN_IF_ERROR(ingest.status());
      return std::make_unique<DataWriter>(*std::move(ingest));
    }
    auto writer = std::make_unique<StreamWriter>(stub_.get(), ref);
    RETURN_IF_ERROR(writer->Open(total_bytes));
    return writer;
  }

 private:
  absl::Status Retry(
      const std::function<grpc::Status(grpc::ClientContext*)>& call) {
    return rpc::RetryUnavailable(kRetryTimeout, [&] {
      const auto context = rpc::MakeClientContext({}, kCallTimeout);
      return rpc::FromGrpc(call(context.get()));
    });
  }

  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<v1::Content::Stub> stub_;
  rpc::RemovalClient removal_;
  const dataplane::Client data_;
  const bool has_data_;
};

}  // namespace

std::unique_ptr<ContentBackend> ConnectContentBackend(
    const std::string& socket, const std::string& data_socket) {
  return std::make_unique<GrpcContentBackend>(socket, data_socket);
}

}  // namespace bulkhead::metadata
