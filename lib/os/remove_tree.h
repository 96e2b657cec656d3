// Deleting large trees on two threads.
#ifndef BULKHEAD_LIB_OS_REMOVE_TREE_H_
#define BULKHEAD_LIB_OS_REMOVE_TREE_H_

#include <functional>
#include <string>

#include "absl/status/status.h"

namespace bulkhead::os {

// RemoveAll() (fd.h), in which a second thread takes folders of a large tree
// whenever `may_help()` says so (asked from that thread, often). File systems
// spend processor time on each file, so more threads than processors, over all
// trees, are of no use. Others may change the tree meanwhile: no symlink is
// followed, no mount entered, and what is left at the end is the error.
absl::Status RemoveAllParallel(const std::string& path,
                               const std::function<bool()>& may_help);

}  // namespace bulkhead::os

#endif  // BULKHEAD_LIB_OS_REMOVE_TREE_H_
