// The event exchange: envelopes in, the same envelopes out to every subscriber
// whose filter matches, in the order of their sequence numbers.
//
// With OpenLog(), every envelope is kept in the database under its number, the
// newest `kept_max` of them (fewer if they are large), and a subscriber can
// begin where it once was. The event of a change is written in the change's own
// batch: it is durable exactly if the change is. One that others published
// (Publish, Forward) survives the death of this process at once, a power
// failure from the next synced change on. Numbers grow by one but may have
// gaps, where a change failed.
//
// The end of a process (TaskExit, TaskDelete) is kept and handed out once,
// however often it is forwarded: whoever forwards may die before it knows that
// it has.
#ifndef BULKHEAD_SERVICES_METADATA_EVENTS_H_
#define BULKHEAD_SERVICES_METADATA_EVENTS_H_

#include <google/protobuf/any.pb.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_set>
#include <vector>

#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "lib/filters/filters.h"
#include "proto/containerd/types/event.pb.h"
#include "services/metadata/db.h"

namespace bulkhead::metadata {

using containerd::types::Envelope;

// Envelopes that one subscriber may leave unread, and their bytes; past either
// the subscription breaks with kResourceExhausted, so that publishers never
// wait.
constexpr size_t kQueuedEventsMax = 65536;
constexpr size_t kQueuedEventBytesMax = 64 << 20;
// Each holds a thread of the server, which has 512.
constexpr size_t kSubscribersMax = 256;
// Of envelopes that the log keeps, however few they are: anybody may publish
// large ones.
constexpr int64_t kEventsKeptBytesMax = 64 << 20;

// Of the newest ends that came through Forward(): those are known again.
constexpr size_t kEndsKnownMax = 8192;

// `message` in an Any whose type URL is its bare name.
google::protobuf::Any PackEvent(const google::protobuf::Message& message);

// What an event filter sees: namespace, topic, event.<string field>.
std::optional<std::string> EventField(const Envelope& envelope,
                                      const filters::FieldPath& path);

// kInvalidArgument `envelope topic "x": must start with '/'` and the like.
absl::Status ValidateTopic(const std::string& topic);

class EventBus;

// What a subscriber gets.
struct Event {
  uint64_t sequence = 0;
  std::shared_ptr<const Envelope> envelope;
};

// One subscriber's queue. Thread-safe.
class Subscription {
 public:
  ~Subscription();
  // The next event; its envelope is null if there is none yet. Once broken, the
  // error. Reads the disk while it catches up with the log.
  absl::StatusOr<Event> Next();

 private:
  friend class EventBus;
  Subscription(EventBus* bus, filters::Filter filter,
               std::function<void()> on_ready)
      : bus_(bus), filter_(std::move(filter)), on_ready_(std::move(on_ready)) {}

  EventBus* const bus_;
  const filters::Filter filter_;
  const std::function<void()> on_ready_;
  bool Wants(const Envelope& envelope) const;
  // The next events of the log that match, into replayed_.
  absl::Status Replay();

  // Only Next() uses these.
  uint64_t replay_from_ = 0;
  uint64_t replay_end_ = 0;  // First number that the queue has.
  std::deque<Event> replayed_;

  absl::Mutex mutex_;
  std::deque<Event> queue_;
  size_t queued_bytes_ = 0;
  bool broken_ = false;
};

// Thread-safe; must outlive its subscriptions.
class EventBus {
 public:
  // Keeps the newest `kept_max` events, of `kept_bytes_max` together (at least
  // one), in `db`, which is borrowed, and numbers on from the last one there.
  // Call before use.
  absl::Status OpenLog(Db& db, int64_t kept_max,
                       int64_t kept_bytes_max = kEventsKeptBytesMax);

  // Events that wait for the batch that they are part of.
  class Staged {
   public:
    bool empty() const { return envelopes.empty(); }

   private:
    friend class EventBus;
    uint64_t first = 0;
    std::vector<std::shared_ptr<const Envelope>> envelopes;
    std::vector<uint32_t> sizes;  // As they are kept; none without a log.
  };
  // Numbers `envelopes` and adds them to `batch`. Every Stage() needs its
  // Finish(), soon: later events wait for it.
  Staged Stage(std::vector<Envelope> envelopes, Batch* batch);
  // The batch is written, or was given up: then nobody sees them.
  void Finish(Staged staged, bool committed);

  // Stamps with the time, keeps and hands out. Never blocks on a subscriber.
  // Errors: the disk's; then nobody sees the event.
  absl::Status Publish(const std::string& ns, const std::string& topic,
                       const google::protobuf::Message& event);
  absl::Status PublishAny(const std::string& ns, const std::string& topic,
                          const google::protobuf::Any& event);
  // As it is. OK without doing anything for a TaskExit or TaskDelete about the
  // same process and the same moment as one of the newest kEndsKnownMax, also
  // of those in the log that was opened.
  absl::Status Forward(Envelope envelope);

  // `on_ready` is called, from a publisher's thread, whenever something was
  // queued; it must not block nor call the bus. Destroying the subscription
  // waits for a running `on_ready`.
  // `after`: begin behind the event of this number; 0: with the oldest kept.
  // Not given: with what is published from now on.
  // Errors: kResourceExhausted: too many subscribers. kOutOfRange: events
  //   behind `after` are gone already. kFailedPrecondition: `after` is larger
  //   than any number given out (a restored backup).
  absl::StatusOr<std::unique_ptr<Subscription>> Subscribe(
      filters::Filter filter, std::function<void()> on_ready,
      std::optional<uint64_t> after = std::nullopt);

  // The number of the last event handed out; 0: none yet.
  uint64_t last() const;

 private:
  friend class Subscription;
  // Numbers, keeps and hands out.
  absl::Status Keep(Envelope envelope);
  void Deliver(const Event& event);  // Under mutex_.
  // Under mutex_: whether the log has more than it may, and the slack.
  bool TooLong(uint64_t slack_events, int64_t slack_bytes) const;
  void Trim();

  Db* db_ = nullptr;
  uint64_t kept_max_ = 1;
  int64_t kept_bytes_max_ = kEventsKeptBytesMax;
  mutable absl::Mutex mutex_;
  std::list<Subscription*> subscribers_;
  uint64_t next_ = 1;     // Next number to give out.
  uint64_t pending_ = 1;  // First number that was not finished.
  uint64_t oldest_ = 1;   // First number that may be in the log.
  // Bytes of each from oldest_ up to pending_; 0: not there.
  std::deque<uint32_t> sizes_;
  int64_t kept_bytes_ = 0;  // Their sum.
  // Finished, but behind one that is not. Null: given up.
  struct Finished {
    std::shared_ptr<const Envelope> envelope;
    uint32_t size_bytes = 0;
  };
  std::map<uint64_t, Finished> finished_;

  // The ends of processes that were forwarded, each by what it is about.
  class Ends {
   public:
    bool Has(const std::string& end) const { return known_.contains(end); }
    void Add(std::string end);

   private:
    std::unordered_set<std::string> known_;
    std::deque<const std::string*> oldest_first_;
  };
  // Held while an end is kept, so that the same one waits for the outcome.
  // Taken before mutex_.
  absl::Mutex ends_mutex_;
  Ends ends_;
};

// An envelope with its time set to now.
Envelope MakeEnvelope(const std::string& ns, const std::string& topic,
                      const google::protobuf::Any& event);

}  // namespace bulkhead::metadata

#endif  // BULKHEAD_SERVICES_METADATA_EVENTS_H_
