// Loop devices: a file shown as a block device.
#ifndef BULKHEAD_LIB_OS_LOOP_H_
#define BULKHEAD_LIB_OS_LOOP_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lib/os/fd.h"

namespace bulkhead::os {

struct LoopDevice {
  std::string path;  // "/dev/loop7"
  UniqueFd fd;       // Keeps an `autoclear` device until something else does.
};

// Attaches `file` to a free device; with `autoclear` it is detached when its
// last user (a mount, a descriptor) goes. Needs CAP_SYS_ADMIN.
// Errors: kNotFound: no such file, or no loop devices here.
absl::StatusOr<LoopDevice> AttachLoop(const std::string& file, bool read_only,
                                      bool autoclear);
// OK where nothing is attached, or the device is gone.
absl::Status DetachLoop(const std::string& device);

}  // namespace bulkhead::os

#endif  // BULKHEAD_LIB_OS_LOOP_H_
