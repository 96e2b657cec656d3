// Activations: what is mounted, what is left to the caller, what a failure and
// a restart leave.
#include "services/snapshotter/mount_manager.h"

#include <dirent.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <condition_variable>
#include <cstdlib>
#include <functional>
#include <mutex>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "lib/os/fd.h"
#include "lib/testing/temp_dir.h"
#include "services/snapshotter/loop_fs.h"
#include "services/snapshotter/mount_holders.h"

namespace bulkhead::snapshotter {
namespace {

using ::bulkhead::testing::TempDir;
using Code = absl::StatusCode;
using Options = std::vector<std::string>;

class Mounts : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root";
    ::umask(0);
    before_ = MountTable();
    Open();
    for (const char* name : {"one", "two"}) {
      const std::string make = absl::StrCat(
          "cd ", dir_.path(), " && mkdir ", name, " && echo ", name, " >", name,
          "/", name, " && mkfs.erofs ", name, ".img ", name, " >/dev/null");
      ASSERT_EQ(std::system(make.c_str()), 0);
    }
  }
  void TearDown() override {
    if (manager_ == nullptr) return;
    for (const Activation& one : manager_->List()) {
      EXPECT_TRUE(manager_->Deactivate(one.name).ok());
    }
    EXPECT_EQ(MountTable(), before_);
    EXPECT_EQ(Left(), "");
  }
  void Open() {
    manager_.reset();
    auto opened = MountManager::Open(Dir(), {dir_.path()});
    ASSERT_TRUE(opened.ok()) << opened.status();
    manager_ = *std::move(opened);
  }
  std::string Dir() const { return dir_.Path("mounts"); }
  std::string Left() const {
    std::string out;
    DIR* dir = ::opendir(Dir().c_str());
    while (const dirent* entry = ::readdir(dir)) {
      if (entry->d_name[0] != '.') absl::StrAppend(&out, entry->d_name, " ");
    }
    ::closedir(dir);
    return out;
  }
  os::MountSpec Image(const std::string& name) const {
    return {"erofs", dir_.Path(name + ".img"), "", {"ro", "loop"}};
  }
  std::string Shell(const std::vector<os::MountSpec>& mounts,
                    const std::string& command) {
    TempDir at;
    const absl::Status mounted = os::MountAll(mounts, at.path());
    EXPECT_TRUE(mounted.ok()) << mounted;
    std::string out;
    FILE* pipe = ::popen(
        absl::StrCat("cd ", at.path(), " && { ", command, "; } 2>&1").c_str(),
        "r");
    for (int c; (c = std::fgetc(pipe)) != EOF;) out += static_cast<char>(c);
    ::pclose(pipe);
    EXPECT_TRUE(os::UnmountTree(at.path()).ok());
    return out;
  }
  std::vector<os::MountSpec> Stack() const {
    return {Image("one"),
            Image("two"),
            {"mkfs/ext4",
             dir_.Path("rw.img"),
             "",
             {"loop", "X-containerd.mkfs.size=16777216",
              "X-containerd.mkfs.fs=ext4",
              "X-containerd.mkfs.uuid=01234567-89ab-cdef-0123-456789abcdef"}},
            {"format/mkdir/overlay",
             "overlay",
             "",
             {"X-containerd.mkdir.path={{ mount 2 }}/upper:0755",
              "X-containerd.mkdir.path={{ mount 2 }}/work:0700:5:6",
              "lowerdir={{ overlay 1 0 }}", "upperdir={{ mount 2 }}/upper",
              "workdir={{mount 2}}/work"}}};
  }

  TempDir dir_;
  std::string before_;
  std::unique_ptr<MountManager> manager_;
};

TEST_F(Mounts, NothingToHandleIsUnimplemented) {
  const std::vector<os::MountSpec> plain = {
      {"bind", "/", "", {"rbind", "ro"}},
      {"overlay", "overlay", "", {"lowerdir=/a:/b"}}};
  EXPECT_EQ(manager_->Activate("a", plain, {}, false).status().code(),
            Code::kUnimplemented);
  EXPECT_EQ(manager_->Activate("a", plain, {}, true).status().code(),
            Code::kUnimplemented);
  EXPECT_EQ(manager_->Info("a").status().code(), Code::kNotFound);
  EXPECT_EQ(manager_->Deactivate("a").code(), Code::kNotFound);
  EXPECT_TRUE(manager_->List().empty());
}

TEST_F(Mounts, ImagesAFileSystemAndWhatIsOnTop) {
  const auto active = manager_->Activate("a", Stack(), {{"k", "v"}}, false);
  ASSERT_TRUE(active.ok()) << active.status();
  ASSERT_EQ(active->active.size(), 3u);
  ASSERT_EQ(active->system.size(), 1u);
  EXPECT_EQ(active->active[0].mount_point, Dir() + "/1/0");
  EXPECT_GT(active->active[0].mounted_at_ns, 0);
  const os::MountSpec& overlay = active->system[0];
  EXPECT_EQ(overlay.type, "overlay");
  EXPECT_EQ(overlay.options,
            (Options{absl::StrCat("lowerdir=", Dir(), "/1/1:", Dir(), "/1/0"),
                     absl::StrCat("upperdir=", Dir(), "/1/2/upper"),
                     absl::StrCat("workdir=", Dir(), "/1/2/work")}));
  EXPECT_EQ(Shell(active->system, "cat one two; echo new >f; ls"),
            "one\ntwo\nf\none\ntwo\n");
  EXPECT_EQ(manager_->Activate("a", Stack(), {}, false).status().code(),
            Code::kAlreadyExists);
  // Still there for another process, and what was written as well.
  Open();
  const auto info = manager_->Info("a");
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(info->labels, (Labels{{"k", "v"}}));
  EXPECT_EQ(info->system[0].options, overlay.options);
  EXPECT_EQ(Shell(info->system, "cat f"), "new\n");
  ASSERT_TRUE(manager_->Deactivate("a").ok());
  EXPECT_EQ(manager_->Info("a").status().code(), Code::kNotFound);
  const auto again = manager_->Activate("a", Stack(), {}, false);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(Shell(again->system, "cat f"), "new\n");
}

TEST_F(Mounts, TemporaryMeansOneBind) {
  const auto active = manager_->Activate("t", Stack(), {}, true);
  ASSERT_TRUE(active.ok()) << active.status();
  ASSERT_EQ(active->system.size(), 1u);
  EXPECT_EQ(active->system[0].type, "bind");
  EXPECT_EQ(active->system[0].options, (Options{"rbind"}));
  EXPECT_EQ(Shell(active->system, "cat one two"), "one\ntwo\n");
}

TEST_F(Mounts, ALoopDeviceAlone) {
  const auto active =
      manager_->Activate("l",
                         {{"loop", dir_.Path("one.img"), "", {"ro"}},
                          {"format/erofs", "{{ mount 0 }}", "", {"ro"}}},
                         {}, false);
  ASSERT_TRUE(active.ok()) << active.status();
  const std::string device = active->active[0].data.at("loop");
  EXPECT_EQ(device.rfind("/dev/loop", 0), 0u);
  EXPECT_EQ(std::system(
                absl::StrCat("losetup ", device, " | grep -q one.img").c_str()),
            0);
  ASSERT_TRUE(manager_->Deactivate("l").ok());
  EXPECT_NE(std::system(absl::StrCat("losetup ", device,
                                     " 2>/dev/null | grep -q one.img")
                            .c_str()),
            0);
}

TEST_F(Mounts, WhatFailsLeavesNothing) {
  const auto fails = [&](std::vector<os::MountSpec> mounts, Code code) {
    mounts.insert(mounts.begin(), Image("one"));
    const absl::Status status =
        manager_->Activate("x", mounts, {}, false).status();
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_EQ(MountTable(), before_);
    EXPECT_EQ(Left(), "");
  };
  fails({{"format/bind", "{{ mount 7 }}", "", {}}}, Code::kInvalidArgument);
  fails({{"format/bind", "{{ what 0 }}", "", {}}}, Code::kInvalidArgument);
  fails({{"format/bind", "{{ mount 0", "", {}}}, Code::kInvalidArgument);
  fails({{"mkfs/ext4", dir_.Path("f"), "", {"loop"}}}, Code::kInvalidArgument);
  fails({{"mkfs/ext4",
          dir_.Path("f"),
          "",
          {"loop", "X-containerd.mkfs.size=12"}}},
        Code::kInvalidArgument);
  fails({{"mkdir/bind", "/", "", {"X-containerd.mkdir.path=/etc/here"}}},
        Code::kInvalidArgument);
  fails({{"mkdir/bind",
          "/",
          "",
          {absl::StrCat("X-containerd.mkdir.path=", dir_.path(), "/../here")}}},
        Code::kInvalidArgument);
  fails({{"erofs", "/nothing.img", "", {"loop"}}}, Code::kNotFound);
}

TEST_F(Mounts, HalfAnActivationIsUndoneAtTheStart) {
  ASSERT_TRUE(manager_->Activate("whole", {Image("one")}, {}, false).ok());
  manager_.reset();
  const std::string half = Dir() + "/17";
  ASSERT_EQ(std::system(absl::StrCat("mkdir -p ", half, "/0").c_str()), 0);
  ASSERT_TRUE(
      os::Mount({"erofs", dir_.Path("two.img"), "", {"ro"}}, half + "/0").ok());
  Open();
  EXPECT_EQ(Left(), "1 ");
  EXPECT_TRUE(manager_->Info("whole").ok());
  // One whose mounts went with a reboot is none.
  ASSERT_TRUE(os::UnmountTree(Dir()).ok());
  Open();
  EXPECT_FALSE(manager_->Info("whole").ok());
}

TEST(Holders, AreTheLeaseAndWhatLabelsNameBack) {
  Activation activation;
  EXPECT_TRUE(HoldersOf(activation).empty());
  activation.lease = "l";
  activation.labels = {{"containerd.io/gc.bref.container", "c"},
                       {"containerd.io/gc.bref.image.x", "i"},
                       {"containerd.io/gc.bref.content/y", "d"},
                       {"containerd.io/gc.bref.snapshot.overlayfs/z", "s"},
                       {"containerd.io/gc.bref.snapshot.native", "t"},
                       {"containerd.io/gc.bref.containers", "not one"},
                       {"containerd.io/gc.ref.container", "not one"}};
  std::string all;
  for (const Holder& holder : HoldersOf(activation)) {
    absl::StrAppend(&all, static_cast<int>(holder.kind), holder.snapshotter,
                    "=", holder.id, " ");
  }
  EXPECT_EQ(all, "0=l 1=c 3=d 2=i 4native=t 4overlayfs=s ");
}

TEST_F(Mounts, GoWithTheLastOfTheirHolders) {
  const Labels labels = {{"containerd.io/gc.bref.container", "c"}};
  ASSERT_TRUE(manager_->Activate("ns/free", {Image("one")}, {}, false).ok());
  ASSERT_TRUE(
      manager_->Activate("ns/both", {Image("one")}, labels, false, "l").ok());
  ASSERT_TRUE(manager_->Activate("ns/l", {Image("one")}, {}, false, "l").ok());
  Open();  // The lease is on record.
  std::mutex mutex;
  std::condition_variable changed;
  std::set<std::string> there = {"l", "c"};
  bool answers = true;
  int asked = 0;
  const auto ask = [&](const std::string& ns,
                       const Holder& holder) -> absl::StatusOr<bool> {
    EXPECT_EQ(ns, "ns");
    std::lock_guard lock(mutex);
    ++asked;
    changed.notify_all();
    if (!answers) return absl::UnavailableError("just now");
    return there.contains(holder.id);
  };
  const auto names = [&] {
    std::string out;
    for (const Activation& one : manager_->List()) {
      absl::StrAppend(&out, one.name, " ");
    }
    return out;
  };
  const auto change = [&](const std::function<void()>& how) {
    std::unique_lock lock(mutex);
    how();
    asked = 0;
    // Some of the questions may have been under way; then one more each.
    changed.wait(lock, [&] { return asked > 6; });
  };
  MountHolders holders(*manager_, ask, absl::Milliseconds(1));
  change([&] {});
  EXPECT_EQ(names(), "ns/both ns/free ns/l ");
  change([&] { answers = false; });
  change([&] { there.erase("l"); });
  EXPECT_EQ(names(), "ns/both ns/free ns/l ");
  change([&] { answers = true; });  // "c" is still asked for.
  EXPECT_EQ(names(), "ns/both ns/free ");
  {
    std::lock_guard lock(mutex);
    there.erase("c");
  }
  const absl::Time deadline = absl::Now() + absl::Seconds(60);
  while (names() != "ns/free " && absl::Now() < deadline) {
    absl::SleepFor(absl::Milliseconds(1));
  }
  EXPECT_EQ(names(), "ns/free ");
  // Nothing is held: nobody looks until somebody wakes it.
  ASSERT_TRUE(manager_->Activate("ns/l", {Image("one")}, {}, false, "l").ok());
  holders.Wake();
  while (names() != "ns/free " && absl::Now() < deadline) {
    absl::SleepFor(absl::Milliseconds(1));
  }
  EXPECT_EQ(names(), "ns/free ");
}

}  // namespace
}  // namespace bulkhead::snapshotter
