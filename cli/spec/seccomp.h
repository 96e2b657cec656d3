// The default system call filter: an allow list that takes from a container
// what no ordinary program needs and the kernel gets wrong most often (keys,
// mounts, modules, namespaces, tracing of others, ...).
#ifndef BULKHEAD_CLI_SPEC_SECCOMP_H_
#define BULKHEAD_CLI_SPEC_SECCOMP_H_

#include <nlohmann/json.hpp>
#include <set>
#include <string>

namespace bulkhead::cli {

// linux.seccomp of the OCI spec for a process with these capabilities in its
// bounding set ("CAP_SYS_ADMIN" ...): some calls come with a capability.
nlohmann::json DefaultSeccomp(const std::set<std::string>& capabilities);

}  // namespace bulkhead::cli

#endif  // BULKHEAD_CLI_SPEC_SECCOMP_H_
