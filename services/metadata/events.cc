#include "services/metadata/events.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>
#include <google/protobuf/reflection.h>
#include <google/protobuf/util/time_util.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "services/metadata/util.h"

namespace bulkhead::metadata {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

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

void EventBus::Publish(const std::string& ns, const std::string& topic,
                       const Message& event) {
  PublishAny(ns, topic, PackEvent(event));
}

void EventBus::PublishAny(const std::string& ns, const std::string& topic,
                          const google::protobuf::Any& event) {
  Envelope envelope;
  *envelope.mutable_timestamp() = Now();
  envelope.set_namespace_(ns);
  envelope.set_topic(topic);
  *envelope.mutable_event() = event;
  Forward(std::move(envelope));
}

void EventBus::Forward(Envelope envelope) {
  const auto shared = std::make_shared<const Envelope>(std::move(envelope));
  absl::MutexLock lock(&mutex_);
  for (Subscription* subscriber : subscribers_) {
    if (!subscriber->filter_.Match([&shared](const filters::FieldPath& path) {
          return EventField(*shared, path);
        })) {
      continue;
    }
    {
      absl::MutexLock queue_lock(&subscriber->mutex_);
      if (subscriber->broken_) continue;
      if (subscriber->queue_.size() >= kQueuedEventsMax) {
        subscriber->broken_ = true;
        subscriber->queue_.clear();
      } else {
        subscriber->queue_.push_back(shared);
      }
    }
    subscriber->on_ready_();
  }
}

absl::StatusOr<std::unique_ptr<Subscription>> EventBus::Subscribe(
    filters::Filter filter, std::function<void()> on_ready) {
  std::unique_ptr<Subscription> subscription(
      new Subscription(this, std::move(filter), std::move(on_ready)));
  absl::MutexLock lock(&mutex_);
  if (subscribers_.size() >= kSubscribersMax) {
    // Its destructor takes mutex_: let it find nothing later.
    mutex_.Unlock();
    subscription.reset();
    mutex_.Lock();
    return absl::ResourceExhaustedError("too many event subscribers");
  }
  subscribers_.push_back(subscription.get());
  return subscription;
}

Subscription::~Subscription() {
  absl::MutexLock lock(&bus_->mutex_);
  bus_->subscribers_.remove(this);
}

absl::StatusOr<std::shared_ptr<const Envelope>> Subscription::Next() {
  absl::MutexLock lock(&mutex_);
  if (broken_) {
    return absl::ResourceExhaustedError(
        "event subscriber too slow: its queue is full");
  }
  if (queue_.empty()) return std::shared_ptr<const Envelope>();
  std::shared_ptr<const Envelope> next = std::move(queue_.front());
  queue_.pop_front();
  return next;
}

}  // namespace bulkhead::metadata
