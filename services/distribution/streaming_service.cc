#include "services/distribution/streaming_service.h"

#include <chrono>
#include <condition_variable>

#include "lib/rpc/context.h"
#include "lib/rpc/status.h"

namespace bulkhead::distribution {
namespace {

using google::protobuf::Any;
using Wire = grpc::ServerReaderWriter<Any, Any>;

constexpr char kInitType[] = "containerd.services.streaming.v1.StreamInit";
constexpr char kEmptyType[] = "google.protobuf.Empty";
constexpr std::chrono::milliseconds kCancelCheck(200);

// The RPC as a Stream. The handler's thread waits in Run until the stream is
// closed or cancelled and no call is inside the wire any more.
class GrpcStream : public Stream {
 public:
  GrpcStream(grpc::ServerContext* context, Wire* wire)
      : context_(context), wire_(wire) {}

  bool Send(const StreamMessage& message) override {
    Any any;
    any.set_type_url(message.type_url);
    any.set_value(message.value);
    if (!Enter()) return false;
    bool sent;
    {
      std::lock_guard<std::mutex> lock(write_mutex_);
      sent = wire_->Write(any);
    }
    Leave();
    return sent;
  }

  bool Receive(StreamMessage* message) override {
    if (!Enter()) return false;
    Any any;
    bool got;
    {
      std::lock_guard<std::mutex> lock(read_mutex_);
      got = wire_->Read(&any);
    }
    Leave();
    if (!got) return false;
    message->type_url = any.type_url();
    message->value = std::move(*any.mutable_value());
    return true;
  }

  void Close() override {
    std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
    changed_.notify_all();
  }

  // False: the client has cancelled.
  bool Run() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (!closed_ && !context_->IsCancelled()) {
      changed_.wait_for(lock, kCancelCheck);
    }
    const bool cancelled = !closed_;
    closed_ = true;
    // A reader that still waits for the client must be let go.
    if (inside_ > 0) context_->TryCancel();
    while (inside_ > 0) changed_.wait(lock);
    return !cancelled;
  }

 private:
  bool Enter() {
    std::lock_guard<std::mutex> lock(mutex_);
    if (closed_) return false;
    ++inside_;
    return true;
  }
  void Leave() {
    std::lock_guard<std::mutex> lock(mutex_);
    --inside_;
    changed_.notify_all();
  }

  grpc::ServerContext* const context_;
  Wire* const wire_;
  std::mutex read_mutex_;
  std::mutex write_mutex_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool closed_ = false;
  int inside_ = 0;
};

}  // namespace

grpc::Status StreamingService::Stream(grpc::ServerContext* context,
                                      Wire* wire) {
  absl::StatusOr<std::string> ns = rpc::RequireNamespace(*context);
  if (!ns.ok()) return rpc::ToGrpc(ns.status());
  Any first;
  if (!wire->Read(&first)) return grpc::Status::OK;
  containerd::services::streaming::v1::StreamInit init;
  if (BareType(first.type_url()) != kInitType ||
      !init.ParseFromString(first.value())) {
    return rpc::ToGrpc(absl::InvalidArgumentError(
        "the first message of a stream must be a StreamInit"));
  }
  const auto stream = std::make_shared<GrpcStream>(context, wire);
  const absl::Status added = table_->Add(*ns, init.id(), stream);
  if (!added.ok()) return rpc::ToGrpc(added);
  StreamMessage ack;
  ack.type_url = kEmptyType;
  const bool sent = stream->Send(ack);
  if (!sent) stream->Close();
  const bool closed = stream->Run() && sent;
  table_->Remove(*ns, init.id());
  if (!closed) return {grpc::StatusCode::CANCELLED, "the stream was cancelled"};
  return grpc::Status::OK;
}

}  // namespace bulkhead::distribution
