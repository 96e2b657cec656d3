#include "cli/event_text.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>
#include <google/protobuf/util/json_util.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "cli/container.h"
#include "cli/format.h"
#include "proto/containerd/events/container.pb.h"
#include "proto/containerd/events/content.pb.h"
#include "proto/containerd/events/image.pb.h"
#include "proto/containerd/events/namespace.pb.h"
#include "proto/containerd/events/sandbox.pb.h"
#include "proto/containerd/events/snapshot.pb.h"
#include "proto/containerd/events/task.pb.h"

namespace bulkhead::cli {
namespace {

using ::google::protobuf::Any;
using ::google::protobuf::Message;

// Links the event types in, so that they can be found by name.
void KnowEventTypes() {
  static const bool once = [] {
    for (const Message* message : std::initializer_list<const Message*>{
             &containerd::events::ContainerCreate::default_instance(),
             &containerd::events::ContentDelete::default_instance(),
             &containerd::events::NamespaceCreate::default_instance(),
             &containerd::events::SandboxCreate::default_instance(),
             &containerd::events::SnapshotPrepare::default_instance(),
             &containerd::events::TaskExit::default_instance(),
             &containerd::services::images::v1::ImageCreate::
                 default_instance()}) {
      (void)message->GetDescriptor();
    }
    return true;
  }();
  (void)once;
}

// The event as JSON; null if its type is unknown or its bytes are broken.
nlohmann::ordered_json ToJson(const Any& event) {
  KnowEventTypes();
  const std::string name =
      event.type_url().substr(event.type_url().rfind('/') + 1);
  const google::protobuf::Descriptor* type =
      google::protobuf::DescriptorPool::generated_pool()->FindMessageTypeByName(
          name);
  if (type == nullptr) return nullptr;
  const std::unique_ptr<Message> message(
      google::protobuf::MessageFactory::generated_factory()
          ->GetPrototype(type)
          ->New());
  if (!message->ParseFromString(event.value())) return nullptr;
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  options.always_print_primitive_fields = true;  // Exit status 0, too.
  std::string text;
  if (!google::protobuf::util::MessageToJsonString(*message, &text, options)
           .ok()) {
    return nullptr;
  }
  nlohmann::ordered_json json =
      nlohmann::ordered_json::parse(text, nullptr, false);
  return json.is_discarded() ? nlohmann::ordered_json() : json;
}

std::string Dump(const nlohmann::ordered_json& json) {
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace

std::vector<std::pair<std::string, std::string>> EventFields(const Any& event) {
  std::vector<std::pair<std::string, std::string>> fields;
  const nlohmann::ordered_json json = ToJson(event);
  if (!json.is_object()) return fields;
  for (auto field = json.begin(); field != json.end(); ++field) {
    fields.emplace_back(field.key(), field.value().is_string()
                                         ? field.value().get<std::string>()
                                         : Dump(field.value()));
  }
  return fields;
}

absl::StatusOr<std::string> EventLine(
    const containerd::types::Envelope& envelope, const std::string& format) {
  const absl::Time time =
      ToTime(envelope.timestamp().seconds(), envelope.timestamp().nanos());
  if (format.empty()) {
    std::string line = absl::StrCat(
        absl::FormatTime("%Y-%m-%d %H:%M:%E3S", time, absl::LocalTimeZone()),
        " ", envelope.namespace_(), " ", envelope.topic());
    for (const auto& [name, value] : EventFields(envelope.event())) {
      if (!value.empty()) absl::StrAppend(&line, " ", name, "=", value);
    }
    return Printable(line);
  }
  const nlohmann::ordered_json event = ToJson(envelope.event());
  const std::string time_text =
      absl::FormatTime(absl::RFC3339_full, time, absl::UTCTimeZone());
  if (format == "json") {
    nlohmann::ordered_json line;
    line["Timestamp"] = time_text;
    line["Namespace"] = envelope.namespace_();
    line["Topic"] = envelope.topic();
    line["Type"] = envelope.event().type_url();
    line["Event"] = event;
    return Dump(line);
  }
  return RenderTemplate(format, {{"Time", time_text},
                                 {"Namespace", envelope.namespace_()},
                                 {"Topic", envelope.topic()},
                                 {"Type", envelope.event().type_url()},
                                 {"Event", Dump(event)}});
}

}  // namespace bulkhead::cli
