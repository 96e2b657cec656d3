// Events that this service sends itself.
#ifndef BULKHEAD_SERVICES_RUNTIME_PUBLISH_H_
#define BULKHEAD_SERVICES_RUNTIME_PUBLISH_H_

#include <string>
#include <utility>

#include "absl/time/clock.h"
#include "services/runtime/event_forwarder.h"

namespace bulkhead::runtime {

// Fills a google.protobuf.Timestamp or whatever has the same fields.
template <typename Timestamp>
void SetTimestamp(absl::Time time, Timestamp* out) {
  out->set_seconds(absl::ToUnixSeconds(time));
  out->set_nanos(static_cast<int32_t>(absl::ToUnixNanos(time) % 1'000'000'000));
}

template <typename Event>
containerd::types::Envelope MakeEnvelope(const std::string& ns,
                                         const std::string& topic,
                                         const Event& event) {
  containerd::types::Envelope envelope;
  SetTimestamp(absl::Now(), envelope.mutable_timestamp());
  envelope.set_namespace_(ns);
  envelope.set_topic(topic);
  envelope.mutable_event()->set_type_url(Event::descriptor()->full_name());
  envelope.mutable_event()->set_value(event.SerializeAsString());
  return envelope;
}

template <typename Event>
void Publish(EventForwarder& events, const std::string& ns,
             const std::string& topic, const Event& event) {
  events.Publish(MakeEnvelope(ns, topic, event), nullptr);
}

}  // namespace bulkhead::runtime

#endif  // BULKHEAD_SERVICES_RUNTIME_PUBLISH_H_
