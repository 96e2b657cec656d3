#include "services/runtime/sandbox_manager.h"

#include <signal.h>

#include <cinttypes>
#include <condition_variable>
#include <cstdio>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "lib/base/status_macros.h"
#include "lib/log/log.h"
#include "lib/ttrpc/client.h"
#include "proto/containerd/events/sandbox.pb.h"
#include "proto/containerd/task/v2/task.pb.h"
#include "services/runtime/process.h"
#include "services/runtime/publish.h"
#include "services/runtime/shim_log.h"

namespace bulkhead::runtime {
namespace {

namespace events_v1 = ::containerd::events;

constexpr char kService[] = "containerd.runtime.sandbox.v1.Sandbox";
constexpr int kWorkersMax = 16;
constexpr uint32_t kUnknownExitStatus = 255;
constexpr absl::Duration kCallMax = absl::Minutes(2);
constexpr absl::Duration kStatusMax = absl::Seconds(2);
constexpr absl::Duration kLoadMax = absl::Seconds(5);
constexpr absl::Duration kShutdownMax = absl::Seconds(3);
constexpr absl::Duration kCleanupMax = absl::Seconds(5);
constexpr absl::Duration kSettleMax = absl::Seconds(15);
// What a stop may take beyond the grace it was given.
constexpr absl::Duration kStopSlack = absl::Seconds(10);
constexpr absl::Duration kKillMax = absl::Seconds(2);

absl::Status NoSandbox(const std::string& id) {
  return absl::NotFoundError(absl::StrCat("sandbox ", id, " not found"));
}

absl::Time TimeOf(const google::protobuf::Timestamp& time) {
  return absl::FromUnixSeconds(time.seconds()) +
         absl::Nanoseconds(time.nanos());
}

}  // namespace

struct SandboxManager::Sandbox {
  enum class Phase { kLoading, kCreating, kLive, kGone };
  Sandbox(std::string ns_in, std::string id_in, Phase phase_in)
      : ns(std::move(ns_in)), id(std::move(id_in)), phase(phase_in) {}
  const std::string ns;
  const std::string id;
  std::string bundle;
  std::string shim_binary;

  std::mutex mutex;
  std::condition_variable changed;  // phase
  Phase phase;
  Bootstrap bootstrap;
  std::shared_ptr<ShimConnection> connection;
  os::UniqueFd shim;                  // pidfd; empty if unknown.
  std::shared_ptr<os::UniqueFd> log;  // Shared with the reactor's hook.
  std::optional<SandboxExit> exit;
  WaitId next_wait = 1;
  std::map<WaitId, ExitCallback> waits;
};

SandboxManager::SandboxManager(Options options, ShimBinaries& shims,
                               EventForwarder& events, SandboxSource records)
    : options_(std::move(options)),
      shims_(shims),
      events_(events),
      records_(std::move(records)),
      workers_(kWorkersMax) {}

SandboxManager::~SandboxManager() {
  std::map<Key, SandboxPtr> all;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    all.swap(sandboxes_);
  }
  for (auto& [key, sandbox] : all) {
    std::shared_ptr<ShimConnection> connection;
    std::lock_guard<std::mutex> lock(sandbox->mutex);
    sandbox->phase = Sandbox::Phase::kGone;
    connection = std::move(sandbox->connection);
    sandbox->changed.notify_all();
  }
}

SandboxManager::SandboxPtr SandboxManager::Peek(const Key& key) {
  std::lock_guard<std::mutex> lock(mutex_);
  auto it = sandboxes_.find(key);
  return it == sandboxes_.end() ? nullptr : it->second;
}

absl::StatusOr<SandboxManager::SandboxPtr> SandboxManager::Find(
    const std::string& ns, const std::string& id) {
  if (id.empty()) {
    return absl::InvalidArgumentError("sandbox id must not be empty");
  }
  SandboxPtr sandbox = Peek({ns, id});
  if (sandbox == nullptr) return NoSandbox(id);
  std::unique_lock<std::mutex> lock(sandbox->mutex);
  sandbox->changed.wait_for(lock, absl::ToChronoNanoseconds(kSettleMax), [&] {
    return sandbox->phase != Sandbox::Phase::kLoading;
  });
  if (sandbox->phase == Sandbox::Phase::kLoading) {
    return absl::UnavailableError(
        absl::StrCat("sandbox ", id, " is being loaded"));
  }
  if (sandbox->phase != Sandbox::Phase::kLive) return NoSandbox(id);
  return sandbox;
}

absl::StatusOr<std::string> SandboxManager::Invoke(const SandboxPtr& sandbox,
                                                   const std::string& method,
                                                   const std::string& payload,
                                                   absl::Duration timeout) {
  std::shared_ptr<ShimConnection> connection;
  {
    std::lock_guard<std::mutex> lock(sandbox->mutex);
    connection = sandbox->connection;
  }
  if (connection == nullptr) return absl::UnknownError(ttrpc::kClosedText);
  return connection->Call(kService, method, payload, sandbox->ns, timeout);
}

template <typename Response>
absl::StatusOr<Response> SandboxManager::Call(
    const SandboxPtr& sandbox, const std::string& method,
    const google::protobuf::MessageLite& request, absl::Duration timeout) {
  ASSIGN_OR_RETURN(
      const std::string reply,
      Invoke(sandbox, method, request.SerializeAsString(), timeout));
  Response response;
  if (!response.ParseFromString(reply)) {
    return absl::InternalError(
        absl::StrCat("the shim's answer to ", method, " is malformed"));
  }
  return response;
}

absl::Status SandboxManager::Attach(const SandboxPtr& sandbox) {
  ASSIGN_OR_RETURN(
      std::shared_ptr<ShimConnection> connection,
      options_.dialer(sandbox->bootstrap,
                      [this, weak = std::weak_ptr<Sandbox>(sandbox)] {
                        if (SandboxPtr lost = weak.lock()) OnDisconnect(lost);
                      }));
  // Only the task service says which process the shim is; a shim without one
  // is known by its connection alone.
  containerd::task::v2::ConnectRequest request;
  request.set_id(sandbox->id);
  const absl::StatusOr<std::string> reply = connection->Call(
      absl::StrCat("containerd.task.v", sandbox->bootstrap.version, ".Task"),
      "Connect", request.SerializeAsString(), sandbox->ns, kLoadMax);
  containerd::task::v2::ConnectResponse answer;
  std::lock_guard<std::mutex> lock(sandbox->mutex);
  sandbox->connection = connection;
  if (reply.ok() && answer.ParseFromString(*reply) && answer.shim_pid() != 0) {
    sandbox->shim = OpenProcess(static_cast<pid_t>(answer.shim_pid()));
    connection->Identify(static_cast<pid_t>(answer.shim_pid()));
  }
  // A new one that does not even answer this will not make a sandbox either.
  if (absl::IsDeadlineExceeded(reply.status()) &&
      sandbox->phase == Sandbox::Phase::kCreating) {
    return reply.status();
  }
  return ttrpc::IsClosed(reply.status()) ? reply.status() : absl::OkStatus();
}

absl::Status SandboxManager::Recover() {
  RETURN_IF_ERROR(options_.bundles.Init());
  for (const auto& [ns, id] : options_.bundles.List()) {
    auto sandbox = std::make_shared<Sandbox>(ns, id, Sandbox::Phase::kLoading);
    sandbox->bundle = options_.bundles.Path(ns, id);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      sandboxes_[{ns, id}] = sandbox;
    }
    workers_.Post([this, sandbox] { Load(sandbox); });
  }
  options_.bundles.RemoveOrphanedWork();
  return absl::OkStatus();
}

void SandboxManager::Load(const SandboxPtr& sandbox) {
  const Bundles& bundles = options_.bundles;
  sandbox->log =
      CopyShimLog(*options_.reactor, sandbox->bundle, sandbox->ns, sandbox->id);
  sandbox->shim_binary =
      bundles.Read(sandbox->ns, sandbox->id, kShimBinaryFile).value_or("");
  absl::StatusOr<std::string> json =
      bundles.Read(sandbox->ns, sandbox->id, kBootstrapFile);
  absl::Status status = json.status();
  if (json.ok()) {
    absl::StatusOr<Bootstrap> bootstrap = BootstrapFromJson(*json);
    status = bootstrap.status();
    if (bootstrap.ok()) {
      sandbox->bootstrap = *bootstrap;
      status = Attach(sandbox);
    }
  }
  const std::string exit_text =
      bundles.Read(sandbox->ns, sandbox->id, kExitFile).value_or("");
  uint32_t exit_status = 0;
  int64_t exit_ns = 0;
  if (::sscanf(exit_text.c_str(), "%u %" SCNd64, &exit_status, &exit_ns) == 2) {
    std::lock_guard<std::mutex> lock(sandbox->mutex);
    sandbox->exit = {exit_status, absl::FromUnixNanos(exit_ns)};
  }
  if (status.ok()) {
    {
      std::lock_guard<std::mutex> lock(sandbox->mutex);
      if (sandbox->phase != Sandbox::Phase::kLoading) return;
      sandbox->phase = Sandbox::Phase::kLive;
      sandbox->changed.notify_all();
    }
    return Watch(sandbox);
  }
  log::Warn(
      "the shim of a sandbox is lost",
      {{"ns", sandbox->ns}, {"id", sandbox->id}, {"error", MessageOf(status)}});
  // A start that was cut off told nobody; anything later did.
  if (json.ok()) OnExit(sandbox, {kUnknownExitStatus, absl::Now()});
  Bury(sandbox);
}

absl::Status SandboxManager::Create(const std::string& ns,
                                    const CreateSandbox& create) {
  RETURN_IF_ERROR(ValidateId(create.id));
  auto sandbox =
      std::make_shared<Sandbox>(ns, create.id, Sandbox::Phase::kCreating);
  sandbox->bundle = options_.bundles.Path(ns, create.id);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!sandboxes_.try_emplace({ns, create.id}, sandbox).second) {
      return absl::AlreadyExistsError(
          absl::StrCat("sandbox ", create.id, " already running"));
    }
  }
  const absl::Status status = CreateIn(sandbox, create);
  if (!status.ok()) {
    if (sandbox->connection != nullptr) {
      sandbox_v1::ShutdownSandboxRequest shutdown;
      shutdown.set_sandbox_id(create.id);
      (void)Invoke(sandbox, "ShutdownSandbox", shutdown.SerializeAsString(),
                   kShutdownMax);  // Bury() ends it in any case.
    }
    Bury(sandbox);
    return status;
  }
  {
    std::lock_guard<std::mutex> lock(sandbox->mutex);
    sandbox->phase = Sandbox::Phase::kLive;
    sandbox->changed.notify_all();
  }
  events_v1::SandboxCreate event;
  event.set_sandbox_id(create.id);
  Publish(events_, ns, "/sandboxes/create", event);
  return absl::OkStatus();
}

absl::Status SandboxManager::CreateIn(const SandboxPtr& sandbox,
                                      const CreateSandbox& create) {
  SandboxRecord record = create.record;
  if (record.runtime.empty()) {
    ASSIGN_OR_RETURN(record, records_(sandbox->ns, sandbox->id));
  }
  if (record.runtime.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("sandbox ", sandbox->id, " names no runtime"));
  }
  ASSIGN_OR_RETURN(sandbox->shim_binary, shims_.Resolve(record.runtime));
  const Bundles& bundles = options_.bundles;
  RETURN_IF_ERROR(bundles.Create(sandbox->ns, sandbox->id, record.spec.value));
  RETURN_IF_ERROR(bundles.Write(sandbox->ns, sandbox->id, kShimBinaryFile,
                                sandbox->shim_binary));
  sandbox->log =
      CopyShimLog(*options_.reactor, sandbox->bundle, sandbox->ns, sandbox->id);
  ASSIGN_OR_RETURN(sandbox->bootstrap,
                   shims_.Start({sandbox->shim_binary, sandbox->ns, sandbox->id,
                                 sandbox->bundle},
                                record.options));
  RETURN_IF_ERROR(bundles.Write(sandbox->ns, sandbox->id, kBootstrapFile,
                                ToJson(sandbox->bootstrap)));
  RETURN_IF_ERROR(Attach(sandbox));
  sandbox_v1::CreateSandboxRequest request = create.request;
  request.set_sandbox_id(sandbox->id);
  request.set_bundle_path(sandbox->bundle);
  return Invoke(sandbox, "CreateSandbox", request.SerializeAsString(), kCallMax)
      .status();
}

absl::StatusOr<StartedSandbox> SandboxManager::Start(const std::string& ns,
                                                     const std::string& id) {
  ASSIGN_OR_RETURN(SandboxPtr sandbox, Find(ns, id));
  sandbox_v1::StartSandboxRequest request;
  request.set_sandbox_id(id);
  absl::StatusOr<sandbox_v1::StartSandboxResponse> started =
      Call<sandbox_v1::StartSandboxResponse>(sandbox, "StartSandbox", request,
                                             kCallMax);
  if (!started.ok()) {
    (void)Shutdown(ns, id);  // The first error counts.
    return started.status();
  }
  events_v1::SandboxStart event;
  event.set_sandbox_id(id);
  Publish(events_, ns, "/sandboxes/start", event);
  Watch(sandbox);
  return StartedSandbox{*std::move(started), sandbox->bootstrap};
}

void SandboxManager::Watch(const SandboxPtr& sandbox) {
  std::shared_ptr<ShimConnection> connection;
  {
    std::lock_guard<std::mutex> lock(sandbox->mutex);
    connection = sandbox->connection;
  }
  if (connection == nullptr) return;
  sandbox_v1::WaitSandboxRequest request;
  request.set_sandbox_id(sandbox->id);
  connection->Start(
      kService, "WaitSandbox", request.SerializeAsString(), sandbox->ns,
      absl::InfiniteFuture(),
      [this, weak = std::weak_ptr<Sandbox>(sandbox)](
          absl::StatusOr<std::string> reply) {
        SandboxPtr sandbox = weak.lock();
        sandbox_v1::WaitSandboxResponse response;
        // A lost connection is dealt with where that is noticed.
        if (sandbox == nullptr || !reply.ok() ||
            !response.ParseFromString(*reply)) {
          return;
        }
        OnExit(sandbox, {response.exit_status(), TimeOf(response.exited_at())});
      });
}

void SandboxManager::OnExit(const SandboxPtr& sandbox,
                            const SandboxExit& exit) {
  std::map<WaitId, ExitCallback> waits;
  {
    std::lock_guard<std::mutex> lock(sandbox->mutex);
    if (sandbox->exit.has_value()) return;
    sandbox->exit = exit;
    waits.swap(sandbox->waits);
  }
  events_v1::SandboxExit event;
  event.set_sandbox_id(sandbox->id);
  event.set_exit_status(exit.status);
  SetTimestamp(exit.at, event.mutable_exited_at());
  Publish(events_, sandbox->ns, "/sandboxes/exit", event);
  // So that the next life of this service does not tell it again.
  (void)options_.bundles.Write(
      sandbox->ns, sandbox->id, kExitFile,
      absl::StrCat(exit.status, " ", absl::ToUnixNanos(exit.at)));
  for (auto& [id, done] : waits) done(exit);
}

void SandboxManager::OnDisconnect(const SandboxPtr& sandbox) {
  {
    std::lock_guard<std::mutex> lock(sandbox->mutex);
    if (sandbox->phase != Sandbox::Phase::kLive) return;
    sandbox->phase = Sandbox::Phase::kGone;
    sandbox->changed.notify_all();
  }
  workers_.Post([this, sandbox] {
    log::Warn("the shim of a sandbox died",
              {{"ns", sandbox->ns}, {"id", sandbox->id}});
    OnExit(sandbox, {kUnknownExitStatus, absl::Now()});
    Bury(sandbox);
  });
}

void SandboxManager::Bury(const SandboxPtr& sandbox) {
  std::shared_ptr<ShimConnection> connection;
  std::shared_ptr<os::UniqueFd> log;
  std::map<WaitId, ExitCallback> waits;
  std::optional<SandboxExit> exit;
  {
    std::lock_guard<std::mutex> lock(sandbox->mutex);
    sandbox->phase = Sandbox::Phase::kGone;
    connection = std::move(sandbox->connection);
    log = std::move(sandbox->log);
    waits.swap(sandbox->waits);
    exit = sandbox->exit;
    sandbox->changed.notify_all();
  }
  if (connection != nullptr) connection->Close();
  if (!AwaitExit(sandbox->shim, kShutdownMax)) {
    SendSignal(sandbox->shim, SIGKILL);
    AwaitExit(sandbox->shim, kKillMax);
  }
  if (!sandbox->shim_binary.empty()) {
    const absl::StatusOr<ShimDeleteResult> deleted = shims_.Delete(
        {sandbox->shim_binary, sandbox->ns, sandbox->id, sandbox->bundle},
        kCleanupMax);
    if (!deleted.ok()) {
      log::Warn("shim delete failed", {{"ns", sandbox->ns},
                                       {"id", sandbox->id},
                                       {"error", MessageOf(deleted.status())}});
    }
  }
  if (log != nullptr) options_.reactor->Forget(log->get());
  const absl::Status removed =
      options_.bundles.Remove(sandbox->ns, sandbox->id);
  if (!removed.ok()) {
    log::Warn("bundle stays", {{"ns", sandbox->ns},
                               {"id", sandbox->id},
                               {"error", MessageOf(removed)}});
  }
  {
    std::lock_guard<std::mutex> lock(mutex_);
    auto it = sandboxes_.find({sandbox->ns, sandbox->id});
    if (it != sandboxes_.end() && it->second == sandbox) sandboxes_.erase(it);
  }
  for (auto& [id, done] : waits) {
    done(exit.value_or(SandboxExit{kUnknownExitStatus, absl::Now()}));
  }
}

absl::StatusOr<sandbox_v1::PlatformResponse> SandboxManager::Platform(
    const std::string& ns, const std::string& id) {
  ASSIGN_OR_RETURN(SandboxPtr sandbox, Find(ns, id));
  sandbox_v1::PlatformRequest request;
  request.set_sandbox_id(id);
  return Call<sandbox_v1::PlatformResponse>(sandbox, "Platform", request,
                                            kStatusMax);
}

absl::Status SandboxManager::Stop(const std::string& ns, const std::string& id,
                                  uint32_t timeout_seconds) {
  absl::StatusOr<SandboxPtr> sandbox = Find(ns, id);
  if (absl::IsNotFound(sandbox.status())) return absl::OkStatus();
  RETURN_IF_ERROR(sandbox.status());
  sandbox_v1::StopSandboxRequest request;
  request.set_sandbox_id(id);
  request.set_timeout_secs(timeout_seconds);
  const absl::Status status =
      Invoke(*sandbox, "StopSandbox", request.SerializeAsString(),
             absl::Seconds(timeout_seconds) + kStopSlack)
          .status();
  if (absl::IsNotFound(status) || ttrpc::IsClosed(status)) {
    return absl::OkStatus();
  }
  return status;
}

absl::StatusOr<sandbox_v1::SandboxStatusResponse> SandboxManager::Status(
    const std::string& ns, const std::string& id, bool verbose) {
  sandbox_v1::SandboxStatusResponse gone;
  gone.set_sandbox_id(id);
  SetTimestamp(absl::Now(), gone.mutable_exited_at());
  absl::StatusOr<SandboxPtr> sandbox = Find(ns, id);
  if (absl::IsNotFound(sandbox.status())) return gone;
  RETURN_IF_ERROR(sandbox.status());
  sandbox_v1::SandboxStatusRequest request;
  request.set_sandbox_id(id);
  request.set_verbose(verbose);
  absl::StatusOr<sandbox_v1::SandboxStatusResponse> status =
      Call<sandbox_v1::SandboxStatusResponse>(*sandbox, "SandboxStatus",
                                              request, kStatusMax);
  if (ttrpc::IsClosed(status.status())) return gone;
  return status;
}

absl::StatusOr<sandbox_v1::SandboxMetricsResponse> SandboxManager::Metrics(
    const std::string& ns, const std::string& id) {
  ASSIGN_OR_RETURN(SandboxPtr sandbox, Find(ns, id));
  sandbox_v1::SandboxMetricsRequest request;
  request.set_sandbox_id(id);
  return Call<sandbox_v1::SandboxMetricsResponse>(sandbox, "SandboxMetrics",
                                                  request, kStatusMax);
}

absl::Status SandboxManager::Shutdown(const std::string& ns,
                                      const std::string& id) {
  absl::StatusOr<SandboxPtr> found = Find(ns, id);
  if (absl::IsNotFound(found.status())) return absl::OkStatus();
  RETURN_IF_ERROR(found.status());
  const SandboxPtr& sandbox = *found;
  sandbox_v1::ShutdownSandboxRequest request;
  request.set_sandbox_id(id);
  absl::Status status =
      Invoke(sandbox, "ShutdownSandbox", request.SerializeAsString(), kCallMax)
          .status();
  if (absl::IsNotFound(status) || ttrpc::IsClosed(status)) {
    status = absl::OkStatus();
  }
  RETURN_IF_ERROR(status);
  {
    std::lock_guard<std::mutex> lock(sandbox->mutex);
    // Its death has been noticed, and is dealt with.
    if (sandbox->phase != Sandbox::Phase::kLive) return absl::OkStatus();
    sandbox->phase = Sandbox::Phase::kGone;
    sandbox->changed.notify_all();
  }
  Bury(sandbox);
  return absl::OkStatus();
}

SandboxManager::WaitId SandboxManager::Wait(const std::string& ns,
                                            const std::string& id,
                                            ExitCallback done) {
  SandboxPtr sandbox = Peek({ns, id});
  std::optional<SandboxExit> exit;
  if (sandbox != nullptr) {
    std::lock_guard<std::mutex> lock(sandbox->mutex);
    exit = sandbox->exit;
    if (!exit.has_value() && sandbox->phase == Sandbox::Phase::kGone) {
      sandbox = nullptr;
    } else if (!exit.has_value()) {
      const WaitId wait = sandbox->next_wait++;
      sandbox->waits[wait] = std::move(done);
      return wait;
    }
  }
  if (sandbox == nullptr) {
    done(NoSandbox(id));
  } else {
    done(*exit);
  }
  return 0;
}

void SandboxManager::CancelWait(const std::string& ns, const std::string& id,
                                WaitId wait) {
  SandboxPtr sandbox = Peek({ns, id});
  if (sandbox == nullptr || wait == 0) return;
  ExitCallback dropped;
  std::lock_guard<std::mutex> lock(sandbox->mutex);
  auto it = sandbox->waits.find(wait);
  if (it == sandbox->waits.end()) return;
  dropped = std::move(it->second);
  sandbox->waits.erase(it);
}

absl::StatusOr<Bootstrap> SandboxManager::BootstrapOf(const std::string& ns,
                                                      const std::string& id) {
  ASSIGN_OR_RETURN(SandboxPtr sandbox, Find(ns, id));
  std::lock_guard<std::mutex> lock(sandbox->mutex);
  return sandbox->bootstrap;
}

}  // namespace bulkhead::runtime
