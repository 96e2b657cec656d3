// The database on a disk that fails, fills up or loses its power: what was
// acknowledged stays, what failed never shows, and writes go on by themselves
// once the disk takes them again.
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <random>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "lib/testing/faulty_rocks.h"
#include "lib/testing/power_loss.h"
#include "lib/testing/temp_dir.h"
#include "services/metadata/db.h"

namespace bulkhead::metadata {
namespace {

using ::bulkhead::testing::Disk;
using ::bulkhead::testing::FaultyRocks;
using ::bulkhead::testing::RandomBytes;
using ::bulkhead::testing::RocksFault;
using ::bulkhead::testing::TempDir;
using Kind = RocksFault::Kind;

constexpr int kWrites = 24;
// A few of these fill a log, so that flushes happen too.
constexpr size_t kValueBytes = 20 << 10;
constexpr size_t kWriteBufferBytes = 64 << 10;
constexpr absl::Duration kHealTimeout = absl::Seconds(20);

using Model = std::map<std::string, std::string>;

// What the database says, without its version.
Model ReadAll(const Db& db) {
  Model all;
  const absl::Status status =
      db.Scan("k", [&](std::string_view key, std::string_view value) {
        all[std::string(key)] = std::string(value);
        return true;
      });
  EXPECT_TRUE(status.ok()) << status;
  return all;
}

// Keys and sizes: a diff of the values would be unreadable.
std::string Describe(const Model& model) {
  std::string text;
  for (const auto& [key, value] : model) {
    absl::StrAppend(&text, key, "=", value.size(), "/",
                    std::hash<std::string>()(value) % 1000, " ");
  }
  return text;
}

// One batch: two keys that go together, and a deletion. Applied to `model`.
Batch Change(int number, size_t value_bytes, Model* model) {
  Batch batch;
  const std::string a = absl::StrCat("k", number % 7);
  const std::string b = absl::StrCat("kk", number % 7);
  const std::string value = RandomBytes(value_bytes, number + 1);
  batch.Put(a, value);
  batch.Put(b, std::to_string(number));
  const std::string gone = absl::StrCat("k", (number + 3) % 7);
  batch.Delete(gone);
  (*model)[a] = value;
  (*model)[b] = std::to_string(number);
  model->erase(gone);
  return batch;
}

size_t SizeOf(int number) { return number % 2 == 0 ? kValueBytes : 100; }

class DbFaults : public ::testing::TestWithParam<Kind> {};

TEST_P(DbFaults, EachCallFailsInTurn) {
  // Flushes and compactions come at their own time: any stride will do.
  int fired = 0;
  for (int fail_at = 1; fail_at < 90; fail_at += 4) {
    SCOPED_TRACE(absl::StrCat("call ", fail_at));
    TempDir dir;
    FaultyRocks rocks;
    DbOptions options;
    options.env = rocks.env();
    options.write_buffer_bytes = kWriteBufferBytes;
    Model model;
    {
      const auto db = Db::Open(dir.Path("db"), options).value();
      // It stays bad for a while.
      rocks.Set({.fail_at = fail_at,
                 .kind = GetParam(),
                 .for_ever = fail_at % 3 != 0});
      absl::Time deadline;
      for (int i = 0; i < kWrites; ++i) {
        Model next = model;
        const Batch batch = Change(i, SizeOf(i), &next);
        absl::Status status = db->Write(batch, true);
        if (status.ok()) {
          model = std::move(next);
          continue;
        }
        EXPECT_EQ(status.code(), GetParam() == Kind::kFull
                                     ? absl::StatusCode::kResourceExhausted
                                     : absl::StatusCode::kInternal)
            << status;
        EXPECT_NE(status.message().find("metadata database"),
                  std::string::npos);
        // Reads go on.
        EXPECT_EQ(Describe(ReadAll(*db)), Describe(model));
        ++fired;
        rocks.Set({});
        deadline = absl::Now() + kHealTimeout;
        do {
          status = db->Write(batch, true);
        } while (!status.ok() && absl::Now() < deadline);
        EXPECT_TRUE(status.ok()) << status;
        // As if the failed one had never been: only now it counts.
        if (status.ok()) model = std::move(next);
        EXPECT_EQ(Describe(ReadAll(*db)), Describe(model));
      }
    }
    EXPECT_EQ(Describe(ReadAll(**Db::Open(dir.Path("db")))), Describe(model));
    if (HasFailure()) return;
  }
  EXPECT_GT(fired, 0);
}

TEST_P(DbFaults, WhatFailedNeverShows) {
  for (int fail_at = 0; fail_at < 6; ++fail_at) {
    SCOPED_TRACE(absl::StrCat("call ", fail_at));
    TempDir dir;
    FaultyRocks rocks;
    DbOptions options;
    options.env = rocks.env();
    options.write_buffer_bytes = kWriteBufferBytes;
    const auto db = Db::Open(dir.Path("db"), options).value();
    Batch first;
    first.Put("k1", "old");
    ASSERT_TRUE(db->Write(first, true).ok());
    rocks.Set({.fail_at = fail_at, .kind = GetParam()});
    Batch second;
    second.Put("k1", "new");
    second.Put("k2", "new");
    const bool done = db->Write(second, true).ok();
    rocks.Set({});
    Batch third;
    third.Put("k3", "later");
    const absl::Time deadline = absl::Now() + kHealTimeout;
    while (!db->Write(third, true).ok()) {
      ASSERT_LT(absl::Now(), deadline);
    }
    const Model wanted =
        done ? Model{{"k1", "new"}, {"k2", "new"}, {"k3", "later"}}
             : Model{{"k1", "old"}, {"k3", "later"}};
    EXPECT_EQ(ReadAll(*db), wanted);
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, DbFaults,
                         ::testing::Values(Kind::kError, Kind::kFull,
                                           Kind::kTorn, Kind::kTooMany));

TEST(DbPowerLoss, AtEveryStepWhatWasAcknowledgedStays) {
  std::mt19937 random(20261125);
  for (int step = 0;; step += 1 + static_cast<int>(random() % 3)) {
    SCOPED_TRACE(absl::StrCat("step ", step));
    TempDir dir;
    std::filesystem::create_directory(dir.Path("db"));
    Disk disk(dir.path());
    FaultyRocks rocks(&disk);
    DbOptions options;
    options.env = rocks.env();
    options.write_buffer_bytes = kWriteBufferBytes;
    rocks.Set({.fail_at = step, .kind = Kind::kTorn, .for_ever = true});
    Model model;
    Model next;
    bool open = false;
    if (auto db = Db::Open(dir.Path("db"), options); db.ok()) {
      open = true;
      for (int i = 0; i < 12; ++i) {
        next = model;
        if (!(*db)->Write(Change(i, SizeOf(i), &next), true).ok()) break;
        model = next;
      }
      disk.CutPower();
    }
    const bool fired = rocks.fired();
    disk.CutPower();
    TempDir copies;
    for (int i = 0; i < 4; ++i) {
      SCOPED_TRACE(absl::StrCat("copy ", i));
      const std::string copy = copies.Path(absl::StrCat(i));
      disk.Survivors(copy,
                     i == 0   ? Disk::Kept::kSyncedOnly
                     : i == 1 ? Disk::Kept::kEverything
                              : Disk::Kept::kAnything,
                     random);
      FaultyRocks quiet;  // Fsyncs would only take time.
      DbOptions plain;
      plain.env = quiet.env();
      const auto reopened = Db::Open(copy + "/db", plain);
      ASSERT_TRUE(reopened.ok()) << reopened.status();
      const Model there = ReadAll(**reopened);
      // The one that was cut short is there whole or not at all.
      EXPECT_TRUE(there == model || there == next)
          << "there: " << Describe(there) << "\nwanted: " << Describe(model)
          << "\nor: " << Describe(next);
      Batch more;
      more.Put("k", "goes on");
      EXPECT_TRUE((*reopened)->Write(more, true).ok());
    }
    if (HasFailure()) return;
    if (open && !fired) break;
  }
}

TEST(DbPowerLoss, TheSimulationFindsADroppedFsync) {
  std::mt19937 random(3);
  int lost = 0;
  for (int i = 0; i < 40; ++i) {
    TempDir dir;
    std::filesystem::create_directory(dir.Path("db"));
    Disk disk(dir.path());
    FaultyRocks rocks(&disk);
    DbOptions options;
    options.env = rocks.env();
    options.write_buffer_bytes = kWriteBufferBytes;
    const auto db = Db::Open(dir.Path("db"), options).value();
    rocks.Set({.fail_at = 0, .kind = Kind::kLostSync, .for_ever = true});
    Model model;
    ASSERT_TRUE(db->Write(Change(1, 100, &model), true).ok());
    disk.CutPower();
    TempDir copies;
    disk.Survivors(copies.Path("c"), Disk::Kept::kAnything, random);
    const auto reopened = Db::Open(copies.Path("c") + "/db");
    lost += !reopened.ok() || ReadAll(**reopened) != model;
  }
  EXPECT_GT(lost, 0);
}

}  // namespace
}  // namespace bulkhead::metadata
