// The event exchange: envelopes in, the same envelopes out to every subscriber
// whose filter matches, in the order of publication.
#ifndef BULKHEAD_SERVICES_METADATA_EVENTS_H_
#define BULKHEAD_SERVICES_METADATA_EVENTS_H_

#include <google/protobuf/any.pb.h>

#include <deque>
#include <functional>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "lib/filters/filters.h"
#include "proto/containerd/types/event.pb.h"

namespace bulkhead::metadata {

using containerd::types::Envelope;

// Envelopes that one subscriber may leave unread; past it the subscription
// breaks with kResourceExhausted, so that publishers never wait.
constexpr size_t kQueuedEventsMax = 65536;
constexpr size_t kSubscribersMax = 4096;

// `message` in an Any whose type URL is its bare name.
google::protobuf::Any PackEvent(const google::protobuf::Message& message);

// What an event filter sees: namespace, topic, event.<string field>.
std::optional<std::string> EventField(const Envelope& envelope,
                                      const filters::FieldPath& path);

// kInvalidArgument `envelope topic "x": must start with '/'` and the like.
absl::Status ValidateTopic(const std::string& topic);

class EventBus;

// One subscriber's queue. Thread-safe.
class Subscription {
 public:
  ~Subscription();
  // The next envelope, null if there is none yet. Once broken, the error.
  absl::StatusOr<std::shared_ptr<const Envelope>> Next();

 private:
  friend class EventBus;
  Subscription(EventBus* bus, filters::Filter filter,
               std::function<void()> on_ready)
      : bus_(bus), filter_(std::move(filter)), on_ready_(std::move(on_ready)) {}

  EventBus* const bus_;
  const filters::Filter filter_;
  const std::function<void()> on_ready_;
  absl::Mutex mutex_;
  std::deque<std::shared_ptr<const Envelope>> queue_;
  bool broken_ = false;
};

// Thread-safe; must outlive its subscriptions.
class EventBus {
 public:
  // Stamps with the time and hands out. Never blocks on a subscriber.
  void Publish(const std::string& ns, const std::string& topic,
               const google::protobuf::Message& event);
  void PublishAny(const std::string& ns, const std::string& topic,
                  const google::protobuf::Any& event);
  // As it is.
  void Forward(Envelope envelope);

  // `on_ready` is called, from a publisher's thread, whenever something was
  // queued; it must not block nor call the bus. Destroying the subscription
  // waits for a running `on_ready`.
  // Errors: kResourceExhausted: too many subscribers.
  absl::StatusOr<std::unique_ptr<Subscription>> Subscribe(
      filters::Filter filter, std::function<void()> on_ready);

 private:
  friend class Subscription;
  absl::Mutex mutex_;
  std::list<Subscription*> subscribers_;
};

}  // namespace bulkhead::metadata

#endif  // BULKHEAD_SERVICES_METADATA_EVENTS_H_
