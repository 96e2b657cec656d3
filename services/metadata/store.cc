#include "services/metadata/store.h"

#include "absl/strings/numbers.h"
#include "proto/containerd/services/namespaces/v1/namespaces.pb.h"

namespace bulkhead::metadata {
namespace {

constexpr uint64_t kSequenceBlock = 1024;

}  // namespace

absl::Status Store::Corrupt(const std::string& key) {
  return absl::DataLossError(absl::StrCat("metadata database: record of kind '",
                                          key.substr(0, 1), "' is damaged"));
}

absl::StatusOr<uint64_t> Store::NextSequence() {
  absl::MutexLock lock(&sequence_mutex_);
  if (sequence_next_ == sequence_end_) {
    const std::string key = Key(kind::kSequence, {});
    ASSIGN_OR_RETURN(std::optional<std::string> text, db_->Get(key));
    uint64_t begin = 1;
    if (text.has_value() && !absl::SimpleAtoi(*text, &begin)) {
      return Corrupt(key);
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
  events_.emplace_back(topic, PackEvent(event));
}

absl::Status Txn::Commit() {
  if (!batch_.changes.empty() && !ns_.empty()) {
    const std::string key = Key(kind::kNamespace, {ns_});
    ASSIGN_OR_RETURN(const bool known, Has(key));
    bool written = known;
    for (const auto& change : batch_.changes) written |= change.first == key;
    if (!written) {
      Put(key, containerd::services::namespaces::v1::Namespace());
    }
  }
  if (!batch_.changes.empty()) {
    // Noted before it is written: the collector must not miss it.
    if (store_.barrier_) {
      absl::MutexLock lock(&store_.noted_mutex_);
      for (const auto& [key, value] : batch_.changes) {
        if (value.has_value()) store_.noted_.push_back(key);
      }
    }
    RETURN_IF_ERROR(store_.db_->Write(batch_, true));
    ++store_.mutations;
    if (deletes_) ++store_.deletions;
    if (store_.on_change) store_.on_change();
  }
  for (const auto& [topic, event] : events_) {
    store_.events_->PublishAny(ns_, topic, event);
  }
  return absl::OkStatus();
}

}  // namespace bulkhead::metadata
