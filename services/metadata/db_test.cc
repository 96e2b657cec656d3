// The database and the event log: versions, damage, backup, numbers.
#include "services/metadata/db.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <set>

#include "absl/time/clock.h"
#include "lib/testing/faulty_rocks.h"
#include "lib/testing/temp_dir.h"
#include "proto/containerd/events/task.pb.h"
#include "proto/containerd/services/images/v1/images.pb.h"
#include "services/metadata/events.h"
#include "services/metadata/index.h"
#include "services/metadata/offline.h"
#include "services/metadata/store.h"

namespace bulkhead::metadata {
namespace {

TEST(Db, MigratesAndRefusesTheFuture) {
  testing::TempDir dir;
  const std::string path = dir.Path("db");
  ASSERT_TRUE(Db::Open(path).ok());
  DbOptions next;
  next.schema_version = kSchemaVersion + 1;
  EXPECT_TRUE(absl::IsFailedPrecondition(Db::Open(path, next).status()));
  int runs = 0;
  next.migrations.push_back({kSchemaVersion, [&](const Db&, Batch* batch) {
                               ++runs;
                               batch->Put("moved", "1");
                               return absl::OkStatus();
                             }});
  EXPECT_EQ(**(*Db::Open(path, next))->Get("moved"), "1");
  ASSERT_TRUE(Db::Open(path, next).ok());
  EXPECT_EQ(runs, 1);
  const absl::Status newer = Db::Open(path).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(newer));
  EXPECT_NE(MessageOf(newer).find("start the newer Bulkhead"),
            std::string::npos);
}

// A database as version 1 left it: records, and no index.
TEST(Db, VersionOneGetsItsIndex) {
  testing::TempDir dir;
  const std::string path = dir.Path("db");
  containerd::services::images::v1::Image image;
  image.set_name("i");
  image.mutable_target()->set_digest("sha256:" + std::string(64, '1'));
  (*image.mutable_labels())["a"] = "b";
  const std::string key = Key(kind::kImage, {"ns", "i"});
  {
    DbOptions old;
    old.schema_version = 1;
    const auto db = Db::Open(path, old).value();
    Batch batch;
    batch.Put(key, image.SerializeAsString());
    ASSERT_TRUE(db->Write(batch, true).ok());
  }
  const auto db = Db::Open(path).value();
  EXPECT_EQ(**db->Get(Key(kind::kVersion, {})), "2");
  EXPECT_EQ(**db->Get(key), image.SerializeAsString());
  for (const std::string& text : std::vector<std::string>{
           "labels.a==b", "target.digest==sha256:" + std::string(64, '1')}) {
    const auto filter = filters::Filter::ParseAll({text}).value();
    const auto found =
        Candidates(*db, nullptr, kind::kImage, "ns", filter).value();
    ASSERT_TRUE(found.has_value()) << text;
    EXPECT_EQ(*found, std::vector<std::string>{key}) << text;
  }
}

TEST(Db, DamageIsNamedRepairedAndRestored) {
  testing::TempDir dir;
  const std::string root = dir.path();
  std::filesystem::create_directories(root + "/metadata");
  const std::string path = root + "/metadata/db";
  {
    const auto db = Db::Open(path).value();
    Batch batch;
    batch.Put("k", "1");
    ASSERT_TRUE(db->Write(batch, true).ok());
    ASSERT_TRUE(db->Checkpoint(dir.Path("backup")).ok());
    // Specs have secrets in them.
    EXPECT_EQ(std::filesystem::status(dir.Path("backup")).permissions(),
              std::filesystem::perms::owner_all);
    EXPECT_FALSE(db->Checkpoint(dir.Path("backup")).ok());
    EXPECT_FALSE(db->Checkpoint(dir.Path("no/backup")).ok());
    std::set<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(dir.path())) {
      names.insert(entry.path().filename());
    }
    EXPECT_EQ(names, (std::set<std::string>{"backup", "metadata"}));
    batch.Put("k", "2");
    ASSERT_TRUE(db->Write(batch, true).ok());
    EXPECT_FALSE(RepairDatabase(dir.Path("nowhere")).ok());
  }
  std::ofstream(path + "/CURRENT") << "rubbish";
  const absl::Status damaged = Db::Open(path).status();
  EXPECT_TRUE(absl::IsDataLoss(damaged)) << damaged;
  EXPECT_NE(MessageOf(damaged).find("bulkhead fsck --repair"),
            std::string::npos);
  const absl::Status repaired = RepairDatabase(root);
  ASSERT_TRUE(repaired.ok()) << repaired;
  EXPECT_EQ(**(*Db::Open(path))->Get("k"), "2");
  const absl::Status restored = RestoreDatabase(dir.Path("backup"), root);
  ASSERT_TRUE(restored.ok()) << restored;
  EXPECT_EQ(**(*Db::Open(path))->Get("k"), "1");
  EXPECT_TRUE(absl::IsNotFound(RestoreDatabase(dir.Path("no"), root)));
}

class EventLogTest : public ::testing::Test {
 protected:
  void Open(int64_t kept_bytes_max = kEventsKeptBytesMax) {
    db_.reset();
    bus_ = std::make_unique<EventBus>();
    db_ = Db::Open(dir_.Path("db")).value();
    ASSERT_TRUE(bus_->OpenLog(*db_, 1000, kept_bytes_max).ok());
  }
  void Publish(int count) {
    containerd::events::TaskExit exit;
    for (int i = 0; i < count; ++i) {
      ASSERT_TRUE(bus_->Publish("ns", "/tasks/exit", exit).ok());
    }
  }
  std::vector<uint64_t> After(uint64_t after) {
    std::vector<uint64_t> seen;
    const auto subscription = bus_->Subscribe(
                                      filters::Filter(), [] {}, after)
                                  .value();
    while (true) {
      const Event event = subscription->Next().value();
      if (event.envelope == nullptr) return seen;
      seen.push_back(event.sequence);
    }
  }

  testing::TempDir dir_;
  std::unique_ptr<Db> db_;
  std::unique_ptr<EventBus> bus_;
};

TEST_F(EventLogTest, ResumesAcrossRestarts) {
  Open();
  Publish(300);
  Open();
  EXPECT_EQ(bus_->last(), 300u);
  Publish(2);
  EXPECT_EQ(After(299), (std::vector<uint64_t>{300, 301, 302}));
  EXPECT_EQ(After(0).size(), 302u);
  EXPECT_EQ(After(302).size(), 0u);
  EXPECT_TRUE(absl::IsFailedPrecondition(bus_->Subscribe(
                                                 filters::Filter(), [] {}, 303)
                                             .status()));
}

// Who forwards an exit may be killed before it knows that the log has it.
TEST_F(EventLogTest, AnEndIsToldOnce) {
  containerd::events::TaskExit exit;
  exit.set_container_id("c");
  exit.set_id("c");
  exit.set_pid(7);
  exit.mutable_exited_at()->set_seconds(100);
  exit.mutable_exited_at()->set_nanos(5);
  int64_t second = 1;
  const auto forward = [&](const std::string& topic,
                           const google::protobuf::Message& event) {
    Envelope envelope = MakeEnvelope("ns", topic, PackEvent(event));
    envelope.mutable_timestamp()->set_seconds(second++);  // Each telling's own.
    ASSERT_TRUE(bus_->Forward(std::move(envelope)).ok());
  };
  Open();
  const auto live = bus_->Subscribe(filters::Filter(), [] {}).value();
  forward("/tasks/exit", exit);
  forward("/tasks/exit", exit);
  EXPECT_EQ(live->Next()->sequence, 1u);
  EXPECT_EQ(live->Next()->envelope, nullptr);
  containerd::events::TaskDelete gone;
  gone.set_container_id("c");
  gone.set_pid(7);
  *gone.mutable_exited_at() = exit.exited_at();
  forward("/tasks/delete", gone);
  gone.set_id("c");  // As others tell it.
  forward("/tasks/delete", gone);
  EXPECT_EQ(bus_->last(), 2u);
}

TEST_F(EventLogTest, AnEndIsKnownAfterARestartAndOthersAreOthers) {
  containerd::events::TaskExit exit;
  exit.set_container_id("c");
  exit.set_id("c");
  exit.set_pid(7);
  exit.mutable_exited_at()->set_seconds(100);
  const auto forward = [&](const std::string& ns) {
    ASSERT_TRUE(
        bus_->Forward(MakeEnvelope(ns, "/tasks/exit", PackEvent(exit))).ok());
  };
  Open();
  forward("ns");
  Open();
  forward("ns");
  EXPECT_EQ(bus_->last(), 1u);
  forward("other");
  exit.set_id("exec");
  forward("ns");
  exit.set_pid(8);
  forward("ns");
  exit.mutable_exited_at()->set_nanos(1);
  forward("ns");
  EXPECT_EQ(bus_->last(), 5u);
  // Without a time nothing tells it from another one.
  exit.clear_exited_at();
  forward("ns");
  forward("ns");
  EXPECT_EQ(bus_->last(), 7u);
  EXPECT_EQ(After(0).size(), 7u);
}

TEST_F(EventLogTest, AnEndThatCouldNotBeKeptMayBeToldAgain) {
  testing::FaultyRocks rocks;
  DbOptions options;
  options.env = rocks.env();
  db_ = Db::Open(dir_.Path("faulty"), options).value();
  bus_ = std::make_unique<EventBus>();
  ASSERT_TRUE(bus_->OpenLog(*db_, 1000).ok());
  containerd::events::TaskExit exit;
  exit.set_container_id("c");
  exit.mutable_exited_at()->set_seconds(100);
  const auto forward = [&] {
    return bus_->Forward(MakeEnvelope("ns", "/tasks/exit", PackEvent(exit)));
  };
  rocks.Set({.fail_at = 0});
  ASSERT_FALSE(forward().ok());
  ASSERT_TRUE(rocks.fired());
  rocks.Set({});
  const absl::Time deadline = absl::Now() + absl::Seconds(20);
  while (!forward().ok()) ASSERT_LT(absl::Now(), deadline);
  ASSERT_TRUE(forward().ok());
  EXPECT_EQ(After(0).size(), 1u);
  bus_.reset();
  db_.reset();  // Before its Env.
}

TEST_F(EventLogTest, KnownEndsAreBounded) {
  Open();
  containerd::events::TaskExit exit;
  exit.set_container_id("c");
  exit.mutable_exited_at()->set_seconds(100);
  const auto forward = [&](uint32_t pid) {
    exit.set_pid(pid);
    ASSERT_TRUE(
        bus_->Forward(MakeEnvelope("ns", "/tasks/exit", PackEvent(exit))).ok());
  };
  for (uint32_t pid = 0; pid <= kEndsKnownMax; ++pid) forward(pid);
  EXPECT_EQ(bus_->last(), kEndsKnownMax + 1);
  forward(kEndsKnownMax);
  EXPECT_EQ(bus_->last(), kEndsKnownMax + 1);
  forward(0);
  EXPECT_EQ(bus_->last(), kEndsKnownMax + 2);
}

TEST_F(EventLogTest, CatchesUpAndGoesOn) {
  Open();
  Publish(200);
  const auto subscription = bus_->Subscribe(
                                    filters::Filter(), [] {}, 10)
                                .value();
  Publish(5);
  for (uint64_t i = 11; i <= 205; ++i) {
    EXPECT_EQ(subscription->Next()->sequence, i);
  }
  EXPECT_EQ(subscription->Next()->envelope, nullptr);
}

TEST_F(EventLogTest, IsBounded) {
  Open();
  Publish(3000);
  const std::vector<uint64_t> kept = After(0);
  EXPECT_LE(kept.size(), 1300u);
  EXPECT_GE(kept.size(), 1000u);
  EXPECT_EQ(kept.back(), 3000u);
  EXPECT_TRUE(absl::IsOutOfRange(bus_->Subscribe(
                                         filters::Filter(), [] {}, 5)
                                     .status()));
  Open();
  EXPECT_EQ(After(0), kept);
}

TEST_F(EventLogTest, IsBoundedInBytes) {
  constexpr int64_t kEventBytes = 1 << 20;
  constexpr int64_t kKeptMax = 8;
  const auto publish = [this](int count) {
    google::protobuf::Any large;
    large.set_type_url("t");
    large.set_value(std::string(kEventBytes, 'x'));
    for (int i = 0; i < count; ++i) {
      ASSERT_TRUE(bus_->PublishAny("ns", "/large", large).ok());
    }
  };
  Open(kKeptMax * kEventBytes);
  publish(30);
  std::vector<uint64_t> kept = After(0);
  EXPECT_LE(kept.size(), static_cast<size_t>(kKeptMax + 1));
  EXPECT_GE(kept.size(), static_cast<size_t>(kKeptMax - 2));
  EXPECT_EQ(kept.back(), 30u);
  // What is in the database counts after a restart too.
  Open(kKeptMax * kEventBytes);
  EXPECT_EQ(After(0), kept);
  publish(2);
  kept = After(0);
  EXPECT_LE(kept.size(), static_cast<size_t>(kKeptMax + 1));
  EXPECT_EQ(kept.back(), 32u);
  // Small ones fill what is left again.
  Publish(900);
  EXPECT_GE(After(0).size(), 900u);
  // One is kept however large it is.
  Open(1000);
  publish(3);
  EXPECT_EQ(After(0), std::vector<uint64_t>{935});
}

TEST_F(EventLogTest, ASlowSubscriberIsBoundedInBytes) {
  Open();
  google::protobuf::Any large;
  large.set_type_url("t");
  large.set_value(std::string(kQueuedEventBytesMax / 4, 'x'));
  const auto slow = bus_->Subscribe(filters::Filter(), [] {}).value();
  const auto quick = bus_->Subscribe(filters::Filter(), [] {}).value();
  for (int i = 0; i < 6; ++i) {
    ASSERT_TRUE(bus_->PublishAny("ns", "/large", large).ok());
    EXPECT_NE(quick->Next()->envelope, nullptr);
  }
  EXPECT_TRUE(absl::IsResourceExhausted(slow->Next().status()));
}

TEST_F(EventLogTest, OrderIsThatOfTheNumbers) {
  Open();
  const auto live = bus_->Subscribe(filters::Filter(), [] {}).value();
  Batch batches[3];
  EventBus::Staged staged[3];
  for (int i = 0; i < 3; ++i) {
    std::vector<Envelope> one(1);
    staged[i] = bus_->Stage(std::move(one), &batches[i]);
    ASSERT_TRUE(i == 1 || db_->Write(batches[i], true).ok());
  }
  bus_->Finish(std::move(staged[2]), true);
  EXPECT_EQ(live->Next()->envelope, nullptr);  // Not before the first one.
  bus_->Finish(std::move(staged[1]), false);
  bus_->Finish(std::move(staged[0]), true);
  EXPECT_EQ(live->Next()->sequence, 1u);
  EXPECT_EQ(live->Next()->sequence, 3u);
  EXPECT_EQ(After(0), (std::vector<uint64_t>{1, 3}));
}

}  // namespace
}  // namespace bulkhead::metadata
