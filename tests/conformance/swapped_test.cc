// Snapshotters that need a place of their own, compared: btrfs, with both roots
// on one, and a proxy plugin, the same in both: our snapshotter behind a
// socket.
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <unistd.h>

#include <cstdlib>

#include "lib/testing/temp_dir.h"
#include "tests/conformance/snapshots_steps.h"

namespace bulkhead::conformance {
namespace {

// A btrfs in a file, mounted where nobody else sees it: gone with this process.
class OnBtrfs : public ::testing::Environment {
 public:
  void SetUp() override {
    if (::geteuid() != 0) return;
    ASSERT_EQ(::unshare(CLONE_NEWNS), 0);
    ASSERT_EQ(::mount("", "/", nullptr, MS_REC | MS_PRIVATE, nullptr), 0);
    const std::string command = "exec 2>&1; cd " + dir_.path() +
                                " && truncate -s 400M file"
                                " && mkfs.btrfs -q file && mkdir fs"
                                " && mount -o loop file fs";
    ASSERT_EQ(std::system(command.c_str()), 0) << command;
    Daemon::Prepare({.roots_below = dir_.Path("fs"), .far = true});
  }
  void TearDown() override {
    if (::geteuid() != 0) return;
    Daemon::Ours().Stop();
    Daemon::Containerd().Stop();
    EXPECT_EQ(::umount2(dir_.Path("fs").c_str(), 0), 0);
  }

 private:
  bulkhead::testing::TempDir dir_;
};
[[maybe_unused]] const auto* const on_btrfs =
    ::testing::AddGlobalTestEnvironment(new OnBtrfs);

TEST(SwappedSnapshotters, Btrfs) {
  Compare("btrfs", [](Transcript& t) { SnapshotLifecycle(t, "btrfs"); });
}
TEST(SwappedSnapshotters, Proxy) {
  Compare("proxy", [](Transcript& t) { SnapshotLifecycle(t, "far"); });
}

}  // namespace
}  // namespace bulkhead::conformance
