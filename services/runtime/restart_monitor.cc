#include "services/runtime/restart_monitor.h"

#include <signal.h>

#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/log/log.h"
#include "proto/containerd/events/task.pb.h"

namespace bulkhead::runtime {
namespace {

constexpr absl::Duration kRestartScan = absl::Seconds(10);
constexpr absl::Duration kDelayMin = absl::Milliseconds(100);
constexpr absl::Duration kDelayMax = absl::Minutes(1);
// A life of this length forgives the short ones before it.
constexpr absl::Duration kLongLife = absl::Seconds(10);
// Whoever made a container may be about to start it.
constexpr absl::Duration kYoung = absl::Seconds(10);
constexpr int kWorkersMax = 8;
constexpr int kFailuresMax = 32;

std::string Label(const std::map<std::string, std::string>& labels,
                  const char* name) {
  auto it = labels.find(name);
  return it == labels.end() ? "" : it->second;
}

int Number(const std::string& text) {
  int value = 0;
  return absl::SimpleAtoi(text, &value) ? value : 0;
}

bool IsTrue(const std::string& text) {
  bool value = false;
  return absl::SimpleAtob(text, &value) && value;
}

bool IsWanted(const std::map<std::string, std::string>& labels) {
  return Label(labels, kRestartStatusLabel) == "running" &&
         (Label(labels, kRestartPolicyLabel) != "unless-stopped" ||
          !IsTrue(Label(labels, kRestartStoppedLabel)));
}

}  // namespace

bool ShouldRestart(const std::map<std::string, std::string>& labels,
                   uint32_t exit_status) {
  if (!IsWanted(labels)) return false;
  const std::string policy = Label(labels, kRestartPolicyLabel);
  if (policy.empty() || policy == "always" || policy == "unless-stopped") {
    return true;
  }
  const std::string on_failure = "on-failure";
  if (policy.compare(0, on_failure.size(), on_failure) != 0) return false;
  if (exit_status == 0) return false;
  if (policy.size() == on_failure.size()) return true;
  if (policy[on_failure.size()] != ':') return false;
  int max = 0;
  if (!absl::SimpleAtoi(policy.substr(on_failure.size() + 1), &max)) {
    return false;
  }
  return max == 0 || Number(Label(labels, kRestartCountLabel)) < max;
}

absl::Duration RestartDelay(int failures) {
  if (failures <= 0) return kDelayMin;
  return std::min(kDelayMax, kDelayMin * (1 << std::min(failures, 16)));
}

RestartMonitor::RestartMonitor(TaskManager& tasks, RestartSource& source)
    : tasks_(tasks),
      source_(source),
      workers_(kWorkersMax),
      thread_([this] { Run(); }) {}

RestartMonitor::~RestartMonitor() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
  }
  thread_.join();
}

void RestartMonitor::OnEvent(const containerd::types::Envelope& envelope) {
  if (envelope.topic() != "/tasks/exit") return;
  containerd::events::TaskExit event;
  if (!event.ParseFromString(envelope.event().value()) ||
      event.id() != event.container_id()) {
    return;
  }
  std::lock_guard<std::mutex> lock(mutex_);
  const Key key(envelope.namespace_(), event.container_id());
  Entry& entry = entries_[key];
  if (entry.busy) {
    entry.again = true;
    return;
  }
  const absl::Time now = absl::Now();
  if (now - entry.started_at > kLongLife) {
    entry.failures = 0;
  } else {
    entry.failures = std::min(entry.failures + 1, kFailuresMax);
  }
  entry.due_at = now + RestartDelay(entry.failures);
  entry.ended = true;
  changed_.notify_all();
}

void RestartMonitor::Run() {
  absl::Time scan_at = absl::Now();
  std::unique_lock<std::mutex> lock(mutex_);
  while (!stopping_) {
    const absl::Time now = absl::Now();
    if (now >= scan_at) {
      lock.unlock();
      Scan();
      lock.lock();
      scan_at = absl::Now() + kRestartScan;
      continue;
    }
    absl::Time next = scan_at;
    for (auto& [key, entry] : entries_) {
      if (entry.busy) continue;
      if (entry.due_at <= now) {
        entry.busy = true;
        entry.again = false;
        entry.due_at = absl::InfiniteFuture();
        workers_.Post(
            [this, key = key, ended = std::exchange(entry.ended, false)] {
              Look(key, ended);
            });
      } else {
        next = std::min(next, entry.due_at);
      }
    }
    changed_.wait_for(lock, absl::ToChronoNanoseconds(next - now));
  }
}

void RestartMonitor::Scan() {
  absl::StatusOr<std::vector<Key>> found = source_.Restartable();
  if (!found.ok()) return;  // Metadata is away: the next scan will tell.
  const std::set<Key> wanted(found->begin(), found->end());
  std::lock_guard<std::mutex> lock(mutex_);
  // What is gone, or has no policy, and no look is due of: forgotten.
  for (auto it = entries_.begin(); it != entries_.end();) {
    const bool idle =
        !it->second.busy && it->second.due_at == absl::InfiniteFuture();
    it = idle && wanted.count(it->first) == 0 ? entries_.erase(it)
                                              : std::next(it);
  }
  const absl::Time now = absl::Now();
  for (const Key& key : wanted) {
    Entry& entry = entries_[key];
    if (!entry.busy && entry.due_at == absl::InfiniteFuture()) {
      entry.due_at = now;
    }
  }
}

void RestartMonitor::Look(const Key& key, bool ended) {
  const absl::Status status = Reconcile(key, ended);
  std::lock_guard<std::mutex> lock(mutex_);
  auto it = entries_.find(key);
  if (it == entries_.end()) return;
  Entry& entry = it->second;
  entry.busy = false;
  if (absl::IsNotFound(status)) {
    entries_.erase(it);  // No container, or no policy.
    return;
  }
  const bool again = std::exchange(entry.again, false);
  entry.ended = again || ended;
  if (status.ok() && !again) return;
  if (!status.ok()) {
    log::Warn(
        "restart failed",
        {{"ns", key.first}, {"id", key.second}, {"error", MessageOf(status)}});
  }
  entry.failures = std::min(entry.failures + 1, kFailuresMax);
  entry.due_at = absl::Now() + RestartDelay(entry.failures);
  changed_.notify_all();
}

absl::Status RestartMonitor::Reconcile(const Key& key, bool ended) {
  ASSIGN_OR_RETURN(const RestartRecord record, source_.Record(key));
  const auto& [ns, id] = key;
  const std::string wanted = Label(record.labels, kRestartStatusLabel);
  if (wanted.empty()) return absl::NotFoundError("no restart policy");
  absl::StatusOr<shim_v2::StateResponse> state = tasks_.State(ns, id, "");
  if (!state.ok() && !absl::IsNotFound(state.status())) return state.status();
  const bool stopped =
      state.ok() && state->status() == containerd::v1::types::STOPPED;
  if (wanted == "stopped" && state.ok() && !stopped) {
    shim_v2::KillRequest kill;
    kill.set_id(id);
    kill.set_signal(SIGKILL);
    kill.set_all(true);
    return tasks_.Kill(ns, kill);
  }
  // Created, running or paused: somebody's.
  if (state.ok() && !stopped) return absl::OkStatus();
  if (!state.ok() && !ended && absl::Now() - record.created_at < kYoung) {
    return absl::OkStatus();
  }
  if (!ShouldRestart(record.labels, state.ok() ? state->exit_status() : 0)) {
    return absl::OkStatus();
  }
  return StartAgain(key, record);
}

absl::Status RestartMonitor::StartAgain(const Key& key,
                                        const RestartRecord& record) {
  const auto& [ns, id] = key;
  // Processes that outlive the first one end before its successor starts.
  shim_v2::KillRequest kill;
  kill.set_id(id);
  kill.set_signal(SIGKILL);
  kill.set_all(true);
  (void)tasks_.Kill(ns, kill);  // NotFound as a rule: all have ended.
  absl::StatusOr<Exit> deleted = tasks_.Delete(ns, id);
  if (!deleted.ok() && !absl::IsNotFound(deleted.status())) {
    return deleted.status();
  }
  CreateTask create;
  create.id = id;
  ASSIGN_OR_RETURN(create.rootfs, source_.Mounts(ns, record));
  create.stdout_path = Label(record.labels, kRestartLogUriLabel);
  create.terminal = record.terminal;
  if (!create.terminal) create.stderr_path = create.stdout_path;
  RETURN_IF_ERROR(source_.SetLabel(
      key, kRestartCountLabel,
      absl::StrCat(Number(Label(record.labels, kRestartCountLabel)) + 1)));
  absl::StatusOr<uint32_t> pid = tasks_.Create(ns, create);
  if (absl::IsAlreadyExists(pid.status())) return absl::OkStatus();
  RETURN_IF_ERROR(pid.status());
  // Who removed or stopped the container meanwhile did not see this task.
  absl::StatusOr<RestartRecord> now = source_.Record(key);
  if (!now.ok() || !IsWanted(now->labels)) {
    (void)tasks_.Kill(ns, kill);  // Best effort, as its deletion.
    (void)tasks_.Delete(ns, id);
    return now.status();
  }
  {
    std::lock_guard<std::mutex> lock(mutex_);
    entries_[key].started_at = absl::Now();
  }
  absl::StatusOr<uint32_t> started = tasks_.Start(ns, id, "");
  if (!started.ok()) {
    (void)tasks_.Delete(ns, id);  // The error of the start counts.
    return started.status();
  }
  log::Info("restarted", {{"ns", ns}, {"id", id}});
  return absl::OkStatus();
}

}  // namespace bulkhead::runtime
