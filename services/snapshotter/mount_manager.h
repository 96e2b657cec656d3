// Mounts that need more than mount(2), made here under a name and kept until
// they are deactivated (facts/core.md, section 17). A type may have prefixes,
// worked from left to right:
//
//   format/   {{ source i }}, {{ target i }}, {{ mount i }} and
//             {{ overlay start end }} in source, target and options stand for
//             what earlier mounts are and where they were mounted
//   mkfs/     the source, a file, is made and given a file system:
//             X-containerd.mkfs.size=, .fs= (ext4, xfs, btrfs), .uuid=
//   mkdir/    X-containerd.mkdir.path=dir[:mode[:uid:gid]]: made, below an
//             earlier mount of this activation or the snapshotter's root only
//
// and these are mounted here: "erofs" from a file, "loop" (no file system, only
// the device), any type with option "loop", and all that others refer to.
//
//   DIR/<n>/<i>          mount point of the i-th mount, or a link to the device
//   DIR/<n>/all          of a temporary activation
//   DIR/<n>/record.json  written last: a folder without is undone at the start
#ifndef BULKHEAD_SERVICES_SNAPSHOTTER_MOUNT_MANAGER_H_
#define BULKHEAD_SERVICES_SNAPSHOTTER_MOUNT_MANAGER_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lib/os/mount.h"
#include "services/snapshotter/snapshotter.h"

namespace bulkhead::snapshotter {

constexpr size_t kActivationsMax = 10000;
constexpr size_t kActivationMountsMax = 512;  // Of one.

struct ActiveMount {
  os::MountSpec mount;
  int64_t mounted_at_ns = 0;
  std::string mount_point;
  std::map<std::string, std::string> data;  // "loop": the device.
};

struct Activation {
  std::string name;
  std::vector<ActiveMount> active;    // Mounted here.
  std::vector<os::MountSpec> system;  // Left to the caller.
  Labels labels;
  std::string lease;  // "": none; see mount_holders.h.
};

// Thread-safe; calls block on mounts and on mkfs.
class MountManager {
 public:
  // Takes up what is in `dir` (made if missing) and undoes what is half there
  // or was unmounted since. `roots`: where mkdir/ may work.
  static absl::StatusOr<std::unique_ptr<MountManager>> Open(
      const std::string& dir, const std::vector<std::string>& roots);
  virtual ~MountManager() = default;

  // `lease` is only kept. `temporary`: everything is mounted, and `system` is
  // one bind mount of it. Errors: kUnimplemented: nothing here needs this
  // service; mount it yourself.
  //   kAlreadyExists. kInvalidArgument: a bad template, option or name.
  //   kResourceExhausted: over the limits above. Otherwise what failed; nothing
  //   stays mounted then.
  virtual absl::StatusOr<Activation> Activate(
      const std::string& name, const std::vector<os::MountSpec>& mounts,
      const Labels& labels, bool temporary, const std::string& lease = "") = 0;
  // Unmounts all of it. Errors: kNotFound.
  virtual absl::Status Deactivate(const std::string& name) = 0;
  virtual absl::StatusOr<Activation> Info(const std::string& name) = 0;
  virtual std::vector<Activation> List() = 0;
};

}  // namespace bulkhead::snapshotter

#endif  // BULKHEAD_SERVICES_SNAPSHOTTER_MOUNT_MANAGER_H_
