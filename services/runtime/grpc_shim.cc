#include "services/runtime/grpc_shim.h"

#include <grpcpp/client_context.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/support/byte_buffer.h>
#include <sys/epoll.h>

#include <map>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/os/socket.h"
#include "lib/rpc/channel.h"
#include "lib/rpc/context.h"
#include "lib/rpc/status.h"
#include "lib/ttrpc/client.h"
#include "services/runtime/process.h"

namespace bulkhead::runtime {
namespace {

constexpr char kScheme[] = "unix://";

grpc::ByteBuffer ToBuffer(const std::string& bytes) {
  const grpc::Slice slice(bytes);
  return grpc::ByteBuffer(&slice, 1);
}

std::string ToString(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  std::string bytes;
  if (!buffer.Dump(&slices).ok()) return bytes;
  for (const grpc::Slice& slice : slices) {
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return bytes;
}

// Where calls end: in a thread of its own, which starts with the first call and
// runs the function that each tag points to.
grpc::CompletionQueue* Ends() {
  static grpc::CompletionQueue* const queue = [] {
    auto* made = new grpc::CompletionQueue;
    std::thread([made] {
      void* tag = nullptr;
      for (bool ok = false; made->Next(&tag, &ok);) {
        const std::unique_ptr<std::function<void()>> end(
            static_cast<std::function<void()>*>(tag));
        (*end)();
      }
    }).detach();
    return made;
  }();
  return queue;
}

// One call: lives until gRPC is done with it, whoever still wants the answer.
struct PendingCall {
  std::unique_ptr<grpc::ClientContext> context;
  grpc::ByteBuffer response;
  grpc::Status status;
  std::unique_ptr<grpc::GenericClientAsyncResponseReader> reader;
  std::mutex mutex;
  ShimConnection::Callback callback;  // Null: answered or given up.
};

// What calls under way share with the connection.
struct CallTable {
  std::mutex mutex;
  ShimConnection::CallId next_id = 1;
  bool closed = false;
  std::map<ShimConnection::CallId, std::shared_ptr<PendingCall>> calls;
};

class GrpcConnection : public ShimConnection {
 public:
  GrpcConnection(ttrpc::Reactor& reactor,
                 std::shared_ptr<grpc::Channel> channel,
                 std::function<void()> on_close)
      : reactor_(reactor),
        stub_(std::move(channel)),
        table_(std::make_shared<CallTable>()),
        on_close_(
            std::make_shared<std::function<void()>>(std::move(on_close))) {}

  ~GrpcConnection() override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (process_ != nullptr) reactor_.Forget(process_->get());
    }
    End(*table_);
  }

  CallId Start(const std::string& service, const std::string& method,
               const std::string& payload, const std::string& ns,
               absl::Time deadline, Callback callback) override {
    auto call = std::make_shared<PendingCall>();
    const absl::Duration timeout = deadline == absl::InfiniteFuture()
                                       ? absl::InfiniteDuration()
                                       : deadline - absl::Now();
    call->context = rpc::MakeClientContext({.ns = ns}, timeout);
    call->callback = std::move(callback);
    CallId id = 0;
    {
      std::lock_guard<std::mutex> lock(table_->mutex);
      if (!table_->closed) {
        id = table_->next_id++;
        table_->calls[id] = call;
      }
    }
    if (id == 0) {
      std::exchange(call->callback,
                    nullptr)(absl::UnknownError(ttrpc::kClosedText));
      return 0;
    }
    call->reader = stub_.PrepareUnaryCall(
        call->context.get(), absl::StrCat("/", service, "/", method),
        ToBuffer(payload), Ends());
    call->reader->StartCall();
    call->reader->Finish(
        &call->response, &call->status,
        new std::function<void()>([call, table = table_, id] {
          {
            std::lock_guard<std::mutex> lock(table->mutex);
            table->calls.erase(id);
          }
          Callback callback;
          {
            std::lock_guard<std::mutex> lock(call->mutex);
            callback = std::exchange(call->callback, nullptr);
          }
          if (!callback) return;
          if (call->status.ok()) return callback(ToString(call->response));
          if (call->status.error_code() == grpc::StatusCode::UNAVAILABLE) {
            return callback(absl::UnknownError(ttrpc::kClosedText));
          }
          callback(rpc::FromGrpc(call->status));
        }));
    return id;
  }

  void Cancel(CallId id) override {
    std::shared_ptr<PendingCall> call;
    {
      std::lock_guard<std::mutex> lock(table_->mutex);
      auto it = table_->calls.find(id);
      if (it == table_->calls.end()) return;
      call = it->second;
    }
    {
      std::lock_guard<std::mutex> lock(call->mutex);
      call->callback = nullptr;
    }
    call->context->TryCancel();
  }

  void Close() override {
    const bool first = End(*table_);
    if (first && *on_close_) reactor_.Post([hook = on_close_] { (*hook)(); });
  }

  bool closed() const override {
    std::lock_guard<std::mutex> lock(table_->mutex);
    return table_->closed;
  }

  void Identify(pid_t pid) override {
    std::lock_guard<std::mutex> lock(mutex_);
    if (process_ != nullptr) return;
    auto process = std::make_shared<os::UniqueFd>(OpenProcess(pid));
    if (!process->valid()) {
      if (End(*table_) && *on_close_) {
        reactor_.Post([hook = on_close_] { (*hook)(); });
      }
      return;
    }
    process_ = process;
    reactor_.Watch(process->get(), EPOLLIN,
                   [&reactor = reactor_, process, table = table_,
                    hook = on_close_](uint32_t) {
                     reactor.Forget(process->get());
                     if (End(*table) && *hook) (*hook)();
                   });
  }

 private:
  // Fails what is under way; false: it was over already.
  static bool End(CallTable& table) {
    std::map<CallId, std::shared_ptr<PendingCall>> calls;
    {
      std::lock_guard<std::mutex> lock(table.mutex);
      if (std::exchange(table.closed, true)) return false;
      calls = table.calls;
    }
    for (auto& [id, call] : calls) {
      Callback callback;
      {
        std::lock_guard<std::mutex> lock(call->mutex);
        callback = std::exchange(call->callback, nullptr);
      }
      call->context->TryCancel();
      if (callback) callback(absl::UnknownError(ttrpc::kClosedText));
    }
    return true;
  }

  ttrpc::Reactor& reactor_;
  grpc::GenericStub stub_;
  const std::shared_ptr<CallTable> table_;
  const std::shared_ptr<std::function<void()>> on_close_;
  std::mutex mutex_;
  std::shared_ptr<os::UniqueFd> process_;  // Shared with the reactor's hook.
};

}  // namespace

absl::StatusOr<std::shared_ptr<ShimConnection>> DialGrpcShim(
    ttrpc::Reactor& reactor, const Bootstrap& bootstrap,
    std::function<void()> on_close) {
  std::string path = bootstrap.address;
  if (path.rfind(kScheme, 0) == 0) path.erase(0, sizeof(kScheme) - 1);
  // gRPC would try for ever; a shim listens before it says where.
  RETURN_IF_ERROR(os::ConnectUnix(path).status());
  return std::make_shared<GrpcConnection>(reactor, rpc::Connect(path),
                                          std::move(on_close));
}

ShimDialer MakeShimDialer(ttrpc::Reactor& reactor) {
  return
      [&reactor](const Bootstrap& bootstrap, std::function<void()> on_close) {
        return bootstrap.protocol == "grpc"
                   ? DialGrpcShim(reactor, bootstrap, std::move(on_close))
                   : DialTtrpcShim(reactor, bootstrap, std::move(on_close));
      };
}

}  // namespace bulkhead::runtime
