// The record database on a disk that fails or loses its power.
#include "services/snapshotter/record_db.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <random>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "lib/testing/faulty_rocks.h"
#include "lib/testing/power_loss.h"
#include "lib/testing/temp_dir.h"

namespace bulkhead::snapshotter {
namespace {

using ::bulkhead::testing::Disk;
using ::bulkhead::testing::FaultyRocks;
using ::bulkhead::testing::RandomBytes;
using ::bulkhead::testing::RocksFault;
using ::bulkhead::testing::TempDir;
using FaultKind = RocksFault::Kind;

// Records by name: number and a label.
using Model = std::map<std::string, std::pair<uint64_t, std::string>>;

Record Make(int number, size_t label_bytes) {
  Record record;
  record.id = number + 1;
  record.info.name = absl::StrCat("s", number % 5);
  record.info.kind = snapshotter::Kind::kActive;
  record.info.labels["l"] = RandomBytes(label_bytes, number);
  return record;
}

absl::StatusOr<Model> ReadAll(RecordDb* db) {
  Model all;
  const absl::Status status = db->ForEach([&](Record record) {
    all[record.info.name] = {record.id, record.info.labels["l"]};
    return absl::OkStatus();
  });
  if (!status.ok()) return status;
  return all;
}

// A prepare, a commit under another name, or a removal.
absl::Status Step(RecordDb* db, int number, Model* model) {
  Record record = Make(number, number % 5 == 0 ? 30 << 10 : 40);
  const std::string old = absl::StrCat("s", (number + 2) % 5);
  if (number % 4 == 3) {
    model->erase(old);
    return db->Delete({old});
  }
  (*model)[record.info.name] = {record.id, record.info.labels["l"]};
  if (number % 4 != 2) return db->Put(record);
  model->erase(old);
  return db->Put(record, old);
}

TEST(RecordDbFaults, WritesGoOnOnceTheDiskTakesThem) {
  for (const FaultKind kind :
       {FaultKind::kFull, FaultKind::kTorn, FaultKind::kTooMany}) {
    for (int fail_at = 0; fail_at < 60; fail_at += 5) {
      SCOPED_TRACE(
          absl::StrCat("kind ", static_cast<int>(kind), " call ", fail_at));
      TempDir dir;
      FaultyRocks rocks;
      const RecordDbOptions options{rocks.env(), 64 << 10};
      Model model;
      {
        const auto db = RecordDb::Open(dir.Path("db"), options).value();
        rocks.Set({.fail_at = fail_at, .kind = kind, .for_ever = true});
        for (int i = 0; i < 20; ++i) {
          Model next = model;
          absl::Status status = Step(db.get(), i, &next);
          const absl::Time deadline = absl::Now() + absl::Seconds(20);
          while (!status.ok() && absl::Now() < deadline) {
            EXPECT_EQ(status.code(), kind == FaultKind::kFull
                                         ? absl::StatusCode::kResourceExhausted
                                         : absl::StatusCode::kInternal)
                << status;
            EXPECT_EQ(ReadAll(db.get()).value(), model);
            rocks.Set({});
            next = model;
            status = Step(db.get(), i, &next);
          }
          ASSERT_TRUE(status.ok()) << status;
          model = std::move(next);
        }
      }
      EXPECT_EQ(ReadAll(RecordDb::Open(dir.Path("db")).value().get()).value(),
                model);
    }
  }
}

TEST(RecordDbPowerLoss, AtEveryStepWhatWasAcknowledgedStays) {
  std::mt19937 random(20261125);
  for (int step = 0;; step += 1 + static_cast<int>(random() % 2)) {
    SCOPED_TRACE(absl::StrCat("step ", step));
    TempDir dir;
    std::filesystem::create_directory(dir.Path("db"));
    Disk disk(dir.path());
    FaultyRocks rocks(&disk);
    const RecordDbOptions options{rocks.env(), 64 << 10};
    rocks.Set({.fail_at = step, .kind = FaultKind::kTorn, .for_ever = true});
    Model model, next;
    bool open = false;
    if (auto db = RecordDb::Open(dir.Path("db"), options); db.ok()) {
      open = true;
      for (int i = 0; i < 14; ++i) {
        next = model;
        if (!Step(db->get(), i, &next).ok()) break;
        model = next;
      }
      disk.CutPower();
    }
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
      const auto reopened = RecordDb::Open(copy + "/db", {quiet.env()});
      ASSERT_TRUE(reopened.ok()) << reopened.status();
      const auto there = ReadAll(reopened->get());
      ASSERT_TRUE(there.ok()) << there.status();
      EXPECT_TRUE(*there == model || *there == next)
          << there->size() << " records";
      EXPECT_TRUE((*reopened)->Put(Make(99, 10)).ok());
    }
    if (HasFailure()) return;
    if (open && !rocks.fired()) break;
  }
}

}  // namespace
}  // namespace bulkhead::snapshotter
