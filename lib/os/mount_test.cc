#include "lib/os/mount.h"

#include <sched.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "lib/os/fd.h"

namespace bulkhead::os {
namespace {

TEST(ParseMountOptions, TellsFlagsFromData) {
  const auto parsed = ParseMountOptions(
      {"rbind", "ro", "rw", "nosuid", "rprivate", "defaults", "size=1m",
       "X-containerd.mkdir.path=x", "lowerdir=/a:/b"});
  ASSERT_TRUE(parsed.ok());
  EXPECT_EQ(parsed->flags,
            static_cast<unsigned long>(MS_BIND | MS_REC | MS_NOSUID));
  EXPECT_EQ(parsed->propagation,
            static_cast<unsigned long>(MS_PRIVATE | MS_REC));
  EXPECT_EQ(parsed->data,
            (std::vector<std::string>{"size=1m", "lowerdir=/a:/b"}));
}

TEST(ParseMountOptions, RefusesWhatItCannotDo) {
  EXPECT_TRUE(absl::IsUnimplemented(ParseMountOptions({"loop"}).status()));
  for (const char* map : {"", "0", "0:1", "0:1:0", "0:1:2,", "a:1:2", "0:1:2:3",
                          "0:1:4294967296"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(
        ParseMountOptions(
            {absl::StrCat("uidmap=", map), absl::StrCat("gidmap=", map)})
            .status()))
        << map;
  }
  EXPECT_TRUE(
      absl::IsInvalidArgument(ParseMountOptions({"uidmap=0:1:2"}).status()));
  const auto maps = ParseMountOptions({"uidmap=0:1:2,5:6:7", "gidmap=0:3:4"});
  ASSERT_TRUE(maps.ok());
  EXPECT_EQ(maps->uid_map, "0:1:2,5:6:7");
  EXPECT_EQ(maps->gid_map, "0:3:4");
}

// In a mount namespace of its own: nothing can be left behind.
class MountTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root";
    if (!own_namespace_) {
      ASSERT_EQ(::unshare(CLONE_NEWNS), 0);
      ASSERT_EQ(::mount("", "/", nullptr, MS_REC | MS_PRIVATE, nullptr), 0);
      own_namespace_ = true;
    }
    char path[] = "/tmp/bh-XXXXXX";
    dir_ = ::mkdtemp(path);
    ASSERT_TRUE(MakeDirs(dir_ + "/root", 0755).ok());
  }
  void TearDown() override {
    if (dir_.empty()) return;
    (void)UnmountTree(dir_ + "/root");
    (void)RemoveAll(dir_);
  }
  void Put(const std::string& name) {
    const std::string path = dir_ + "/" + name;
    ASSERT_TRUE(MakeDirs(path.substr(0, path.rfind('/')), 0755).ok());
    std::ofstream(path) << name;
  }
  bool Has(const std::string& name) {
    return ::access((dir_ + "/" + name).c_str(), F_OK) == 0;
  }

  static inline bool own_namespace_ = false;
  std::string dir_;
};

TEST_F(MountTest, BindsReadOnly) {
  Put("src/file");
  ASSERT_TRUE(
      Mount(
          {.type = "bind", .source = dir_ + "/src", .options = {"rbind", "ro"}},
          dir_ + "/root")
          .ok());
  EXPECT_TRUE(Has("root/file"));
  EXPECT_FALSE(std::ofstream(dir_ + "/root/new").is_open());
  EXPECT_TRUE(std::ofstream(dir_ + "/src/new").is_open());
  EXPECT_TRUE(UnmountTree(dir_ + "/root").ok());
  EXPECT_FALSE(Has("root/file"));
  EXPECT_TRUE(UnmountTree(dir_ + "/root").ok());
  EXPECT_TRUE(UnmountTree(dir_ + "/nothing/here").ok());
}

TEST_F(MountTest, MountsStackedAndNestedAndUnmountsAll) {
  Put("src/file");
  Put("src/sub/x");
  ASSERT_TRUE(
      MountAll({{.type = "bind", .source = dir_ + "/src", .options = {"rbind"}},
                {.type = "tmpfs",
                 .source = "tmpfs",
                 .target = "/sub",
                 .options = {"size=64k"}},
                {.type = "tmpfs", .source = "tmpfs", .target = "sub"}},
               dir_ + "/root")
          .ok());
  EXPECT_FALSE(Has("root/sub/x"));
  EXPECT_TRUE(UnmountTree(dir_ + "/root").ok());
  EXPECT_FALSE(Has("root/sub"));
}

TEST_F(MountTest, TargetsCannotLeaveTheRoot) {
  Put("outside/file");
  Put("src/file");
  ASSERT_TRUE(MakeDirs(dir_ + "/root/outside", 0755).ok());
  ASSERT_EQ(::symlink("../../../../outside", (dir_ + "/root/link").c_str()), 0);
  ASSERT_TRUE(Mount({.type = "bind",
                     .source = dir_ + "/src",
                     .target = "link",
                     .options = {"bind"}},
                    dir_ + "/root")
                  .ok());
  EXPECT_TRUE(Has("root/outside/file"));
}

TEST_F(MountTest, FailuresUndoWhatWasMounted) {
  Put("src/file");
  EXPECT_FALSE(
      MountAll({{.type = "bind", .source = dir_ + "/src", .options = {"rbind"}},
                {.type = "tmpfs", .source = "tmpfs", .target = "missing"}},
               dir_ + "/root")
          .ok());
  EXPECT_FALSE(Has("root/file"));
}

TEST_F(MountTest, OverlayOptionsMayBeLongerThanAPage) {
  // overlayfs cannot lie on every file system; a tmpfs below makes sure.
  ASSERT_TRUE(MakeDirs(dir_ + "/o", 0755).ok());
  ASSERT_TRUE(Mount({.type = "tmpfs", .source = "tmpfs"}, dir_ + "/o").ok());
  std::string lower;
  for (int i = 0; i < 100; ++i) {
    const std::string layer =
        absl::StrCat("o/layer-with-quite-a-long-name-as-real-ones-have/", i);
    Put(absl::StrCat(layer, "/file", i));
    absl::StrAppend(&lower, i == 0 ? "" : ":", dir_, "/", layer);
  }
  ASSERT_GT(lower.size(), 4096u);
  ASSERT_TRUE(MakeDirs(dir_ + "/o/upper", 0755).ok());
  ASSERT_TRUE(MakeDirs(dir_ + "/o/work", 0755).ok());
  const absl::Status status =
      Mount({.type = "overlay",
             .source = "overlay",
             .options = {"index=off", "workdir=" + dir_ + "/o/work",
                         "upperdir=" + dir_ + "/o/upper", "lowerdir=" + lower}},
            dir_ + "/root");
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_TRUE(Has("root/file0"));
  EXPECT_TRUE(Has("root/file99"));
  EXPECT_TRUE(UnmountTree(dir_ + "/root").ok());
  EXPECT_TRUE(UnmountTree(dir_ + "/o").ok());
}

TEST_F(MountTest, ShiftsOwnersOfBindsAndLowerFolders) {
  ASSERT_TRUE(MakeDirs(dir_ + "/o", 0755).ok());
  ASSERT_TRUE(Mount({.type = "tmpfs", .source = "tmpfs"}, dir_ + "/o").ok());
  Put("o/one/root");
  Put("o/one/user");
  Put("o/two/root2");
  ASSERT_EQ(::chown((dir_ + "/o/one/user").c_str(), 33, 34), 0);
  const auto owner = [&](const std::string& name) {
    struct stat st {};
    EXPECT_EQ(::stat((dir_ + "/root/" + name).c_str(), &st), 0) << name;
    return absl::StrCat(st.st_uid, ":", st.st_gid);
  };
  absl::Status status = Mount(
      {.type = "bind",
       .source = dir_ + "/o/one",
       .options = {"uidmap=0:1000:100", "gidmap=0:2000:100", "rbind", "ro"}},
      dir_ + "/root");
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(owner("root"), "1000:2000");
  EXPECT_EQ(owner("user"), "1033:2034");
  EXPECT_FALSE(std::ofstream(dir_ + "/root/new").is_open());
  ASSERT_TRUE(UnmountTree(dir_ + "/root").ok());

  ASSERT_TRUE(MakeDirs(dir_ + "/o/upper", 0755).ok());
  ASSERT_TRUE(MakeDirs(dir_ + "/o/work", 0755).ok());
  Put("o/upper/own");
  ASSERT_EQ(::chown((dir_ + "/o/upper/own").c_str(), 1005, 2005), 0);
  status = Mount({.type = "overlay",
                  .source = "overlay",
                  .options = {"uidmap=0:1000:100", "gidmap=0:2000:100",
                              "workdir=" + dir_ + "/o/work",
                              "upperdir=" + dir_ + "/o/upper",
                              "lowerdir=" + dir_ + "/o/two:" + dir_ + "/o/one",
                              "index=off"}},
                 dir_ + "/root");
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(owner("root"), "1000:2000");
  EXPECT_EQ(owner("root2"), "1000:2000");
  EXPECT_EQ(owner("user"), "1033:2034");
  EXPECT_EQ(owner("own"), "1005:2005");
  ASSERT_TRUE(UnmountTree(dir_ + "/root").ok());
  EXPECT_TRUE(absl::IsUnimplemented(
      Mount({.type = "tmpfs",
             .source = "tmpfs",
             .options = {"uidmap=0:1000:100", "gidmap=0:2000:100"}},
            dir_ + "/root")));
  EXPECT_TRUE(UnmountTree(dir_ + "/o").ok());
}

}  // namespace
}  // namespace bulkhead::os
