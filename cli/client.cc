#include "cli/client.h"

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/impl/codegen/client_unary_call.h>
#include <grpcpp/impl/codegen/rpc_method.h>
#include <grpcpp/impl/codegen/sync_stream.h>
#include <grpcpp/support/byte_buffer.h>
#include <unistd.h>

#include <algorithm>
#include <mutex>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "lib/base/status_macros.h"
#include "lib/rpc/channel.h"
#include "lib/rpc/context.h"
#include "lib/rpc/status.h"

namespace bulkhead::cli {
namespace {

using ::google::protobuf::MessageLite;

// `up` brings a service back within a second or two.
constexpr absl::Duration kServiceRestart = absl::Seconds(10);
constexpr absl::Duration kFirstPause = absl::Milliseconds(20);
constexpr absl::Duration kLastPause = absl::Milliseconds(250);

grpc::ByteBuffer ToBuffer(const MessageLite& message) {
  const grpc::Slice slice(message.SerializeAsString());
  return grpc::ByteBuffer(&slice, 1);
}

bool FromBuffer(const grpc::ByteBuffer& buffer, MessageLite* message) {
  std::vector<grpc::Slice> slices;
  if (!buffer.Dump(&slices).ok()) return false;
  if (slices.size() == 1) {
    return message->ParseFromArray(slices[0].begin(),
                                   static_cast<int>(slices[0].size()));
  }
  std::string bytes;
  for (const grpc::Slice& slice : slices) {
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return message->ParseFromString(bytes);
}

// What the user should read instead of gRPC's own text.
absl::Status Explain(const absl::Status& status, const std::string& address) {
  const std::string message = MessageOf(status);
  if (!absl::IsUnavailable(status)) {
    // The class of an error says what its text may not: "x" was *not found*.
    const std::string text = rpc::ClassText(status.code());
    if (text.empty() || message.find(text) != std::string::npos) return status;
    return absl::Status(status.code(), absl::StrCat(message, ": ", text));
  }
  // Our own socket, not one behind the gateway.
  if (message.find("failed to connect to all addresses") == std::string::npos) {
    return status;
  }
  return absl::UnavailableError(absl::StrCat(
      "cannot reach the suite at ", address,
      " — is it running? Start it with `bulkhead up`, or name another socket "
      "with --address or $BULKHEAD_ADDRESS (",
      message, ")"));
}

// Nobody saw the call: the suite's own socket or the one behind the gateway
// did not answer.
bool WasNeverSent(const absl::Status& status) {
  const std::string message = MessageOf(status);
  return message.find("failed to connect to all addresses") !=
             std::string::npos ||
         message.find("is down: cannot connect to") != std::string::npos;
}

// Whether doing it twice is the same as doing it once.
bool IsRepeatable(const std::string& method) {
  static const auto* repeatable = new std::set<std::string>{
      "Get",     "List",   "ListPids",     "ListResources", "ListStatuses",
      "Info",    "Status", "Stat",         "Usage",         "Mounts",
      "Plugins", "Server", "PluginInfo",   "Version",       "Metrics",
      "Update",  "Check",  "DeleteProcess"};
  return repeatable->contains(method.substr(method.rfind('/') + 1));
}

class StreamImpl : public Stream {
 public:
  StreamImpl(std::unique_ptr<grpc::ClientContext> context,
             std::shared_ptr<grpc::Channel> channel, std::string method,
             std::string address)
      : context_(std::move(context)),
        channel_(std::move(channel)),
        method_name_(std::move(method)),
        address_(std::move(address)) {}

  ~StreamImpl() override {
    if (!finished_) {
      context_->TryCancel();
      (void)Finish();  // The caller was not interested in the outcome.
    }
  }

  void StartRead(const MessageLite& request) {
    const grpc::internal::RpcMethod method(
        method_name_.c_str(), grpc::internal::RpcMethod::SERVER_STREAMING);
    reader_.reset(grpc::internal::ClientReaderFactory<grpc::ByteBuffer>::Create(
        channel_.get(), method, context_.get(), ToBuffer(request)));
  }

  void StartBidi() {
    const grpc::internal::RpcMethod method(
        method_name_.c_str(), grpc::internal::RpcMethod::BIDI_STREAMING);
    both_.reset(grpc::internal::ClientReaderWriterFactory<
                grpc::ByteBuffer, grpc::ByteBuffer>::Create(channel_.get(),
                                                            method,
                                                            context_.get()));
  }

  bool Read(MessageLite* message) override {
    grpc::ByteBuffer buffer;
    const bool ok =
        both_ != nullptr ? both_->Read(&buffer) : reader_->Read(&buffer);
    return ok && FromBuffer(buffer, message);
  }
  bool Write(const MessageLite& message) override {
    return both_ != nullptr && both_->Write(ToBuffer(message));
  }
  void WritesDone() override {
    if (both_ != nullptr) both_->WritesDone();
  }
  void Cancel() override { context_->TryCancel(); }
  absl::Status Finish() override {
    finished_ = true;
    const grpc::Status status =
        both_ != nullptr ? both_->Finish() : reader_->Finish();
    return Explain(rpc::FromGrpc(status), address_);
  }

 private:
  std::unique_ptr<grpc::ClientContext> context_;
  std::shared_ptr<grpc::Channel> channel_;
  std::string method_name_;  // RpcMethod borrows it.
  std::string address_;
  std::unique_ptr<grpc::ClientReader<grpc::ByteBuffer>> reader_;
  std::unique_ptr<grpc::ClientReaderWriter<grpc::ByteBuffer, grpc::ByteBuffer>>
      both_;
  bool finished_ = false;
};

class ClientImpl : public Client {
 public:
  ClientImpl(const std::string& address, const std::string& ns)
      : Client(address, ns), channel_(rpc::Connect(address)) {}

  void SetLease(const std::string& lease) override {
    std::lock_guard<std::mutex> lock(mutex_);
    lease_ = lease;
  }

  void AddHeader(const std::string& name, const std::string& value) override {
    std::lock_guard<std::mutex> lock(mutex_);
    headers_.emplace_back(name, value);
  }

  absl::Status Call(const std::string& method, const MessageLite& request,
                    MessageLite* response, absl::Duration timeout) override {
    const absl::Time give_up_at =
        absl::Now() + std::min(timeout, kServiceRestart);
    absl::Duration pause = kFirstPause;
    for (;;) {
      const absl::Status status = CallOnce(method, request, response, timeout);
      if (!absl::IsUnavailable(status) || absl::Now() + pause > give_up_at ||
          !(WasNeverSent(status) || IsRepeatable(method)) ||
          // No socket: the suite is not there, rather than coming back.
          ::access(address().c_str(), F_OK) != 0) {
        return status;
      }
      rpc::SleepWorking(pause);
      pause = std::min(pause * 2, kLastPause);
    }
  }

  absl::Status CallOnce(const std::string& method, const MessageLite& request,
                        MessageLite* response, absl::Duration timeout) {
    const std::unique_ptr<grpc::ClientContext> context = NewContext(timeout);
    const grpc::internal::RpcMethod rpc_method(
        method.c_str(), grpc::internal::RpcMethod::NORMAL_RPC);
    const grpc::ByteBuffer sent = ToBuffer(request);
    grpc::ByteBuffer received;
    const grpc::Status status =
        grpc::internal::BlockingUnaryCall<grpc::ByteBuffer, grpc::ByteBuffer>(
            channel_.get(), rpc_method, context.get(), sent, &received);
    if (!status.ok()) return Explain(rpc::FromGrpc(status), address());
    if (!FromBuffer(received, response)) {
      return absl::InternalError(absl::StrCat("bad answer to ", method));
    }
    return absl::OkStatus();
  }

  absl::Status CallPatiently(const std::string& method,
                             const MessageLite& request, MessageLite* response,
                             absl::Duration patience) override {
    return rpc::RetryUnavailable(patience, [&] {
      return CallOnce(method, request, response, absl::InfiniteDuration());
    });
  }

  std::unique_ptr<Stream> ServerStream(const std::string& method,
                                       const MessageLite& request) override {
    auto stream = std::make_unique<StreamImpl>(
        NewContext(absl::InfiniteDuration()), channel_, method, address());
    stream->StartRead(request);
    return stream;
  }
  std::unique_ptr<Stream> BidiStream(const std::string& method) override {
    auto stream = std::make_unique<StreamImpl>(
        NewContext(absl::InfiniteDuration()), channel_, method, address());
    stream->StartBidi();
    return stream;
  }

 private:
  std::unique_ptr<grpc::ClientContext> NewContext(absl::Duration timeout) {
    std::lock_guard<std::mutex> lock(mutex_);
    std::unique_ptr<grpc::ClientContext> context =
        rpc::MakeClientContext({ns(), lease_}, timeout);
    for (const auto& [name, value] : headers_)
      context->AddMetadata(name, value);
    return context;
  }

  std::shared_ptr<grpc::Channel> channel_;
  std::mutex mutex_;
  std::string lease_;
  std::vector<std::pair<std::string, std::string>> headers_;
};

}  // namespace

absl::Status RetryRead(Client& client,
                       const std::function<absl::Status()>& read) {
  const absl::Time give_up_at = absl::Now() + kServiceRestart;
  absl::Duration pause = kFirstPause;
  for (;;) {
    const absl::Status status = read();
    if (!absl::IsUnavailable(status) || absl::Now() + pause > give_up_at ||
        ::access(client.address().c_str(), F_OK) != 0) {
      return status;
    }
    rpc::SleepWorking(pause);
    pause = std::min(pause * 2, kLastPause);
  }
}

std::unique_ptr<Client> Client::Open(const std::string& address,
                                     const std::string& ns) {
  return std::make_unique<ClientImpl>(address, ns);
}

}  // namespace bulkhead::cli
