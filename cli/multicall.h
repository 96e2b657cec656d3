// The services inside the multi-call binary.
#ifndef BULKHEAD_CLI_MULTICALL_H_
#define BULKHEAD_CLI_MULTICALL_H_

#include <optional>

namespace bulkhead {

// Runs a service if argv[0]'s file name is "bulkhead-<service>", or argv[1]
// is a service's name, and returns its exit code; nullopt: neither. Call it
// first in main(), before any thread.
std::optional<int> RunService(int argc, char** argv);

}  // namespace bulkhead

#endif  // BULKHEAD_CLI_MULTICALL_H_
