#include "services/snapshotter/mount_holders.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/match.h"
#include "lib/base/status_macros.h"
#include "lib/log/log.h"

namespace bulkhead::snapshotter {
namespace {

constexpr char kBackRef[] = "containerd.io/gc.bref.";

}  // namespace

std::vector<Holder> HoldersOf(const Activation& activation) {
  std::vector<Holder> holders;
  if (!activation.lease.empty()) {
    holders.push_back({Holder::Kind::kLease, "", activation.lease});
  }
  static const std::pair<const char*, Holder::Kind> kinds[] = {
      {"container", Holder::Kind::kContainer},
      {"image", Holder::Kind::kImage},
      {"content", Holder::Kind::kContent}};
  for (const auto& [label, value] : activation.labels) {
    if (!absl::StartsWith(label, kBackRef)) continue;
    const std::string what = label.substr(sizeof(kBackRef) - 1);
    if (absl::StartsWith(what, "snapshot.")) {  // snapshot.<name>[/x]
      const std::string name = what.substr(sizeof("snapshot.") - 1);
      holders.push_back(
          {Holder::Kind::kSnapshot, name.substr(0, name.find('/')), value});
      continue;
    }
    for (const auto& [word, kind] : kinds) {  // <word>[.x or /x]
      const std::string rest = absl::StartsWith(what, word)
                                   ? what.substr(std::string(word).size())
                                   : "-";
      if (rest.empty() || rest[0] == '.' || rest[0] == '/') {
        holders.push_back({kind, "", value});
      }
    }
  }
  return holders;
}

MountHolders::MountHolders(MountManager& manager, Asker asker,
                           absl::Duration between)
    : manager_(manager),
      asker_(std::move(asker)),
      between_(between),
      thread_([this] { Run(); }) {}

MountHolders::~MountHolders() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    changed_.notify_one();
  }
  thread_.join();
}

void MountHolders::Wake() {
  std::lock_guard lock(mutex_);
  woken_ = true;
  changed_.notify_one();
}

void MountHolders::Run() {
  bool held = false;
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    if (held) {
      changed_.wait_for(lock, absl::ToChronoMilliseconds(between_),
                        [this] { return stopping_; });
    } else {
      changed_.wait(lock, [this] { return stopping_ || woken_; });
    }
    if (stopping_) return;
    woken_ = false;
    lock.unlock();
    held = Look();
    lock.lock();
  }
}

bool MountHolders::Look() {
  bool left = false;
  for (const Activation& activation : manager_.List()) {
    const std::vector<Holder> holders = HoldersOf(activation);
    if (holders.empty()) continue;
    const std::string ns = activation.name.substr(0, activation.name.find('/'));
    const bool held =
        std::any_of(holders.begin(), holders.end(), [&](const Holder& holder) {
          const absl::StatusOr<bool> there = asker_(ns, holder);
          return !there.ok() || *there;
        });
    if (held) {
      left = true;
      continue;
    }
    const absl::Status status = manager_.Deactivate(activation.name);
    if (status.ok()) {
      log::Info("undoing mounts that nothing holds",
                {{"name", activation.name}});
    } else if (!absl::IsNotFound(status)) {
      left = true;
      log::Warn("mounts that nothing holds stay",
                {{"name", activation.name}, {"error", MessageOf(status)}});
    }
  }
  return left;
}

}  // namespace bulkhead::snapshotter
