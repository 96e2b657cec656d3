// What a shim writes to its log, in ours.
#ifndef BULKHEAD_SERVICES_RUNTIME_SHIM_LOG_H_
#define BULKHEAD_SERVICES_RUNTIME_SHIM_LOG_H_

#include <memory>
#include <string>

#include "lib/os/fd.h"
#include "lib/ttrpc/reactor.h"

namespace bulkhead::runtime {

// Reads the FIFO `log` of `bundle` and writes its lines to the log, marked with
// `ns` and `id`, on the reactor's thread. To be called before the shim starts:
// shims of others wait at its other end, and serve nobody meanwhile. Ends when
// the reactor is told to Forget() the descriptor, which must come first, and
// the last reference goes. Null: a bundle of some other make, without a log.
std::shared_ptr<os::UniqueFd> CopyShimLog(ttrpc::Reactor& reactor,
                                          const std::string& bundle,
                                          const std::string& ns,
                                          const std::string& id);

}  // namespace bulkhead::runtime

#endif  // BULKHEAD_SERVICES_RUNTIME_SHIM_LOG_H_
