// A file system in a file, mounted for the length of a test. Whoever links this
// tests in a mount namespace of its own.
#ifndef BULKHEAD_SERVICES_SNAPSHOTTER_LOOP_FS_H_
#define BULKHEAD_SERVICES_SNAPSHOTTER_LOOP_FS_H_

#include <memory>
#include <string>

#include "lib/testing/temp_dir.h"

namespace bulkhead::snapshotter {

class LoopFs {
 public:
  // Runs `mkfs` (a command, the file is appended) on a sparse file of `size`
  // ("300M") and mounts it with `options`. Fails the test if it cannot.
  LoopFs(const std::string& mkfs, const std::string& size,
         const std::string& options);
  ~LoopFs();

  const std::string& path() const { return point_; }

 private:
  bulkhead::testing::TempDir dir_;
  std::string point_;
};

// One btrfs for the whole process: a fresh folder in it for each test's `root`.
std::string BtrfsRootFor(const std::string& root);

// What is mounted, one mount point a line.
std::string MountTable();

}  // namespace bulkhead::snapshotter

#endif  // BULKHEAD_SERVICES_SNAPSHOTTER_LOOP_FS_H_
