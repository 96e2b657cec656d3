// What only the "erofs" snapshotter does: layers that become images.
#include <dirent.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "lib/os/fd.h"
#include "lib/testing/temp_dir.h"
#include "services/snapshotter/loop_fs.h"
#include "services/snapshotter/snapshots_for_tests.h"
#include "services/snapshotter/tar_for_tests.h"
#include "services/snapshotter/tree_snapshotter.h"

namespace bulkhead::snapshotter {
namespace {

using ::bulkhead::testing::ReadFileOrDie;
using ::bulkhead::testing::TempDir;
using ::bulkhead::testing::WriteFileOrDie;

class ErofsSnapshotter : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root";
    ::umask(0);
    before_ = MountTable();
    Reopen();
  }
  void TearDown() override {
    if (snapshotter_ == nullptr) return;
    RemoveAll();
    snapshotter_.reset();
    EXPECT_EQ(MountTable(), before_);
  }

  static std::unique_ptr<Snapshotter> Open(const std::string& root) {
    return OpenForTest(TreeSnapshotterOptions::Driver::kErofs, root);
  }
  void Reopen() {
    snapshotter_.reset();
    snapshotter_ = Open(Root());
  }
  std::string Root() const { return dir_.Path("root"); }

  // A tar of what `command` makes in an empty directory.
  std::string Tar(const std::string& command) {
    const std::string make = absl::StrCat(
        "cd ", dir_.path(), " && rm -rf in && mkdir in && cd in && ", command,
        " && tar --format=pax --xattrs -cf ../tar .");
    EXPECT_EQ(std::system(make.c_str()), 0) << make;
    return ReadFileOrDie(dir_.Path("tar"));
  }

  absl::Status Apply(const std::vector<os::MountSpec>& mounts,
                     const std::string& tar, bool parallel = false) {
    return ApplyTar(*snapshotter_, mounts, tar, parallel);
  }
  void Layer(const std::string& name, const std::string& parent,
             const std::string& tar) {
    const auto mounts = snapshotter_->Prepare(name + "-key", parent, {});
    ASSERT_TRUE(mounts.ok()) << mounts.status();
    absl::Status status = Apply(*mounts, tar);
    ASSERT_TRUE(status.ok()) << status;
    status = snapshotter_->Commit(name, name + "-key", {}, "");
    ASSERT_TRUE(status.ok()) << status;
  }

  std::string Shell(const std::vector<os::MountSpec>& mounts,
                    const std::string& command) {
    return ShellIn(mounts, dir_.Path("mnt"), command);
  }
  std::string ViewShell(const std::string& name, const std::string& command) {
    return ShellInCommitted(*snapshotter_, name, dir_.Path("mnt"), command);
  }
  void RemoveAll() {
    RemoveAllSnapshots(*snapshotter_);
    EXPECT_EQ(FoldersOf(Root()).size(), 0u);
  }

  TempDir dir_;
  std::string before_;
  std::unique_ptr<Snapshotter> snapshotter_;
};

TEST_F(ErofsSnapshotter, LayersBecomeImagesUnderOverlayfs) {
  Layer("1", "",
        Tar("mkdir -p d/sub && echo one >d/f && echo gone >d/gone && ln d/f "
            "hard && echo x >d/sub/x && chmod 4750 d/f && setfattr -n "
            "user.a -v b d/f"));
  Layer("2", "1",
        Tar("mkdir -p d/sub && touch d/.wh.gone d/sub/.wh..wh..opq && echo two "
            ">d/sub/y"));
  struct stat st;
  ASSERT_EQ(::stat((Root() + "/snapshots/1/layer.erofs").c_str(), &st), 0);
  EXPECT_EQ(ViewShell("1", "cat d/f hard d/gone d/sub/x; stat -c %a:%h d/f"),
            "one\none\ngone\nx\n4750:2\n");
  EXPECT_EQ(ViewShell("2", "find . | sort | tr '\\n' ' '; cat hard d/sub/y"),
            ". ./d ./d/f ./d/sub ./d/sub/y ./hard one\ntwo\n");
  const auto active = snapshotter_->Prepare("a", "2", {});
  ASSERT_TRUE(active.ok()) << active.status();
  EXPECT_EQ(Shell(*active,
                  "getfattr -n user.a --only-values d/f; rm hard; "
                  "echo new >>d/f; mv d/sub moved; ls . moved"),
            "b.:\nd\nmoved\n\nmoved:\ny\n");
  // Two containers at once, and a commit that stays a directory.
  ASSERT_TRUE(snapshotter_->Prepare("b", "2", {}).ok());
  ASSERT_TRUE(snapshotter_->Commit("3", "a", {}, "").ok());
  EXPECT_EQ(ViewShell("3", "cat d/f; ls"), "one\nnew\nd\nmoved\n");
  EXPECT_GT(snapshotter_->Usage("1")->size_bytes, 4096);
}

TEST_F(ErofsSnapshotter, MountsComeBackAfterARestart) {
  Layer("1", "", Tar("echo one >f"));
  Layer("2", "1", Tar("echo two >g"));
  const auto active = *snapshotter_->Prepare("a", "2", {});
  Reopen();
  // As they were handed out before; not asked for again.
  EXPECT_EQ(Shell(active, "cat f g"), "one\ntwo\n");
  snapshotter_.reset();
  // As after a reboot.
  ASSERT_TRUE(os::UnmountTree(Root()).ok());
  snapshotter_ = Open(Root());
  EXPECT_EQ(Shell(active, "cat f g"), "one\ntwo\n");
  ASSERT_TRUE(os::UnmountTree(Root()).ok());  // An administrator's mistake.
  EXPECT_EQ(Shell(*snapshotter_->Mounts("a"), "cat f g"), "one\ntwo\n");
}

TEST_F(ErofsSnapshotter, LayersAppliedAtTheSameTimeMeetAtCommit) {
  Layer("1", "",
        Tar("mkdir -p var/lib && chmod 1777 var && chown 5:6 var/lib "
            "&& setfattr -n user.k -v v var/lib && touch gone"));
  const auto mounts = snapshotter_->Prepare("k", "", {});
  ASSERT_TRUE(mounts.ok());
  // No entries for the directories.
  std::string tar =
      Tar("mkdir -p var/lib && echo x >var/lib/x && touch .wh.gone "
          "&& tar -cf ../t2 var/lib/x .wh.gone");
  tar = ReadFileOrDie(dir_.Path("t2"));
  ASSERT_TRUE(Apply(*mounts, tar, true).ok());
  const absl::Status status = snapshotter_->Commit("2", "k", {}, "1");
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(ViewShell("2",
                      "stat -c %a:%u:%g var var/lib; cat var/lib/x; ls; "
                      "getfattr --only-values -n user.k var/lib"),
            "1777:0:0\n777:5:6\nx\nvar\nv");
}

TEST_F(ErofsSnapshotter, ADirectoryWithoutAnEntryStaysOpaque) {
  Layer("1", "", Tar("mkdir -p d && chmod 711 d && touch d/old"));
  const auto mounts = snapshotter_->Prepare("k", "", {});
  ASSERT_TRUE(mounts.ok());
  Tar("mkdir -p d && touch d/.wh..wh..opq d/new "
      "&& tar -cf ../t2 d/.wh..wh..opq d/new");
  ASSERT_TRUE(Apply(*mounts, ReadFileOrDie(dir_.Path("t2")), true).ok());
  const absl::Status status = snapshotter_->Commit("2", "k", {}, "1");
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(ViewShell("2", "stat -c %a d; ls d"), "711\nnew\n");
}

// Its table of contents comes last among the entries, the footer that says what
// it is at the end of the bytes.
TEST_F(ErofsSnapshotter, AnEStargzIsToldByItsFooter) {
  const std::string files =
      Encode({".prefetch.landmark", '0', "\xf"}) + Encode({"f", '0', "data\n"});
  const std::string table =
      snapshotter::Tar({{"stargz.index.json", '0', "{\"version\":1}"}});
  for (const bool footer : {true, false}) {
    std::string layer;
    for (const std::string& part : {files, table}) {
      WriteFileOrDie(dir_.Path("part"), part);
      ASSERT_EQ(std::system(absl::StrCat("gzip -c <", dir_.Path("part"), " >",
                                         dir_.Path("part.gz"))
                                .c_str()),
                0);
      layer += ReadFileOrDie(dir_.Path("part.gz"));
    }
    if (footer) layer += StargzFooter(true);
    const std::string name = footer ? "estargz" : "plain";
    const auto mounts = snapshotter_->Prepare("k", "", {});
    ASSERT_TRUE(mounts.ok());
    const absl::Status status =
        ApplyTar(*snapshotter_, *mounts, layer, false,
                 "application/vnd.oci.image.layer.v1.tar+gzip");
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_TRUE(snapshotter_->Commit(name, "k", {}, "").ok());
    EXPECT_EQ(ViewShell(name, "ls -A; cat f"),
              footer ? "f\ndata\n"
                     : ".prefetch.landmark\nf\nstargz.index.json\ndata\n");
  }
}

TEST_F(ErofsSnapshotter, AnUnpackedSnapshotCanStillBeWritten) {
  const auto mounts = snapshotter_->Prepare("k", "", {});
  ASSERT_TRUE(Apply(*mounts, Tar("echo image >f && echo old >old")).ok());
  const auto again = snapshotter_->Mounts("k");
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ((*again)[0].type, "overlay");
  EXPECT_EQ(Shell(*again, "cat f; echo more >g"), "image\n");
  // A second layer goes above the image.
  const absl::Status second =
      Apply(*again, Tar("touch .wh.old && echo second >h"));
  ASSERT_TRUE(second.ok()) << second;
  ASSERT_TRUE(snapshotter_->Commit("c", "k", {}, "").ok());
  EXPECT_EQ(ViewShell("c", "ls; cat f g h"), "f\ng\nh\nimage\nmore\nsecond\n");
}

TEST_F(ErofsSnapshotter, AFailedLayerLeavesNothing) {
  const auto mounts = snapshotter_->Prepare("k", "", {});
  std::string tar = Tar("head -c 3000000 /dev/zero >f");
  const std::string table = MountTable();
  EXPECT_FALSE(Apply(*mounts, tar.substr(0, 1000000)).ok());
  std::set<std::string> names;
  DIR* dir = ::opendir((Root() + "/snapshots/1").c_str());
  while (const dirent* entry = ::readdir(dir)) names.insert(entry->d_name);
  ::closedir(dir);
  EXPECT_EQ(names, (std::set<std::string>{".", "..", "fs", "work"}));
  EXPECT_EQ(MountTable(), table);
  ASSERT_TRUE(Apply(*mounts, Tar("echo good >f")).ok());
  ASSERT_TRUE(snapshotter_->Commit("c", "k", {}, "").ok());
  EXPECT_EQ(ViewShell("c", "cat f"), "good\n");
}

// The service may end before its deleting thread gets to what was removed.
TEST_F(ErofsSnapshotter, WhatIsStillToBeDeletedIsNotLeftMounted) {
  const int count = 8;
  for (int i = 0; i < count; ++i) {
    const std::string name = absl::StrCat(i);
    // Enough files to keep the deleting thread busy. (Each view takes a
    // number.)
    Layer(name, "", Tar("echo x >f"));
    const std::string tree =
        absl::StrCat(Root(), "/snapshots/", 2 * i + 1, "/fs");
    ASSERT_EQ(
        std::system(
            absl::StrCat("cd ", tree, " && mkdir d && cd d && touch $(seq 500)")
                .c_str()),
        0);
    EXPECT_EQ(ViewShell(name, "cat f"), "x\n");
  }
  EXPECT_NE(MountTable(), before_);  // Images stay for the next who asks.
  for (int i = 0; i < count; ++i) {
    ASSERT_TRUE(snapshotter_->Remove(absl::StrCat(i)).ok());
  }
  snapshotter_.reset();
  EXPECT_EQ(MountTable(), before_);
  Reopen();
  ASSERT_TRUE(snapshotter_->Cleanup().ok());
  EXPECT_EQ(FoldersOf(Root()).size(), 0u);
}

TEST_F(ErofsSnapshotter, ADamagedImageIsNamedAndNothingIsLeft) {
  Layer("1", "", Tar("echo x >f"));
  const std::string image = Root() + "/snapshots/1/layer.erofs";
  const std::string good = ReadFileOrDie(image);
  WriteFileOrDie(image, std::string(good.size(), '\0'));
  const std::string table = MountTable();
  const std::set<std::string> folders = FoldersOf(Root());
  const absl::Status status = snapshotter_->Prepare("a", "1", {}).status();
  EXPECT_FALSE(status.ok());
  EXPECT_TRUE(absl::StrContains(status.message(), image)) << status;
  ASSERT_TRUE(snapshotter_->Cleanup().ok());
  EXPECT_EQ(FoldersOf(Root()), folders);
  EXPECT_EQ(MountTable(), table);
  EXPECT_TRUE(absl::IsNotFound(snapshotter_->Stat("a").status()));
  WriteFileOrDie(image, good);
  ASSERT_TRUE(snapshotter_->Prepare("a", "1", {}).ok());
  EXPECT_EQ(snapshotter_->Remove("1").code(),
            absl::StatusCode::kFailedPrecondition);
}

// Prepare, Apply, Commit, View and Remove in a child that is killed: what is
// there afterwards is whole, and belongs to a record.
TEST_F(ErofsSnapshotter, KilledAtAnyInstantNothingIsHalf) {
  const std::string tar =
      Tar("mkdir d && for i in $(seq 200); do echo $i "
          ">d/$i; done; head -c 2000000 /dev/urandom >big");
  for (int round = 0; round < 6; ++round) {
    snapshotter_.reset();
    int fds[2];
    ASSERT_EQ(::pipe(fds), 0);
    const pid_t child = ::fork();
    if (child == 0) {
      auto own = Open(Root());
      for (int i = 0;; ++i) {
        const std::string n = absl::StrCat(round, "-", i);
        const auto mounts = own->Prepare("k" + n, "", {});
        if (!mounts.ok() || !ApplyTar(*own, *mounts, tar).ok()) _exit(1);
        if (!own->Commit("c" + n, "k" + n, {}, "").ok()) _exit(2);
        if (!own->View("v" + n, "c" + n, {}).ok()) _exit(3);
        if (!own->Remove("v" + n).ok()) _exit(4);
        if (i % 2 == 1 && !own->Remove("c" + n).ok()) _exit(5);
        if (::write(fds[1], "x", 1) != 1) _exit(6);
      }
    }
    ::close(fds[1]);
    char byte;
    for (int i = 0; i < 1 + round; ++i) ASSERT_EQ(::read(fds[0], &byte, 1), 1);
    ::usleep(1000 * 7 * round);  // Any instant will do.
    ::kill(child, SIGKILL);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFSIGNALED(status)) << WEXITSTATUS(status);
    ::close(fds[0]);
    snapshotter_ = Open(Root());
    ASSERT_NE(snapshotter_, nullptr);
    EXPECT_TRUE(snapshotter_->Stat(absl::StrCat("c", round, "-0")).ok());
    ASSERT_TRUE(snapshotter_->Cleanup().ok());
    std::vector<SnapshotInfo> all;
    ASSERT_TRUE(snapshotter_
                    ->Walk([&](const SnapshotInfo& info) {
                      all.push_back(info);
                      return absl::OkStatus();
                    })
                    .ok());
    EXPECT_EQ(FoldersOf(Root()).size(), all.size());
    for (const SnapshotInfo& info : all) {
      if (info.kind != Kind::kCommitted) continue;
      EXPECT_EQ(ViewShell(info.name, "ls d | wc -l; stat -c %s big"),
                "200\n2000000\n");
    }
  }
}

}  // namespace
}  // namespace bulkhead::snapshotter
