#include "services/metadata/gc.h"

#include <gtest/gtest.h>

#include <random>

#include "lib/testing/temp_dir.h"
#include "services/metadata/fake_backends.h"
#include "services/metadata/objects.h"

namespace bulkhead::metadata {
namespace {

std::string DigestOf(int n) {
  const std::string digits = std::to_string(n);
  return "sha256:" + std::string(64 - digits.size(), '0') + digits;
}

class GcTest : public ::testing::Test {
 protected:
  GcTest() {
    auto backend = std::make_unique<FakeSnapshotBackend>();
    snapshotter_ = backend.get();
    Snapshots::Backends backends;
    backends["fake"] = std::move(backend);
    snapshots_ = std::make_unique<Snapshots>(store_, std::move(backends));
  }

  absl::Status AddBlob(const std::string& ns, const std::string& digest,
                       const LabelMap& labels, const std::string& lease = "") {
    WriterRequest request;
    request.ns = ns;
    request.lease = lease;
    request.ref = "ref-" + digest;
    request.expected = digest;
    auto writer = content_.OpenWriter(request);
    if (!writer.ok()) return writer.status();
    if (!(*writer)->is_virtual()) {
      const absl::Status status = (*writer)->Append(0, "12345");
      if (!status.ok()) return status;
    }
    return (*writer)->Commit(5, digest, labels).status();
  }
  void AddImage(const std::string& name, const std::string& digest,
                const LabelMap& labels = {}) {
    Image image;
    image.set_name(name);
    image.mutable_target()->set_digest(digest);
    image.mutable_target()->set_media_type("m");
    image.mutable_target()->set_size(5);
    *image.mutable_labels() = labels;
    ASSERT_TRUE(images_.Create("ns", image, "", {}).ok());
  }
  void AddSnapshot(const std::string& name, const std::string& parent,
                   const LabelMap& labels = {}) {
    ASSERT_TRUE(
        snapshots_->Prepare(call_, false, "tmp-" + name, parent, {}).ok());
    ASSERT_TRUE(
        snapshots_->Commit(call_, name, "tmp-" + name, "", labels).ok());
  }
  void Collect() {
    ASSERT_TRUE(CollectRecords(store_).ok());
    ASSERT_TRUE(content_.SweepBackend().ok());
    ASSERT_TRUE(snapshots_->SweepBackend("fake").ok());
  }
  bool HasBlob(const std::string& digest) {
    return content_.Info("ns", digest).ok();
  }
  bool HasSnapshot(const std::string& name) {
    return snapshots_->Stat(call_, name).ok();
  }

  testing::TempDir dir_;
  EventBus bus_;
  Store store_{Db::Open(dir_.Path("db")).value(), &bus_};
  FakeContentBackend blobs_;
  Content content_{store_, blobs_, false};
  FakeSnapshotBackend* snapshotter_ = nullptr;
  std::unique_ptr<Snapshots> snapshots_;
  Images images_{store_};
  Leases leases_{store_};
  const SnapshotCall call_{"ns", "", "fake"};
};

TEST_F(GcTest, ImageKeepsItsTreeAndNothingElse) {
  LabelMap manifest;
  manifest["containerd.io/gc.ref.content.config"] = DigestOf(2);
  manifest["containerd.io/gc.ref.content.l.0"] = DigestOf(3);
  LabelMap config;
  config["containerd.io/gc.ref.snapshot.fake"] = "top";
  ASSERT_TRUE(AddBlob("ns", DigestOf(1), manifest).ok());
  ASSERT_TRUE(AddBlob("ns", DigestOf(2), config).ok());
  ASSERT_TRUE(AddBlob("ns", DigestOf(3), {}).ok());
  ASSERT_TRUE(AddBlob("ns", DigestOf(4), {}).ok());
  ASSERT_TRUE(AddBlob("other", DigestOf(4), {}).ok());
  AddSnapshot("base", "");
  AddSnapshot("top", "base");
  AddSnapshot("stray", "base");
  AddImage("i", DigestOf(1));
  Collect();
  EXPECT_TRUE(HasBlob(DigestOf(1)) && HasBlob(DigestOf(2)) &&
              HasBlob(DigestOf(3)));
  EXPECT_FALSE(HasBlob(DigestOf(4)));
  EXPECT_EQ(blobs_.blobs.size(), 3u);
  EXPECT_TRUE(HasSnapshot("top") && HasSnapshot("base"));
  EXPECT_FALSE(HasSnapshot("stray"));
  EXPECT_EQ(snapshotter_->snapshots.size(), 2u);

  ASSERT_TRUE(images_.Delete("ns", "i", "", "").ok());
  Collect();
  EXPECT_TRUE(blobs_.blobs.empty());
  EXPECT_TRUE(snapshotter_->snapshots.empty());
}

TEST_F(GcTest, LeasesFlatAndExpired) {
  LabelMap labels;
  labels["containerd.io/gc.ref.content.0"] = DigestOf(2);
  Lease lease;
  lease.set_id("flat");
  (*lease.mutable_labels())["containerd.io/gc.flat"] = "1";
  ASSERT_TRUE(leases_.Create("ns", lease).ok());
  ASSERT_TRUE(AddBlob("ns", DigestOf(1), labels, "flat").ok());
  ASSERT_TRUE(AddBlob("ns", DigestOf(2), {}).ok());
  Lease expired;
  expired.set_id("expired");
  (*expired.mutable_labels())["containerd.io/gc.expire"] =
      "2001-01-01T00:00:00Z";
  ASSERT_TRUE(leases_.Create("ns", expired).ok());
  ASSERT_TRUE(AddBlob("ns", DigestOf(3), {}, "expired").ok());
  Collect();
  EXPECT_TRUE(HasBlob(DigestOf(1)));
  EXPECT_FALSE(HasBlob(DigestOf(2)));
  EXPECT_FALSE(HasBlob(DigestOf(3)));
  EXPECT_EQ(leases_.List("ns", filters::Filter())->size(), 1u);
  EXPECT_EQ(AddBlob("ns", DigestOf(3), {}, "expired"),
            absl::NotFoundError("lease does not exist"));
}

TEST_F(GcTest, RootLabelsContainersBackReferencesAndExpiredImages) {
  LabelMap root;
  root["containerd.io/gc.root"] = "x";
  ASSERT_TRUE(AddBlob("ns", DigestOf(1), root).ok());
  LabelMap back;
  back["containerd.io/gc.bref.content.y"] = DigestOf(1);
  ASSERT_TRUE(AddBlob("ns", DigestOf(2), back).ok());
  back["containerd.io/gc.bref.content.y"] = DigestOf(99);
  ASSERT_TRUE(AddBlob("ns", DigestOf(3), back).ok());
  ASSERT_TRUE(snapshots_->Prepare(call_, false, "active", "", {}).ok());
  Container container;
  container.set_id("c");
  container.mutable_runtime()->set_name("r");
  container.mutable_spec();
  container.set_snapshotter("fake");
  container.set_snapshot_key("active");
  ASSERT_TRUE(Containers(store_).Create("ns", container).ok());
  LabelMap expire;
  expire["containerd.io/gc.expire"] = "2001-01-01T00:00:00Z";
  AddImage("old", DigestOf(1), expire);
  Collect();
  EXPECT_TRUE(HasBlob(DigestOf(1)));
  EXPECT_TRUE(HasBlob(DigestOf(2)));
  EXPECT_FALSE(HasBlob(DigestOf(3)));
  EXPECT_TRUE(HasSnapshot("active"));
  EXPECT_FALSE(images_.Get("ns", "old").ok());
}

TEST_F(GcTest, WhatIsReferredToDuringTheRunSurvives) {
  ASSERT_TRUE(AddBlob("ns", DigestOf(1), {}).ok());
  ASSERT_TRUE(AddBlob("ns", DigestOf(2), {}).ok());
  AddSnapshot("base", "");
  ASSERT_TRUE(CollectRecords(store_, nullptr, [this] {
                AddImage("late", DigestOf(1));
                ASSERT_TRUE(AddBlob("ns", DigestOf(3), {}).ok());
                ASSERT_TRUE(
                    snapshots_->Prepare(call_, false, "k", "base", {}).ok());
              }).ok());
  EXPECT_TRUE(HasBlob(DigestOf(1)));
  EXPECT_FALSE(HasBlob(DigestOf(2)));
  EXPECT_TRUE(HasBlob(DigestOf(3)));
  EXPECT_TRUE(HasSnapshot("base") && HasSnapshot("k"));
}

TEST_F(GcTest, OneFailingDeleteStopsNothing) {
  for (int i = 1; i <= 3; ++i) ASSERT_TRUE(AddBlob("ns", DigestOf(i), {}).ok());
  blobs_.undeletable.insert(DigestOf(2));
  ASSERT_TRUE(CollectRecords(store_).ok());
  EXPECT_FALSE(content_.SweepBackend().ok());
  EXPECT_EQ(blobs_.blobs.size(), 1u);
  blobs_.undeletable.clear();
  EXPECT_TRUE(content_.SweepBackend().ok());
  EXPECT_TRUE(blobs_.blobs.empty());
}

TEST_F(GcTest, RemoteSnapshots) {
  snapshotter_->remote.insert("chain");
  LabelMap labels;
  labels["containerd.io/snapshot.ref"] = "chain";
  labels["private"] = "x";
  EXPECT_TRUE(absl::IsAlreadyExists(
      snapshots_->Prepare(call_, false, "extract", "", labels).status()));
  const auto info = snapshots_->Stat(call_, "chain").value();
  EXPECT_EQ(info.kind(), snapshots_v1::COMMITTED);
  EXPECT_FALSE(
      snapshotter_->snapshots.begin()->second.labels().contains("private"));
  EXPECT_FALSE(HasSnapshot("extract"));
  Lease lease;
  lease.set_id("l");
  ASSERT_TRUE(leases_.Create("ns", lease).ok());
  // The record is there now: the backend is not asked; the lease is joined.
  EXPECT_EQ(
      snapshots_->Prepare({"ns", "l", "fake"}, false, "extract", "", labels)
          .status(),
      absl::AlreadyExistsError("target snapshot \"chain\""));
  Collect();
  EXPECT_TRUE(HasSnapshot("chain"));
}

TEST_F(GcTest, SnapshotErrors) {
  AddSnapshot("base", "");
  EXPECT_EQ(snapshots_->Prepare({"ns", "", ""}, false, "a", "", {}).status(),
            absl::InvalidArgumentError("snapshotter argument missing"));
  EXPECT_EQ(snapshots_->Prepare({"ns", "", "x"}, false, "a", "", {}).status(),
            absl::InvalidArgumentError("snapshotter not loaded: x"));
  EXPECT_EQ(snapshots_->Prepare(call_, false, "a", "nope", {}).status(),
            absl::NotFoundError("parent snapshot nope does not exist"));
  ASSERT_TRUE(snapshots_->Prepare(call_, false, "a", "base", {}).ok());
  EXPECT_EQ(
      snapshots_->Prepare(call_, false, "b", "a", {}).status(),
      absl::InvalidArgumentError("parent \"a\" is not committed snapshot"));
  EXPECT_EQ(snapshots_->MountsOf(call_, "base").status(),
            absl::FailedPreconditionError(
                "requested snapshot base not active or view"));
  EXPECT_EQ(snapshots_->Remove(call_, "base"),
            absl::FailedPreconditionError("cannot remove snapshot with child"));
  EXPECT_TRUE(
      absl::IsAlreadyExists(snapshots_->Commit(call_, "base", "a", "", {})));
  ASSERT_TRUE(snapshots_->Prepare(call_, true, "v", "base", {}).ok());
  EXPECT_EQ(snapshots_->Commit(call_, "c", "v", "", {}),
            absl::FailedPreconditionError("snapshot \"v\" is not active"));
  ASSERT_TRUE(snapshots_->Prepare(call_, false, "late", "", {}).ok());
  ASSERT_TRUE(snapshots_->Commit(call_, "rebased", "late", "base", {}).ok());
  EXPECT_EQ(snapshots_->Stat(call_, "rebased")->parent(), "base");
}

// Random graphs of labels against a plain reachability search.
TEST_F(GcTest, RandomModel) {
  constexpr int kBlobs = 30;
  for (int seed = 1; seed <= 10; ++seed) {
    std::mt19937 random(seed);
    std::vector<std::vector<int>> edges(kBlobs);
    for (int i = 0; i < kBlobs; ++i) {
      LabelMap labels;
      for (int e = 0; e < static_cast<int>(random() % 3); ++e) {
        const int to = static_cast<int>(random() % kBlobs);
        labels["containerd.io/gc.ref.content." + std::to_string(e)] =
            DigestOf(to);
        edges[i].push_back(to);
      }
      const absl::Status status = AddBlob("ns", DigestOf(i), labels);
      if (absl::IsAlreadyExists(status)) {
        content_v1::Info info;
        info.set_digest(DigestOf(i));
        *info.mutable_labels() = labels;
        ASSERT_TRUE(content_.Update("ns", info, {}).ok());
      } else {
        ASSERT_TRUE(status.ok()) << status;
      }
    }
    std::vector<int> queue;
    for (int i = 0; i < 4; ++i) {
      const int to = static_cast<int>(random() % kBlobs);
      AddImage("i" + std::to_string(i), DigestOf(to));
      queue.push_back(to);
    }
    std::set<int> live;
    while (!queue.empty()) {
      const int at = queue.back();
      queue.pop_back();
      if (!live.insert(at).second) continue;
      queue.insert(queue.end(), edges[at].begin(), edges[at].end());
    }
    Collect();
    for (int i = 0; i < kBlobs; ++i) {
      EXPECT_EQ(HasBlob(DigestOf(i)), live.contains(i)) << seed << " " << i;
      EXPECT_EQ(blobs_.blobs.contains(DigestOf(i)), live.contains(i));
    }
    for (int i = 0; i < 4; ++i) {
      ASSERT_TRUE(images_.Delete("ns", "i" + std::to_string(i), "", "").ok());
    }
  }
}

TEST_F(GcTest, CollectorAnswersCollectNow) {
  ASSERT_TRUE(AddBlob("ns", DigestOf(1), {}).ok());
  CollectorOptions options;
  options.startup_delay = absl::Hours(1);
  Collector collector(store_, content_, *snapshots_, options);
  EXPECT_TRUE(collector.CollectNow().ok());
  EXPECT_TRUE(blobs_.blobs.empty());
}

}  // namespace
}  // namespace bulkhead::metadata
