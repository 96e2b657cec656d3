#include "services/runtime/shim/spec.h"

#include <string_view>

#include "lib/os/fd.h"
#include "services/runtime/shim/json_scan.h"

namespace bulkhead::shim {
namespace {

std::string ReadSpec(const std::string& bundle) {
  absl::StatusOr<std::string> text = os::ReadFile(bundle + "/config.json");
  return text.ok() ? *std::move(text) : "";
}

}  // namespace

bool HasPrivatePidNamespace(const std::string& bundle) {
  const std::string spec = ReadSpec(bundle);
  bool found = false;
  (void)JsonElements(JsonMember(JsonMember(spec, "linux"), "namespaces"),
                     [&found](std::string_view entry) {
                       if (JsonString(JsonMember(entry, "type")) == "pid" &&
                           JsonString(JsonMember(entry, "path")).empty()) {
                         found = true;
                       }
                     });  // No list: no namespace.
  return found;
}

std::string GroupOf(const std::string& bundle, const std::string& id) {
  const std::string spec = ReadSpec(bundle);
  const std::string_view annotations = JsonMember(spec, "annotations");
  for (const char* key :
       {"io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"}) {
    std::string group = JsonString(JsonMember(annotations, key));
    if (!group.empty()) return group;
  }
  return id;
}

}  // namespace bulkhead::shim
