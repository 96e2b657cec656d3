// Memory a process does not need while it is idle.
#ifndef BULKHEAD_LIB_OS_MEMORY_H_
#define BULKHEAD_LIB_OS_MEMORY_H_

namespace bulkhead::os {

// Gives back free heap and unmaps the pages of the program's own code and
// constants. Nothing is lost: the pages stay in the page cache and are mapped
// again, one fault for 64 KiB, when they are run or read. Start-up touches most
// of a program; what an idle daemon goes on using is a tenth of it. Takes well
// under a millisecond. Thread-safe.
void ReleaseIdleMemory();

// The same for code and constants alone, for where bytes go by in bulk: a busy
// process runs little of its program, but has mapped all that its start and
// each first call touched. Does nothing within 200 ms of the last time, by
// whatever thread. Thread-safe.
void ReleaseCodeNowAndThen();

}  // namespace bulkhead::os

#endif  // BULKHEAD_LIB_OS_MEMORY_H_
