// What every Snapshotter must do; run on each driver, directly and through a
// socket.
#ifndef BULKHEAD_SERVICES_SNAPSHOTTER_SNAPSHOTTER_CONFORMANCE_H_
#define BULKHEAD_SERVICES_SNAPSHOTTER_SNAPSHOTTER_CONFORMANCE_H_

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>

#include "lib/testing/temp_dir.h"
#include "services/snapshotter/snapshotter.h"

namespace bulkhead::snapshotter {

struct Backend {
  std::string name;
  bool overlay = true;
  // Opens, or opens again, what is in `root`.
  std::function<std::unique_ptr<Snapshotter>(const std::string& root)> open;
};

class SnapshotterConformance : public ::testing::TestWithParam<Backend> {
 protected:
  void SetUp() override;
  // What is mounted is what was before.
  void TearDown() override;
  void Reopen();

  // Writes `file` with `data` into an active snapshot's mounts.
  void Write(const std::vector<os::MountSpec>& mounts, const std::string& file,
             const std::string& data);
  // What a shell command prints in the mounted tree.
  std::string Shell(const std::vector<os::MountSpec>& mounts,
                    const std::string& command);
  // Prepares, writes and commits in one go.
  void Layer(const std::string& name, const std::string& parent,
             const std::string& file, const std::string& data);

  bulkhead::testing::TempDir dir_;
  std::string before_;
  std::unique_ptr<Snapshotter> snapshotter_;
};

}  // namespace bulkhead::snapshotter

#endif  // BULKHEAD_SERVICES_SNAPSHOTTER_SNAPSHOTTER_CONFORMANCE_H_
