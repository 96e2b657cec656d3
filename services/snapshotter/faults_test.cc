// Each system call of a snapshot's life fails in turn, or is the last one the
// process makes: what is there afterwards is whole, belongs to a record, and
// nothing else is left on disk or mounted. For every driver.
//
// BULKHEAD_FAULT_STRIDE=1 tries each call, not every few.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "lib/testing/faulty_calls.h"
#include "lib/testing/temp_dir.h"
#include "services/snapshotter/loop_fs.h"
#include "services/snapshotter/snapshots_for_tests.h"
#include "services/snapshotter/tar_for_tests.h"
#include "services/snapshotter/tree_snapshotter.h"

namespace bulkhead::snapshotter {
namespace {

using ::bulkhead::testing::CallFault;
using ::bulkhead::testing::FaultyCalls;
using ::bulkhead::testing::kDiedAtCall;
using ::bulkhead::testing::TempDir;
using Driver = TreeSnapshotterOptions::Driver;
using State = std::map<std::string, Kind>;

constexpr int kFinished = 0;      // Exit status of a child: no fault was met.
constexpr int kFaultWasMet = 78;  // All is well after it.
constexpr int kComplained = 79;   // What it found is on standard output.
constexpr int kStepsMax = 5000;
constexpr char kLook[] = "cat d/f h; ls d; wc -c <big";
constexpr absl::Duration kHealsWithin = absl::Seconds(60);

// What a committed snapshot of this name shows.
std::string Expected(const std::string& name) {
  if (name == "base") return "one\none\nf\ng\n300000\n";
  if (name == "top") return "two\none\nf\n300000\n";
  return "one\none\nf\nnew\n300000\n";  // "beside"
}

std::string BaseTar() {
  return Tar({{"d/", '5', "", "", 0755},
              {"d/f", '0', "one\n"},
              {"d/g", '0', "gone\n"},
              {"l", '2', "", "d/f"},
              {"h", '1', "", "d/f"},
              {"p", '6', ""},
              {"big", '0', std::string(300000, 'b')}});
}
std::string TopTar() {
  return Tar({{"d/.wh.g"}, {"d/f", '0', "two\n"}, {"n/x", '0', "x\n"}});
}
std::string BesideTar() { return Tar({{"d/.wh.g"}, {"d/new", '0', "new\n"}}); }

struct Step {
  std::string what;
  std::function<absl::Status(Snapshotter&)> run;
  std::function<void(State*)> change;  // What it does when it works.
};

absl::Status Fill(Snapshotter& snapshotter, const std::string& key,
                  const std::string& tar, bool parallel) {
  const auto mounts = snapshotter.Mounts(key);
  if (!mounts.ok()) return mounts.status();
  return ApplyTar(snapshotter, *mounts, tar, parallel);
}

std::vector<Step> Life(bool rebases) {
  const auto prepare = [](const std::string& key, const std::string& parent) {
    return Step{
        "prepare " + key,
        [=](Snapshotter& s) { return s.Prepare(key, parent, {}).status(); },
        [=](State* all) { (*all)[key] = Kind::kActive; }};
  };
  const auto apply = [](const std::string& key, const std::string& tar,
                        bool parallel = false) {
    return Step{"apply to " + key,
                [=](Snapshotter& s) { return Fill(s, key, tar, parallel); },
                [](State*) {}};
  };
  const auto commit = [](const std::string& name, const std::string& key,
                         const std::string& parent = "") {
    return Step{"commit " + name,
                [=](Snapshotter& s) { return s.Commit(name, key, {}, parent); },
                [=](State* all) {
                  all->erase(key);
                  (*all)[name] = Kind::kCommitted;
                }};
  };
  const auto remove = [](const std::string& key) {
    return Step{"remove " + key, [=](Snapshotter& s) { return s.Remove(key); },
                [=](State* all) { all->erase(key); }};
  };
  std::vector<Step> steps = {
      prepare("a", ""),     apply("a", BaseTar()), commit("base", "a"),
      prepare("b", "base"), apply("b", TopTar()),  commit("top", "b"),
  };
  if (rebases) {
    steps.push_back(prepare("c", ""));
    steps.push_back(apply("c", BesideTar(), true));
    steps.push_back(commit("beside", "c", "base"));
  }
  steps.push_back(
      {"view v", [](Snapshotter& s) { return s.View("v", "top", {}).status(); },
       [](State* all) { (*all)["v"] = Kind::kView; }});
  steps.push_back(remove("v"));
  steps.push_back(prepare("d", "top"));
  steps.push_back(remove("d"));
  steps.push_back(remove("top"));
  return steps;
}

// Where a child's life has come to, for those that come after it.
struct Progress {
  int done = 0;  // Steps that were answered with OK.
  bool begun = false;
};

class Faults : public ::testing::TestWithParam<Driver> {
 protected:
  static void SetUpTestSuite() {
    if (::geteuid() != 0) return;
    ::umask(0);
  }
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root";
    root_ = GetParam() == Driver::kBtrfs ? BtrfsRootFor(dir_.Path("root"))
                                         : dir_.Path("root");
    states_.push_back({});
    for (const Step& step : steps_) {
      states_.push_back(states_.back());
      step.change(&states_.back());
    }
    progress_ = static_cast<Progress*>(
        ::mmap(nullptr, sizeof(Progress), PROT_READ | PROT_WRITE,
               MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    ASSERT_NE(progress_, MAP_FAILED);
    *progress_ = Progress{};
    before_ = MountTable();
  }
  void TearDown() override {
    if (progress_ != nullptr) ::munmap(progress_, sizeof(Progress));
  }

  static int Stride() {
    const char* const text = std::getenv("BULKHEAD_FAULT_STRIDE");
    int stride = 0;
    return text != nullptr && absl::SimpleAtoi(text, &stride) && stride > 0
               ? stride
               : 7;
  }

  std::string At() const { return dir_.Path("mnt"); }

  // Lives `fault` after `fault` until a life meets none.
  void TryEach(const std::function<CallFault(int)>& fault, bool goes_on) {
    const int stride = Stride();
    int lives = 0;
    // Another first call for each driver, so that few are never tried.
    for (int at = static_cast<int>(GetParam()) % stride;; at += stride) {
      SCOPED_TRACE(absl::StrCat("call ", at));
      ASSERT_LT(at, kStepsMax) << "faults never stopped firing";
      const int status = InChild([&] { Live(fault(at), goes_on); });
      ++lives;
      if (status == kFinished) break;
      ASSERT_TRUE(status == kFaultWasMet || status == kDiedAtCall) << status;
    }
    EXPECT_GT(lives, 2);
    EXPECT_EQ(InChild([&] {
                Inspect();
                Finish(kFinished);
              }),
              kFinished);
    EXPECT_EQ(MoreThan(before_), "");
  }

  // This process never opens a database: RocksDB's threads would be missing in
  // its children.
  static int InChild(const std::function<void()>& body) {
    std::fflush(nullptr);
    const pid_t child = ::fork();
    if (child == 0) {
      body();
      ::_exit(kComplained);
    }
    int status = 0;
    EXPECT_EQ(::waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status)) << "signal " << WTERMSIG(status);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

  // Looks at what the life before left, clears up, and leaves nothing.
  void Inspect() {
    FaultyCalls::Arm({});
    FaultyCalls::Disarm();
    auto snapshotter = OpenForTest(GetParam(), root_);
    if (snapshotter == nullptr) Finish(kComplained);
    if (progress_->begun) {
      const State found = StateOf(*snapshotter);
      const int done = progress_->done;
      EXPECT_TRUE(found == states_[done] ||
                  (done < static_cast<int>(steps_.size()) &&
                   found == states_[done + 1]))
          << "after " << done << " steps: " << Text(found);
      ExpectWhole(*snapshotter);
    }
    RemoveAllSnapshots(*snapshotter);
    EXPECT_EQ(FoldersOf(root_), (std::set<std::string>{}));
    snapshotter.reset();
    EXPECT_EQ(MoreThan(before_), "");
  }

  // One life, after a look at what the one before left. `goes_on`: what failed
  // is tried again; otherwise the process ends there, without any closing.
  void Live(const CallFault& fault, bool goes_on) {
    Inspect();
    // Not to be lost when this life is cut short.
    if (::testing::Test::HasFailure()) Finish(kComplained);
    *progress_ = Progress{.done = 0, .begun = true};
    auto snapshotter = OpenForTest(GetParam(), root_);
    if (snapshotter == nullptr) Finish(kComplained);
    bool met = false;
    FaultyCalls::Arm(fault);
    for (size_t i = 0; i < steps_.size(); ++i) {
      const std::string table = MountTable();
      absl::Status status = steps_[i].run(*snapshotter);
      if (!status.ok()) {
        EXPECT_NE(FaultyCalls::fired(), "") << steps_[i].what << ": " << status;
        SCOPED_TRACE(
            absl::StrCat(FaultyCalls::fired(), " failed in ", steps_[i].what));
        met = true;
        if (!goes_on) {
          Finish(kFaultWasMet);
        }
        FaultyCalls::Disarm();
        // Nothing has happened.
        EXPECT_EQ(Text(StateOf(*snapshotter)), Text(states_[i]));
        EXPECT_EQ(MoreThan(table), "");
        const absl::Time deadline = absl::Now() + kHealsWithin;
        while (!status.ok() && absl::Now() < deadline) {
          status = steps_[i].run(*snapshotter);
          if (!status.ok()) absl::SleepFor(absl::Milliseconds(5));
        }
        EXPECT_TRUE(status.ok()) << status;
        if (!status.ok()) Finish(kComplained);
      }
      ++progress_->done;
      EXPECT_EQ(Text(StateOf(*snapshotter)), Text(states_[i + 1]));
    }
    met = met || !FaultyCalls::fired().empty();
    FaultyCalls::Disarm();
    ExpectWhole(*snapshotter);
    snapshotter.reset();
    EXPECT_EQ(MoreThan(before_), "");
    Finish(met ? kFaultWasMet : kFinished);
  }

  [[noreturn]] static void Finish(int code) {
    std::fflush(nullptr);
    ::_exit(::testing::Test::HasFailure() ? kComplained : code);
  }

  // What is mounted that was not then.
  static std::string MoreThan(const std::string& table) {
    std::vector<std::string> before = absl::StrSplit(table, '\n');
    std::vector<std::string> now = absl::StrSplit(MountTable(), '\n');
    std::sort(before.begin(), before.end());
    std::sort(now.begin(), now.end());
    std::vector<std::string> more;
    std::set_difference(now.begin(), now.end(), before.begin(), before.end(),
                        std::back_inserter(more));
    return absl::StrJoin(more, " ");
  }

  static State StateOf(Snapshotter& snapshotter) {
    State state;
    for (const auto& [name, info] : AllSnapshots(snapshotter)) {
      state[name] = info.kind;
    }
    return state;
  }
  static std::string Text(const State& state) {
    std::string out;
    for (const auto& [name, kind] : state) {
      absl::StrAppend(&out, name, ":", KindName(kind), " ");
    }
    return out;
  }

  // Each record has a folder and each folder a record, what is committed shows
  // what was put there, what is not can be mounted.
  void ExpectWhole(Snapshotter& snapshotter) {
    absl::Status clean = snapshotter.Cleanup();
    // The first may have waited for a deletion that had met the fault.
    if (!clean.ok()) clean = snapshotter.Cleanup();
    EXPECT_TRUE(clean.ok()) << clean;
    const auto all = AllSnapshots(snapshotter);
    EXPECT_EQ(FoldersOf(root_).size(), all.size());
    for (const auto& [name, info] : all) {
      SCOPED_TRACE(name);
      if (info.kind == Kind::kCommitted) {
        EXPECT_EQ(ShellInCommitted(snapshotter, name, At(), kLook),
                  Expected(name));
        EXPECT_GT(snapshotter.Usage(name)->inodes, 0);
        continue;
      }
      const auto mounts = snapshotter.Mounts(name);
      EXPECT_TRUE(mounts.ok()) << mounts.status();
      if (!mounts.ok()) continue;
      EXPECT_EQ(ShellIn(*mounts, At(),
                        info.kind == Kind::kActive ? "touch it && echo done"
                                                   : "echo done"),
                "done\n");
    }
    EXPECT_EQ(ShellOf(absl::StrCat("find ", root_,
                                   "/snapshots -maxdepth 2 -name '*.part' "
                                   "-o -maxdepth 2 -name '*.tmp*' "
                                   "2>/dev/null")),
              "");
  }
  // In a child.
  static std::vector<os::MountSpec> MountsOfNewK(Snapshotter& snapshotter) {
    EXPECT_TRUE(snapshotter.Prepare("k", "", {}).ok());
    const auto mounts = snapshotter.Mounts("k");
    EXPECT_TRUE(mounts.ok()) << mounts.status();
    if (!mounts.ok()) Finish(kComplained);
    return *mounts;
  }
  // In a child: "k" is not committed without a sync.
  static void ExpectSyncAtCommit(Snapshotter& snapshotter) {
    FaultyCalls::Arm({.fail_at = 0, .error = EIO, .only = "syncfs"});
    const absl::Status committed = snapshotter.Commit("layer", "k", {}, "");
    FaultyCalls::Disarm();
    EXPECT_EQ(FaultyCalls::fired(), "syncfs");
    EXPECT_FALSE(committed.ok());
  }

  std::string ShellOf(const std::string& command) const {
    std::string out;
    FILE* pipe = ::popen(command.c_str(), "r");
    for (int c; (c = std::fgetc(pipe)) != EOF;) out += static_cast<char>(c);
    ::pclose(pipe);
    return out;
  }

  TempDir dir_;
  std::string root_;
  std::string before_;
  const std::vector<Step> steps_ =
      Life(GetParam() == Driver::kOverlay || GetParam() == Driver::kErofs);
  std::vector<State> states_;  // After so many steps.
  Progress* progress_ = nullptr;
};

TEST_P(Faults, TheProcessEndsAtEachCall) {
  TryEach([](int at) { return CallFault{.fail_at = at, .die = true}; }, false);
}

TEST_P(Faults, EachCallFailsOnce) {
  TryEach([](int at) { return CallFault{.fail_at = at, .error = EIO}; }, true);
}

TEST_P(Faults, TheDiskIsFullFromEachCallOn) {
  TryEach(
      [](int at) {
        return CallFault{.fail_at = at, .error = ENOSPC, .for_ever = true};
      },
      true);
}

TEST_P(Faults, EachCallFailsAndThenTheProcessEnds) {
  TryEach([](int at) { return CallFault{.fail_at = at, .error = EIO}; }, false);
}

// The layer's last sync fails, and the client commits all the same.
TEST_P(Faults, WhatWasNotSyncedIsSyncedByTheCommit) {
  if (GetParam() == Driver::kErofs) return;  // There is no image then.
  const int status = InChild([&] {
    auto snapshotter = OpenForTest(GetParam(), root_);
    if (snapshotter == nullptr) Finish(kComplained);
    const auto mounts = MountsOfNewK(*snapshotter);
    FaultyCalls::Arm({.fail_at = 0, .error = EIO, .only = "syncfs"});
    EXPECT_FALSE(ApplyTar(*snapshotter, mounts, BaseTar()).ok());
    FaultyCalls::Disarm();
    EXPECT_EQ(FaultyCalls::fired(), "syncfs");
    ExpectSyncAtCommit(*snapshotter);
    Finish(kFinished);
  });
  EXPECT_EQ(status, kFinished);
}

// A layer was unpacked and synced, another fails half-way on top of it.
TEST_P(Faults, WhatAFailedLayerWroteIsSyncedByTheCommit) {
  if (GetParam() == Driver::kErofs) return;
  const int status = InChild([&] {
    auto snapshotter = OpenForTest(GetParam(), root_);
    if (snapshotter == nullptr) Finish(kComplained);
    const auto mounts = MountsOfNewK(*snapshotter);
    EXPECT_TRUE(ApplyTar(*snapshotter, mounts, BaseTar()).ok());
    const std::string half = TopTar().substr(0, TopTar().size() / 2);
    EXPECT_FALSE(ApplyTar(*snapshotter, mounts, half + "rubbish").ok());
    ExpectSyncAtCommit(*snapshotter);
    Finish(kFinished);
  });
  EXPECT_EQ(status, kFinished);
}

std::string NameOf(const ::testing::TestParamInfo<Driver>& info) {
  static const char* const names[] = {"Overlay", "Native", "Btrfs", "Erofs"};
  return names[static_cast<int>(info.param)];
}

INSTANTIATE_TEST_SUITE_P(Drivers, Faults,
                         ::testing::Values(Driver::kOverlay, Driver::kNative,
                                           Driver::kBtrfs, Driver::kErofs),
                         NameOf);

}  // namespace
}  // namespace bulkhead::snapshotter
