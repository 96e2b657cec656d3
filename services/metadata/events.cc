#include "services/metadata/events.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>
#include <google/protobuf/reflection.h>
#include <google/protobuf/util/time_util.h>

#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "lib/base/status_macros.h"
#include "proto/containerd/events/task.pb.h"
#include "services/metadata/util.h"

namespace bulkhead::metadata {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

constexpr uint64_t kTrimStep = 256;
constexpr int64_t kTrimStepBytes = 1 << 20;
constexpr uint64_t kTrimMax = 4096;
constexpr size_t kReplayStep = 128;

std::string EventKey(uint64_t sequence) {
  return Key(kind::kEvent, {absl::StrFormat("%016x", sequence)});
}

// The string at path[at..] of `message`; map<string,string> takes the rest of
// the path as its key.
std::optional<std::string> StringField(const Message& message,
                                       const filters::FieldPath& path,
                                       size_t at) {
  if (at >= path.size()) return std::nullopt;
  const FieldDescriptor* field =
      message.GetDescriptor()->FindFieldByName(path[at]);
  if (field == nullptr) return std::nullopt;
  const google::protobuf::Reflection* reflection = message.GetReflection();
  if (field->is_map()) {
    if (at + 1 >= path.size()) return std::nullopt;
    std::string wanted = path[at + 1];
    for (size_t i = at + 2; i < path.size(); ++i) wanted += "." + path[i];
    for (int i = 0; i < reflection->FieldSize(message, field); ++i) {
      const Message& entry = reflection->GetRepeatedMessage(message, field, i);
      const FieldDescriptor* key = entry.GetDescriptor()->map_key();
      const FieldDescriptor* value = entry.GetDescriptor()->map_value();
      if (key->cpp_type() != FieldDescriptor::CPPTYPE_STRING ||
          value->cpp_type() != FieldDescriptor::CPPTYPE_STRING) {
        return std::nullopt;
      }
      if (entry.GetReflection()->GetString(entry, key) == wanted) {
        return entry.GetReflection()->GetString(entry, value);
      }
    }
    return std::nullopt;
  }
  if (field->is_repeated()) return std::nullopt;
  if (field->cpp_type() == FieldDescriptor::CPPTYPE_STRING) {
    std::string value = reflection->GetString(message, field);
    if (value.empty()) return std::nullopt;
    return value;
  }
  if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
    return StringField(reflection->GetMessage(message, field), path, at + 1);
  }
  return std::nullopt;
}

constexpr char kExitTopic[] = "/tasks/exit";
constexpr char kDeleteTopic[] = "/tasks/delete";

// What tells the end of one process from all others: which it was, and when it
// ended. Nothing if `envelope` is about something else.
template <typename End>
std::optional<std::string> EndIn(const Envelope& envelope) {
  End end;
  if (envelope.event().type_url().substr(
          envelope.event().type_url().rfind('/') + 1) != end.GetTypeName() ||
      !end.ParseFromString(envelope.event().value()) || !end.has_exited_at()) {
    return std::nullopt;
  }
  const std::string& id = end.id().empty() ? end.container_id() : end.id();
  // No name has a NUL (CheckIdentifier).
  return absl::StrCat(envelope.topic(), absl::string_view("\0", 1),
                      envelope.namespace_(), absl::string_view("\0", 1),
                      end.container_id(), absl::string_view("\0", 1), id,
                      absl::string_view("\0", 1), end.pid(), " ",
                      end.exited_at().seconds(), " ", end.exited_at().nanos());
}

std::optional<std::string> EndOf(const Envelope& envelope) {
  if (envelope.topic() == kExitTopic) {
    return EndIn<containerd::events::TaskExit>(envelope);
  }
  if (envelope.topic() == kDeleteTopic) {
    return EndIn<containerd::events::TaskDelete>(envelope);
  }
  return std::nullopt;
}

// Whether the bytes of an envelope may be an end: without parsing it.
bool MayBeEnd(std::string_view bytes) {
  return bytes.find(kExitTopic) != std::string_view::npos ||
         bytes.find(kDeleteTopic) != std::string_view::npos;
}

}  // namespace

google::protobuf::Any PackEvent(const Message& message) {
  google::protobuf::Any any;
  any.set_type_url(message.GetTypeName());
  message.SerializeToString(any.mutable_value());
  return any;
}

std::optional<std::string> EventField(const Envelope& envelope,
                                      const filters::FieldPath& path) {
  if (path[0] == "namespace") {
    if (envelope.namespace_().empty()) return std::nullopt;
    return envelope.namespace_();
  }
  if (path[0] == "topic") {
    if (envelope.topic().empty()) return std::nullopt;
    return envelope.topic();
  }
  if (path[0] != "event" || path.size() < 2) return std::nullopt;
  std::string name = envelope.event().type_url();
  name = name.substr(name.rfind('/') + 1);
  const google::protobuf::Descriptor* descriptor =
      google::protobuf::DescriptorPool::generated_pool()->FindMessageTypeByName(
          name);
  if (descriptor == nullptr) return std::nullopt;
  const Message* prototype =
      google::protobuf::MessageFactory::generated_factory()->GetPrototype(
          descriptor);
  std::unique_ptr<Message> message(prototype->New());
  if (!message->ParseFromString(envelope.event().value())) return std::nullopt;
  return StringField(*message, path, 1);
}

absl::Status ValidateTopic(const std::string& topic) {
  const auto error = [&topic](const std::string& why) {
    return absl::InvalidArgumentError(
        absl::StrCat("envelope topic ", Quoted(topic), ": ", why));
  };
  if (topic.empty()) {
    return absl::InvalidArgumentError("envelope topic \"\": must not be empty");
  }
  if (topic[0] != '/') return error("must start with '/'");
  if (topic.size() == 1) return error("must have at least one component");
  size_t begin = 1;
  while (begin <= topic.size()) {
    const size_t end = std::min(topic.find('/', begin), topic.size());
    const std::string component = topic.substr(begin, end - begin);
    const absl::Status status = CheckIdentifier(component);
    if (!status.ok()) {
      return error(absl::StrCat("component ", Quoted(component), ": ",
                                MessageOf(status)));
    }
    begin = end + 1;
  }
  return absl::OkStatus();
}

Envelope MakeEnvelope(const std::string& ns, const std::string& topic,
                      const google::protobuf::Any& event) {
  Envelope envelope;
  *envelope.mutable_timestamp() = Now();
  envelope.set_namespace_(ns);
  envelope.set_topic(topic);
  *envelope.mutable_event() = event;
  return envelope;
}

absl::Status EventBus::OpenLog(Db& db, int64_t kept_max,
                               int64_t kept_bytes_max) {
  const std::string prefix = Prefix(kind::kEvent, {});
  ASSIGN_OR_RETURN(std::optional<std::string> last, db.LastKey(prefix));
  uint64_t oldest = 1;
  uint64_t newest = 0;
  std::deque<uint32_t> sizes;
  int64_t kept_bytes = 0;
  Ends ends;
  if (last.has_value()) {
    if (!absl::SimpleHexAtoi(Split(*last)[0], &newest)) {
      return absl::DataLossError("the event log's last key is not a number");
    }
    oldest = newest + 1;
    RETURN_IF_ERROR(
        db.Scan(prefix, [&](std::string_view key, std::string_view value) {
          uint64_t sequence = 0;
          if (!absl::SimpleHexAtoi(Split(key)[0], &sequence)) return true;
          if (sizes.empty()) oldest = sequence;
          // Numbers have gaps, where a change failed.
          sizes.resize(sequence - oldest, 0);
          sizes.push_back(static_cast<uint32_t>(value.size()));
          kept_bytes += static_cast<int64_t>(value.size());
          Envelope envelope;
          if (MayBeEnd(value) &&
              envelope.ParseFromArray(value.data(),
                                      static_cast<int>(value.size()))) {
            std::optional<std::string> end = EndOf(envelope);
            if (end.has_value()) ends.Add(*std::move(end));
          }
          return true;
        }));
  }
  absl::MutexLock ends_lock(&ends_mutex_);
  ends_ = std::move(ends);
  absl::MutexLock lock(&mutex_);
  db_ = &db;
  kept_max_ = static_cast<uint64_t>(std::max<int64_t>(kept_max, 1));
  kept_bytes_max_ = kept_bytes_max;
  sizes_ = std::move(sizes);
  kept_bytes_ = kept_bytes;
  next_ = pending_ = newest + 1;
  oldest_ = oldest;
  return absl::OkStatus();
}

EventBus::Staged EventBus::Stage(std::vector<Envelope> envelopes,
                                 Batch* batch) {
  Staged staged;
  if (envelopes.empty()) return staged;
  {
    absl::MutexLock lock(&mutex_);
    staged.first = next_;
    next_ += envelopes.size();
  }
  uint64_t sequence = staged.first;
  for (Envelope& envelope : envelopes) {
    if (db_ != nullptr) {
      std::string bytes = envelope.SerializeAsString();
      staged.sizes.push_back(static_cast<uint32_t>(bytes.size()));
      batch->Put(EventKey(sequence), std::move(bytes));
    }
    ++sequence;
    staged.envelopes.push_back(
        std::make_shared<const Envelope>(std::move(envelope)));
  }
  return staged;
}

void EventBus::Finish(Staged staged, bool committed) {
  if (staged.empty()) return;
  bool trim = false;
  {
    absl::MutexLock lock(&mutex_);
    for (size_t i = 0; i < staged.envelopes.size(); ++i) {
      Finished& finished = finished_[staged.first + i];
      if (!committed) continue;
      finished.envelope = std::move(staged.envelopes[i]);
      if (db_ != nullptr) finished.size_bytes = staged.sizes[i];
    }
    while (!finished_.empty() && finished_.begin()->first == pending_) {
      const auto first = finished_.extract(finished_.begin());
      const Finished& finished = first.mapped();
      ++pending_;
      if (db_ != nullptr) {
        sizes_.push_back(finished.size_bytes);
        kept_bytes_ += finished.size_bytes;
      }
      if (finished.envelope != nullptr) {
        Deliver({first.key(), finished.envelope});
      }
    }
    trim = db_ != nullptr && TooLong(kTrimStep, kTrimStepBytes);
  }
  if (trim) Trim();
}

bool EventBus::TooLong(uint64_t slack_events, int64_t slack_bytes) const {
  const uint64_t count = pending_ - oldest_;
  return count > kept_max_ + slack_events ||
         (count > 1 && kept_bytes_ > kept_bytes_max_ + slack_bytes);
}

// Several threads may come here at once: deleting twice does no harm.
void EventBus::Trim() {
  uint64_t begin = 0;
  uint64_t end = 0;
  {
    absl::MutexLock lock(&mutex_);
    begin = oldest_;
    while (TooLong(0, 0) && oldest_ < begin + kTrimMax) {
      kept_bytes_ -= sizes_.front();
      sizes_.pop_front();
      ++oldest_;
    }
    end = oldest_;
    if (begin == end) return;
  }
  Batch batch;
  for (uint64_t sequence = begin; sequence < end; ++sequence) {
    batch.Delete(EventKey(sequence));
  }
  // What cannot be deleted now stays until the log is opened again.
  (void)db_->Write(batch, /*sync=*/false);
}

void EventBus::Deliver(const Event& event) {
  const size_t size_bytes = event.envelope->ByteSizeLong();
  for (Subscription* subscriber : subscribers_) {
    if (!subscriber->Wants(*event.envelope)) continue;
    {
      absl::MutexLock queue_lock(&subscriber->mutex_);
      if (subscriber->broken_) continue;
      subscriber->queued_bytes_ += size_bytes;
      // One event is taken however large it is.
      if (subscriber->queue_.size() >= kQueuedEventsMax ||
          (!subscriber->queue_.empty() &&
           subscriber->queued_bytes_ > kQueuedEventBytesMax)) {
        subscriber->broken_ = true;
        subscriber->queue_.clear();
      } else {
        subscriber->queue_.push_back(event);
      }
    }
    subscriber->on_ready_();
  }
}

absl::Status EventBus::Publish(const std::string& ns, const std::string& topic,
                               const Message& event) {
  return PublishAny(ns, topic, PackEvent(event));
}

absl::Status EventBus::PublishAny(const std::string& ns,
                                  const std::string& topic,
                                  const google::protobuf::Any& event) {
  return Keep(MakeEnvelope(ns, topic, event));
}

void EventBus::Ends::Add(std::string end) {
  const auto [at, added] = known_.insert(std::move(end));
  if (!added) return;
  oldest_first_.push_back(&*at);
  if (oldest_first_.size() <= kEndsKnownMax) return;
  known_.erase(known_.find(*oldest_first_.front()));
  oldest_first_.pop_front();
}

absl::Status EventBus::Forward(Envelope envelope) {
  std::optional<std::string> end = EndOf(envelope);
  if (!end.has_value()) return Keep(std::move(envelope));
  absl::MutexLock lock(&ends_mutex_);
  if (ends_.Has(*end)) return absl::OkStatus();
  RETURN_IF_ERROR(Keep(std::move(envelope)));
  ends_.Add(*std::move(end));
  return absl::OkStatus();
}

absl::Status EventBus::Keep(Envelope envelope) {
  Batch batch;
  std::vector<Envelope> one;
  one.push_back(std::move(envelope));
  Staged staged = Stage(std::move(one), &batch);
  const absl::Status status =
      db_ == nullptr ? absl::OkStatus() : db_->Write(batch, /*sync=*/false);
  Finish(std::move(staged), status.ok());
  return status;
}

uint64_t EventBus::last() const {
  absl::MutexLock lock(&mutex_);
  return pending_ - 1;
}

absl::StatusOr<std::unique_ptr<Subscription>> EventBus::Subscribe(
    filters::Filter filter, std::function<void()> on_ready,
    std::optional<uint64_t> after) {
  std::unique_ptr<Subscription> subscription(
      new Subscription(this, std::move(filter), std::move(on_ready)));
  const absl::Status status = [&]() -> absl::Status {
    absl::MutexLock lock(&mutex_);
    if (subscribers_.size() >= kSubscribersMax) {
      return absl::ResourceExhaustedError("too many event subscribers");
    }
    if (after.has_value()) {
      if (*after >= pending_) {
        return absl::FailedPreconditionError(
            absl::StrCat("no event has the number ", *after,
                         " yet; the last one is ", pending_ - 1));
      }
      if (*after > 0 && *after + 1 < oldest_) {
        return absl::OutOfRangeError(
            absl::StrCat("events after ", *after,
                         " are gone; the oldest kept is ", oldest_));
      }
      subscription->replay_from_ = std::max(*after + 1, oldest_);
      subscription->replay_end_ = pending_;
    }
    subscribers_.push_back(subscription.get());
    return absl::OkStatus();
  }();
  // Its destructor takes mutex_.
  RETURN_IF_ERROR(status);
  return subscription;
}

bool Subscription::Wants(const Envelope& envelope) const {
  return filter_.matches_all() ||
         filter_.Match([&envelope](const filters::FieldPath& path) {
           return EventField(envelope, path);
         });
}

Subscription::~Subscription() {
  absl::MutexLock lock(&bus_->mutex_);
  bus_->subscribers_.remove(this);
}

absl::Status Subscription::Replay() {
  if (bus_->db_ == nullptr) {
    replay_from_ = replay_end_;
    return absl::OkStatus();
  }
  uint64_t next = replay_end_;
  size_t seen = 0;
  RETURN_IF_ERROR(bus_->db_->Scan(
      Prefix(kind::kEvent, {}),
      [&](std::string_view key, std::string_view value) {
        uint64_t sequence = 0;
        if (!absl::SimpleHexAtoi(Split(key)[0], &sequence)) return true;
        if (sequence >= replay_end_) return false;
        if (++seen > kReplayStep) {
          next = sequence;
          return false;
        }
        auto envelope = std::make_shared<Envelope>();
        // A damaged one is left out.
        if (envelope->ParseFromArray(value.data(),
                                     static_cast<int>(value.size())) &&
            Wants(*envelope)) {
          replayed_.push_back({sequence, std::move(envelope)});
        }
        return true;
      },
      nullptr, EventKey(replay_from_)));
  replay_from_ = next;
  return absl::OkStatus();
}

absl::StatusOr<Event> Subscription::Next() {
  while (replayed_.empty() && replay_from_ < replay_end_) {
    RETURN_IF_ERROR(Replay());
  }
  if (!replayed_.empty()) {
    Event next = std::move(replayed_.front());
    replayed_.pop_front();
    return next;
  }
  absl::MutexLock lock(&mutex_);
  if (broken_) {
    return absl::ResourceExhaustedError(
        "event subscriber too slow: its queue is full");
  }
  if (queue_.empty()) return Event();
  Event next = std::move(queue_.front());
  queue_.pop_front();
  queued_bytes_ -= next.envelope->ByteSizeLong();
  return next;
}

}  // namespace bulkhead::metadata
