// What the object kinds share: the database, locks, transactions, sequence
// numbers, and the write barrier that lets garbage collection run beside
// writers.
//
// Locks, in the order in which they are taken:
//   1. digest locks (digests()): a blob's creation against its deletion in the
//      content service; may be held across calls to that service.
//   2. object locks, inside Txn: by database key; held for one short step.
//   3. the world lock, inside Txn: shared; exclusive for one short step of the
//      collector, or to delete a namespace.
// Readers take none of them.
#ifndef BULKHEAD_SERVICES_METADATA_STORE_H_
#define BULKHEAD_SERVICES_METADATA_STORE_H_

#include <google/protobuf/message_lite.h>

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "lib/base/status_macros.h"
#include "services/metadata/db.h"
#include "services/metadata/events.h"
#include "services/metadata/keyed_locks.h"
#include "services/metadata/schema.h"

namespace bulkhead::metadata {

// Thread-safe.
class Store {
 public:
  // `events` is borrowed and must outlive the store.
  Store(std::unique_ptr<Db> db, EventBus* events)
      : db_(std::move(db)), events_(events) {}

  Db& db() { return *db_; }
  const Db& db() const { return *db_; }
  EventBus& events() { return *events_; }
  KeyedLocks& digests() { return digests_; }

  // A number never handed out before, restarts included.
  absl::StatusOr<uint64_t> NextSequence();

  // Reads one record. nullopt: no such key. kDataLoss: the record does not
  // parse; it is named, and set aside: from now on there is no such key.
  template <typename Message>
  absl::StatusOr<std::optional<Message>> Get(
      const std::string& key, const Db::View* view = nullptr,
      std::string* stored = nullptr) const {
    ASSIGN_OR_RETURN(std::optional<std::string> bytes, db_->Get(key, view));
    if (!bytes.has_value()) return std::optional<Message>();
    std::optional<Message> message(std::in_place);
    if (!message->ParseFromString(*bytes)) return SetAside(key, *bytes);
    if (stored != nullptr) *stored = *std::move(bytes);
    return message;
  }

  // Visits the records with `prefix` in bytewise order. The visitor gets the
  // key's components and the message, or the message and its bytes; it may move
  // from the message and returns false to stop. Damaged records are set aside
  // and left out.
  template <typename Message, typename Visitor>
  absl::Status Scan(const std::string& prefix, const Visitor& visitor,
                    const Db::View* view = nullptr) const {
    Message message;  // One for all: its strings keep their memory.
    return db_->Scan(
        prefix,
        [&](std::string_view key, std::string_view value) {
          if (!message.ParseFromArray(value.data(),
                                      static_cast<int>(value.size()))) {
            (void)SetAside(std::string(key), std::string(value));  // It logs.
            return true;
          }
          if constexpr (std::is_invocable_v<Visitor, Message&,
                                            std::string_view>) {
            return visitor(message, value);
          } else {
            return visitor(Split(key), message);
          }
        },
        view);
  }

  // Moves a record that does not parse out of the way (kind::kDamaged), logs
  // its name and returns kDataLoss with it. Garbage collection spares a
  // namespace that has such records, as what they refer to is unknown.
  absl::Status SetAside(const std::string& key, const std::string& bytes) const;

  // True if any key has `prefix`.
  absl::StatusOr<bool> Any(const std::string& prefix,
                           const Db::View* view = nullptr) const;

  // kNotFound "lease does not exist" unless `lease` is empty or exists.
  absl::Status CheckLease(const std::string& ns,
                          const std::string& lease) const;

  // --- for the collector and namespace deletion ---

  // Runs `step` while no transaction is open.
  absl::Status Exclusive(const std::function<absl::Status()>& step);
  // From the returned view on, every key that a transaction writes is noted.
  std::unique_ptr<Db::View> BeginBarrier();
  // Keys noted since the last call.
  std::vector<std::string> TakeNoted();
  void EndBarrier();

  // Counters for the collector's schedule.
  std::atomic<int64_t> mutations{0};
  std::atomic<int64_t> deletions{0};
  // Called after either grew; must be cheap. Set before use.
  std::function<void()> on_change;

 private:
  friend class Txn;
  const std::unique_ptr<Db> db_;
  EventBus* const events_;
  KeyedLocks digests_;
  KeyedLocks objects_;
  absl::Mutex world_;

  absl::Mutex sequence_mutex_;
  uint64_t sequence_next_ = 0;
  uint64_t sequence_end_ = 0;  // First number not reserved.

  std::atomic<bool> barrier_{false};
  absl::Mutex noted_mutex_;
  std::vector<std::string> noted_;
};

// "image \"x\" in namespace \"y\"": the record of a key, for people.
std::string DescribeKey(const std::string& key);

// One short step: check, change, commit. Holds the locks of `keys` and the
// world (shared) from construction to destruction: never call out meanwhile.
// Reads see the database, not this transaction's own changes. Not thread-safe.
class Txn {
 public:
  // `keys`: every object that is checked or changed.
  Txn(Store& store, std::string ns, std::vector<std::string> keys);
  ~Txn();
  Txn(const Txn&) = delete;
  Txn& operator=(const Txn&) = delete;

  template <typename Message>
  absl::StatusOr<std::optional<Message>> Get(const std::string& key) const {
    return store_.Get<Message>(key);
  }
  absl::StatusOr<bool> Has(const std::string& key) const;

  void Put(const std::string& key, const google::protobuf::MessageLite& value);
  void PutEmpty(const std::string& key);
  void Delete(const std::string& key) { batch_.Delete(key); }

  // Checks as Store::CheckLease and, unless `lease` is empty, adds the
  // resource. The lease's key must be among `keys`.
  absl::Status AddToLease(const std::string& lease, const std::string& type,
                          const std::string& id);
  void RemoveFromLease(const std::string& lease, const std::string& type,
                       const std::string& id);

  // Kept with the changes, and handed out after a successful commit.
  void Publish(const std::string& topic,
               const google::protobuf::Message& event);
  // Makes the collector look at once.
  void NoteDeletion() { deletes_ = true; }

  // Applies durably; creates the namespace if it is new (not if the batch is
  // empty or the namespace name is).
  absl::Status Commit();

 private:
  Store& store_;
  const std::string ns_;
  KeyedLocks::Guard guard_;
  Batch batch_;
  std::vector<Envelope> events_;
  bool deletes_ = false;
};

}  // namespace bulkhead::metadata

#endif  // BULKHEAD_SERVICES_METADATA_STORE_H_
