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

}  // namespace bulkhead::os

#endif  // BULKHEAD_LIB_OS_MEMORY_H_
