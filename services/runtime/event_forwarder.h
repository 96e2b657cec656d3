// Events on their way from shims (and from this service, for shims that died)
// to metadata: in order, kept while metadata restarts, none lost.
#ifndef BULKHEAD_SERVICES_RUNTIME_EVENT_FORWARDER_H_
#define BULKHEAD_SERVICES_RUNTIME_EVENT_FORWARDER_H_

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "proto/containerd/types/event.pb.h"

namespace bulkhead::runtime {

constexpr size_t kEventsBufferedMax = 100'000;
constexpr size_t kEventBytesBufferedMax = 64 << 20;
// A shim gives a call up after 5 s and then sends the event again; so it is
// told "done" before, once the event is in the spool file.
constexpr absl::Duration kEarlyReply = absl::Seconds(3);

// Thread-safe.
class EventForwarder {
 public:
  using Envelope = containerd::types::Envelope;
  // Delivers one event; may block for seconds. kInvalidArgument,
  // kFailedPrecondition, kPermissionDenied and kUnimplemented are final, any
  // other error is tried again.
  using Send = std::function<absl::Status(const Envelope&)>;
  using Done = std::function<void(const absl::Status&)>;

  // `spool` is a file that takes events which were acknowledged before
  // metadata had them; what it holds from an earlier life is sent first.
  EventForwarder(Send send, std::string spool);
  // Tries for at most 2 s to deliver the rest; spools what stays.
  ~EventForwarder();

  // Queues `envelope`. `done` (may be null) runs once, from any thread, when
  // metadata has the event or it is safe in the spool.
  // Error to `done`: kResourceExhausted: the buffer is full; or Send's.
  void Publish(Envelope envelope, Done done);
  // The same for one that nobody will send again: on return it is in the spool,
  // so that it outlives this process. A full buffer or a failing disk is
  // logged.
  void PublishSafely(Envelope envelope);

  size_t buffered() const;

 private:
  struct Item {
    Envelope envelope;
    Done done;
    absl::Time queued_at;
    size_t size_bytes = 0;
    bool spooled = false;
  };
  void Run();
  void LoadSpool();
  // These are called under mutex_.
  bool HasRoom(const Item& item) const;
  void Queue(Item item);
  absl::Status Spool(const std::string& records);
  // Spools and acknowledges what has waited since before `queued_before`.
  void ReplyEarly(std::unique_lock<std::mutex>& lock, absl::Time queued_before);

  const Send send_;
  const std::string spool_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Item> queue_;
  size_t bytes_ = 0;
  bool stopping_ = false;
  bool spool_used_ = false;
  std::thread thread_;
};

// What containerd demands of a forwarded event.
// Errors: kInvalidArgument: namespace, topic or timestamp.
absl::Status ValidateEnvelope(const containerd::types::Envelope& envelope);

// The rule for namespaces, ids and topic components (facts/core.md section 2).
absl::Status ValidateId(const std::string& id);

}  // namespace bulkhead::runtime

#endif  // BULKHEAD_SERVICES_RUNTIME_EVENT_FORWARDER_H_
