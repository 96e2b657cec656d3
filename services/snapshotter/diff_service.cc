#include "services/snapshotter/diff_service.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <optional>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/digest/digest.h"
#include "lib/os/fd.h"
#include "lib/rpc/channel.h"
#include "lib/rpc/context.h"
#include "lib/rpc/status.h"
#include "services/snapshotter/diff_writer.h"

namespace bulkhead::snapshotter {
namespace {

namespace content_v1 = containerd::services::content::v1;
namespace diff_v1 = containerd::services::diff::v1;

constexpr char kGzipLayer[] = "application/vnd.oci.image.layer.v1.tar+gzip";
constexpr char kZstdLayer[] = "application/vnd.oci.image.layer.v1.tar+zstd";
constexpr char kUncompressedLayer[] = "application/vnd.oci.image.layer.v1.tar";

// A blob read over gRPC, where its store is not ours.
class StreamSource : public LayerSource {
 public:
  StreamSource(content_v1::Content::StubInterface& content,
               const std::string& digest, const std::string& ns)
      : context_(rpc::MakeClientContext({.ns = ns})) {
    content_v1::ReadContentRequest request;
    request.set_digest(digest);
    reader_ = content.Read(context_.get(), request);
  }
  ~StreamSource() override {
    if (done_) return;
    context_->TryCancel();
    (void)reader_->Finish();  // Cancelled by us.
  }

  absl::StatusOr<size_t> Read(char* out, size_t size_bytes) override {
    while (at_ == response_.data().size()) {
      if (done_) return 0;
      response_.Clear();
      at_ = 0;
      if (!reader_->Read(&response_)) {
        done_ = true;
        response_.Clear();
        RETURN_IF_ERROR(rpc::FromGrpc(reader_->Finish()));
        return 0;
      }
    }
    const size_t n = std::min(size_bytes, response_.data().size() - at_);
    std::memcpy(out, response_.data().data() + at_, n);
    at_ += n;
    return n;
  }
  void Cancel() override { context_->TryCancel(); }
  bool MayBeConfined() const override { return false; }  // gRPC makes threads.

 private:
  std::unique_ptr<grpc::ClientContext> context_;
  std::unique_ptr<grpc::ClientReaderInterface<content_v1::ReadContentResponse>>
      reader_;
  content_v1::ReadContentResponse response_;
  size_t at_ = 0;
  bool done_ = false;
};

template <typename Mounts>
std::vector<os::MountSpec> SpecsOf(const Mounts& mounts) {
  std::vector<os::MountSpec> specs;
  for (const auto& mount : mounts) {
    specs.push_back({mount.type(),
                     mount.source(),
                     mount.target(),
                     {mount.options().begin(), mount.options().end()}});
  }
  return specs;
}

}  // namespace

DiffService::DiffService(Applier& applier, const DiffPeers& peers)
    : applier_(applier),
      content_data_(peers.content_data_socket),
      metadata_data_(peers.metadata_data_socket),
      content_(
          content_v1::Content::NewStub(rpc::Connect(peers.content_socket))) {}

absl::StatusOr<std::unique_ptr<LayerSource>> DiffService::OpenBlob(
    const std::string& digest, const std::string& ns) const {
  absl::StatusOr<dataplane::OpenedBlob> blob = content_data_.Open(digest);
  if (blob.ok()) {
    return std::make_unique<FdSource>(std::move(blob->fd), blob->size_bytes,
                                      true);
  }
  if (!absl::IsUnavailable(blob.status()) && !absl::IsNotFound(blob.status())) {
    return blob.status();
  }
  // No data socket there, or no such blob: the stream tells them apart.
  return std::make_unique<StreamSource>(*content_, digest, ns);
}

grpc::Status DiffService::Apply(grpc::ServerContext* context,
                                const diff_v1::ApplyRequest* request,
                                diff_v1::ApplyResponse* response) {
  const std::string& digest = request->diff().digest();
  absl::StatusOr<std::unique_ptr<LayerSource>> source =
      OpenBlob(digest, rpc::ContextOf(*context).ns);
  if (!source.ok()) return rpc::ToGrpc(source.status());
  Payloads payloads;
  for (const auto& [id, payload] : request->payloads()) {
    payloads[id] = payload.SerializeAsString();
  }
  const absl::StatusOr<Unpacked> unpacked =
      applier_.Apply(SpecsOf(request->mounts()), **source,
                     request->diff().media_type(), false, payloads);
  if (!unpacked.ok()) {
    return rpc::ToGrpc(
        Annotate(unpacked.status(), absl::StrCat("failed to apply ", digest)));
  }
  auto* applied = response->mutable_applied();
  applied->set_media_type(kUncompressedLayer);
  applied->set_digest(unpacked->diff_id);
  applied->set_size(unpacked->size_bytes);
  return grpc::Status::OK;
}

absl::Status DiffService::WriteDiffBlob(const diff_v1::DiffRequest& request,
                                        const rpc::CallContext& call,
                                        diff_v1::DiffResponse* response) {
  const std::string media_type =
      request.media_type().empty() ? kGzipLayer : request.media_type();
  Compression compression = Compression::kNone;
  if (media_type == kGzipLayer) {
    compression = Compression::kGzip;
  } else if (media_type == kZstdLayer) {
    compression = Compression::kZstd;
  } else if (media_type != kUncompressedLayer) {
    return absl::UnimplementedError(
        absl::StrCat("unsupported diff media type: ", media_type));
  }
  std::optional<int64_t> mtime_max;
  if (request.has_source_date_epoch()) {
    mtime_max = request.source_date_epoch().seconds();
  }
  std::string ref = request.ref();
  if (ref.empty()) {
    std::random_device random;
    ref = absl::StrCat("diff-", absl::Hex(random()), absl::Hex(random()));
  }
  ASSIGN_OR_RETURN(const std::unique_ptr<dataplane::Ingest> ingest,
                   metadata_data_.OpenIngest(
                       {.ref = ref, .ns = call.ns, .lease = call.lease}));
  absl::Status status = ingest->opened().offset_bytes > 0 ? ingest->Truncate(0)
                                                          : absl::OkStatus();
  Hasher plain;
  Hasher stored;
  const std::string& temp_dir = applier_.limits().temp_dir;
  auto write = [&](absl::string_view data) -> absl::Status {
    RETURN_IF_ERROR(os::PWriteFull(ingest->fd(), data.data(), data.size(),
                                   stored.size_bytes()));
    stored.Update(data);
    return ingest->Advance(stored.size_bytes());
  };
  const std::vector<os::MountSpec> left_mounts = SpecsOf(request.left());
  const std::vector<os::MountSpec> right_mounts = SpecsOf(request.right());
  const std::string upper = UpperOf(left_mounts, right_mounts);
  auto produce = [&](const std::string& left, const std::string& right) {
    return Compress(compression, write, [&](const ByteSink& sink) {
      const auto both = [&](absl::string_view data) {
        plain.Update(data);
        return sink(data);
      };
      return WriteDiff(left, right, mtime_max, both, upper);
    });
  };
  if (status.ok()) {
    status = WithTempMount(
        ReadOnlyMounts(left_mounts), temp_dir, [&](const std::string& left) {
          return WithTempMount(
              ReadOnlyMounts(right_mounts), temp_dir,
              [&](const std::string& right) { return produce(left, right); });
        });
  }
  std::map<std::string, std::string> labels(request.labels().begin(),
                                            request.labels().end());
  if (compression != Compression::kNone) {
    labels["containerd.io/uncompressed"] = plain.Current().str();
  }
  const std::string digest = stored.Current().str();
  if (status.ok()) {
    status = ingest->Commit(stored.size_bytes(), digest, labels).status();
    if (absl::IsAlreadyExists(status)) status = absl::OkStatus();
  }
  if (!status.ok()) {
    // The caller's own ref is the caller's to resume or abort.
    if (request.ref().empty()) (void)ingest->Abort();
    return status;
  }
  auto* diff = response->mutable_diff();
  diff->set_media_type(media_type);
  diff->set_digest(digest);
  diff->set_size(stored.size_bytes());
  return absl::OkStatus();
}

grpc::Status DiffService::Diff(grpc::ServerContext* context,
                               const diff_v1::DiffRequest* request,
                               diff_v1::DiffResponse* response) {
  return rpc::ToGrpc(
      WriteDiffBlob(*request, rpc::ContextOf(*context), response));
}

}  // namespace bulkhead::snapshotter
