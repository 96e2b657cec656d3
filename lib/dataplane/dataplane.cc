#include "lib/dataplane/dataplane.h"

#include <sys/socket.h>
#include <unistd.h>

#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/os/socket.h"

namespace bulkhead::dataplane {
namespace {

using nlohmann::json;

int64_t IntOf(const json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_number_integer()
             ? found->get<int64_t>()
             : 0;
}

std::string StringOf(const json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>()
                                                     : "";
}

struct Reply {
  json body;
  std::vector<os::UniqueFd> fds;
};

// Dumps what may hold bytes that are not UTF-8 (names from a registry).
std::string Dump(const json& object) {
  return object.dump(-1, ' ', false, json::error_handler_t::replace);
}

absl::StatusOr<Reply> ReadReply(int socket) {
  ASSIGN_OR_RETURN(Packet packet, Receive(socket));
  if (packet.closed) return absl::UnavailableError("data socket closed");
  Reply reply{json::parse(packet.json, nullptr, false), std::move(packet.fds)};
  if (!reply.body.is_object()) {
    return absl::InternalError("data socket: malformed reply");
  }
  const std::string error = StringOf(reply.body, "error");
  const int64_t code = IntOf(reply.body, "code");
  if (!error.empty() || code != 0) {
    return absl::Status(code >= 1 && code <= 16
                            ? static_cast<absl::StatusCode>(code)
                            : absl::StatusCode::kUnknown,
                        error);
  }
  return reply;
}

absl::StatusOr<Reply> Ask(int socket, const json& request,
                          const std::vector<int>& fds = {}) {
  RETURN_IF_ERROR(Send(socket, Dump(request), fds));
  return ReadReply(socket);
}

class SocketIngest : public Ingest {
 public:
  SocketIngest(os::UniqueFd socket, os::UniqueFd fd, IngestState state)
      : socket_(std::move(socket)), fd_(std::move(fd)), state_(state) {}

  int fd() const override { return fd_.get(); }
  const IngestState& opened() const override { return state_; }

  absl::Status Advance(int64_t offset_bytes) override {
    return Send(socket_.get(),
                Dump({{"op", "advance"}, {"offset", offset_bytes}}));
  }

  absl::Status Truncate(int64_t offset_bytes) override {
    return Ask(socket_.get(), {{"op", "truncate"}, {"offset", offset_bytes}})
        .status();
  }

  absl::StatusOr<std::string> DigestSoFar() override {
    ASSIGN_OR_RETURN(const Reply reply,
                     Ask(socket_.get(), {{"op", "status"}, {"digest", true}}));
    return StringOf(reply.body, "digest");
  }

  absl::StatusOr<CommitResult> Commit(
      int64_t size_bytes, const std::string& expected,
      const std::map<std::string, std::string>& labels) override {
    ASSIGN_OR_RETURN(Reply reply, Ask(socket_.get(), {{"op", "commit"},
                                                      {"size", size_bytes},
                                                      {"expected", expected},
                                                      {"labels", labels}}));
    return CommitResult{StringOf(reply.body, "digest"),
                        IntOf(reply.body, "size")};
  }

  absl::Status Abort() override {
    return Ask(socket_.get(), {{"op", "abort"}}).status();
  }

 private:
  os::UniqueFd socket_;
  os::UniqueFd fd_;
  IngestState state_;
};

class SocketApply : public ApplySession {
 public:
  SocketApply(os::UniqueFd socket, std::function<void()> on_unpacked)
      : socket_(std::move(socket)), on_unpacked_(std::move(on_unpacked)) {}

  absl::Status Advance(int64_t offset_bytes) override {
    return Send(socket_.get(),
                Dump({{"op", "advance"}, {"offset", offset_bytes}}));
  }

  absl::StatusOr<Applied> Finish(int64_t size_bytes) override {
    // A failed apply has already sent its error and closed: read it first.
    (void)Send(socket_.get(), Dump({{"op", "finish"}, {"size", size_bytes}}));
    ASSIGN_OR_RETURN(Reply reply, ReadReply(socket_.get()));
    if (on_unpacked_ && reply.body.contains("unpacked")) {
      std::exchange(on_unpacked_, nullptr)();
      ASSIGN_OR_RETURN(reply, ReadReply(socket_.get()));
    }
    return Applied{StringOf(reply.body, "digest"), IntOf(reply.body, "size")};
  }

 private:
  os::UniqueFd socket_;
  std::function<void()> on_unpacked_;
};

}  // namespace

absl::StatusOr<OpenedBlob> Client::Open(const std::string& digest,
                                        const std::string& ns) const {
  ASSIGN_OR_RETURN(os::UniqueFd socket, os::ConnectUnix(path_, SOCK_SEQPACKET));
  ASSIGN_OR_RETURN(
      Reply reply,
      Ask(socket.get(), {{"op", "open"}, {"digest", digest}, {"ns", ns}}));
  if (reply.fds.size() != 1) {
    return absl::InternalError("data socket: no descriptor in the reply");
  }
  return OpenedBlob{std::move(reply.fds[0]), IntOf(reply.body, "size")};
}

absl::StatusOr<std::unique_ptr<Ingest>> Client::OpenIngest(
    const IngestRequest& request) const {
  ASSIGN_OR_RETURN(os::UniqueFd socket, os::ConnectUnix(path_, SOCK_SEQPACKET));
  ASSIGN_OR_RETURN(Reply reply,
                   Ask(socket.get(), {{"op", "ingest"},
                                      {"ref", request.ref},
                                      {"total", request.total_bytes},
                                      {"expected", request.expected},
                                      {"ns", request.ns},
                                      {"lease", request.lease}}));
  if (reply.fds.size() != 1) {
    return absl::InternalError("data socket: no descriptor in the reply");
  }
  const IngestState state{
      IntOf(reply.body, "offset"), IntOf(reply.body, "total"),
      IntOf(reply.body, "started_at_ns"), IntOf(reply.body, "updated_at_ns")};
  return std::unique_ptr<Ingest>(std::make_unique<SocketIngest>(
      std::move(socket), std::move(reply.fds[0]), state));
}

absl::StatusOr<std::unique_ptr<ApplySession>> StartApply(
    const std::string& socket_path, const ApplyRequest& request, int layer_fd) {
  ASSIGN_OR_RETURN(os::UniqueFd socket,
                   os::ConnectUnix(socket_path, SOCK_SEQPACKET));
  json mounts = json::array();
  for (const Mount& mount : request.mounts) {
    mounts.push_back({{"type", mount.type},
                      {"source", mount.source},
                      {"target", mount.target},
                      {"options", mount.options}});
  }
  ASSIGN_OR_RETURN(Reply reply,
                   Ask(socket.get(),
                       {{"op", "apply"},
                        {"mounts", mounts},
                        {"media_type", request.media_type},
                        {"digest", request.digest},
                        {"size", request.size_bytes},
                        {"parallel", request.parallel},
                        {"tell_unpacked", request.on_unpacked != nullptr}},
                       {layer_fd}));
  return std::unique_ptr<ApplySession>(
      std::make_unique<SocketApply>(std::move(socket), request.on_unpacked));
}

absl::StatusOr<Packet> Receive(int socket) {
  ASSIGN_OR_RETURN(os::ReceivedMessage message,
                   os::ReceiveWithFds(socket, kPacketBytesMax));
  Packet packet{std::move(message.data), std::move(message.fds), false};
  packet.closed = packet.json.empty() && packet.fds.empty();
  return packet;
}

absl::Status Send(int socket, const std::string& json_text,
                  const std::vector<int>& fds) {
  if (json_text.size() > kPacketBytesMax) {
    return absl::ResourceExhaustedError(
        absl::StrCat("data socket: packet of ", json_text.size(),
                     " bytes, more than ", kPacketBytesMax));
  }
  return os::SendWithFds(socket, json_text, fds);
}

absl::Status SendError(int socket, const absl::Status& error) {
  return Send(socket, Dump({{"error", MessageOf(error)},
                            {"code", static_cast<int>(error.code())}}));
}

std::map<int64_t, int64_t> Gaps(int fd, int64_t from_bytes,
                                int64_t total_bytes) {
  std::map<int64_t, int64_t> gaps;
  int64_t begin = from_bytes;
  while (begin < total_bytes) {
    int64_t end = ::lseek(fd, begin, SEEK_DATA);
    // Behind the last data, or a file system that cannot tell.
    if (end < 0 || end > total_bytes || gaps.size() + 1 == kGapsMax) {
      end = total_bytes;
    }
    if (end > begin) gaps[begin] = end;
    if (end == total_bytes) break;
    const int64_t hole = ::lseek(fd, end, SEEK_HOLE);
    begin = hole < 0 ? end + 1 : hole;
  }
  return gaps;
}

}  // namespace bulkhead::dataplane
