#include "services/metadata/retention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "proto/containerd/services/content/v1/content.pb.h"
#include "services/metadata/mem_db.h"
#include "services/metadata/objects.h"
#include "services/metadata/records.pb.h"

namespace bulkhead::metadata {
namespace {

std::string DigestOf(char c) { return "sha256:" + std::string(64, c); }

class RetentionTest : public ::testing::Test {
 protected:
  void AddImage(const std::string& name, char digest,
                const std::map<std::string, std::string>& labels = {}) {
    Image image;
    image.set_name(name);
    image.mutable_target()->set_digest(DigestOf(digest));
    image.mutable_target()->set_media_type("m");
    image.mutable_target()->set_size(5);
    image.mutable_labels()->insert(labels.begin(), labels.end());
    ASSERT_TRUE(images_.Create("ns", image, "", {}).ok());
  }
  void AddContainer(const std::string& id, const std::string& image,
                    const std::string& snapshot = "") {
    Container container;
    container.set_id(id);
    container.set_image(image);
    container.mutable_runtime()->set_name("r");
    container.mutable_spec();
    container.set_snapshotter("fake");
    container.set_snapshot_key(snapshot);
    ASSERT_TRUE(containers_.Create("ns", container).ok());
  }
  void Put(const std::string& key, const google::protobuf::MessageLite& value) {
    Batch batch;
    batch.Put(key, value.SerializeAsString());
    ASSERT_TRUE(store_.db().Write(batch, true).ok());
  }
  // The names that a pass removes, `hours` from now.
  std::vector<std::string> Pass(Retention& retention, int hours) {
    std::vector<std::string> names;
    const auto removed = retention.Pass(absl::Now() + absl::Hours(hours));
    EXPECT_TRUE(removed.ok()) << removed.status();
    for (const RemovedImage& each : *removed) names.push_back(each.name);
    return names;
  }
  Retention Make(absl::Duration unused_max, int free_min_percent) {
    RetentionOptions options;
    options.unused_max = unused_max;
    options.free_min_percent = free_min_percent;
    options.settle = absl::ZeroDuration();
    return Retention(
        store_, options, [this] { return free_; },
        [this] {
          ++collections_;
          free_ = *free_ + 5;  // What an image holds.
          return absl::OkStatus();
        });
  }

  using Names = std::vector<std::string>;
  EventBus bus_;
  Store store_{std::make_unique<MemDb>(), &bus_};
  Images images_{store_};
  Containers containers_{store_};
  absl::StatusOr<double> free_ = 50;
  int collections_ = 0;
};

TEST_F(RetentionTest, ByAge) {
  AddImage("old", '1');
  AddImage("run", '2');
  AddImage("alias", '2');
  AddImage("pinned", '3', {{kLabelPinned, "x"}});
  AddImage("pause", '4', {{kLabelCriPinned, "pinned"}});
  AddImage("leased", '5');
  Leases leases(store_);
  Lease lease;
  lease.set_id("l");
  ASSERT_TRUE(leases.Create("ns", lease).ok());
  Resource resource;
  resource.set_type("images");
  resource.set_id("leased");
  ASSERT_TRUE(leases.AddResource("ns", "l", resource).ok());
  AddContainer("c", "run");
  Retention retention = Make(absl::Hours(24), 0);
  EXPECT_EQ(Pass(retention, 0), Names());  // The clock starts.
  EXPECT_EQ(Pass(retention, 23), Names());
  EXPECT_EQ(Pass(retention, 25), Names{"old"});
  EXPECT_EQ(collections_, 1);
  // A year later still: the container, the label, the lease.
  EXPECT_EQ(Pass(retention, 24 * 365), Names());
  ASSERT_TRUE(containers_.Delete("ns", "c").ok());
  EXPECT_EQ(Pass(retention, 24 * 365 + 23), Names());
  Names gone = Pass(retention, 24 * 365 + 25);
  std::sort(gone.begin(), gone.end());
  EXPECT_EQ(gone, (Names{"alias", "run"}));
}

TEST_F(RetentionTest, WhatAContainerStandsOnStays) {
  // A container that names no image, on the image's top snapshot.
  AddImage("i", '1');
  containerd::services::content::v1::Info info;
  (*info.mutable_labels())["containerd.io/gc.ref.content.config"] =
      DigestOf('2');
  Put(Key(kind::kBlob, {"ns", DigestOf('1')}), info);
  info.clear_labels();
  (*info.mutable_labels())["containerd.io/gc.ref.snapshot.fake"] = "chain";
  Put(Key(kind::kBlob, {"ns", DigestOf('2')}), info);
  SnapshotRecord snapshot;
  snapshot.set_parent("chain");
  Put(Key(kind::kSnapshot, {"ns", "fake", "active"}), snapshot);
  snapshot.clear_parent();
  Put(Key(kind::kSnapshot, {"ns", "fake", "chain"}), snapshot);
  AddContainer("c", "", "active");
  Retention retention = Make(absl::Hours(1), 0);
  EXPECT_EQ(Pass(retention, 1), Names());
  EXPECT_EQ(Pass(retention, 9), Names());
  ASSERT_TRUE(containers_.Delete("ns", "c").ok());
  EXPECT_EQ(Pass(retention, 11), Names{"i"});
}

TEST_F(RetentionTest, ByFreeSpaceTheLongestUnusedFirst) {
  for (const char c : {'1', '2', '3', '4', '5'}) {
    AddImage(std::string("i") + c, c);
  }
  Retention retention = Make(absl::ZeroDuration(), 20);
  EXPECT_EQ(Pass(retention, 1), Names());
  AddContainer("c", "i2");
  EXPECT_EQ(Pass(retention, 2), Names());
  ASSERT_TRUE(containers_.Delete("ns", "c").ok());
  AddContainer("c", "i1");
  EXPECT_EQ(Pass(retention, 3), Names());
  free_ = 4;  // A collection brings 5, and each image 5.
  EXPECT_EQ(Pass(retention, 4).size(), 3u);  // 3, 4 and 5.
  EXPECT_TRUE(images_.Get("ns", "i1").ok());
  EXPECT_TRUE(images_.Get("ns", "i2").ok());
  free_ = 12;
  EXPECT_EQ(Pass(retention, 5), Names{"i2"});
  free_ = 0;  // What runs stays, however full the disk is.
  EXPECT_EQ(Pass(retention, 6), Names());
  free_ = absl::InternalError("no disk");
  EXPECT_EQ(Pass(retention, 7), Names());
}

TEST_F(RetentionTest, OtherNamespacesAndFreshImagesAreLeftAlone) {
  AddImage("fresh", '1');
  RetentionOptions options;
  options.unused_max = absl::Hours(1);
  options.namespaces = {"other"};
  Retention retention(
      store_, options, [this] { return free_; },
      [] { return absl::OkStatus(); });
  EXPECT_EQ(Pass(retention, 0), Names());
  EXPECT_EQ(Pass(retention, 100), Names());
  Retention full = Make(absl::ZeroDuration(), 90);
  EXPECT_EQ(Pass(full, 0), Names());  // Written a moment ago.
  // Pulled again: counts from then.
  Retention by_age = Make(absl::Hours(3), 0);
  EXPECT_EQ(Pass(by_age, 1), Names());
  EXPECT_EQ(Pass(by_age, 5), Names{"fresh"});
}

}  // namespace
}  // namespace bulkhead::metadata
