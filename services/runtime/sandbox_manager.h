// The life of sandboxes whose shim runs them (controller "shim"): bundle,
// shim, its sandbox service, recovery after a restart. No gRPC here; messages
// to and from shims are those of containerd.runtime.sandbox.v1.
#ifndef BULKHEAD_SERVICES_RUNTIME_SANDBOX_MANAGER_H_
#define BULKHEAD_SERVICES_RUNTIME_SANDBOX_MANAGER_H_

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/containerd/runtime/sandbox/v1/sandbox.pb.h"
#include "services/runtime/bundle.h"
#include "services/runtime/event_forwarder.h"
#include "services/runtime/shim_binary.h"
#include "services/runtime/shim_connection.h"
#include "services/runtime/workers.h"

namespace bulkhead::runtime {

namespace sandbox_v1 = ::containerd::runtime::sandbox::v1;

// What a sandbox's record says about running it.
struct SandboxRecord {
  std::string runtime;
  Any options;
  Any spec;
};

// Where records come from; thread-safe, may block. Errors: kNotFound.
using SandboxSource = std::function<absl::StatusOr<SandboxRecord>(
    const std::string& ns, const std::string& id)>;

struct CreateSandbox {
  std::string id;
  SandboxRecord record;  // Without a runtime: the stored one is looked up.
  // Handed on to the shim; the manager sets id and bundle.
  sandbox_v1::CreateSandboxRequest request;
};

struct SandboxExit {
  uint32_t status = 0;
  absl::Time at;
};

struct StartedSandbox {
  sandbox_v1::StartSandboxResponse response;
  Bootstrap bootstrap;  // How containers join it.
};

// Thread-safe. Calls block on shims, each within a deadline; a shim's error
// comes through with its code and text. A shim that dies ends its sandbox: its
// exit is published and waiters are answered.
class SandboxManager {
 public:
  struct Options {
    Bundles bundles;
    ShimDialer dialer;
    ttrpc::Reactor* reactor;  // Of the shims' logs; must outlive the manager.
  };
  using ExitCallback = std::function<void(absl::StatusOr<SandboxExit>)>;
  // Of a pending Wait(); 0 is none.
  using WaitId = uint64_t;

  // Borrowed objects must outlive the manager.
  SandboxManager(Options options, ShimBinaries& shims, EventForwarder& events,
                 SandboxSource records);
  // Lets go of all shims; they run on.
  ~SandboxManager();

  // Finds the shims of an earlier life again, in the background. Call once,
  // first.
  absl::Status Recover();

  // Errors: kAlreadyExists. kNotFound: no record, or no such runtime.
  absl::Status Create(const std::string& ns, const CreateSandbox& create);
  // Ends the shim and forgets the sandbox if starting fails.
  // Errors: kNotFound: no such sandbox.
  absl::StatusOr<StartedSandbox> Start(const std::string& ns,
                                       const std::string& id);
  absl::StatusOr<sandbox_v1::PlatformResponse> Platform(const std::string& ns,
                                                        const std::string& id);
  // OK also for a sandbox that is not there or whose shim has gone.
  absl::Status Stop(const std::string& ns, const std::string& id,
                    uint32_t timeout_seconds);
  // One that is not there: only the id, and exited now.
  absl::StatusOr<sandbox_v1::SandboxStatusResponse> Status(
      const std::string& ns, const std::string& id, bool verbose);
  absl::StatusOr<sandbox_v1::SandboxMetricsResponse> Metrics(
      const std::string& ns, const std::string& id);
  // Ends the shim, removes the bundle. OK for one that is not there.
  absl::Status Shutdown(const std::string& ns, const std::string& id);

  // `done` runs once, on any thread, when the sandbox has exited; it must not
  // block. kNotFound to it: no such sandbox.
  WaitId Wait(const std::string& ns, const std::string& id, ExitCallback done);
  // `done` will not start after this returns.
  void CancelWait(const std::string& ns, const std::string& id, WaitId wait);

  // How containers join a sandbox. Errors: kNotFound.
  absl::StatusOr<Bootstrap> BootstrapOf(const std::string& ns,
                                        const std::string& id);

 private:
  struct Sandbox;
  using SandboxPtr = std::shared_ptr<Sandbox>;
  using Key = std::pair<std::string, std::string>;

  SandboxPtr Peek(const Key& key);
  // Waits for one that is being found again.
  absl::StatusOr<SandboxPtr> Find(const std::string& ns, const std::string& id);
  absl::StatusOr<std::string> Invoke(const SandboxPtr& sandbox,
                                     const std::string& method,
                                     const std::string& payload,
                                     absl::Duration timeout);
  template <typename Response>
  absl::StatusOr<Response> Call(const SandboxPtr& sandbox,
                                const std::string& method,
                                const google::protobuf::MessageLite& request,
                                absl::Duration timeout);
  absl::Status CreateIn(const SandboxPtr& sandbox, const CreateSandbox& create);
  absl::Status Attach(const SandboxPtr& sandbox);
  void Load(const SandboxPtr& sandbox);
  // Learns of its end, whoever waits for it.
  void Watch(const SandboxPtr& sandbox);
  void OnExit(const SandboxPtr& sandbox, const SandboxExit& exit);
  void OnDisconnect(const SandboxPtr& sandbox);
  // Ends what is left of the shim, removes the bundle, forgets the sandbox.
  void Bury(const SandboxPtr& sandbox);

  const Options options_;
  ShimBinaries& shims_;
  EventForwarder& events_;
  const SandboxSource records_;
  std::mutex mutex_;
  std::map<Key, SandboxPtr> sandboxes_;
  Workers workers_;  // Last: its work uses everything above.
};

}  // namespace bulkhead::runtime

#endif  // BULKHEAD_SERVICES_RUNTIME_SANDBOX_MANAGER_H_
