#include "services/metadata/data_server.h"

#include <sys/socket.h>

#include <chrono>
#include <nlohmann/json.hpp>

#include "lib/dataplane/dataplane.h"
#include "lib/digest/digest.h"
#include "lib/log/log.h"
#include "lib/os/acceptor.h"

namespace bulkhead::metadata {
namespace {

using nlohmann::json;

// Absent is empty or zero; anything of a wrong type is an error.
absl::StatusOr<std::string> TextField(const json& request, const char* name) {
  const auto it = request.find(name);
  if (it == request.end()) return std::string();
  if (it->is_string()) return it->get<std::string>();
  return absl::InvalidArgumentError(
      absl::StrCat("\"", name, "\" must be a string"));
}

absl::StatusOr<int64_t> NumberField(const json& request, const char* name) {
  const auto it = request.find(name);
  if (it == request.end()) return 0;
  if (it->is_number_integer()) return it->get<int64_t>();
  return absl::InvalidArgumentError(
      absl::StrCat("\"", name, "\" must be an integer"));
}

absl::StatusOr<std::string> NamespaceField(const json& request) {
  ASSIGN_OR_RETURN(std::string ns, TextField(request, "ns"));
  if (ns.empty()) {
    return absl::FailedPreconditionError("namespace is required");
  }
  RETURN_IF_ERROR(Annotate(CheckIdentifier(ns), "namespace validation"));
  return ns;
}

class Session {
 public:
  Session(int socket, Content& content) : socket_(socket), content_(content) {}

  void Run() {
    while (HandleOne()) {
    }
  }

 private:
  struct Reply {
    json body = json::object();
    int fd = -1;
    bool silent = false;  // No reply is sent.
  };

  bool HandleOne() {
    absl::StatusOr<dataplane::Packet> packet = dataplane::Receive(socket_);
    if (!packet.ok()) {
      (void)dataplane::SendError(
          socket_, absl::InvalidArgumentError(MessageOf(packet.status())));
      return false;
    }
    if (packet->closed) return false;
    const json request = json::parse(packet->json, nullptr, false);
    if (!request.is_object()) {
      (void)dataplane::SendError(
          socket_, absl::InvalidArgumentError("not a JSON object"));
      return false;
    }
    const absl::StatusOr<Reply> reply = Handle(request);
    if (!reply.ok()) {
      return dataplane::SendError(socket_, reply.status()).ok();
    }
    if (reply->silent) return true;
    std::vector<int> fds;
    if (reply->fd >= 0) fds.push_back(reply->fd);
    return dataplane::Send(socket_, reply->body.dump(), fds).ok();
  }

  absl::StatusOr<Reply> Handle(const json& request) {
    Reply reply;
    ASSIGN_OR_RETURN(const std::string op, TextField(request, "op"));
    if (op == "open") {
      ASSIGN_OR_RETURN(const std::string ns, NamespaceField(request));
      ASSIGN_OR_RETURN(const std::string digest, TextField(request, "digest"));
      ASSIGN_OR_RETURN(blob_, content_.Open(ns, digest));
      if (blob_->fd() < 0) return NoDescriptors();
      reply.body["size"] = blob_->size_bytes();
      reply.fd = blob_->fd();
      return reply;
    }
    if (op == "ingest") return OpenIngest(request);
    if (writer_ == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat("unknown op ", Quoted(op), " or no open ingest"));
    }
    if (op == "advance") {
      ASSIGN_OR_RETURN(const int64_t offset, NumberField(request, "offset"));
      offset_ = std::max(offset_, offset);
      // What fails here fails again, and is reported, at the commit.
      (void)writer_->Advance(offset);
      reply.silent = true;
      return reply;
    }
    if (op == "truncate") {
      ASSIGN_OR_RETURN(const int64_t offset, NumberField(request, "offset"));
      if (writer_->is_virtual() && offset != offset_) {
        // The caller has a descriptor of the shared blob, not of an ingest.
        return absl::FailedPreconditionError(
            "the content is there already; commit it");
      }
      RETURN_IF_ERROR(writer_->Truncate(offset));
      offset_ = offset;
      return reply;
    }
    if (op == "commit") return Commit(request);
    if (op == "abort") {
      RETURN_IF_ERROR(writer_->Abort());
      writer_.reset();
      return reply;
    }
    if (op == "status") {
      reply.body["offset"] = offset_;
      reply.body["total"] = writer_->opened().total_bytes;
      const auto digest = request.find("digest");
      if (digest != request.end() && digest->is_boolean() &&
          digest->get<bool>()) {
        ASSIGN_OR_RETURN(reply.body["digest"], writer_->DigestSoFar());
      }
      return reply;
    }
    return absl::InvalidArgumentError(absl::StrCat("unknown op ", Quoted(op)));
  }

  static absl::Status NoDescriptors() {
    return absl::UnimplementedError(
        "the content service hands out no descriptors");
  }

  absl::StatusOr<Reply> OpenIngest(const json& request) {
    if (writer_ != nullptr) {
      return absl::InvalidArgumentError("this session has an ingest already");
    }
    WriterRequest wanted;
    ASSIGN_OR_RETURN(wanted.ns, NamespaceField(request));
    ASSIGN_OR_RETURN(wanted.lease, TextField(request, "lease"));
    ASSIGN_OR_RETURN(wanted.ref, TextField(request, "ref"));
    ASSIGN_OR_RETURN(wanted.total_bytes, NumberField(request, "total"));
    ASSIGN_OR_RETURN(wanted.expected, TextField(request, "expected"));
    if (wanted.ref.empty()) {
      return absl::InvalidArgumentError("an ingest must have a reference");
    }
    ASSIGN_OR_RETURN(std::unique_ptr<ContentWriter> writer,
                     content_.OpenWriter(wanted));
    Reply reply;
    reply.fd = writer->fd();
    if (writer->is_virtual()) {
      // Nothing needs to be written; the descriptor serves for reading.
      ASSIGN_OR_RETURN(blob_, content_.OpenShared(writer->digest()));
      reply.fd = blob_->fd();
    }
    if (reply.fd < 0) return NoDescriptors();
    offset_ = writer->opened().offset_bytes;
    reply.body["offset"] = offset_;
    reply.body["total"] = writer->opened().total_bytes;
    reply.body["started_at_ns"] = writer->opened().started_at_ns;
    reply.body["updated_at_ns"] = writer->opened().updated_at_ns;
    writer_ = std::move(writer);
    return reply;
  }

  absl::StatusOr<Reply> Commit(const json& request) {
    ASSIGN_OR_RETURN(const int64_t size, NumberField(request, "size"));
    ASSIGN_OR_RETURN(const std::string expected,
                     TextField(request, "expected"));
    LabelMap labels;
    const auto it = request.find("labels");
    if (it != request.end()) {
      if (!it->is_object()) {
        return absl::InvalidArgumentError("\"labels\" must be an object");
      }
      for (const auto& [key, value] : it->items()) {
        if (!value.is_string()) {
          return absl::InvalidArgumentError("labels must be strings");
        }
        labels[key] = value.get<std::string>();
      }
    }
    const absl::StatusOr<dataplane::CommitResult> result =
        writer_->Commit(size, expected, labels);
    if (result.ok() || absl::IsAlreadyExists(result.status())) writer_.reset();
    RETURN_IF_ERROR(result.status());
    Reply reply;
    reply.body["digest"] = result->digest;
    reply.body["size"] = result->size_bytes;
    return reply;
  }

  const int socket_;
  Content& content_;
  std::unique_ptr<BackendBlob> blob_;
  std::unique_ptr<ContentWriter> writer_;
  int64_t offset_ = 0;
};

}  // namespace

DataServer::DataServer(os::UniqueFd listener, Content& content)
    : listener_(std::move(listener)), content_(content) {
  accepting_ = std::thread([this] { Accept(); });
}

DataServer::~DataServer() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
    // Wakes Accept() and the sessions.
    ::shutdown(listener_.get(), SHUT_RDWR);
    for (const auto& [fd, unused] : sessions_) ::shutdown(fd, SHUT_RDWR);
  }
  accepting_.join();
  mutex_.LockWhen(absl::Condition(
      +[](std::map<int, bool>* sessions) { return sessions->empty(); },
      &sessions_));
  mutex_.Unlock();
}

void DataServer::Accept() {
  os::Acceptor acceptor(listener_.get(), [](int fd, const absl::Status& why) {
    (void)dataplane::SendError(
        fd, Annotate(why, "bulkhead-metadata"));  // Or it has left.
  });
  while (true) {
    absl::StatusOr<os::UniqueFd> socket = acceptor.Accept();
    absl::MutexLock lock(&mutex_);
    if (stopping_) return;
    if (!socket.ok()) {
      log::Error("data socket: accept failed",
                 {{"error", MessageOf(socket.status())}});
      if (!absl::IsResourceExhausted(socket.status())) return;
      continue;
    }
    if (sessions_.size() >= kDataSessionsMax) {
      (void)dataplane::SendError(socket->get(), absl::ResourceExhaustedError(
                                                    "too many data sessions"));
      continue;
    }
    const int fd = socket->Release();
    sessions_[fd] = true;
    std::thread([this, fd] {
      Session(fd, content_).Run();
      absl::MutexLock ended(&mutex_);
      sessions_.erase(fd);
      os::UniqueFd(fd).Reset();
    }).detach();
  }
}

}  // namespace bulkhead::metadata
