// The few facts the shim needs from a bundle's config.json.
#ifndef BULKHEAD_SERVICES_RUNTIME_SHIM_SPEC_H_
#define BULKHEAD_SERVICES_RUNTIME_SHIM_SPEC_H_

#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace bulkhead::shim {

struct SpecFacts {
  // The container gets a pid namespace of its own; then the end of its init
  // ends all its processes.
  bool private_pid_namespace = false;
  absl::Status user;  // What CheckUser says of its process.
};
SpecFacts ReadSpecFacts(const std::string& bundle);

// Whether the ids of a process (JSON) are ones a process can have: some
// runtimes take the number that means "unchanged" for an id and run it as root.
// Errors: kInvalidArgument: one is not within 0-2147483647.
absl::Status CheckUser(std::string_view process);

// The shim that serves this container: the annotations
// io.containerd.runc.v2.group and io.kubernetes.cri.sandbox-id name a shared
// one; otherwise its own `id`.
std::string GroupOf(const std::string& bundle, const std::string& id);

}  // namespace bulkhead::shim

#endif  // BULKHEAD_SERVICES_RUNTIME_SHIM_SPEC_H_
