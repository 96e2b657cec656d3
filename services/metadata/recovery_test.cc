// What a crash between a backend's work and the record leaves: a snapshot's
// commit that was cut short, and blobs that lost their records, as fsck sees
// them.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "lib/testing/temp_dir.h"
#include "services/metadata/fake_backends.h"
#include "services/metadata/fsck.h"
#include "services/metadata/objects.h"

namespace bulkhead::metadata {
namespace {

constexpr char kSnapshotter[] = "fake";

// A backend that lives on while metadata dies. In its next Commit, this process
// "is killed": the database is copied as it is at that moment, before or after
// the backend has done its work, and what comes later counts for nothing.
class CutBackend final : public SnapshotBackend {
 public:
  enum class Cut { kNot, kBefore, kAfter };

  explicit CutBackend(FakeSnapshotBackend* real) : real_(*real) {}

  void CutNextCommit(Cut cut, Db* db, const std::string& copy) {
    cut_ = cut;
    db_ = db;
    copy_ = copy;
  }

  absl::Status Commit(const std::string& name, const std::string& key,
                      const std::string& parent,
                      const LabelMap& labels) override {
    if (cut_ == Cut::kNot) return real_.Commit(name, key, parent, labels);
    if (cut_ == Cut::kAfter) {
      EXPECT_TRUE(real_.Commit(name, key, parent, labels).ok());
    }
    const absl::Status copied = db_->Checkpoint(copy_);
    EXPECT_TRUE(copied.ok()) << copied;
    return absl::UnavailableError("killed");
  }
  absl::StatusOr<Mounts> Prepare(const std::string& key,
                                 const std::string& parent,
                                 const LabelMap& labels) override {
    return real_.Prepare(key, parent, labels);
  }
  absl::StatusOr<Mounts> View(const std::string& key, const std::string& parent,
                              const LabelMap& labels) override {
    return real_.View(key, parent, labels);
  }
  absl::StatusOr<Mounts> MountsOf(const std::string& key) override {
    return real_.MountsOf(key);
  }
  absl::Status Remove(const std::string& key) override {
    return real_.Remove(key);
  }
  absl::StatusOr<snapshots_v1::Info> Stat(const std::string& key) override {
    return real_.Stat(key);
  }
  absl::Status Update(const snapshots_v1::Info& info,
                      const std::vector<std::string>& mask) override {
    return real_.Update(info, mask);
  }
  absl::Status List(
      const std::vector<std::string>& filters,
      const std::function<void(const snapshots_v1::Info&)>& visitor) override {
    return real_.List(filters, visitor);
  }
  absl::StatusOr<snapshots_v1::UsageResponse> Usage(
      const std::string& key) override {
    return real_.Usage(key);
  }
  absl::Status Cleanup() override { return real_.Cleanup(); }

 private:
  FakeSnapshotBackend& real_;
  Cut cut_ = Cut::kNot;
  Db* db_ = nullptr;
  std::string copy_;
};

// Metadata in one process.
struct Process {
  Process(const std::string& db, FakeSnapshotBackend* trees)
      : store(Db::Open(db).value(), &events) {
    auto cutting = std::make_unique<CutBackend>(trees);
    backend = cutting.get();
    Snapshots::Backends backends;
    backends[kSnapshotter] = std::move(cutting);
    snapshots = std::make_unique<Snapshots>(store, std::move(backends));
  }
  EventBus events;
  Store store;
  CutBackend* backend = nullptr;
  std::unique_ptr<Snapshots> snapshots;
};

class CommitCutShort : public ::testing::TestWithParam<CutBackend::Cut> {};

// Once, the active snapshot was lost: acknowledged by Prepare, gone from the
// backend, and its record named nothing.
TEST_P(CommitCutShort, ExactlyOneOfKeyAndNameIsThere) {
  testing::TempDir dir;
  FakeSnapshotBackend trees;
  const SnapshotCall call{"ns", "lease", kSnapshotter};
  LabelMap labels;
  labels["a"] = "b";
  {
    Process killed(dir.Path("before"), &trees);
    Lease lease;
    lease.set_id("lease");
    ASSERT_TRUE(Leases(killed.store).Create("ns", lease).ok());
    ASSERT_TRUE(
        killed.snapshots->Prepare(call, false, "base-key", "", {}).ok());
    ASSERT_TRUE(
        killed.snapshots->Commit(call, "base", "base-key", "", {}).ok());
    ASSERT_TRUE(killed.snapshots->Prepare(call, false, "key", "base", {}).ok());
    killed.backend->CutNextCommit(GetParam(), &killed.store.db(),
                                  dir.Path("after"));
    EXPECT_FALSE(
        killed.snapshots->Commit(call, "name", "key", "", labels).ok());
  }
  Process next(dir.Path("after"), &trees);
  const auto key = next.snapshots->Stat(call, "key");
  const auto name = next.snapshots->Stat(call, "name");
  std::vector<std::string> leased;
  ASSERT_TRUE(Leases(next.store)
                  .ListResources("ns", "lease",
                                 [&](Resource& resource) {
                                   leased.push_back(resource.id());
                                   return true;
                                 })
                  .ok());
  if (GetParam() == CutBackend::Cut::kAfter) {
    EXPECT_TRUE(absl::IsNotFound(key.status())) << key.status();
    ASSERT_TRUE(name.ok()) << name.status();
    EXPECT_EQ(name->kind(), snapshots_v1::COMMITTED);
    EXPECT_EQ(name->parent(), "base");
    EXPECT_EQ(name->labels().at("a"), "b");
    EXPECT_EQ(leased, (std::vector<std::string>{"base", "name"}));
    EXPECT_TRUE(next.snapshots->Prepare(call, false, "above", "name", {}).ok());
  } else {
    EXPECT_TRUE(absl::IsNotFound(name.status())) << name.status();
    ASSERT_TRUE(key.ok()) << key.status();
    EXPECT_EQ(key->kind(), snapshots_v1::ACTIVE);
    EXPECT_EQ(leased, (std::vector<std::string>{"base", "key"}));
    EXPECT_TRUE(next.snapshots->MountsOf(call, "key").ok());
    // And the commit can be repeated.
    EXPECT_TRUE(next.snapshots->Commit(call, "name", "key", "", labels).ok());
  }
  // Nothing of it is left that no record names.
  const size_t before = trees.snapshots.size();
  EXPECT_TRUE(next.snapshots->SweepBackend(kSnapshotter).ok());
  EXPECT_EQ(trees.snapshots.size(), before);
}

INSTANTIATE_TEST_SUITE_P(Cuts, CommitCutShort,
                         ::testing::Values(CutBackend::Cut::kBefore,
                                           CutBackend::Cut::kAfter));

class Fsck : public ::testing::Test {
 protected:
  static std::string DigestOf(char c) { return "sha256:" + std::string(64, c); }
  // A blob whose record has `labels`; without a record if that is null.
  void AddBlob(const std::string& digest, const LabelMap* labels) {
    blobs_.blobs[digest] = 5;
    if (labels == nullptr) return;
    content_v1::Info info;
    info.set_digest(digest);
    info.set_size(5);
    *info.mutable_labels() = *labels;
    const std::string key = Key(kind::kBlob, {"ns", digest});
    Txn txn(process_.store, "ns", {key});
    txn.Put(key, info);
    ASSERT_TRUE(txn.Commit().ok());
  }
  std::vector<Finding> Check(bool repair) {
    std::vector<Finding> findings;
    CheckOptions options;
    options.bytes = false;  // The fake has none.
    options.repair = repair;
    const auto totals = CheckAll(process_.store, content_, *process_.snapshots,
                                 options, [&](const Finding& finding) {
                                   findings.push_back(finding);
                                   return true;
                                 });
    EXPECT_TRUE(totals.ok()) << totals.status();
    return findings;
  }
  // How grave what is said of `digest` in "ns" is; -1: nothing is said.
  static int SeverityOf(const std::vector<Finding>& findings,
                        const std::string& digest) {
    int severity = -1;
    for (const Finding& finding : findings) {
      if (finding.key == Key(kind::kBlob, {"ns", digest})) {
        severity = std::max(severity, static_cast<int>(finding.severity));
      }
    }
    return severity;
  }

  testing::TempDir dir_;
  FakeSnapshotBackend trees_;
  FakeContentBackend blobs_;
  Process process_{dir_.Path("db"), &trees_};
  Content content_{process_.store, blobs_, false};
};

// As a pull that is cut leaves it between a layer's bytes and its record.
TEST_F(Fsck, ABlobThatOnlyALabelNamesIsNoDamage) {
  LabelMap manifest;
  manifest["containerd.io/gc.ref.content.l.0"] = DigestOf('2');
  AddBlob(DigestOf('1'), &manifest);
  AddBlob(DigestOf('2'), nullptr);
  const std::vector<Finding> found = Check(false);
  EXPECT_EQ(SeverityOf(found, DigestOf('2')),
            static_cast<int>(Severity::kNote));
  for (const Finding& finding : found) {
    EXPECT_EQ(finding.severity, Severity::kNote) << finding.text;
    EXPECT_TRUE(finding.repaired.empty()) << finding.repaired;
  }
  EXPECT_TRUE(absl::IsNotFound(content_.Info("ns", DigestOf('2')).status()));
  // A repair takes it back all the same.
  EXPECT_EQ(SeverityOf(Check(true), DigestOf('2')),
            static_cast<int>(Severity::kNote));
  EXPECT_TRUE(content_.Info("ns", DigestOf('2')).ok());
  EXPECT_EQ(SeverityOf(Check(false), DigestOf('2')), -1);
}

// An image's record is written last: its target's was there before.
TEST_F(Fsck, ABlobThatAnImageNamesIsDamage) {
  AddBlob(DigestOf('1'), nullptr);
  Image image;
  image.set_name("i");
  image.mutable_target()->set_digest(DigestOf('1'));
  image.mutable_target()->set_media_type("m");
  image.mutable_target()->set_size(5);
  ASSERT_TRUE(Images(process_.store).Create("ns", image, "", {}).ok());
  EXPECT_EQ(SeverityOf(Check(false), DigestOf('1')),
            static_cast<int>(Severity::kDamaged));
  EXPECT_EQ(SeverityOf(Check(true), DigestOf('1')),
            static_cast<int>(Severity::kDamaged));
  EXPECT_TRUE(content_.Info("ns", DigestOf('1')).ok());
  EXPECT_EQ(SeverityOf(Check(false), DigestOf('1')), -1);
}

}  // namespace
}  // namespace bulkhead::metadata
