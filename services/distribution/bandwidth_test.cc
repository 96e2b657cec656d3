// The limit on a clock of the test's own.
#include "services/distribution/bandwidth.h"

#include <gtest/gtest.h>

#include <map>
#include <vector>

namespace bulkhead::distribution {
namespace {

constexpr int64_t kRate = 1 << 20;
constexpr int64_t kPiece = 16 << 10;

// Movers that always have more; each moves pieces of its own size. Runs them
// as an event loop does, for so long; what each moved.
std::vector<int64_t> Simulate(Bandwidth* limit,
                              const std::vector<int64_t>& pieces,
                              absl::Duration time, int* wakes = nullptr) {
  std::vector<int64_t> moved(pieces.size());
  std::vector<bool> waits(pieces.size());
  absl::Time now = absl::FromUnixSeconds(1000);
  const absl::Time end = now + time;
  limit->SetRate(kRate, now);
  while (now < end) {
    if (wakes != nullptr) ++*wakes;
    for (size_t i = 0; i < pieces.size(); ++i) {
      if (waits[i]) continue;
      if (limit->MayMove(&moved[i], now)) {
        limit->Moved(&moved[i], pieces[i]);
        moved[i] += pieces[i];
      } else {
        waits[i] = true;
      }
    }
    while (Bandwidth::Mover who = limit->Next(now)) {
      const size_t i = static_cast<const int64_t*>(who) - moved.data();
      waits[i] = false;
      if (limit->MayMove(who, now)) {
        limit->Moved(who, pieces[i]);
        moved[i] += pieces[i];
      } else {
        waits[i] = true;
      }
    }
    bool all = true;
    for (const bool each : waits) all = all && each;
    if (all) now += limit->UntilNext(now);
  }
  return moved;
}

int64_t Sum(const std::vector<int64_t>& values) {
  int64_t sum = 0;
  for (const int64_t each : values) sum += each;
  return sum;
}

TEST(Bandwidth, RateIsExact) {
  Bandwidth limit;
  EXPECT_NEAR(Sum(Simulate(&limit, {kPiece}, absl::Seconds(10))), 10 * kRate,
              kRate / 20);
}

TEST(Bandwidth, ManyShareItFairly) {
  Bandwidth limit;
  const auto moved =
      Simulate(&limit, std::vector<int64_t>(7, kPiece), absl::Seconds(20));
  EXPECT_NEAR(Sum(moved), 20 * kRate, kRate / 20);
  for (const int64_t each : moved) {
    EXPECT_NEAR(each, 20 * kRate / 7, kRate / 10);
  }
}

TEST(Bandwidth, NoMoreThanAHundredWakesASecond) {
  Bandwidth limit;
  int wakes = 0;
  (void)Simulate(&limit, {kPiece, kPiece, 1000}, absl::Seconds(5), &wakes);
  // A wake each 10 ms, and rounds in which nobody waits yet.
  EXPECT_LT(wakes, 5 * 200);
}

TEST(Bandwidth, NobodySavesUpWhileNothingMoves) {
  Bandwidth limit;
  const absl::Time start = absl::FromUnixSeconds(1000);
  limit.SetRate(kRate, start);
  int who = 0;
  int64_t moved = 0;
  const absl::Time later = start + absl::Hours(1);
  while (limit.MayMove(&who, later)) {
    limit.Moved(&who, kPiece);
    moved += kPiece;
  }
  EXPECT_LE(moved, kRate / 4);
}

TEST(Bandwidth, WithoutALimitNobodyWaits) {
  Bandwidth limit;
  const absl::Time now = absl::FromUnixSeconds(1000);
  int one = 0;
  int two = 0;
  EXPECT_TRUE(limit.MayMove(&one, now));
  limit.Moved(&one, int64_t{1} << 40);
  EXPECT_TRUE(limit.MayMove(&one, now));
  limit.SetRate(1000, now);
  EXPECT_FALSE(limit.MayMove(&one, now));
  EXPECT_FALSE(limit.MayMove(&two, now));
  EXPECT_EQ(limit.Next(now), nullptr);
  limit.Forget(&one);
  limit.SetRate(0, now);  // Those who wait are let go.
  EXPECT_EQ(limit.UntilNext(now), absl::ZeroDuration());
  EXPECT_EQ(limit.Next(now), &two);
  EXPECT_EQ(limit.Next(now), nullptr);
  EXPECT_EQ(limit.UntilNext(now), absl::InfiniteDuration());
}

TEST(Bandwidth, AClockThatIsSetBackStopsNothing) {
  Bandwidth limit;
  const absl::Time start = absl::FromUnixSeconds(1000);
  limit.SetRate(kRate, start);
  int who = 0;
  EXPECT_FALSE(limit.MayMove(&who, start - absl::Hours(1)));
  EXPECT_LT(limit.UntilNext(start - absl::Hours(1)), absl::Seconds(1));
  EXPECT_EQ(limit.Next(start - absl::Hours(1) + absl::Milliseconds(50)), &who);
}

}  // namespace
}  // namespace bulkhead::distribution
