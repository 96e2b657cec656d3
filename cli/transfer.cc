#include "cli/transfer.h"

#include <google/protobuf/any.pb.h>
#include <google/protobuf/empty.pb.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cli/names.h"
#include "cli/progress.h"
#include "cli/terminal.h"
#include "lib/base/status_macros.h"
#include "lib/os/fd.h"
#include "proto/containerd/services/streaming/v1/streaming.pb.h"
#include "proto/containerd/services/transfer/v1/transfer.pb.h"
#include "proto/containerd/types/transfer/progress.pb.h"
#include "proto/containerd/types/transfer/registry.pb.h"
#include "proto/containerd/types/transfer/streaming.pb.h"

namespace bulkhead::cli {
namespace {

using ::google::protobuf::Any;
namespace transfer = containerd::types::transfer;

constexpr int64_t kWindowBytes = 64 << 10;
constexpr int64_t kChunkBytesMax = 32 << 10;
constexpr size_t kSavedMax = 4096;
constexpr absl::Duration kLogWait = absl::Seconds(2);

// Type URLs are bare names here (no "type.googleapis.com/").
void Pack(const google::protobuf::MessageLite& message, Any* any) {
  any->set_type_url(message.GetTypeName());
  any->set_value(message.SerializeAsString());
}

template <typename T>
bool Unpack(const Any& any, T* message) {
  const std::string& url = any.type_url();
  const size_t slash = url.rfind('/');
  return (slash == std::string::npos ? url : url.substr(slash + 1)) ==
             message->GetTypeName() &&
         message->ParseFromString(any.value());
}

// Answers the server's questions for credentials until the stream ends.
void AnswerAuth(Stream& stream,
                const std::function<Credentials(const std::string&)>& find) {
  Any any;
  while (stream.Read(&any)) {
    transfer::AuthRequest request;
    if (!Unpack(any, &request)) continue;
    const Credentials credentials = find(RegistryHost(request.host()));
    transfer::AuthResponse response;
    if (credentials.empty()) {
      response.set_authtype(transfer::NONE);
    } else if (credentials.user == kTokenUser) {
      response.set_authtype(transfer::REFRESH);
      response.set_secret(credentials.secret);
    } else {
      response.set_authtype(transfer::CREDENTIALS);
      response.set_username(credentials.user);
      response.set_secret(credentials.secret);
    }
    Any answer;
    Pack(response, &answer);
    if (!stream.Write(answer)) return;
  }
}

// Sends the file as the receiver gives credit for it.
absl::Status SendBytes(Stream& stream, int fd) {
  int64_t credit = 0;
  std::string chunk(kChunkBytesMax, '\0');
  for (;;) {
    while (credit <= 0) {
      Any any;
      if (!stream.Read(&any)) return absl::OkStatus();  // Had enough.
      transfer::WindowUpdate window;
      if (Unpack(any, &window)) credit += window.update();
    }
    const auto want = static_cast<size_t>(std::min(credit, kChunkBytesMax));
    ASSIGN_OR_RETURN(const size_t got, os::ReadFull(fd, chunk.data(), want));
    if (got > 0) {
      transfer::Data data;
      data.set_data(chunk.data(), got);
      Any any;
      Pack(data, &any);
      if (!stream.Write(any)) return absl::OkStatus();
      credit -= static_cast<int64_t>(got);
    }
    if (got < want) {
      stream.WritesDone();
      return absl::OkStatus();
    }
  }
}

// `for_people`: what could steer a terminal becomes '?'.
absl::Status ReceiveBytes(Stream& stream, int fd, bool for_people) {
  int64_t window_bytes = 0;
  for (;;) {
    if (window_bytes < kWindowBytes) {
      transfer::WindowUpdate more;
      more.set_update(kWindowBytes);
      Any any;
      Pack(more, &any);
      // The server may have ended its side with data still on the way.
      (void)stream.Write(any);
      window_bytes += kWindowBytes;
    }
    Any any;
    if (!stream.Read(&any)) return absl::OkStatus();
    transfer::Data data;
    if (!Unpack(any, &data)) continue;
    window_bytes -= static_cast<int64_t>(data.data().size());
    if (for_people) {
      for (char& c : *data.mutable_data()) {
        if ((static_cast<unsigned char>(c) < 0x20 && c != '\n') || c == 0x7f) {
          c = '?';
        }
      }
    }
    const absl::Status written =
        os::WriteFull(fd, data.data().data(), data.data().size());
    if (!written.ok()) {
      stream.Cancel();
      return written;
    }
  }
}

}  // namespace

void ToProto(const oci::Platform& platform, containerd::types::Platform* out) {
  out->set_os(platform.os);
  out->set_architecture(platform.architecture);
  out->set_variant(platform.variant);
}

// Shows what arrives on a progress stream, until it ends.
class TransferCall::View {
 public:
  View(Stream& stream, bool quiet, bool live)
      : quiet_(quiet),
        live_(!quiet && live && ::isatty(STDERR_FILENO)),
        reader_([this, &stream] { ReadAll(stream); }) {}

  // Blocks until the stream has ended; draws the last state.
  void Finish() {
    if (!reader_.joinable()) return;
    reader_.join();
    if (live_) Draw();
  }
  const std::vector<std::string>& saved() const { return saved_; }
  const std::string& resolved() const { return resolved_; }

 private:
  void ReadAll(Stream& stream) {
    Any any;
    while (stream.Read(&any)) {
      transfer::Progress message;
      if (!Unpack(any, &message)) continue;
      if (message.event() == "saved" && saved_.size() < kSavedMax) {
        saved_.push_back(message.name());
      }
      if (message.event() == "fetching image content" && resolved_.empty()) {
        resolved_ = message.desc().digest();
      }
      progress_.Update(message.event(), message.name(), message.progress(),
                       message.total(), absl::Now());
      if (quiet_) continue;
      if (live_) {
        Draw();
      } else {
        for (const std::string& line : progress_.News()) {
          std::fprintf(stderr, "%s\n", line.c_str());
        }
      }
    }
  }

  // Over the lines drawn before.
  void Draw() {
    size_t width = SizeOf(STDERR_FILENO).columns;
    if (width == 0) width = 80;
    const std::vector<std::string> lines =
        progress_.Lines(width - 1, absl::Now());
    std::string text;
    if (drawn_ > 0) absl::StrAppend(&text, "\x1b[", drawn_, "A");
    for (const std::string& line : lines) {
      absl::StrAppend(&text, "\r", line, "\x1b[K\n");
    }
    drawn_ = lines.size();
    std::fputs(text.c_str(), stderr);
    std::fflush(stderr);
  }

  bool quiet_;
  bool live_;
  size_t drawn_ = 0;
  Progress progress_;
  std::vector<std::string> saved_;
  std::string resolved_;
  std::thread reader_;  // Last: it uses the others.
};

TransferCall::TransferCall(Client& client, bool quiet, bool live)
    : client_(client), quiet_(quiet), live_(live), id_(NewId().substr(0, 16)) {}

TransferCall::~TransferCall() {
  for (Stream* stream :
       {progress_.get(), auth_.get(), bytes_.get(), log_.get()}) {
    if (stream != nullptr) stream->Cancel();
  }
  if (view_ != nullptr) view_->Finish();
  if (auth_thread_.joinable()) auth_thread_.join();
  if (bytes_thread_.joinable()) bytes_thread_.join();
  if (log_thread_.joinable()) log_thread_.join();
}

// Returns after the server's acknowledgement.
absl::StatusOr<Stream*> TransferCall::NewStream(const std::string& kind,
                                                std::string* name) {
  *name = absl::StrCat(kind, "-", id_);
  std::unique_ptr<Stream> stream;
  RETURN_IF_ERROR(RetryRead(client_, [&]() -> absl::Status {
    stream = client_.BidiStream(std::string(kStreaming) + "Stream");
    containerd::services::streaming::v1::StreamInit init;
    init.set_id(*name);
    Any any;
    Pack(init, &any);
    if (stream->Write(any) && stream->Read(&any)) return absl::OkStatus();
    stream->WritesDone();
    const absl::Status status = stream->Finish();
    if (!status.ok()) return status;
    return absl::UnavailableError("the server closed a stream at once");
  }));
  return stream.release();
}

absl::Status TransferCall::Open() {
  std::string name;
  const absl::StatusOr<Stream*> stream = NewStream("progress", &name);
  if (absl::IsUnimplemented(stream.status())) {
    return absl::UnimplementedError(
        "this server has no Transfer service (containerd before 1.7?) — use "
        "another client for it");
  }
  if (!stream.ok()) return stream.status();
  progress_.reset(*stream);
  view_ = std::make_unique<View>(*progress_, quiet_, live_);
  return absl::OkStatus();
}

absl::StatusOr<std::string> TransferCall::OfferCredentials(
    std::function<Credentials(const std::string& host)> find) {
  std::string name;
  ASSIGN_OR_RETURN(Stream * stream, NewStream("auth", &name));
  auth_.reset(stream);
  auth_thread_ = std::thread(
      [stream, find = std::move(find)] { AnswerAuth(*stream, find); });
  return name;
}

absl::StatusOr<std::string> TransferCall::Send(int fd) {
  std::string name;
  ASSIGN_OR_RETURN(Stream * stream, NewStream("bytes", &name));
  bytes_.reset(stream);
  bytes_thread_ = std::thread(
      [this, stream, fd] { bytes_status_ = SendBytes(*stream, fd); });
  return name;
}

absl::StatusOr<std::string> TransferCall::Receive(int fd) {
  std::string name;
  ASSIGN_OR_RETURN(Stream * stream, NewStream("bytes", &name));
  bytes_.reset(stream);
  receives_ = true;
  bytes_thread_ = std::thread(
      [this, stream, fd] { bytes_status_ = ReceiveBytes(*stream, fd, false); });
  return name;
}

absl::StatusOr<std::string> TransferCall::ReceiveLog(int fd) {
  std::string name;
  ASSIGN_OR_RETURN(Stream * stream, NewStream("log", &name));
  log_.reset(stream);
  log_thread_ = std::thread([this, stream, fd] {
    // Lines that cannot be shown are no reason to fail.
    (void)ReceiveBytes(*stream, fd, true);
    log_ended_ = true;
  });
  return name;
}

// What explains a failure may still be on its way.
void TransferCall::FinishLog() {
  if (log_ == nullptr) return;
  const absl::Time deadline = absl::Now() + kLogWait;
  while (!log_ended_ && absl::Now() < deadline) {
    absl::SleepFor(absl::Milliseconds(5));
  }
  log_->Cancel();
  log_thread_.join();
}

absl::Status TransferCall::Run(
    const google::protobuf::MessageLite& source,
    const google::protobuf::MessageLite& destination) {
  containerd::services::transfer::v1::TransferRequest request;
  Pack(source, request.mutable_source());
  Pack(destination, request.mutable_destination());
  request.mutable_options()->set_progress_stream("progress-" + id_);
  google::protobuf::Empty empty;
  const absl::Status status =
      client_.Call(std::string(kTransfer) + "Transfer", request, &empty);
  if (bytes_ != nullptr) {
    // What was exported is still on its way; what was not read never will be.
    if (!status.ok() || !receives_) bytes_->Cancel();
    bytes_thread_.join();
  }
  // The server ends the streams when the transfer is over; a foreign one that
  // does not is cut off.
  progress_->WritesDone();
  if (!status.ok()) progress_->Cancel();
  view_->Finish();
  FinishLog();
  if (auth_ != nullptr) {
    auth_->Cancel();
    auth_thread_.join();
  }
  // A local disk that is full explains the server's broken stream.
  if (!bytes_status_.ok()) return bytes_status_;
  return status;
}

const std::vector<std::string>& TransferCall::saved() const {
  return view_->saved();
}

const std::string& TransferCall::resolved() const { return view_->resolved(); }

}  // namespace bulkhead::cli
