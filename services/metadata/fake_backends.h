// Backends in memory, for tests.
#ifndef BULKHEAD_SERVICES_METADATA_FAKE_BACKENDS_H_
#define BULKHEAD_SERVICES_METADATA_FAKE_BACKENDS_H_

#include <atomic>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "services/metadata/content_backend.h"
#include "services/metadata/snapshot_backend.h"

namespace bulkhead::metadata {

// Blobs have sizes, no bytes; the digest of a commit is what was expected.
class FakeContentBackend final : public ContentBackend {
 public:
  std::map<std::string, int64_t> blobs;
  std::map<std::string, int64_t> ingests;
  std::set<std::string> undeletable;

  absl::StatusOr<int64_t> Size(const std::string& digest) override {
    auto it = blobs.find(digest);
    if (it == blobs.end()) return absl::NotFoundError(digest);
    return it->second;
  }
  absl::StatusOr<std::unique_ptr<BackendBlob>> Open(
      const std::string&) override {
    return absl::UnimplementedError("fake");
  }
  absl::Status ListBlobs(const std::function<void(const std::string&, int64_t)>&
                             visitor) override {
    for (const auto& [digest, size] : blobs) visitor(digest, size);
    return absl::OkStatus();
  }
  absl::Status Delete(const std::string& digest) override {
    absl::MutexLock lock(&mutex_);
    if (undeletable.contains(digest)) return absl::InternalError("disk");
    blobs.erase(digest);
    return absl::OkStatus();
  }
  absl::StatusOr<BackendIngest> Status(const std::string& ref) override {
    auto it = ingests.find(ref);
    if (it == ingests.end()) return absl::NotFoundError(ref);
    BackendIngest ingest;
    ingest.ref = ref;
    ingest.offset_bytes = it->second;
    return ingest;
  }
  absl::StatusOr<std::vector<BackendIngest>> ListIngests() override {
    std::vector<BackendIngest> all;
    for (const auto& [ref, size] : ingests) {
      all.emplace_back();
      all.back().ref = ref;
    }
    return all;
  }
  absl::Status Abort(const std::string& ref) override {
    ingests.erase(ref);
    return absl::OkStatus();
  }
  absl::StatusOr<std::unique_ptr<BackendWriter>> OpenWriter(
      const std::string& ref, int64_t total_bytes) override {
    ingests.emplace(ref, 0);
    return std::make_unique<Writer>(this, ref, total_bytes);
  }

 private:
  absl::Mutex mutex_;  // Deletions come several at once.

  class Writer final : public BackendWriter {
   public:
    Writer(FakeContentBackend* backend, std::string ref, int64_t total_bytes)
        : backend_(*backend), ref_(std::move(ref)) {
      opened_.offset_bytes = backend_.ingests[ref_];
      opened_.total_bytes = total_bytes;
    }
    const dataplane::IngestState& opened() const override { return opened_; }
    int fd() const override { return -1; }
    absl::Status Append(int64_t offset_bytes,
                        const std::string& data) override {
      backend_.ingests[ref_] = offset_bytes + static_cast<int64_t>(data.size());
      return absl::OkStatus();
    }
    absl::Status Advance(int64_t) override { return absl::OkStatus(); }
    absl::Status Truncate(int64_t offset_bytes) override {
      backend_.ingests[ref_] = offset_bytes;
      return absl::OkStatus();
    }
    absl::StatusOr<std::string> DigestSoFar() override { return ""; }
    absl::StatusOr<dataplane::CommitResult> Commit(
        int64_t size_bytes, const std::string& expected) override {
      const int64_t size = backend_.ingests[ref_];
      if (size_bytes >= 0 && size_bytes != size) {
        return absl::FailedPreconditionError("failed size validation");
      }
      backend_.ingests.erase(ref_);
      if (!backend_.blobs.emplace(expected, size).second) {
        return absl::AlreadyExistsError(expected);
      }
      return dataplane::CommitResult{expected, size};
    }
    absl::Status Abort() override {
      backend_.ingests.erase(ref_);
      return absl::OkStatus();
    }

   private:
    FakeContentBackend& backend_;
    const std::string ref_;
    dataplane::IngestState opened_;
  };
};

// Enough of a snapshotter, with remote snapshots: Prepare with a snapshot.ref
// in `remote` commits it at once and says kAlreadyExists.
class FakeSnapshotBackend final : public SnapshotBackend {
 public:
  std::map<std::string, snapshots_v1::Info> snapshots;
  std::set<std::string> remote;
  // Called when a commit is made here and not yet answered.
  std::function<void()> committed = [] {};
  absl::Duration cleanup_takes;
  std::atomic<int> cleanups{0};  // Begun.

  absl::StatusOr<Mounts> Prepare(const std::string& key,
                                 const std::string& parent,
                                 const LabelMap& labels) override {
    auto it = labels.find(kLabelSnapshotRef);
    if (it != labels.end() && remote.contains(it->second)) {
      Add("remote/" + it->second, parent, labels, snapshots_v1::COMMITTED);
      return absl::AlreadyExistsError("remote");
    }
    Add(key, parent, labels, snapshots_v1::ACTIVE);
    return MountsOf(key);
  }
  absl::StatusOr<Mounts> View(const std::string& key, const std::string& parent,
                              const LabelMap& labels) override {
    Add(key, parent, labels, snapshots_v1::VIEW);
    return MountsOf(key);
  }
  absl::StatusOr<Mounts> MountsOf(const std::string& key) override {
    Mounts mounts(1);
    mounts[0].set_type("bind");
    mounts[0].set_source(key);
    return mounts;
  }
  absl::Status Commit(const std::string& name, const std::string& key,
                      const std::string& parent,
                      const LabelMap& labels) override {
    const std::string old = snapshots[key].parent();
    snapshots.erase(key);
    Add(name, old.empty() ? parent : old, labels, snapshots_v1::COMMITTED);
    committed();
    return absl::OkStatus();
  }
  absl::Status Remove(const std::string& key) override {
    absl::MutexLock lock(&mutex_);
    for (const auto& [name, info] : snapshots) {
      if (info.parent() == key) {
        return absl::FailedPreconditionError(
            "cannot remove snapshot with child");
      }
    }
    return snapshots.erase(key) ? absl::OkStatus() : absl::NotFoundError(key);
  }
  absl::StatusOr<snapshots_v1::Info> Stat(const std::string& key) override {
    auto it = snapshots.find(key);
    if (it == snapshots.end()) return absl::NotFoundError(key);
    return it->second;
  }
  absl::Status Update(const snapshots_v1::Info&,
                      const std::vector<std::string>&) override {
    return absl::OkStatus();
  }
  absl::Status List(
      const std::vector<std::string>&,
      const std::function<void(const snapshots_v1::Info&)>& visitor) override {
    for (const auto& [key, info] : snapshots) visitor(info);
    return absl::OkStatus();
  }
  absl::StatusOr<snapshots_v1::UsageResponse> Usage(
      const std::string&) override {
    return snapshots_v1::UsageResponse();
  }
  absl::Status Cleanup() override {
    ++cleanups;
    absl::SleepFor(cleanup_takes);
    return absl::UnimplementedError("fake");
  }

 private:
  absl::Mutex mutex_;  // Removals come several at once.

  void Add(const std::string& key, const std::string& parent,
           const LabelMap& labels, snapshots_v1::Kind kind) {
    snapshots_v1::Info& info = snapshots[key];
    info.set_name(key);
    info.set_parent(parent);
    info.set_kind(kind);
    *info.mutable_labels() = labels;
  }
};

}  // namespace bulkhead::metadata

#endif  // BULKHEAD_SERVICES_METADATA_FAKE_BACKENDS_H_
