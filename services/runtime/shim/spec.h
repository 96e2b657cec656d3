// The few facts the shim needs from a bundle's config.json.
#ifndef BULKHEAD_SERVICES_RUNTIME_SHIM_SPEC_H_
#define BULKHEAD_SERVICES_RUNTIME_SHIM_SPEC_H_

#include <string>

namespace bulkhead::shim {

// True when the container gets a pid namespace of its own; then the end of its
// init ends all its processes.
bool HasPrivatePidNamespace(const std::string& bundle);

// The shim that serves this container: the annotations
// io.containerd.runc.v2.group and io.kubernetes.cri.sandbox-id name a shared
// one; otherwise its own `id`.
std::string GroupOf(const std::string& bundle, const std::string& id);

}  // namespace bulkhead::shim

#endif  // BULKHEAD_SERVICES_RUNTIME_SHIM_SPEC_H_
