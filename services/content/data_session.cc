#include "services/content/data_session.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/log/log.h"

namespace bulkhead::content {
namespace {

using nlohmann::json;

// A field that is absent is as one that is zero or empty; one of the wrong
// type is an error.
absl::StatusOr<int64_t> IntField(const json& request, const char* name) {
  const auto found = request.find(name);
  if (found == request.end()) return 0;
  if (!found->is_number_integer()) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", name, "\" must be an integer"));
  }
  return found->get<int64_t>();
}

absl::StatusOr<std::string> StringField(const json& request, const char* name) {
  const auto found = request.find(name);
  if (found == request.end()) return std::string();
  if (!found->is_string()) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", name, "\" must be a string"));
  }
  return found->get<std::string>();
}

absl::StatusOr<bool> BoolField(const json& request, const char* name) {
  const auto found = request.find(name);
  if (found == request.end()) return false;
  if (!found->is_boolean()) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", name, "\" must be true or false"));
  }
  return found->get<bool>();
}

absl::StatusOr<Digest> DigestField(const json& request, const char* name) {
  ASSIGN_OR_RETURN(const std::string text, StringField(request, name));
  if (text.empty()) return Digest();
  return Digest::Parse(text);
}

}  // namespace

bool DataSession::Fail(const absl::Status& error) {
  return dataplane::SendError(socket_.get(), error).ok();
}

bool DataSession::HandleOne() {
  absl::StatusOr<dataplane::Packet> packet = dataplane::Receive(socket_.get());
  if (!packet.ok()) {
    (void)Fail(absl::InvalidArgumentError(MessageOf(packet.status())));
    return false;
  }
  if (packet->closed) return false;
  const json request = json::parse(packet->json, nullptr, false);
  if (!request.is_object()) {
    (void)Fail(absl::InvalidArgumentError("not a JSON object"));
    return false;
  }
  const absl::StatusOr<std::string> op = StringField(request, "op");
  if (!op.ok()) {
    (void)Fail(op.status());
    return false;
  }
  if (*op == "advance") {  // Without a reply, so an error ends the session.
    absl::StatusOr<int64_t> offset = IntField(request, "offset");
    absl::Status status = offset.status();
    if (status.ok()) {
      status = writer_ == nullptr
                   ? absl::InvalidArgumentError("advance without an ingest")
                   : writer_->Advance(*offset);
    }
    // Whatever else failed fails again, and is reported, at the commit.
    if (!absl::IsInvalidArgument(status)) return true;
    log::Warn("data session ended", {{"reason", MessageOf(status)}});
    (void)Fail(status);
    return false;
  }
  absl::StatusOr<Reply> reply = Handle(*op, request);
  if (!reply.ok()) return Fail(reply.status());
  std::vector<int> fds;
  if (reply->fd.valid()) fds.push_back(reply->fd.get());
  return dataplane::Send(socket_.get(), reply->body.dump(), fds).ok();
}

absl::StatusOr<DataSession::Reply> DataSession::Handle(const std::string& op,
                                                       const json& request) {
  if (op == "open") return Open(request);
  if (op == "ingest") return Ingest(request);
  if (op != "truncate" && op != "commit" && op != "abort" && op != "status") {
    return absl::InvalidArgumentError(absl::StrCat("unknown op \"", op, "\""));
  }
  if (writer_ == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(op, " without an ingest"));
  }
  Reply reply;
  if (op == "commit") return Commit(request);
  if (op == "truncate") {
    ASSIGN_OR_RETURN(const int64_t offset, IntField(request, "offset"));
    RETURN_IF_ERROR(writer_->Truncate(offset));
  } else if (op == "abort") {
    RETURN_IF_ERROR(writer_->Abort());
    writer_.reset();
  } else {
    ASSIGN_OR_RETURN(const bool digest, BoolField(request, "digest"));
    ASSIGN_OR_RETURN(const IngestInfo info, writer_->Info());
    reply.body["offset"] = info.offset_bytes;
    reply.body["total"] = info.total_bytes;
    if (digest) {
      ASSIGN_OR_RETURN(const Digest so_far, writer_->DigestSoFar());
      reply.body["digest"] = so_far.str();
    }
  }
  return reply;
}

absl::StatusOr<DataSession::Reply> DataSession::Open(const json& request) {
  ASSIGN_OR_RETURN(const std::string text, StringField(request, "digest"));
  ASSIGN_OR_RETURN(const Digest digest, Digest::Parse(text));
  ASSIGN_OR_RETURN(std::unique_ptr<FsBlob> blob, store_.OpenFsBlob(digest));
  if (verify_on_open_) {
    const absl::Status whole = store_.Verify(*blob, digest);
    // Without it, the next pull fetches the blob again.
    if (absl::IsDataLoss(whole)) (void)store_.Delete(digest);
    RETURN_IF_ERROR(whole);
  }
  Reply reply;
  reply.body["size"] = blob->size_bytes();
  reply.fd = blob->TakeFd();
  return reply;
}

absl::StatusOr<DataSession::Reply> DataSession::Ingest(const json& request) {
  if (writer_ != nullptr) {
    return absl::InvalidArgumentError("this session has an ingest already");
  }
  OpenOptions options;
  ASSIGN_OR_RETURN(options.ref, StringField(request, "ref"));
  ASSIGN_OR_RETURN(options.total_bytes, IntField(request, "total"));
  ASSIGN_OR_RETURN(options.expected, DigestField(request, "expected"));
  ASSIGN_OR_RETURN(std::unique_ptr<FsWriter> writer,
                   store_.OpenFsWriter(options));
  ASSIGN_OR_RETURN(const IngestInfo info, writer->Info());
  Reply reply;
  ASSIGN_OR_RETURN(reply.fd, writer->ShareFd());
  reply.body["offset"] = writer->WholeBytes();
  reply.body["total"] = info.total_bytes;
  reply.body["started_at_ns"] = absl::ToUnixNanos(info.started_at);
  reply.body["updated_at_ns"] = absl::ToUnixNanos(info.updated_at);
  writer_ = std::move(writer);
  return reply;
}

absl::StatusOr<DataSession::Reply> DataSession::Commit(const json& request) {
  CommitOptions options;
  ASSIGN_OR_RETURN(const int64_t size, IntField(request, "size"));
  ASSIGN_OR_RETURN(options.expected, DigestField(request, "expected"));
  if (size >= 0) options.exact_size = true;
  options.size_bytes = std::max<int64_t>(size, 0);
  const absl::StatusOr<BlobInfo> blob = writer_->Commit(options);
  if (blob.ok() || absl::IsAlreadyExists(blob.status())) writer_.reset();
  RETURN_IF_ERROR(blob.status());
  Reply reply;
  reply.body["digest"] = blob->digest.str();
  reply.body["size"] = blob->size_bytes;
  return reply;
}

}  // namespace bulkhead::content
