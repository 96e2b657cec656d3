#include "services/runtime/shim_connection.h"

#include <condition_variable>
#include <mutex>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/ttrpc/client.h"

namespace bulkhead::runtime {
namespace {

constexpr char kNamespaceKey[] = "containerd-namespace-ttrpc";

class TtrpcConnection : public ShimConnection {
 public:
  explicit TtrpcConnection(std::shared_ptr<ttrpc::Client> client)
      : client_(std::move(client)) {}

  CallId Start(const std::string& service, const std::string& method,
               const std::string& payload, const std::string& ns,
               absl::Time deadline, Callback callback) override {
    return client_->Start(service, method, payload, {{kNamespaceKey, ns}},
                          deadline, std::move(callback));
  }
  void Cancel(CallId id) override {
    if (id != 0) client_->Cancel(id);
  }
  void Close() override { client_->Close(); }
  bool closed() const override { return client_->closed(); }

 private:
  const std::shared_ptr<ttrpc::Client> client_;
};

}  // namespace

ShimConnection::Result ShimConnection::Call(const std::string& service,
                                            const std::string& method,
                                            const std::string& payload,
                                            const std::string& ns,
                                            absl::Duration timeout) {
  struct Slot {
    std::mutex mutex;
    std::condition_variable ready;
    std::optional<Result> result;
  };
  auto slot = std::make_shared<Slot>();
  Start(service, method, payload, ns, absl::Now() + timeout,
        [slot](Result result) {
          std::lock_guard<std::mutex> lock(slot->mutex);
          slot->result = std::move(result);
          slot->ready.notify_one();
        });
  std::unique_lock<std::mutex> lock(slot->mutex);
  slot->ready.wait(lock, [&] { return slot->result.has_value(); });
  return std::move(*slot->result);
}

absl::StatusOr<std::shared_ptr<ShimConnection>> DialTtrpcShim(
    ttrpc::Reactor& reactor, const Bootstrap& bootstrap,
    std::function<void()> on_close) {
  if (bootstrap.protocol != "ttrpc") {
    return absl::UnimplementedError(
        absl::StrCat("unsupported shim protocol \"", bootstrap.protocol, "\""));
  }
  ASSIGN_OR_RETURN(os::UniqueFd socket, ttrpc::Dial(bootstrap.address));
  return std::make_shared<TtrpcConnection>(
      ttrpc::Client::Create(reactor, std::move(socket), std::move(on_close)));
}

}  // namespace bulkhead::runtime
