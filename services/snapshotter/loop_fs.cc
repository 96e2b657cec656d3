#include "services/snapshotter/loop_fs.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"

namespace bulkhead::snapshotter {
namespace {

std::unique_ptr<LoopFs>& Btrfs() {
  static auto* const fs = new std::unique_ptr<LoopFs>();
  return *fs;
}

// A table of mounts of the process's own: others mount and unmount as they
// like, and what it leaves goes with it.
class OwnMounts : public ::testing::Environment {
 public:
  void SetUp() override {
    if (::geteuid() != 0) return;
    ASSERT_EQ(::unshare(CLONE_NEWNS), 0);
    ASSERT_EQ(::mount("", "/", nullptr, MS_REC | MS_PRIVATE, nullptr), 0);
  }
  void TearDown() override { Btrfs().reset(); }
};
[[maybe_unused]] const auto* const own_mounts =
    ::testing::AddGlobalTestEnvironment(new OwnMounts);

}  // namespace

LoopFs::LoopFs(const std::string& mkfs, const std::string& size,
               const std::string& options)
    : point_(dir_.Path("fs")) {
  const std::string file = dir_.Path("file");
  const std::string command = absl::StrCat(
      "exec 2>&1; truncate -s ", size, " ", file, " && ", mkfs, " ", file,
      " >/dev/null && mkdir ", point_, " && mount -o loop",
      options.empty() ? "" : ",", options, " ", file, " ", point_);
  EXPECT_EQ(std::system(command.c_str()), 0) << command;
}

LoopFs::~LoopFs() {
  EXPECT_EQ(std::system(absl::StrCat("umount ", point_).c_str()), 0);
}

std::string BtrfsRootFor(const std::string& root) {
  if (Btrfs() == nullptr) {
    Btrfs() = std::make_unique<LoopFs>("mkfs.btrfs -q", "400M", "");
  }
  const std::string name = absl::StrReplaceAll(root, {{"/", "_"}});
  return absl::StrCat(Btrfs()->path(), "/", name);
}

std::string MountTable() {
  std::ifstream file("/proc/self/mountinfo");
  std::string line;
  std::string out;
  while (std::getline(file, line)) {
    std::istringstream fields(line);
    std::string field;
    for (int i = 0; i < 5; ++i) fields >> field;
    absl::StrAppend(&out, field, "\n");
  }
  return out;
}

}  // namespace bulkhead::snapshotter
