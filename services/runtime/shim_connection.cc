#include "services/runtime/shim_connection.h"

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
  return ttrpc::Await([&](Callback callback) {
    Start(service, method, payload, ns, absl::Now() + timeout,
          std::move(callback));
  });
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
