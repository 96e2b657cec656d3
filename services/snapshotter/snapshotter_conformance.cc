#include "services/snapshotter/snapshotter_conformance.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <map>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "services/snapshotter/loop_fs.h"
#include "services/snapshotter/snapshots_for_tests.h"

namespace bulkhead::snapshotter {
namespace {

using Code = absl::StatusCode;

bool Says(const absl::Status& status, const std::string& text) {
  return status.ToString().find(text) != std::string::npos;
}

}  // namespace

void SnapshotterConformance::SetUp() {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  ::umask(0);
  snapshotter_ = GetParam().open(dir_.Path("root"));
  snapshotter_.reset();  // Whatever it needs to have mounted, it has now.
  before_ = MountTable();
  Reopen();
}

void SnapshotterConformance::TearDown() {
  if (snapshotter_ == nullptr) return;
  snapshotter_.reset();
  EXPECT_EQ(MountTable(), before_);
}

void SnapshotterConformance::Reopen() {
  snapshotter_.reset();  // The database has one owner at a time.
  snapshotter_ = GetParam().open(dir_.Path("root"));
}

std::string SnapshotterConformance::Shell(
    const std::vector<os::MountSpec>& mounts, const std::string& command) {
  return ShellIn(mounts, dir_.Path("mnt"), command);
}

void SnapshotterConformance::Write(const std::vector<os::MountSpec>& mounts,
                                   const std::string& file,
                                   const std::string& data) {
  EXPECT_EQ(Shell(mounts, absl::StrCat("printf '%s' '", data, "' > ", file)),
            "");
}

void SnapshotterConformance::Layer(const std::string& name,
                                   const std::string& parent,
                                   const std::string& file,
                                   const std::string& data) {
  const auto mounts = snapshotter_->Prepare(name + "-key", parent, {});
  ASSERT_TRUE(mounts.ok()) << mounts.status();
  Write(*mounts, file, data);
  const absl::Status status = snapshotter_->Commit(name, name + "-key", {}, "");
  ASSERT_TRUE(status.ok()) << status;
}

TEST_P(SnapshotterConformance, LayersShowTheirParents) {
  Layer("1", "", "one", "1");
  Layer("2", "1", "two", "2");
  Layer("3", "2", "one", "changed");
  const auto active = snapshotter_->Prepare("k", "3", {});
  ASSERT_TRUE(active.ok()) << active.status();
  EXPECT_EQ(Shell(*active, "cat one two; rm two; touch new"), "changed2");
  EXPECT_EQ(Shell(*active, "ls"), "new\none\n");
  const auto view = snapshotter_->View("v", "3", {});
  ASSERT_TRUE(view.ok()) << view.status();
  EXPECT_EQ(Shell(*view, "ls; touch x 2>/dev/null || echo read-only"),
            "one\ntwo\nread-only\n");
  const auto first = snapshotter_->View("w", "1", {});
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(Shell(*first, "cat *"), "1");
  EXPECT_EQ(snapshotter_->Mounts("k")->size(), 1u);
}

TEST_P(SnapshotterConformance, MountsAreContainerdsOwn) {
  Layer("1", "", "a", "1");
  Layer("2", "1", "b", "2");
  auto only = [](const absl::StatusOr<std::vector<os::MountSpec>>& mounts) {
    EXPECT_TRUE(mounts.ok()) << mounts.status();
    EXPECT_EQ(mounts->size(), 1u);
    EXPECT_EQ((*mounts)[0].target, "");
    return (*mounts)[0];
  };
  using Options = std::vector<std::string>;
  const os::MountSpec base = only(snapshotter_->Prepare("a", "", {}));
  const os::MountSpec view0 = only(snapshotter_->View("v0", "", {}));
  const os::MountSpec view1 = only(snapshotter_->View("v1", "1", {}));
  const os::MountSpec view2 = only(snapshotter_->View("v2", "2", {}));
  const os::MountSpec child = only(snapshotter_->Prepare("c", "2", {}));
  EXPECT_EQ(base.type, "bind");
  if (!GetParam().overlay) {
    EXPECT_EQ(base.options, (Options{"rbind", "rw"}));
    EXPECT_EQ(view2.options, (Options{"rbind", "ro"}));
    EXPECT_EQ(child.type, "bind");
    return;
  }
  EXPECT_EQ(base.options, (Options{"rw", "rbind"}));
  EXPECT_EQ(view0.options, (Options{"ro", "rbind"}));
  EXPECT_EQ(view1.options, (Options{"ro", "rbind"}));
  EXPECT_EQ(view2.type, "overlay");
  EXPECT_EQ(view2.source, "overlay");
  EXPECT_TRUE(absl::StartsWith(view2.options[0], "lowerdir="));
  EXPECT_EQ(child.type, "overlay");
  ASSERT_GE(child.options.size(), 3u);
  EXPECT_TRUE(absl::StartsWith(child.options[0], "workdir="));
  EXPECT_TRUE(absl::StartsWith(child.options[1], "upperdir="));
  // Nearest parent first; the view of one parent is that parent's tree.
  EXPECT_EQ(child.options[2], view2.options[0]);
  EXPECT_TRUE(absl::EndsWith(child.options[2], ":" + view1.source));
  const std::string upper = child.options[1].substr(9);
  const std::string work = child.options[0].substr(8);
  const std::string dir = upper.substr(0, upper.size() - 3);
  struct stat st;
  ASSERT_EQ(::stat(upper.c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777, 0755u);
  ASSERT_EQ(::stat(work.c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777, 0711u);
  ASSERT_EQ(::stat(dir.c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777, 0700u);
}

TEST_P(SnapshotterConformance, ErrorsAreContainerdsOwn) {
  Layer("c", "", "f", "x");
  ASSERT_TRUE(snapshotter_->Prepare("a", "c", {}).ok());
  ASSERT_TRUE(snapshotter_->View("v", "c", {}).ok());
  absl::Status status = snapshotter_->Prepare("a", "", {}).status();
  EXPECT_EQ(status.code(), Code::kAlreadyExists) << status;
  EXPECT_EQ(snapshotter_->View("c", "", {}).status().code(),
            Code::kAlreadyExists);
  status = snapshotter_->Prepare("n", "none", {}).status();
  EXPECT_EQ(status.code(), Code::kNotFound);
  EXPECT_TRUE(Says(status, "parent snapshot none does not exist")) << status;
  status = snapshotter_->Prepare("n", "a", {}).status();
  EXPECT_EQ(status.code(), Code::kInvalidArgument);
  EXPECT_TRUE(Says(status, "parent \"a\" is not committed snapshot"));
  status = snapshotter_->Mounts("c").status();
  EXPECT_EQ(status.code(), Code::kFailedPrecondition);
  EXPECT_TRUE(Says(status, "requested snapshot c not active or view"));
  EXPECT_EQ(snapshotter_->Mounts("none").status().code(), Code::kNotFound);
  EXPECT_EQ(snapshotter_->Commit("c", "none", {}, "").code(),
            Code::kAlreadyExists);
  EXPECT_EQ(snapshotter_->Commit("n", "none", {}, "").code(), Code::kNotFound);
  status = snapshotter_->Commit("n", "v", {}, "");
  EXPECT_EQ(status.code(), Code::kFailedPrecondition);
  EXPECT_TRUE(Says(status, "snapshot \"v\" is not active")) << status;
  EXPECT_EQ(snapshotter_->Commit("n", "c", {}, "").code(),
            Code::kFailedPrecondition);
  status = snapshotter_->Remove("c");
  EXPECT_EQ(status.code(), Code::kFailedPrecondition);
  EXPECT_TRUE(Says(status, "cannot remove snapshot with child"));
  EXPECT_EQ(snapshotter_->Remove("none").code(), Code::kNotFound);
  EXPECT_EQ(snapshotter_->Stat("none").status().code(), Code::kNotFound);
  EXPECT_EQ(snapshotter_->Usage("none").status().code(), Code::kNotFound);
  EXPECT_EQ(snapshotter_->Prepare("", "", {}).status().code(),
            Code::kInvalidArgument);
  EXPECT_EQ(snapshotter_->Prepare("big", "", {{"k", std::string(4096, 'v')}})
                .status()
                .code(),
            Code::kInvalidArgument);
}

TEST_P(SnapshotterConformance, CommitReplacesKeyAndLabels) {
  ASSERT_TRUE(snapshotter_->Prepare("a/b 1", "", {{"x", "1"}, {"y", ""}}).ok());
  EXPECT_EQ(snapshotter_->Stat("a/b 1")->labels, (Labels{{"x", "1"}}));
  EXPECT_EQ(snapshotter_->Stat("a/b 1")->kind, Kind::kActive);
  ASSERT_TRUE(snapshotter_->Commit("n", "a/b 1", {{"z", "2"}}, "").ok());
  EXPECT_FALSE(snapshotter_->Stat("a/b 1").ok());
  const auto info = snapshotter_->Stat("n");
  ASSERT_TRUE(info.ok());
  EXPECT_EQ(info->labels, (Labels{{"z", "2"}}));
  EXPECT_EQ(info->kind, Kind::kCommitted);
  EXPECT_GT(info->created_at_ns, 0);
}

TEST_P(SnapshotterConformance, ManyAreRemovedEachByItsOwnResult) {
  Layer("below", "", "a", "1");
  for (const char* key : {"k1", "k2", "k3"}) {
    ASSERT_TRUE(snapshotter_->Prepare(key, "below", {}).ok());
  }
  const auto results =
      snapshotter_->RemoveMany({"k1", "missing", "below", "k2"});
  ASSERT_EQ(results.size(), 4u);
  EXPECT_TRUE(results[0].ok()) << results[0];
  EXPECT_TRUE(absl::IsNotFound(results[1])) << results[1];
  EXPECT_TRUE(absl::IsFailedPrecondition(results[2])) << results[2];
  EXPECT_TRUE(results[3].ok()) << results[3];
  EXPECT_TRUE(absl::IsNotFound(snapshotter_->Stat("k2").status()));
  EXPECT_TRUE(snapshotter_->Stat("k3").ok());
  EXPECT_TRUE(snapshotter_->Remove("k3").ok());
  EXPECT_TRUE(snapshotter_->Remove("below").ok());
}

TEST_P(SnapshotterConformance, UpdateFollowsItsMask) {
  ASSERT_TRUE(snapshotter_->Prepare("k", "", {{"a", "1"}, {"b", "2"}}).ok());
  auto labels = [&](const Labels& in, const std::vector<std::string>& paths) {
    const auto info = snapshotter_->Update("k", in, paths);
    EXPECT_TRUE(info.ok()) << info.status();
    return info.ok() ? info->labels : Labels{};
  };
  EXPECT_EQ(labels({{"c.d", "3"}, {"b", "9"}}, {"labels.c.d"}),
            (Labels{{"a", "1"}, {"b", "2"}, {"c.d", "3"}}));
  EXPECT_EQ(labels({{"a", ""}}, {"labels.a"}),
            (Labels{{"b", "2"}, {"c.d", "3"}}));
  EXPECT_EQ(labels({{"z", "1"}}, {"labels"}), (Labels{{"z", "1"}}));
  EXPECT_EQ(labels({{"y", "1"}}, {}), (Labels{{"y", "1"}}));
  EXPECT_EQ(snapshotter_->Update("k", {}, {"parent"}).status().code(),
            Code::kInvalidArgument);
  EXPECT_EQ(snapshotter_->Update("none", {}, {}).status().code(),
            Code::kNotFound);
}

TEST_P(SnapshotterConformance, UsageIsOfItsOwnTree) {
  const auto mounts = snapshotter_->Prepare("k", "", {});
  ASSERT_TRUE(mounts.ok());
  const auto empty = snapshotter_->Usage("k");
  ASSERT_TRUE(empty.ok());
  EXPECT_EQ(empty->inodes, 1);
  Shell(*mounts, "head -c 100000 /dev/zero > f; ln f g; sync -f f");
  const auto used = snapshotter_->Usage("k");
  ASSERT_TRUE(used.ok());
  EXPECT_EQ(used->inodes, 2);
  EXPECT_GE(used->size_bytes - empty->size_bytes, 100000);
  ASSERT_TRUE(snapshotter_->Commit("c", "k", {}, "").ok());
  EXPECT_EQ(snapshotter_->Usage("c")->size_bytes, used->size_bytes);
  ASSERT_TRUE(snapshotter_->View("v", "c", {}).ok());
  EXPECT_EQ(snapshotter_->Usage("v")->inodes, 0);
}

TEST_P(SnapshotterConformance, WhatWasAcknowledgedSurvivesAReopen) {
  Layer("1", "", "f", "x");
  ASSERT_TRUE(snapshotter_->Prepare("k", "1", {{"l", "v"}}).ok());
  ASSERT_TRUE(snapshotter_->View("v", "1", {}).ok());
  ASSERT_TRUE(snapshotter_->Prepare("gone", "", {}).ok());
  ASSERT_TRUE(snapshotter_->Remove("gone").ok());
  std::map<std::string, SnapshotInfo> before;
  auto gather = [&](std::map<std::string, SnapshotInfo>* out) {
    ASSERT_TRUE(snapshotter_
                    ->Walk([out](const SnapshotInfo& info) {
                      (*out)[info.name] = info;
                      return absl::OkStatus();
                    })
                    .ok());
  };
  gather(&before);
  const auto mounts = *snapshotter_->Mounts("k");
  Reopen();
  std::map<std::string, SnapshotInfo> after;
  gather(&after);
  ASSERT_EQ(after.size(), 3u);
  for (const auto& [name, info] : before) {
    EXPECT_EQ(after[name].parent, info.parent);
    EXPECT_EQ(after[name].kind, info.kind);
    EXPECT_EQ(after[name].labels, info.labels);
    EXPECT_EQ(after[name].created_at_ns, info.created_at_ns);
  }
  EXPECT_EQ((*snapshotter_->Mounts("k"))[0].options, mounts[0].options);
  EXPECT_EQ(Shell(*snapshotter_->Mounts("k"), "cat f"), "x");
  EXPECT_EQ(snapshotter_->Remove("1").code(), Code::kFailedPrecondition);
  ASSERT_TRUE(snapshotter_->Remove("k").ok());
  ASSERT_TRUE(snapshotter_->Remove("v").ok());
  ASSERT_TRUE(snapshotter_->Remove("1").ok());
  ASSERT_TRUE(snapshotter_->Cleanup().ok());
}

TEST_P(SnapshotterConformance, CommitMayNameAParent) {
  Layer("p", "", "f", "parent");
  const auto mounts = snapshotter_->Prepare("k", "", {});
  ASSERT_TRUE(mounts.ok());
  Write(*mounts, "g", "child");
  if (!GetParam().overlay) {
    EXPECT_EQ(snapshotter_->Commit("c", "k", {}, "p").code(),
              Code::kUnimplemented);
    return;
  }
  EXPECT_EQ(snapshotter_->Commit("c", "k", {}, "none").code(), Code::kNotFound);
  ASSERT_TRUE(snapshotter_->Prepare("with", "p", {}).ok());
  EXPECT_EQ(snapshotter_->Commit("c", "with", {}, "k").code(),
            Code::kInvalidArgument);
  EXPECT_TRUE(snapshotter_->Commit("same", "with", {}, "p").ok());
  ASSERT_TRUE(snapshotter_->Commit("c", "k", {}, "p").ok());
  EXPECT_EQ(snapshotter_->Stat("c")->parent, "p");
  EXPECT_EQ(snapshotter_->Remove("p").code(), Code::kFailedPrecondition);
  EXPECT_EQ(Shell(*snapshotter_->View("v", "c", {}), "cat f g"), "parentchild");
}

TEST_P(SnapshotterConformance, DeepChainsWork) {
  std::string parent;
  for (int i = 0; i < 40; ++i) {
    Layer(absl::StrCat(i), parent, absl::StrCat("f", i), "x");
    parent = absl::StrCat(i);
  }
  EXPECT_EQ(Shell(*snapshotter_->Prepare("k", parent, {}), "ls | wc -l"),
            "40\n");
  for (int i = 39; i > 0; --i) {
    EXPECT_FALSE(snapshotter_->Remove(absl::StrCat(i - 1)).ok());
    if (i == 39) {
      ASSERT_TRUE(snapshotter_->Remove("k").ok());
    }
    ASSERT_TRUE(snapshotter_->Remove(absl::StrCat(i)).ok());
  }
}

TEST_P(SnapshotterConformance, EveryKindOfFileSurvivesACommit) {
  const auto mounts = snapshotter_->Prepare("k", "", {});
  ASSERT_TRUE(mounts.ok());
  const std::string look =
      "find . -mindepth 1 -printf '%p %y %m %U:%G %n %T@ %l|' | tr '|' '\\n' "
      "| sort; getfattr -d -m '^(user|security)' -h *; du --apparent-size -b "
      "sparse";
  const std::string made =
      Shell(*mounts,
            "mkdir d && echo x >d/f && ln d/f hard && ln -s d/f link && mkfifo "
            "p && mknod c c 1 3 && mknod b b 7 0 && chown 1:2 d && chmod 3751 "
            "d && chmod 6755 hard && truncate -s 1M sparse && setfattr -n "
            "user.a -v b d && setcap cap_net_raw+ep d/f && touch -d "
            "@1500000000.25 d/f d; " +
                look);
  ASSERT_TRUE(snapshotter_->Commit("c", "k", {}, "").ok());
  EXPECT_EQ(Shell(*snapshotter_->View("v", "c", {}), look), made);
  EXPECT_EQ(Shell(*snapshotter_->Prepare("a", "c", {}), look), made);
}

}  // namespace bulkhead::snapshotter
