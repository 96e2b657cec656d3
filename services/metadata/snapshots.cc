#include "services/metadata/snapshots.h"

#include <algorithm>
#include <unordered_map>
#include <unordered_set>

#include "absl/strings/match.h"
#include "lib/log/log.h"
#include "proto/containerd/events/snapshot.pb.h"
#include "services/metadata/parallel.h"

namespace bulkhead::metadata {
namespace {

namespace events = containerd::events;
using snapshots_v1::Info;

constexpr char kInheritedPrefix[] = "containerd.io/snapshot/";
constexpr size_t kRemovalStepMax = 64;

std::string RecordKey(const SnapshotCall& call, const std::string& key) {
  return Key(kind::kSnapshot, {call.ns, call.snapshotter, key});
}

std::string LeaseType(const SnapshotCall& call) {
  return absl::StrCat("snapshots/", call.snapshotter);
}

bool Inherited(const std::string& label) {
  return absl::StartsWith(label, kInheritedPrefix) ||
         label == kLabelSnapshotRef;
}

// The labels that backends get to see.
LabelMap BackendLabels(const LabelMap& labels) {
  LabelMap result;
  for (const auto& [key, value] : labels) {
    if (Inherited(key) && !value.empty()) result[key] = value;
  }
  return result;
}

absl::Status NoSnapshot(const std::string& key) {
  return absl::NotFoundError(absl::StrCat("snapshot ", key, " does not exist"));
}

std::vector<std::string> KeysOf(const SnapshotCall& call,
                                const std::vector<std::string>& names) {
  std::vector<std::string> keys;
  for (const std::string& name : names) {
    if (!name.empty()) keys.push_back(RecordKey(call, name));
  }
  if (!call.lease.empty()) {
    keys.push_back(Key(kind::kLease, {call.ns, call.lease}));
  }
  return keys;
}

// As clients see it; backend labels lie under theirs.
Info ToInfo(const std::string& key, const SnapshotRecord& record,
            const LabelMap& backend_labels) {
  Info info;
  info.set_name(key);
  info.set_parent(record.parent());
  info.set_kind(static_cast<snapshots_v1::Kind>(record.kind()));
  *info.mutable_created_at() = record.created_at();
  *info.mutable_updated_at() = record.updated_at();
  *info.mutable_labels() = backend_labels;
  for (const auto& [name, value] : record.labels()) {
    (*info.mutable_labels())[name] = value;
  }
  return info;
}

std::optional<std::string> InfoField(const Info& info,
                                     const filters::FieldPath& path) {
  if (path[0] == "kind") {
    switch (info.kind()) {
      case snapshots_v1::ACTIVE:
        return "active";
      case snapshots_v1::VIEW:
        return "view";
      case snapshots_v1::COMMITTED:
        return "committed";
      default:
        return std::nullopt;
    }
  }
  if (path[0] == "name") return info.name();
  if (path[0] == "parent") return info.parent();
  if (path[0] == "labels") return filters::MapField(info.labels(), path);
  return std::nullopt;
}

}  // namespace

void DeleteSnapshotRecord(const std::string& ns, const std::string& snapshotter,
                          const std::string& key, const SnapshotRecord& record,
                          const std::function<void(std::string)>& drop) {
  drop(Key(kind::kSnapshot, {ns, snapshotter, key}));
  if (!record.parent().empty()) {
    drop(Key(kind::kSnapshotChild, {ns, snapshotter, record.parent(), key}));
  }
  drop(Key(kind::kSnapshotBackend,
           {snapshotter, record.backend_key(), ns, key}));
}

Snapshots::Snapshots(Store& store, Backends backends)
    : store_(store), backends_(std::move(backends)) {
  const absl::Status status =
      store_.db().Scan(Prefix(kind::kSnapshotCommit, {}),
                       [this](std::string_view key, std::string_view) {
                         const std::vector<std::string> parts = Split(key);
                         unsettled_[parts[0]].insert(parts[1]);
                         return true;
                       });
  if (!status.ok()) {
    log::Error("commits under way are not known",
               {{"error", MessageOf(status)}});
  }
}

absl::StatusOr<SnapshotBackend*> Snapshots::Ready(const SnapshotCall& call) {
  ASSIGN_OR_RETURN(SnapshotBackend* const backend, Backend(call));
  RETURN_IF_ERROR(Settle(call.snapshotter));
  return backend;
}

absl::Status Snapshots::Settle(const std::string& snapshotter) {
  std::set<std::string> keys;
  {
    absl::MutexLock lock(&unsettled_mutex_);
    auto it = unsettled_.find(snapshotter);
    if (it == unsettled_.end()) return absl::OkStatus();
  }
  // One at a time; who comes later waits for the outcome.
  absl::MutexLock settling(&settling_);
  {
    absl::MutexLock lock(&unsettled_mutex_);
    auto it = unsettled_.find(snapshotter);
    if (it == unsettled_.end()) return absl::OkStatus();
    keys = it->second;
  }
  ASSIGN_OR_RETURN(SnapshotBackend* const backend,
                   Backend({"", "", snapshotter}));
  for (const std::string& backend_key : keys) {
    const KeyedLocks::Guard guard = backend_keys_.Lock({backend_key});
    const std::string key =
        Key(kind::kSnapshotCommit, {snapshotter, backend_key});
    ASSIGN_OR_RETURN(std::optional<CommitRecord> commit,
                     store_.Get<CommitRecord>(key));
    if (commit.has_value()) {
      const absl::StatusOr<Info> made = backend->Stat(backend_key);
      if (!made.ok() && !absl::IsNotFound(made.status())) {
        return Annotate(made.status(),
                        absl::StrCat("commit of snapshot ",
                                     Quoted(commit->key()), " under way"));
      }
      const std::string active =
          Key(kind::kSnapshot, {commit->ns(), snapshotter, commit->key()});
      ASSIGN_OR_RETURN(std::optional<SnapshotRecord> record,
                       store_.Get<SnapshotRecord>(active));
      if (made.ok() && record.has_value() &&
          record->backend_key() == commit->active_backend_key()) {
        log::Info("finishing a commit that was cut short",
                  {{"namespace", commit->ns()},
                   {"snapshot", commit->key()},
                   {"name", commit->name()}});
        CommitRecord now = *commit;
        // The lease may be gone; what it held is garbage then, and found so.
        if (!store_.CheckLease(now.ns(), now.lease()).ok()) now.clear_lease();
        const absl::Status finished = FinishCommit(snapshotter, now);
        // Its name was taken meanwhile: what it made is garbage.
        if (!absl::IsAlreadyExists(finished)) RETURN_IF_ERROR(finished);
      }
      Batch batch;
      batch.Delete(key);
      RETURN_IF_ERROR(store_.db().Write(batch, /*sync=*/true));
    }
    absl::MutexLock lock(&unsettled_mutex_);
    auto it = unsettled_.find(snapshotter);
    it->second.erase(backend_key);
    if (it->second.empty()) unsettled_.erase(it);
  }
  return absl::OkStatus();
}

absl::StatusOr<SnapshotBackend*> Snapshots::Backend(
    const SnapshotCall& call) const {
  if (call.snapshotter.empty()) {
    return absl::InvalidArgumentError("snapshotter argument missing");
  }
  std::lock_guard lock(backends_mutex_);
  auto it = backends_.find(call.snapshotter);
  if (it == backends_.end()) {
    return absl::InvalidArgumentError(
        absl::StrCat("snapshotter not loaded: ", call.snapshotter));
  }
  return it->second.get();
}

absl::StatusOr<SnapshotRecord> Snapshots::Find(const SnapshotCall& call,
                                               const std::string& key) const {
  RETURN_IF_ERROR(CheckComponent(key, "snapshot key"));
  ASSIGN_OR_RETURN(std::optional<SnapshotRecord> record,
                   store_.Get<SnapshotRecord>(RecordKey(call, key)));
  if (!record.has_value()) return NoSnapshot(key);
  return *std::move(record);
}

template <typename T>
absl::StatusOr<T> Snapshots::Ask(
    const SnapshotCall& call, const std::string& key,
    absl::FunctionRef<absl::StatusOr<T>(const SnapshotRecord&)> ask) {
  ASSIGN_OR_RETURN(const SnapshotRecord record, Find(call, key));
  absl::StatusOr<T> answer = ask(record);
  if (!absl::IsNotFound(answer.status())) return answer;
  const KeyedLocks::Guard guard = backend_keys_.Lock({record.backend_key()});
  ASSIGN_OR_RETURN(const SnapshotRecord settled, Find(call, key));
  return ask(settled);
}

absl::Status Snapshots::CheckAbsent(const SnapshotCall& call,
                                    const std::string& name, const char* what) {
  Txn txn(store_, call.ns, KeysOf(call, {name}));
  ASSIGN_OR_RETURN(const bool exists, txn.Has(RecordKey(call, name)));
  if (!exists) return absl::OkStatus();
  RETURN_IF_ERROR(txn.AddToLease(call.lease, LeaseType(call), name));
  RETURN_IF_ERROR(txn.Commit());
  return absl::AlreadyExistsError(absl::StrCat(what, " ", Quoted(name)));
}

absl::Status Snapshots::PutNew(Txn& txn, const SnapshotCall& call,
                               const std::string& key,
                               const SnapshotRecord& record,
                               const std::string& backend_parent) {
  if (!record.parent().empty()) {
    ASSIGN_OR_RETURN(std::optional<SnapshotRecord> parent,
                     txn.Get<SnapshotRecord>(RecordKey(call, record.parent())));
    if (!parent.has_value() || parent->backend_key() != backend_parent) {
      return absl::NotFoundError(
          absl::StrCat("parent snapshot ", record.parent(), " does not exist"));
    }
    txn.PutEmpty(Key(kind::kSnapshotChild,
                     {call.ns, call.snapshotter, record.parent(), key}));
  }
  RETURN_IF_ERROR(txn.AddToLease(call.lease, LeaseType(call), key));
  txn.Put(RecordKey(call, key), record);
  txn.PutEmpty(Key(kind::kSnapshotBackend,
                   {call.snapshotter, record.backend_key(), call.ns, key}));
  return absl::OkStatus();
}

absl::StatusOr<Mounts> Snapshots::Prepare(const SnapshotCall& call, bool view,
                                          const std::string& key,
                                          const std::string& parent,
                                          const LabelMap& labels) {
  ASSIGN_OR_RETURN(SnapshotBackend* const backend, Ready(call));
  if (key.empty()) return absl::InvalidArgumentError("snapshot key missing");
  RETURN_IF_ERROR(CheckComponent(key, "snapshot key"));
  RETURN_IF_ERROR(CheckComponent(parent, "snapshot parent"));
  RETURN_IF_ERROR(CheckLabels(labels, "Labels"));
  RETURN_IF_ERROR(store_.CheckLease(call.ns, call.lease));
  std::string target;
  if (auto it = labels.find(kLabelSnapshotRef); it != labels.end()) {
    target = it->second;
    RETURN_IF_ERROR(CheckComponent(target, "snapshot reference"));
  }
  if (!target.empty()) {
    RETURN_IF_ERROR(CheckAbsent(call, target, "target snapshot"));
  }
  RETURN_IF_ERROR(CheckAbsent(call, key, "snapshot"));
  std::string backend_parent;
  if (!parent.empty()) {
    const absl::StatusOr<SnapshotRecord> found = Find(call, parent);
    if (absl::IsNotFound(found.status())) {
      return absl::NotFoundError(
          absl::StrCat("parent snapshot ", parent, " does not exist"));
    }
    RETURN_IF_ERROR(found.status());
    if (found->kind() != snapshots_v1::COMMITTED) {
      return absl::InvalidArgumentError(absl::StrCat(
          "parent ", Quoted(parent), " is not committed snapshot"));
    }
    backend_parent = found->backend_key();
  }

  ASSIGN_OR_RETURN(const uint64_t sequence, store_.NextSequence());
  SnapshotRecord record;
  record.set_backend_key(absl::StrCat(call.ns, "/", sequence, "/", key));
  record.set_parent(parent);
  record.set_kind(view ? snapshots_v1::VIEW : snapshots_v1::ACTIVE);
  *record.mutable_labels() = labels;
  DropEmpty(record.mutable_labels());

  KeyedLocks::Guard guard = backend_keys_.Lock({record.backend_key()});
  const LabelMap backend_labels = BackendLabels(labels);
  absl::StatusOr<Mounts> mounts =
      view ? backend->View(record.backend_key(), backend_parent, backend_labels)
           : backend->Prepare(record.backend_key(), backend_parent,
                              backend_labels);
  if (absl::IsAlreadyExists(mounts.status())) {
    if (target.empty()) {
      return absl::UnknownError(absl::StrCat(
          "snapshotter ", Quoted(call.snapshotter),
          " has the new snapshot already: ", MessageOf(mounts.status())));
    }
    guard.Release();
    return AdoptRemote(call, backend, target, parent, backend_parent, labels);
  }
  RETURN_IF_ERROR(mounts.status());

  *record.mutable_created_at() = Now();
  *record.mutable_updated_at() = record.created_at();
  const absl::Status recorded = [&]() -> absl::Status {
    Txn txn(store_, call.ns, KeysOf(call, {key, parent}));
    ASSIGN_OR_RETURN(const bool exists, txn.Has(RecordKey(call, key)));
    if (exists) {
      return absl::AlreadyExistsError(absl::StrCat("snapshot ", Quoted(key)));
    }
    RETURN_IF_ERROR(PutNew(txn, call, key, record, backend_parent));
    if (!view) {
      events::SnapshotPrepare event;
      event.set_key(key);
      event.set_parent(parent);
      event.set_snapshotter(call.snapshotter);
      txn.Publish("/snapshot/prepare", event);
    }
    return txn.Commit();
  }();
  if (!recorded.ok()) {
    (void)backend->Remove(record.backend_key());  // Else swept later.
    return recorded;
  }
  return mounts;
}

absl::Status Snapshots::AdoptRemote(const SnapshotCall& call,
                                    SnapshotBackend* backend,
                                    const std::string& target,
                                    const std::string& parent,
                                    const std::string& backend_parent,
                                    const LabelMap& labels) {
  std::string found;
  RETURN_IF_ERROR(backend->List(
      {absl::StrCat("labels.\"", kLabelSnapshotRef, "\"==", Quoted(target),
                    ",parent==", Quoted(backend_parent))},
      [&](const Info& info) {
        auto it = info.labels().find(kLabelSnapshotRef);
        if (info.kind() == snapshots_v1::COMMITTED &&
            it != info.labels().end() && it->second == target &&
            info.parent() == backend_parent) {
          found = info.name();
        }
      }));
  const absl::Status absent = absl::NotFoundError(
      absl::StrCat("target snapshot ", Quoted(target), " in backend"));
  if (found.empty()) return absent;

  // The sweep may be about to remove it: look again under the lock.
  const KeyedLocks::Guard guard = backend_keys_.Lock({found});
  RETURN_IF_ERROR(backend->Stat(found).status());
  SnapshotRecord record;
  record.set_backend_key(found);
  record.set_parent(parent);
  record.set_kind(snapshots_v1::COMMITTED);
  *record.mutable_labels() = labels;
  DropEmpty(record.mutable_labels());
  *record.mutable_created_at() = Now();
  *record.mutable_updated_at() = record.created_at();
  Txn txn(store_, call.ns, KeysOf(call, {target, parent}));
  ASSIGN_OR_RETURN(const bool exists, txn.Has(RecordKey(call, target)));
  if (exists) {
    RETURN_IF_ERROR(txn.AddToLease(call.lease, LeaseType(call), target));
  } else {
    RETURN_IF_ERROR(PutNew(txn, call, target, record, backend_parent));
  }
  RETURN_IF_ERROR(txn.Commit());
  return absl::AlreadyExistsError(
      absl::StrCat("target snapshot ", Quoted(target)));
}

absl::StatusOr<Mounts> Snapshots::MountsOf(const SnapshotCall& call,
                                           const std::string& key) {
  ASSIGN_OR_RETURN(SnapshotBackend* const backend, Ready(call));
  return Ask<Mounts>(
      call, key, [&](const SnapshotRecord& record) -> absl::StatusOr<Mounts> {
        if (record.kind() == snapshots_v1::COMMITTED) {
          return absl::FailedPreconditionError(
              absl::StrCat("requested snapshot ", key, " not active or view"));
        }
        return backend->MountsOf(record.backend_key());
      });
}

absl::Status Snapshots::Commit(const SnapshotCall& call,
                               const std::string& name, const std::string& key,
                               const std::string& parent,
                               const LabelMap& labels) {
  ASSIGN_OR_RETURN(SnapshotBackend* const backend, Ready(call));
  if (name.empty()) return absl::InvalidArgumentError("snapshot name missing");
  RETURN_IF_ERROR(CheckComponent(name, "snapshot name"));
  RETURN_IF_ERROR(CheckComponent(parent, "snapshot parent"));
  RETURN_IF_ERROR(CheckLabels(labels, "Labels"));
  RETURN_IF_ERROR(store_.CheckLease(call.ns, call.lease));
  RETURN_IF_ERROR(CheckAbsent(call, name, "snapshot"));
  ASSIGN_OR_RETURN(const SnapshotRecord active, Find(call, key));
  if (active.kind() != snapshots_v1::ACTIVE) {
    return absl::FailedPreconditionError(
        absl::StrCat("snapshot ", Quoted(key), " is not active"));
  }
  SnapshotRecord record;
  record.set_parent(active.parent());
  std::string rebase;
  if (!parent.empty() && parent != active.parent()) {
    if (!active.parent().empty()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "snapshot ", Quoted(key), " has parent ", Quoted(active.parent()),
          ": cannot change it to ", Quoted(parent)));
    }
    record.set_parent(parent);
  }
  std::string backend_parent;
  if (!record.parent().empty()) {
    const absl::StatusOr<SnapshotRecord> found = Find(call, record.parent());
    if (absl::IsNotFound(found.status())) {
      return absl::NotFoundError(
          absl::StrCat("parent snapshot ", record.parent(), " does not exist"));
    }
    RETURN_IF_ERROR(found.status());
    if (found->kind() != snapshots_v1::COMMITTED) {
      return absl::InvalidArgumentError(absl::StrCat(
          "parent ", Quoted(record.parent()), " is not committed snapshot"));
    }
    backend_parent = found->backend_key();
    if (active.parent().empty()) rebase = backend_parent;
  }

  ASSIGN_OR_RETURN(const uint64_t sequence, store_.NextSequence());
  record.set_backend_key(absl::StrCat(call.ns, "/", sequence, "/", name));
  record.set_kind(snapshots_v1::COMMITTED);
  *record.mutable_labels() = labels;
  DropEmpty(record.mutable_labels());
  *record.mutable_created_at() = Now();
  *record.mutable_updated_at() = record.created_at();

  CommitRecord commit;
  commit.set_ns(call.ns);
  commit.set_key(key);
  commit.set_name(name);
  commit.set_active_backend_key(active.backend_key());
  commit.set_active_parent(active.parent());
  commit.set_backend_parent(backend_parent);
  commit.set_lease(call.lease);
  *commit.mutable_record() = record;
  const std::string commit_key =
      Key(kind::kSnapshotCommit, {call.snapshotter, record.backend_key()});
  const KeyedLocks::Guard guard =
      backend_keys_.Lock({record.backend_key(), active.backend_key()});
  {
    Batch batch;
    batch.Put(commit_key, commit.SerializeAsString());
    RETURN_IF_ERROR(store_.db().Write(batch, /*sync=*/true));
  }
  absl::Status status =
      backend->Commit(record.backend_key(), active.backend_key(), rebase,
                      BackendLabels(labels));
  if (status.ok()) status = FinishCommit(call.snapshotter, commit);
  if (status.ok()) return status;
  absl::MutexLock lock(&unsettled_mutex_);
  unsettled_[call.snapshotter].insert(record.backend_key());
  return status;
}

absl::Status Snapshots::FinishCommit(const std::string& snapshotter,
                                     const CommitRecord& commit) {
  const SnapshotRecord& record = commit.record();
  const std::string& name = commit.name();
  const std::string& key = commit.key();
  const SnapshotCall call{commit.ns(), commit.lease(), snapshotter};
  Txn txn(store_, call.ns, KeysOf(call, {name, key, record.parent()}));
  ASSIGN_OR_RETURN(const bool exists, txn.Has(RecordKey(call, name)));
  if (exists) {
    return absl::AlreadyExistsError(absl::StrCat("snapshot ", Quoted(name)));
  }
  SnapshotRecord active;
  active.set_backend_key(commit.active_backend_key());
  active.set_parent(commit.active_parent());
  DeleteSnapshotRecord(call.ns, call.snapshotter, key, active,
                       [&txn](std::string gone) { txn.Delete(gone); });
  txn.RemoveFromLease(call.lease, LeaseType(call), key);
  RETURN_IF_ERROR(PutNew(txn, call, name, record, commit.backend_parent()));
  txn.Delete(
      Key(kind::kSnapshotCommit, {call.snapshotter, record.backend_key()}));
  events::SnapshotCommit event;
  event.set_key(key);
  event.set_name(name);
  event.set_snapshotter(call.snapshotter);
  txn.Publish("/snapshot/commit", event);
  return txn.Commit();
}

absl::Status Snapshots::Remove(const SnapshotCall& call,
                               const std::string& key) {
  RETURN_IF_ERROR(Ready(call).status());
  RETURN_IF_ERROR(CheckComponent(key, "snapshot key"));
  Txn txn(store_, call.ns, KeysOf(call, {key}));
  ASSIGN_OR_RETURN(std::optional<SnapshotRecord> record,
                   txn.Get<SnapshotRecord>(RecordKey(call, key)));
  if (!record.has_value()) return NoSnapshot(key);
  ASSIGN_OR_RETURN(const bool parent,
                   store_.Any(Prefix(kind::kSnapshotChild,
                                     {call.ns, call.snapshotter, key})));
  if (parent) {
    return absl::FailedPreconditionError("cannot remove snapshot with child");
  }
  DeleteSnapshotRecord(call.ns, call.snapshotter, key, *record,
                       [&txn](std::string gone) { txn.Delete(gone); });
  txn.RemoveFromLease(call.lease, LeaseType(call), key);
  txn.NoteDeletion();
  events::SnapshotRemove event;
  event.set_key(key);
  event.set_snapshotter(call.snapshotter);
  txn.Publish("/snapshot/remove", event);
  return txn.Commit();
}

absl::StatusOr<Info> Snapshots::Stat(const SnapshotCall& call,
                                     const std::string& key) {
  ASSIGN_OR_RETURN(SnapshotBackend* const backend, Ready(call));
  return Ask<Info>(
      call, key, [&](const SnapshotRecord& record) -> absl::StatusOr<Info> {
        ASSIGN_OR_RETURN(const Info info, backend->Stat(record.backend_key()));
        return ToInfo(key, record, info.labels());
      });
}

absl::StatusOr<Info> Snapshots::Update(const SnapshotCall& call,
                                       const Info& wanted,
                                       const std::vector<std::string>& mask) {
  ASSIGN_OR_RETURN(SnapshotBackend* const backend, Ready(call));
  if (wanted.name().empty()) {
    return absl::InvalidArgumentError("snapshot name missing");
  }
  const LabelMap inherited = BackendLabels(wanted.labels());
  bool pass_on = mask.empty() && !inherited.empty();
  std::vector<std::string> backend_mask;
  for (const std::string& path : mask) {
    std::string label;
    if (MaskKey(path, "labels", &label)) {
      if (!Inherited(label)) continue;
      backend_mask.push_back(path);
      pass_on = true;
    } else if (path == "labels") {
      backend_mask.push_back(path);
      pass_on = true;
    } else {
      return absl::InvalidArgumentError(
          absl::StrCat("cannot update ", Quoted(path), " field on snapshot ",
                       Quoted(wanted.name())));
    }
  }
  SnapshotRecord record;
  {
    const std::string key = RecordKey(call, wanted.name());
    RETURN_IF_ERROR(CheckComponent(wanted.name(), "snapshot name"));
    Txn txn(store_, call.ns, {key});
    ASSIGN_OR_RETURN(std::optional<SnapshotRecord> found,
                     txn.Get<SnapshotRecord>(key));
    if (!found.has_value()) return NoSnapshot(wanted.name());
    record = *std::move(found);
    if (mask.empty()) *record.mutable_labels() = wanted.labels();
    for (const std::string& path : mask) {
      std::string label;
      if (MaskKey(path, "labels", &label)) {
        SetLabel(label, wanted.labels(), record.mutable_labels());
      } else {
        *record.mutable_labels() = wanted.labels();
      }
    }
    RETURN_IF_ERROR(CheckLabels(record.labels(), "Labels"));
    DropEmpty(record.mutable_labels());
    *record.mutable_updated_at() = Now();
    txn.Put(key, record);
    RETURN_IF_ERROR(txn.Commit());
  }
  if (pass_on) {
    Info info;
    info.set_name(record.backend_key());
    *info.mutable_labels() = inherited;
    RETURN_IF_ERROR(backend->Update(info, backend_mask));
  }
  ASSIGN_OR_RETURN(const Info info, backend->Stat(record.backend_key()));
  return ToInfo(wanted.name(), record, info.labels());
}

absl::Status Snapshots::List(const SnapshotCall& call,
                             const filters::Filter& filter,
                             const std::function<bool(Info&)>& visitor) {
  ASSIGN_OR_RETURN(SnapshotBackend* const backend, Ready(call));
  ASSIGN_OR_RETURN(
      const bool any,
      store_.Any(Prefix(kind::kSnapshot, {call.ns, call.snapshotter})));
  if (!any) return absl::OkStatus();
  // Of what the backend has, only what matters here: that it is there (by a
  // hash of its key), and labels, which few have.
  std::unordered_set<size_t> present;
  std::unordered_map<std::string, LabelMap> backend_labels;
  const auto gather = [&](const Info& info) {
    present.insert(std::hash<std::string>()(info.name()));
    LabelMap own;
    for (const auto& [name, value] : info.labels()) {
      if (name != kLabelSnapshotRef) own[name] = value;
    }
    if (!own.empty()) backend_labels[info.name()] = std::move(own);
  };
  std::unique_ptr<Db::View> view = store_.db().TakeView();
  RETURN_IF_ERROR(backend->List({}, gather));
  return store_.Scan<SnapshotRecord>(
      Prefix(kind::kSnapshot, {call.ns, call.snapshotter}),
      [&](const std::vector<std::string>& key, SnapshotRecord& record) {
        const std::string& backend_key = record.backend_key();
        if (!present.contains(std::hash<std::string>()(backend_key))) {
          return true;  // Removed meanwhile.
        }
        const auto labels = backend_labels.find(backend_key);
        Info info = ToInfo(
            key[2], record,
            labels == backend_labels.end() ? LabelMap() : labels->second);
        const bool wanted =
            filter.Match([&info](const filters::FieldPath& path) {
              return InfoField(info, path);
            });
        return !wanted || visitor(info);
      },
      view.get());
}

absl::StatusOr<snapshots_v1::UsageResponse> Snapshots::Usage(
    const SnapshotCall& call, const std::string& key) {
  ASSIGN_OR_RETURN(SnapshotBackend* const backend, Ready(call));
  return Ask<snapshots_v1::UsageResponse>(
      call, key, [backend](const SnapshotRecord& record) {
        return backend->Usage(record.backend_key());
      });
}

void Snapshots::ReplaceBackends(Backends fresh) {
  std::lock_guard lock(backends_mutex_);
  for (auto& [name, backend] : fresh) {
    std::unique_ptr<SnapshotBackend>& slot = backends_[name];
    if (slot != nullptr) retired_.push_back(std::move(slot));
    slot = std::move(backend);
  }
}

std::vector<std::string> Snapshots::names() const {
  std::vector<std::string> names;
  std::lock_guard lock(backends_mutex_);
  for (const auto& [name, backend] : backends_) names.push_back(name);
  return names;
}

absl::Status Snapshots::SweepBackend(const std::string& snapshotter,
                                     absl::Duration* waited) {
  ASSIGN_OR_RETURN(SnapshotBackend* const backend,
                   Ready({"", "", snapshotter}));
  std::unordered_map<std::string, std::string> parents;  // By backend key.
  RETURN_IF_ERROR(backend->List({}, [&parents](const Info& info) {
    parents[info.name()] = info.parent();
  }));
  const auto named = [&](const std::string& backend_key) {
    return store_.Any(
        Prefix(kind::kSnapshotBackend, {snapshotter, backend_key}));
  };
  std::unordered_map<std::string, int> children;
  for (const auto& [key, parent] : parents) ++children[parent];
  std::vector<std::string> leaves;
  for (const auto& [key, parent] : parents) {
    if (!children.contains(key)) leaves.push_back(key);
  }
  // Those of `keys` that no record names.
  const auto free = [&](const std::vector<std::string>& keys)
      -> absl::StatusOr<std::vector<std::string>> {
    std::vector<std::string> found;
    for (const std::string& key : keys) {
      ASSIGN_OR_RETURN(const bool used, named(key));
      if (used) continue;
      // A commit without an answer may have made it just now.
      ASSIGN_OR_RETURN(
          const std::optional<std::string> commit,
          store_.db().Get(Key(kind::kSnapshotCommit, {snapshotter, key})));
      if (!commit.has_value()) found.push_back(key);
    }
    return found;
  };
  absl::Status first;
  bool removed = false;
  while (!leaves.empty()) {
    const size_t count = std::min(leaves.size(), kRemovalStepMax);
    std::vector<std::string> step(leaves.end() - count, leaves.end());
    leaves.resize(leaves.size() - count);
    std::vector<absl::Status> results;
    {
      const KeyedLocks::Guard guard = backend_keys_.Lock(step);
      absl::StatusOr<std::vector<std::string>> unused = free(step);
      if (unused.ok()) {
        step = *std::move(unused);
        if (!step.empty()) results = backend->RemoveMany(step);
      } else {
        results.assign(step.size(), unused.status());
      }
    }
    for (size_t i = 0; i < step.size(); ++i) {
      // Below something that we were not told of: stays for now.
      if (absl::IsFailedPrecondition(results[i])) continue;
      if (!results[i].ok() && !absl::IsNotFound(results[i])) {
        log::Warn("garbage not removed, will be tried again",
                  {{"snapshotter", snapshotter},
                   {"snapshot", step[i]},
                   {"error", MessageOf(results[i])}});
        first.Update(results[i]);
        continue;
      }
      removed = true;
      const std::string& parent = parents[step[i]];
      if (!parent.empty() && --children[parent] == 0 &&
          parents.contains(parent)) {
        leaves.push_back(parent);
      }
    }
  }
  if (removed) {
    const absl::Time began = absl::Now();
    const absl::Status status = backend->Cleanup();
    if (waited != nullptr) *waited = absl::Now() - began;
    if (!absl::IsUnimplemented(status)) first.Update(status);
  }
  return first;
}

}  // namespace bulkhead::metadata
