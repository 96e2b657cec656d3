#include "services/runtime/cgroup_warmer.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include "absl/time/clock.h"
#include "lib/os/fd.h"

namespace bulkhead::runtime {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(30);

std::string OurCgroups() {
  return os::ReadFile("/proc/self/cgroup").value_or("");
}

TEST(CgroupWarmer, MovesThisProcessToWhereItIs) {
  if (OwnCgroupProcs().empty()) return;  // Nothing to be warmed.
  const std::string before = OurCgroups();
  CgroupWarmer warmer;
  EXPECT_EQ(warmer.moves(), 0);
  for (int round = 0; round < 2; ++round) {
    const int64_t moves = warmer.moves();
    warmer.Warm();
    const absl::Time end = absl::Now() + kPatience;
    while (warmer.moves() < moves + 3 && absl::Now() < end) {
      absl::SleepFor(absl::Milliseconds(1));
    }
    EXPECT_GE(warmer.moves(), moves + 3);
  }
  EXPECT_EQ(OurCgroups(), before);
}

TEST(CgroupWarmer, StopsByItself) {
  CgroupWarmer warmer;
  warmer.Warm();
  int64_t moves = -1;
  const absl::Time end = absl::Now() + kPatience;
  while (warmer.moves() != moves && absl::Now() < end) {
    moves = warmer.moves();
    absl::SleepFor(absl::Milliseconds(200));
  }
  EXPECT_EQ(warmer.moves(), moves);
}

TEST(CgroupWarmer, EndsWhileWarm) {
  for (int round = 0; round < 20; ++round) {
    CgroupWarmer warmer;
    warmer.Warm();
  }
}

TEST(HasRoomForRuntime, IsTrueOfWhatIsNotThere) {
  EXPECT_TRUE(HasRoomForRuntime(0));
}

}  // namespace
}  // namespace bulkhead::runtime
