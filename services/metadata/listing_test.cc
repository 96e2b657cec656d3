// Listings of 100,000 records: they stream, and an index finds the few.
#include "services/metadata/listing.h"

#include <gtest/gtest.h>
#include <malloc.h>
#include <unistd.h>

#include <fstream>

#include "absl/strings/str_format.h"
#include "lib/testing/temp_dir.h"
#include "services/metadata/content.h"
#include "services/metadata/fake_backends.h"
#include "services/metadata/objects.h"
#include "services/metadata/snapshots.h"

namespace bulkhead::metadata {
namespace {

constexpr int kRecords = 100'000;
constexpr size_t kStep = 5'000;
// What a listing may need at once, of some 60 MB that it reads.
constexpr int64_t kGrowthMax = 16 << 20;

// Resident memory, in bytes. The highest since the last Reset() if `peak`.
int64_t Resident(bool peak) {
  std::ifstream in("/proc/self/status");
  const std::string wanted = peak ? "VmHWM:" : "VmRSS:";
  for (std::string word; in >> word;) {
    int64_t kib = 0;
    if (word == wanted && in >> kib) return kib << 10;
  }
  return 0;
}

void Reset() {
  ::malloc_trim(0);
  std::ofstream("/proc/self/clear_refs") << "5";
}

class ListingTest : public ::testing::Test {
 protected:
  void Add(const std::string& key, const google::protobuf::MessageLite& value) {
    batch_.Put(key, value.SerializeAsString());
    if (batch_.changes.size() >= kStep) Flush();
  }
  void Flush() {
    ASSERT_TRUE(AddIndexChanges(store_.db(), &batch_).ok());
    ASSERT_TRUE(store_.db().Write(batch_, false).ok());
    batch_.changes.clear();
  }
  static filters::Filter Parse(const std::string& text) {
    return filters::Filter::ParseAll({text}).value();
  }

  testing::TempDir dir_;
  EventBus bus_;
  Store store_{Db::Open(dir_.Path("db")).value(), &bus_};
  Batch batch_;
};

TEST_F(ListingTest, ContainersStreamInBoundedMemory) {
  for (int i = 0; i < kRecords; ++i) {
    Container container;
    container.set_id(absl::StrFormat("c%06d", i));
    container.set_image(absl::StrCat("image", i % 1000));
    container.mutable_spec()->set_value(std::string(500, 'x'));
    (*container.mutable_labels())["number"] = std::to_string(i);
    (*container.mutable_labels())["all"] = "same";
    Add(Key(kind::kContainer, {"ns", container.id()}), container);
  }
  Flush();
  Containers core(store_);
  const auto list = [&](const std::string& filter, int64_t* growth) {
    Reset();
    const int64_t before = Resident(false);
    int seen = 0;
    std::string last;
    const auto status = core.List("ns", Parse(filter),
                                  [&](Container& container, std::string_view) {
                                    EXPECT_LT(last, container.id());
                                    last = container.id();
                                    ++seen;
                                    return true;
                                  });
    EXPECT_TRUE(status.ok()) << status;
    *growth = Resident(true) - before;
    return seen;
  };
  int64_t growth = 0;
  EXPECT_EQ(list("", &growth), kRecords);
  EXPECT_LT(growth, kGrowthMax);
  EXPECT_EQ(list("labels.all==same", &growth), kRecords);  // Too many to index.
  EXPECT_LT(growth, kGrowthMax);
  EXPECT_EQ(list("image==image7", &growth), kRecords / 1000);
  EXPECT_EQ(list("labels.number==77777", &growth), 1);
  EXPECT_EQ(list("id==c000001", &growth), 1);
  EXPECT_EQ(list("labels.number~=^7777.$", &growth), 10);
  EXPECT_LT(growth, kGrowthMax);
  // The index leads to what is wanted, and to no more.
  const auto keys = Candidates(store_.db(), nullptr, kind::kContainer, "ns",
                               Parse("labels.all==same,image==image7"));
  ASSERT_TRUE(keys.ok() && keys->has_value());
  EXPECT_EQ((*keys)->size(), 100u);
}

TEST_F(ListingTest, SnapshotsStreamInBoundedMemory) {
  auto backend = std::make_unique<FakeSnapshotBackend>();
  for (int i = 0; i < kRecords; ++i) {
    const std::string key = absl::StrFormat("s%06d", i);
    SnapshotRecord record;
    record.set_backend_key(absl::StrCat("ns/", i, "/", key));
    record.set_kind(snapshots_v1::COMMITTED);
    (*record.mutable_labels())["some"] = std::string(300, 'x');
    backend->snapshots[record.backend_key()].set_name(record.backend_key());
    Add(Key(kind::kSnapshot, {"ns", "fake", key}), record);
  }
  Flush();
  Snapshots::Backends backends;
  backends["fake"] = std::move(backend);
  Snapshots core(store_, std::move(backends));
  Reset();
  const int64_t before = Resident(false);
  int seen = 0;
  const auto status = core.List({"ns", "", "fake"}, filters::Filter(),
                                [&seen](snapshots_v1::Info&) {
                                  ++seen;
                                  return true;
                                });
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(seen, kRecords);
  EXPECT_LT(Resident(true) - before, kGrowthMax);
}

}  // namespace
}  // namespace bulkhead::metadata
