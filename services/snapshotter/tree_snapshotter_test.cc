// The conformance suite on both drivers, and what only they promise.
#include "services/snapshotter/tree_snapshotter.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <map>
#include <set>
#include <thread>

#include "absl/strings/str_cat.h"
#include "services/snapshotter/loop_fs.h"
#include "services/snapshotter/snapshots_for_tests.h"
#include "services/snapshotter/snapshotter_conformance.h"
#include "services/snapshotter/tar_for_tests.h"
#include "services/snapshotter/tree_ops.h"

namespace bulkhead::snapshotter {
namespace {

using ::bulkhead::testing::TempDir;
using Driver = TreeSnapshotterOptions::Driver;

std::unique_ptr<Snapshotter> Open(Driver driver, const std::string& root) {
  return OpenForTest(driver, root);
}

Backend Core(const std::string& name, Driver driver, bool overlay) {
  return {name, overlay, [driver](const std::string& root) {
            return Open(driver,
                        driver == Driver::kBtrfs ? BtrfsRootFor(root) : root);
          }};
}

INSTANTIATE_TEST_SUITE_P(
    Core, SnapshotterConformance,
    ::testing::Values(Core("overlayfs", Driver::kOverlay, true),
                      Core("native", Driver::kNative, false),
                      Core("btrfs", Driver::kBtrfs, false),
                      Core("erofs", Driver::kErofs, true)),
    [](const auto& info) { return info.param.name; });

TEST(TreeSnapshotter, LeftoversGoAtTheNextStart) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  TempDir dir;
  auto snapshotter = Open(Driver::kOverlay, dir.path());
  ASSERT_TRUE(snapshotter->Prepare("k", "", {}).ok());
  snapshotter.reset();
  const std::set<std::string> before = FoldersOf(dir.path());
  ASSERT_EQ(std::system(absl::StrCat("cd ", dir.path(),
                                     "/snapshots && mkdir -p 77/fs rm-12/a "
                                     "junk && touch 77/fs/x")
                            .c_str()),
            0);
  snapshotter = Open(Driver::kOverlay, dir.path());
  const absl::Status clean = snapshotter->Cleanup();  // Waits for deletions.
  ASSERT_TRUE(clean.ok()) << clean;
  EXPECT_EQ(FoldersOf(dir.path()), before);
  // A number is not used again while its old folder may be around.
  const auto mounts = snapshotter->Prepare("l", "", {});
  ASSERT_TRUE(mounts.ok());
  EXPECT_EQ((*mounts)[0].source, dir.Path("snapshots/78/fs"));
  // Folders that appear while running go at Cleanup().
  ASSERT_EQ(::mkdir(dir.Path("snapshots/99").c_str(), 0700), 0);
  ASSERT_TRUE(snapshotter->Remove("l").ok());
  ASSERT_TRUE(snapshotter->Cleanup().ok());
  EXPECT_EQ(FoldersOf(dir.path()), before);
}

// As when a disk of its own holds the folders and is not mounted yet.
TEST(TreeSnapshotter, MissingFoldersDropNoRecord) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  TempDir dir;
  auto snapshotter = Open(Driver::kOverlay, dir.path());
  ASSERT_TRUE(snapshotter->Prepare("p", "", {}).ok());
  ASSERT_TRUE(snapshotter->Commit("base", "p", {}, "").ok());
  ASSERT_TRUE(snapshotter->Prepare("k", "base", {}).ok());
  snapshotter.reset();
  const std::string command = absl::StrCat("cd ", dir.path(), " && ");
  ASSERT_EQ(
      std::system(
          (command + "mv snapshots away && mkdir -m 700 snapshots").c_str()),
      0);
  snapshotter = Open(Driver::kOverlay, dir.path());
  EXPECT_TRUE(snapshotter->Stat("k").ok());
  snapshotter.reset();
  ASSERT_EQ(
      std::system((command + "rmdir snapshots && mv away snapshots").c_str()),
      0);
  snapshotter = Open(Driver::kOverlay, dir.path());
  EXPECT_TRUE(snapshotter->Stat("k").ok());
  ASSERT_TRUE(snapshotter->Cleanup().ok());
  EXPECT_EQ(FoldersOf(dir.path()).size(), 2u);
}

// A child works until it is killed; whatever it acknowledged (a byte in the
// pipe each) must be there, and nothing that is half a snapshot.
TEST(TreeSnapshotter, KillAtAnyInstantLosesNothing) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  TempDir dir;
  for (int round = 0; round < 8; ++round) {
    const std::string root = dir.Path(std::to_string(round));
    int pipe_fds[2];
    ASSERT_EQ(::pipe(pipe_fds), 0);
    const pid_t child = ::fork();
    if (child == 0) {
      auto snapshotter = Open(Driver::kOverlay, root);
      for (int i = 0;; ++i) {
        const std::string key = std::to_string(i);
        if (!snapshotter->Prepare("k" + key, "", {}).ok()) ::_exit(1);
        if (!snapshotter->Commit("c" + key, "k" + key, {}, "").ok()) ::_exit(2);
        if (i > 0 && !snapshotter->Remove("c" + std::to_string(i - 1)).ok()) {
          ::_exit(3);
        }
        if (::write(pipe_fds[1], "x", 1) != 1) ::_exit(4);
      }
    }
    ::close(pipe_fds[1]);
    // Kills at different distances from an acknowledgement.
    char byte;
    for (int i = 0; i < 2 + round; ++i) {
      ASSERT_EQ(::read(pipe_fds[0], &byte, 1), 1);
    }
    std::atomic<int> spin{0};
    while (++spin < round * 100000) {
    }
    ::kill(child, SIGKILL);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status));
    int acknowledged = 2 + round;
    while (::read(pipe_fds[0], &byte, 1) == 1) ++acknowledged;
    ::close(pipe_fds[0]);

    auto snapshotter = Open(Driver::kOverlay, root);
    ASSERT_NE(snapshotter, nullptr);
    // The last acknowledged commit is there unless its removal, in the next
    // round, had begun: then the next commit is.
    const bool last =
        snapshotter->Stat(absl::StrCat("c", acknowledged - 1)).ok();
    const bool next = snapshotter->Stat(absl::StrCat("c", acknowledged)).ok();
    EXPECT_TRUE(last || next);
    EXPECT_FALSE(snapshotter->Stat(absl::StrCat("c", acknowledged - 2)).ok());
    ASSERT_TRUE(snapshotter->Cleanup().ok());
    size_t records = 0;
    ASSERT_TRUE(snapshotter
                    ->Walk([&](const SnapshotInfo& info) {
                      ++records;
                      EXPECT_TRUE(snapshotter->Usage(info.name).ok());
                      return absl::OkStatus();
                    })
                    .ok());
    EXPECT_EQ(FoldersOf(root).size(), records);
  }
}

TEST(TreeSnapshotter, ManyThreadsAtOnce) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  TempDir dir;
  auto snapshotter = Open(Driver::kOverlay, dir.path());
  ASSERT_TRUE(snapshotter->Prepare("p", "", {}).ok());
  ASSERT_TRUE(snapshotter->Commit("base", "p", {}, "").ok());
  std::vector<std::thread> threads;
  std::atomic<int> made{0};
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 10; ++i) {
        // The same keys from all threads: one wins each.
        if (snapshotter->Prepare(absl::StrCat("k", i), "base", {}).ok()) ++made;
        const std::string own = absl::StrCat(t, "-", i);
        EXPECT_TRUE(snapshotter->Prepare(own, "base", {}).ok());
        EXPECT_TRUE(snapshotter->Remove(own).ok());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(made, 10);
  for (int i = 0; i < 10; ++i) {
    EXPECT_TRUE(snapshotter->Remove(absl::StrCat("k", i)).ok());
  }
  EXPECT_TRUE(snapshotter->Remove("base").ok());
}

TEST(TreeSnapshotter, ImplicitDirectoriesTakeAfterTheParentAtCommit) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  TempDir dir;
  auto snapshotter = Open(Driver::kOverlay, dir.path());
  const std::string lower = (*snapshotter->Prepare("p", "", {}))[0].source;
  ASSERT_EQ(std::system(absl::StrCat("mkdir -p ", lower, "/v/w; chmod 1777 ",
                                     lower, "/v; chown 5:6 ", lower, "/v/w")
                            .c_str()),
            0);
  ASSERT_TRUE(snapshotter->Commit("base", "p", {}, "").ok());
  const std::string tree = (*snapshotter->Prepare("k", "", {}))[0].source;
  ASSERT_EQ(std::system(absl::StrCat("mkdir -p ", tree, "/v/w").c_str()), 0);
  ASSERT_TRUE(
      snapshotter->NoteUnpacked(tree, {"v", "v/w", "absent"}, std::nullopt)
          .ok());
  ASSERT_TRUE(snapshotter->Commit("c", "k", {}, "base").ok());
  struct stat st;
  ASSERT_EQ(::stat((tree + "/v").c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777, 01777u);
  ASSERT_EQ(::stat((tree + "/v/w").c_str(), &st), 0);
  EXPECT_EQ(st.st_uid, 5u);
  EXPECT_EQ(st.st_gid, 6u);
}

// A commit onto a parent does not sync what it takes from there: whatever the
// disk lost of it is there again after the next start.
TEST(TreeSnapshotter, WhatAPowerCutTakesOfImplicitDirectoriesComesBack) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  TempDir dir;
  const auto shell = [](const std::string& command) {
    return std::system(command.c_str()) == 0;
  };
  auto snapshotter = Open(Driver::kOverlay, dir.path());
  const std::string base = (*snapshotter->Prepare("p", "", {}))[0].source;
  const std::string value(600, 'x');  // Too large for an inode.
  ASSERT_TRUE(shell(absl::StrCat("mkdir -m 1777 ", base, "/v && chown 5:6 ",
                                 base, "/v && setfattr -n user.x -v ", value,
                                 " ", base, "/v")));
  ASSERT_TRUE(snapshotter->Commit("l0", "p", {}, "").ok());
  std::vector<std::string> trees;
  // The first to be committed has the last name: order is by parents.
  for (const std::string name : {"l2", "l1"}) {
    trees.push_back((*snapshotter->Prepare("k" + name, "", {}))[0].source);
    ASSERT_TRUE(ApplyTar(*snapshotter,
                         {{"bind", trees.back(), "", {"rw", "rbind"}}},
                         Tar({{"v/" + name, '0', "x"}}), /*parallel=*/true)
                    .ok());
    ASSERT_TRUE(
        snapshotter->Commit(name, "k" + name, {}, name == "l2" ? "l0" : "l2")
            .ok());
  }
  EXPECT_EQ(snapshotter->Usage("l2")->size_bytes,
            UsageOfTree(trees[0])->size_bytes);
  snapshotter.reset();

  for (const std::string& tree : trees) {
    ASSERT_TRUE(
        shell(absl::StrCat("chown 0:0 ", tree, "/v && chmod 0700 ", tree,
                           "/v && setfattr -x user.x ", tree, "/v")));
  }
  snapshotter = Open(Driver::kOverlay, dir.path());
  for (const std::string& tree : trees) {
    struct stat st;
    ASSERT_EQ(::stat((tree + "/v").c_str(), &st), 0);
    EXPECT_EQ(st.st_mode & 07777, 01777u) << tree;
    EXPECT_EQ(st.st_uid, 5u);
    EXPECT_TRUE(shell(absl::StrCat("test $(getfattr --only-values -n user.x ",
                                   tree, "/v) = ", value)));
    EXPECT_NE(::access((tree + "/../implicit").c_str(), F_OK), 0);
  }
}

TEST(TreeSnapshotter, ASnapshotThatCannotBeSettledStopsOnlyThoseAboveIt) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  TempDir dir;
  auto snapshotter = Open(Driver::kOverlay, dir.path());
  ASSERT_TRUE(snapshotter->Prepare("p", "", {}).ok());
  ASSERT_TRUE(snapshotter->Commit("l0", "p", {}, "").ok());
  std::map<std::string, std::string> lists;
  for (const auto& [name, parent] : std::map<std::string, std::string>{
           {"l1", "l0"}, {"l2", "l1"}, {"other", "l0"}}) {
    const std::string tree =
        (*snapshotter->Prepare("k" + name, "", {}))[0].source;
    ASSERT_TRUE(snapshotter->NoteUnpacked(tree, {"v"}, std::nullopt).ok());
    ASSERT_TRUE(snapshotter->Commit(name, "k" + name, {}, parent).ok());
    lists[name] = tree + "/../implicit";
  }
  snapshotter.reset();
  ASSERT_EQ(::unlink(lists["l1"].c_str()), 0);
  ASSERT_EQ(::mkdir(lists["l1"].c_str(), 0700), 0);  // Cannot be read.
  snapshotter = Open(Driver::kOverlay, dir.path());
  ASSERT_NE(snapshotter, nullptr);
  EXPECT_EQ(::access(lists["l1"].c_str(), F_OK), 0);
  EXPECT_EQ(::access(lists["l2"].c_str(), F_OK), 0);
  EXPECT_NE(::access(lists["other"].c_str(), F_OK), 0);
}

TEST(TreeSnapshotter, BtrfsTellsWhatIsNotBtrfs) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  TempDir dir;
  const absl::Status status =
      OpenTreeSnapshotter(
          {.driver = Driver::kBtrfs, .name = "btrfs", .root = dir.path()})
          .status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(status.ToString().find("is not on btrfs"), std::string::npos);
}

TEST(TreeSnapshotter, BtrfsRemovesSubvolumesAndMeasuresChangesOnly) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  const std::string root = BtrfsRootFor("usage");
  auto snapshotter = Open(Driver::kBtrfs, root);
  ASSERT_NE(snapshotter, nullptr);
  const std::string base = (*snapshotter->Prepare("b", "", {}))[0].source;
  ASSERT_EQ(std::system(absl::StrCat("head -c 5000000 /dev/urandom >", base,
                                     "/big; mkdir ", base, "/d; sync -f ", base)
                            .c_str()),
            0);
  ASSERT_TRUE(snapshotter->Commit("base", "b", {}, "").ok());
  EXPECT_GE(snapshotter->Usage("base")->size_bytes, 5000000);
  const std::string child = (*snapshotter->Prepare("k", "base", {}))[0].source;
  EXPECT_LT(snapshotter->Usage("k")->size_bytes, 100000);
  ASSERT_EQ(std::system(absl::StrCat("head -c 200000 /dev/urandom >", child,
                                     "/d/f; btrfs -q subvolume create ", child,
                                     "/nested; sync -f ", child)
                            .c_str()),
            0);
  const auto usage = snapshotter->Usage("k");
  EXPECT_GE(usage->size_bytes, 200000);
  EXPECT_LT(usage->size_bytes, 1000000);
  ASSERT_TRUE(snapshotter->Remove("k").ok());
  ASSERT_TRUE(snapshotter->Remove("base").ok());
  ASSERT_TRUE(snapshotter->Cleanup().ok());
  EXPECT_TRUE(FoldersOf(root).empty());
}

TEST(TreeSnapshotter, NativeSharesBlocksWhereTheFileSystemCan) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  auto snapshotter = Open(Driver::kNative, BtrfsRootFor("reflink"));
  const std::string base = (*snapshotter->Prepare("b", "", {}))[0].source;
  ASSERT_EQ(std::system(absl::StrCat("head -c 5000000 /dev/urandom >", base,
                                     "/big; sync -f ", base)
                            .c_str()),
            0);
  ASSERT_TRUE(snapshotter->Commit("base", "b", {}, "").ok());
  const std::string child = (*snapshotter->Prepare("k", "base", {}))[0].source;
  ASSERT_EQ(std::system(absl::StrCat("cmp ", base, "/big ", child,
                                     "/big && "
                                     "sync -f ",
                                     child, " && filefrag -v ", child,
                                     "/big | grep -q shared")
                            .c_str()),
            0);
}

// Writes below one folder end at its snapshot's limit, others go on.
// Whether an xfs can be mounted with project quotas here.
bool KernelHasProjectQuotas() {
  TempDir dir;
  const std::string point = dir.Path("fs");
  const std::string file = dir.Path("file");
  const bool has =
      std::system(absl::StrCat("exec 2>&1; truncate -s 400M ", file,
                               " && mkfs.xfs -q ", file, " && mkdir ", point,
                               " && mount -o loop,prjquota ", file, " ", point)
                      .c_str()) == 0;
  if (has) (void)std::system(absl::StrCat("umount ", point).c_str());
  return has;
}

// Of what is committed: about as much as its data. Returns the bytes by which
// the tree has grown since.
int64_t ExpectUsageAsFound(const std::string& root, const std::string& data) {
  auto snapshotter = Open(Driver::kOverlay, root);
  const auto mounts = snapshotter->Prepare("k", "", {});
  EXPECT_TRUE(mounts.ok()) << mounts.status();
  EXPECT_TRUE(ApplyTar(*snapshotter, *mounts,
                       Tar({{"d/f", '0', data}, {"d/g", '0', "g"}}), false,
                       "application/vnd.oci.image.layer.v1.tar", true)
                  .ok());
  EXPECT_TRUE(snapshotter->Commit("c", "k", {}, "").ok());
  const auto usage = snapshotter->Usage("c");
  const auto walked = UsageOfTree((*mounts)[0].source);
  EXPECT_TRUE(usage.ok() && walked.ok());
  EXPECT_GE(usage->size_bytes, static_cast<int64_t>(data.size()));
  EXPECT_LT(usage->size_bytes, static_cast<int64_t>(data.size() + 64 * 1024));
  return walked->size_bytes - usage->size_bytes;
}

// XFS keeps room beyond the end of a file until it is closed.
TEST(TreeSnapshotter, UsageIsWithoutWhatAnOpenFileKeeps) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  LoopFs xfs("mkfs.xfs -q", "400M", "");
  EXPECT_EQ(ExpectUsageAsFound(xfs.path(), std::string(5 << 20, 'x')), 0);
}

// ext4 gives a file that lies in many pieces a block to list them.
TEST(TreeSnapshotter, UsageOnADiskInPieces) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  constexpr off_t kBlock = 4096;
  constexpr off_t kPieces = off_t{32} << 20;
  LoopFs ext4("mkfs.ext4 -q -m 0 -b 4096", "100M", "");
  const std::string path = ext4.path() + "/taken";
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  ASSERT_GE(fd, 0);
  off_t taken = 0;
  for (off_t step = off_t{16} << 20; step >= kBlock;) {
    if (::fallocate(fd, 0, taken, step) == 0) {
      taken += step;
    } else {
      step /= 2;
    }
  }
  ASSERT_GT(taken, kPieces);
  for (off_t at = 0; at < kPieces; at += 2 * kBlock) {
    ASSERT_EQ(
        ::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, kBlock),
        0);
  }
  ::fsync(fd);
  ::close(fd);
  EXPECT_EQ(ExpectUsageAsFound(ext4.path(), std::string(300000, 'x')), kBlock);
}

TEST(TreeSnapshotter, SizeLimitsByProjectQuota) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  if (!KernelHasProjectQuotas()) {
    GTEST_SKIP() << "the kernel has no project quotas";
  }
  {
    LoopFs fs("mkfs.xfs -q", "400M", "prjquota");
    auto snapshotter = Open(Driver::kOverlay, fs.path() + "/root");
    ASSERT_NE(snapshotter, nullptr);
    const Labels limit = {{"containerd.io/snapshot/max-size", "4M"}};
    ASSERT_TRUE(snapshotter->Prepare("b", "", {}).ok());
    ASSERT_TRUE(snapshotter->Commit("base", "b", {}, "").ok());
    const auto mounts = snapshotter->Prepare("k", "base", limit);
    ASSERT_TRUE(mounts.ok()) << mounts.status();
    const auto free = snapshotter->Prepare("free", "base", {});
    TempDir dir;
    // CAP_SYS_RESOURCE is above quotas: as a container without it.
    const auto write = [&](const std::vector<os::MountSpec>& at,
                           const char* megabytes) {
      EXPECT_TRUE(os::MountAll(at, dir.path()).ok());
      const int code = std::system(
          absl::StrCat("capsh --drop=cap_sys_resource -- -c 'head -c ",
                       megabytes, "M /dev/zero >", dir.path(), "/f && mkdir ",
                       dir.path(), "/d && mv ", dir.path(), "/f ", dir.path(),
                       "/d' 2>/dev/null && sync -f ", dir.path())
              .c_str());
      EXPECT_TRUE(os::UnmountTree(dir.path()).ok());
      return code;
    };
    EXPECT_EQ(write(*free, "20"), 0);
    EXPECT_NE(write(*mounts, "20"), 0);
    EXPECT_LE(snapshotter->Usage("k")->size_bytes, 4 << 20);
    ASSERT_TRUE(snapshotter->Remove("k").ok());
    ASSERT_TRUE(snapshotter->Cleanup().ok());
    const absl::Status bad =
        snapshotter
            ->Prepare("bad", "base",
                      {{"containerd.io/snapshot/max-size", "lots"}})
            .status();
    EXPECT_EQ(bad.code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_EQ(FoldersOf(fs.path() + "/root").size(), 2u);
  }
}

TEST(TreeSnapshotter, SizeLimitsWithoutQuotasAreRefused) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  TempDir dir;
  auto snapshotter = Open(Driver::kOverlay, BtrfsRootFor("noquota"));
  const absl::Status none =
      snapshotter->Prepare("k", "", {{"containerd.io/snapshot/max-size", "4M"}})
          .status();
  EXPECT_EQ(none.code(), absl::StatusCode::kFailedPrecondition) << none;
}

TEST(TreeSnapshotter, OverlayOptionsAndLabelAsConfigured) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  TempDir dir;
  auto opened = OpenTreeSnapshotter(
      {.name = "overlayfs",
       .root = dir.path(),
       .overlay_mount_options = {"volatile", "metacopy=on", "index=on"},
       .upperdir_label = true});
  ASSERT_TRUE(opened.ok());
  auto snapshotter = *std::move(opened);
  ASSERT_TRUE(snapshotter->Prepare("b", "", {{"x", "y"}}).ok());
  EXPECT_EQ(snapshotter->Stat("b")->labels,
            (Labels{{"x", "y"},
                    {"containerd.io/snapshot/overlay.upperdir",
                     dir.Path("snapshots/1/fs")}}));
  ASSERT_TRUE(snapshotter->Commit("base", "b", {}, "").ok());
  const auto options = (*snapshotter->Prepare("k", "base", {}))[0].options;
  const std::vector<std::string> tail(options.begin() + 3, options.end());
  EXPECT_EQ(tail,
            (std::vector<std::string>{"volatile", "metacopy=on", "index=on"}));
}

// A subordinate id range: shown as mapped, owned on disk by the mapped root.
TEST(TreeSnapshotter, IdMappingLabelsWithAndWithoutParents) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  for (const Driver driver : {Driver::kOverlay, Driver::kErofs}) {
    TempDir dir;
    TempDir at;
    auto snapshotter = Open(driver, dir.path());
    const Labels map = {
        {"containerd.io/snapshot/uidmapping", "0:100000:65536"},
        {"containerd.io/snapshot/gidmapping", "0:200000:65536"}};
    const std::string tree = (*snapshotter->Prepare("b", "", {}))[0].source;
    ASSERT_EQ(
        std::system(
            absl::StrCat("touch ", tree, "/f; chown 7:8 ", tree, "/f").c_str()),
        0);
    ASSERT_TRUE(snapshotter->Commit("base", "b", {}, "").ok());
    const auto mounts = snapshotter->Prepare("k", "base", map);
    ASSERT_TRUE(mounts.ok()) << mounts.status();
    EXPECT_EQ((*mounts)[0].options[0], "uidmap=0:100000:65536");
    ASSERT_TRUE(os::MountAll(*mounts, at.path()).ok());
    struct stat st;
    ASSERT_EQ(::stat(at.Path("f").c_str(), &st), 0);
    EXPECT_EQ(st.st_uid, 100007u);
    EXPECT_EQ(st.st_gid, 200008u);
    ASSERT_EQ(::stat(at.path().c_str(), &st), 0);
    EXPECT_EQ(st.st_uid, 100000u);
    EXPECT_TRUE(os::UnmountTree(at.path()).ok());
    const Labels bad = {{"containerd.io/snapshot/uidmapping", "5:100000:1"},
                        {"containerd.io/snapshot/gidmapping", "0:200000:1"}};
    EXPECT_EQ(snapshotter->Prepare("bad", "base", bad).status().code(),
              absl::StatusCode::kInvalidArgument);
    ASSERT_TRUE(snapshotter->Cleanup().ok());
    EXPECT_EQ(FoldersOf(dir.path()).size(), 2u);
  }
}

}  // namespace
}  // namespace bulkhead::snapshotter
