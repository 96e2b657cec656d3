#include "services/runtime/shim/spec.h"

#include <cstdint>
#include <string_view>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "lib/os/fd.h"
#include "services/runtime/shim/json_scan.h"

namespace bulkhead::shim {
namespace {

std::string ReadSpec(const std::string& bundle) {
  absl::StatusOr<std::string> text = os::ReadFile(bundle + "/config.json");
  return text.ok() ? *std::move(text) : "";
}

}  // namespace

SpecFacts ReadSpecFacts(const std::string& bundle) {
  const std::string spec = ReadSpec(bundle);
  SpecFacts facts;
  (void)JsonElements(JsonMember(JsonMember(spec, "linux"), "namespaces"),
                     [&facts](std::string_view entry) {
                       if (JsonString(JsonMember(entry, "type")) == "pid" &&
                           JsonString(JsonMember(entry, "path")).empty()) {
                         facts.private_pid_namespace = true;
                       }
                     });  // No list: no namespace.
  facts.user = CheckUser(JsonMember(spec, "process"));
  return facts;
}

absl::Status CheckUser(std::string_view process) {
  constexpr uint64_t kIdMax = 2147483647;
  absl::Status status;
  const auto check = [&status](const char* what, std::string_view raw) {
    uint64_t id = 0;
    if (raw.empty() || raw == "null") return;
    if (!absl::SimpleAtoi(absl::string_view(raw.data(), raw.size()), &id) ||
        id > kIdMax) {
      status = absl::InvalidArgumentError(absl::StrCat(
          what, " ", std::string(raw), " is not in the range 0-", kIdMax));
    }
  };
  const std::string_view user = JsonMember(process, "user");
  check("uid", JsonMember(user, "uid"));
  check("gid", JsonMember(user, "gid"));
  (void)JsonElements(JsonMember(user, "additionalGids"),
                     [&check](std::string_view raw) {
                       check("additional gid", raw);
                     });  // No list: none.
  return status;
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
