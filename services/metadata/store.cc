#include "services/metadata/store.h"

#include "absl/strings/numbers.h"
#include "lib/log/log.h"
#include "lib/stats/stats.h"
#include "proto/containerd/services/namespaces/v1/namespaces.pb.h"
#include "services/metadata/index.h"
#include "services/metadata/util.h"

namespace bulkhead::metadata {
namespace {

constexpr uint64_t kSequenceBlock = 1024;

}  // namespace

std::string DescribeKey(const std::string& key) {
  const std::vector<std::string> parts = Split(key);
  const char* what = "record";
  switch (key.empty() ? '\0' : key[0]) {
    case kind::kNamespace:
      return absl::StrCat("namespace ", Quoted(parts[0]));
    case kind::kImage:
      what = "image";
      break;
    case kind::kContainer:
      what = "container";
      break;
    case kind::kSandbox:
      what = "sandbox";
      break;
    case kind::kLease:
      what = "lease";
      break;
    case kind::kBlob:
      what = "blob";
      break;
    case kind::kIngest:
      what = "ingest";
      break;
    case kind::kSnapshot:
      what = "snapshot";
      break;
    default:
      break;
  }
  std::string text = absl::StrCat(what, " ", Quoted(parts.back()));
  if (parts.size() > 1) {
    absl::StrAppend(&text, " in namespace ", Quoted(parts[0]));
  }
  return text;
}

absl::Status Store::SetAside(const std::string& key,
                             const std::string& bytes) const {
  const absl::Status loss = absl::DataLossError(
      absl::StrCat("the record of ", DescribeKey(key),
                   " is damaged; it was set aside (see bulkhead fsck)"));
  ASSIGN_OR_RETURN(std::optional<std::string> now, db_->Get(key));
  if (!now.has_value() || *now != bytes) return loss;  // Replaced meanwhile.
  Batch batch;
  batch.Put(Prefix(kind::kDamaged, {}) + key, bytes);
  batch.Delete(key);
  const std::vector<std::string> parts = Split(key);
  if (parts.size() == 2) {  // What it had in the index, nobody can tell.
    RETURN_IF_ERROR(
        db_->Scan(Prefix(kind::kIndex, {parts[0], key.substr(0, 1)}),
                  [&](std::string_view entry, std::string_view) {
                    if (IndexedRecord(entry) == key)
                      batch.Delete(std::string(entry));
                    return true;
                  }));
  }
  log::Error("damaged record set aside", {{"record", DescribeKey(key)}});
  static stats::Value* const damaged =
      stats::Counter("bulkhead_metadata_damaged_records_total");
  damaged->Add();
  RETURN_IF_ERROR(db_->Write(batch, /*sync=*/true));
  return loss;
}

absl::StatusOr<uint64_t> Store::NextSequence() {
  absl::MutexLock lock(&sequence_mutex_);
  if (sequence_next_ == sequence_end_) {
    const std::string key = Key(kind::kSequence, {});
    ASSIGN_OR_RETURN(std::optional<std::string> text, db_->Get(key));
    uint64_t begin = 1;
    if (text.has_value() && !absl::SimpleAtoi(*text, &begin)) {
      return SetAside(key, *text);
    }
    Batch batch;
    batch.Put(key, std::to_string(begin + kSequenceBlock));
    RETURN_IF_ERROR(db_->Write(batch, true));
    sequence_next_ = begin;
    sequence_end_ = begin + kSequenceBlock;
  }
  return sequence_next_++;
}

absl::StatusOr<bool> Store::Any(const std::string& prefix,
                                const Db::View* view) const {
  bool any = false;
  RETURN_IF_ERROR(db_->Scan(
      prefix,
      [&any](std::string_view, std::string_view) {
        any = true;
        return false;
      },
      view));
  return any;
}

absl::Status Store::CheckLease(const std::string& ns,
                               const std::string& lease) const {
  if (lease.empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(std::optional<std::string> record,
                   db_->Get(Key(kind::kLease, {ns, lease})));
  if (!record.has_value()) {
    return absl::NotFoundError("lease does not exist");
  }
  return absl::OkStatus();
}

absl::Status Store::Exclusive(const std::function<absl::Status()>& step) {
  absl::WriterMutexLock lock(&world_);
  return step();
}

std::unique_ptr<Db::View> Store::BeginBarrier() {
  absl::WriterMutexLock lock(&world_);
  {
    absl::MutexLock noted_lock(&noted_mutex_);
    noted_.clear();
  }
  barrier_ = true;
  return db_->TakeView();
}

std::vector<std::string> Store::TakeNoted() {
  absl::MutexLock lock(&noted_mutex_);
  return std::exchange(noted_, {});
}

void Store::EndBarrier() {
  barrier_ = false;
  absl::MutexLock lock(&noted_mutex_);
  noted_.clear();
}

Txn::Txn(Store& store, std::string ns, std::vector<std::string> keys)
    : store_(store),
      ns_(std::move(ns)),
      guard_(store.objects_.Lock(std::move(keys))) {
  store_.world_.ReaderLock();
}

Txn::~Txn() { store_.world_.ReaderUnlock(); }

absl::StatusOr<bool> Txn::Has(const std::string& key) const {
  ASSIGN_OR_RETURN(std::optional<std::string> value, store_.db_->Get(key));
  return value.has_value();
}

void Txn::Put(const std::string& key,
              const google::protobuf::MessageLite& value) {
  batch_.Put(key, value.SerializeAsString());
}

void Txn::PutEmpty(const std::string& key) { batch_.Put(key, ""); }

absl::Status Txn::AddToLease(const std::string& lease, const std::string& type,
                             const std::string& id) {
  if (lease.empty()) return absl::OkStatus();
  RETURN_IF_ERROR(store_.CheckLease(ns_, lease));
  PutEmpty(Key(kind::kLeaseResource, {ns_, lease, type, id}));
  return absl::OkStatus();
}

void Txn::RemoveFromLease(const std::string& lease, const std::string& type,
                          const std::string& id) {
  if (lease.empty()) return;
  Delete(Key(kind::kLeaseResource, {ns_, lease, type, id}));
}

void Txn::Publish(const std::string& topic,
                  const google::protobuf::Message& event) {
  events_.push_back(MakeEnvelope(ns_, topic, PackEvent(event)));
}

absl::Status Txn::Commit() {
  if (batch_.changes.empty()) return absl::OkStatus();
  if (!ns_.empty()) {
    const std::string key = Key(kind::kNamespace, {ns_});
    ASSIGN_OR_RETURN(const bool known, Has(key));
    bool written = known;
    for (const auto& change : batch_.changes) written |= change.first == key;
    if (!written) {
      Put(key, containerd::services::namespaces::v1::Namespace());
    }
  }
  // Noted before it is written: the collector must not miss it.
  if (store_.barrier_) {
    absl::MutexLock lock(&store_.noted_mutex_);
    for (const auto& [key, value] : batch_.changes) {
      if (value.has_value()) store_.noted_.push_back(key);
    }
  }
  RETURN_IF_ERROR(AddIndexChanges(*store_.db_, &batch_));
  EventBus::Staged staged = store_.events_->Stage(std::move(events_), &batch_);
  const absl::Status written = store_.db_->Write(batch_, true);
  store_.events_->Finish(std::move(staged), written.ok());
  RETURN_IF_ERROR(written);
  ++store_.mutations;
  if (deletes_) ++store_.deletions;
  if (store_.on_change) store_.on_change();
  return absl::OkStatus();
}

}  // namespace bulkhead::metadata
