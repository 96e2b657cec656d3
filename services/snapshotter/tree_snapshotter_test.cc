// The conformance suite on both drivers, and what only they promise.
#include "services/snapshotter/tree_snapshotter.h"

#include <dirent.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <set>
#include <thread>

#include "absl/strings/str_cat.h"
#include "services/snapshotter/snapshotter_conformance.h"

namespace bulkhead::snapshotter {
namespace {

using ::bulkhead::testing::TempDir;
using Driver = TreeSnapshotterOptions::Driver;

std::unique_ptr<Snapshotter> Open(Driver driver, const std::string& root) {
  auto opened = OpenTreeSnapshotter(
      {.driver = driver,
       .name = driver == Driver::kOverlay ? "overlayfs" : "native",
       .root = root});
  EXPECT_TRUE(opened.ok()) << opened.status();
  return opened.ok() ? *std::move(opened) : nullptr;
}

INSTANTIATE_TEST_SUITE_P(
    Core, SnapshotterConformance,
    ::testing::Values(Backend{"overlayfs", true,
                              [](const std::string& root) {
                                return Open(Driver::kOverlay, root);
                              }},
                      Backend{"native", false,
                              [](const std::string& root) {
                                return Open(Driver::kNative, root);
                              }}),
    [](const auto& info) { return info.param.name; });

std::set<std::string> Folders(const std::string& root) {
  std::set<std::string> names;
  DIR* dir = ::opendir((root + "/snapshots").c_str());
  while (const dirent* entry = ::readdir(dir)) {
    if (entry->d_name[0] != '.') names.insert(entry->d_name);
  }
  ::closedir(dir);
  return names;
}

TEST(TreeSnapshotter, LeftoversGoAtTheNextStart) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  TempDir dir;
  auto snapshotter = Open(Driver::kOverlay, dir.path());
  ASSERT_TRUE(snapshotter->Prepare("k", "", {}).ok());
  snapshotter.reset();
  const std::set<std::string> before = Folders(dir.path());
  ASSERT_EQ(std::system(absl::StrCat("cd ", dir.path(),
                                     "/snapshots && mkdir -p 77/fs rm-12/a "
                                     "junk && touch 77/fs/x")
                            .c_str()),
            0);
  snapshotter = Open(Driver::kOverlay, dir.path());
  ASSERT_TRUE(snapshotter->Cleanup().ok());  // Waits for the deletions.
  EXPECT_EQ(Folders(dir.path()), before);
  // A number is not used again while its old folder may be around.
  const auto mounts = snapshotter->Prepare("l", "", {});
  ASSERT_TRUE(mounts.ok());
  EXPECT_EQ((*mounts)[0].source, dir.Path("snapshots/78/fs"));
  // Folders that appear while running go at Cleanup().
  ASSERT_EQ(::mkdir(dir.Path("snapshots/99").c_str(), 0700), 0);
  ASSERT_TRUE(snapshotter->Remove("l").ok());
  ASSERT_TRUE(snapshotter->Cleanup().ok());
  EXPECT_EQ(Folders(dir.path()), before);
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
    EXPECT_EQ(Folders(root).size(), records);
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
  ASSERT_TRUE(snapshotter->NoteUnpacked(tree, {"v", "v/w", "absent"}).ok());
  ASSERT_TRUE(snapshotter->Commit("c", "k", {}, "base").ok());
  struct stat st;
  ASSERT_EQ(::stat((tree + "/v").c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777, 01777u);
  ASSERT_EQ(::stat((tree + "/v/w").c_str(), &st), 0);
  EXPECT_EQ(st.st_uid, 5u);
  EXPECT_EQ(st.st_gid, 6u);
}

}  // namespace
}  // namespace bulkhead::snapshotter
