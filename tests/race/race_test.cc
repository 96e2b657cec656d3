// Pulls, removals, expiring leases and collections, all at once, on the same
// digests and snapshots. What an image or a lease needs is never collected; in
// the end nothing is left. BULKHEAD_RACE_SECONDS sets how long; meant for
// --config=tsan and --config=asan (`./dev soak --race`), short without.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <mutex>
#include <random>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "lib/testing/temp_dir.h"
#include "services/metadata/gc.h"
#include "services/metadata/objects.h"
#include "services/snapshotter/tree_snapshotter.h"
#include "tests/race/local_backends.h"

namespace bulkhead::race {
namespace {

namespace fs = std::filesystem;
using metadata::Container;
using metadata::Image;
using metadata::Lease;

constexpr int kWorkers = 4;
constexpr int kNamespaces = 2;  // Two workers each.
constexpr int kImages = 5;      // Different contents; layers are shared.
constexpr int kLayers = 3;
constexpr int kKeptMax = 6;  // Images that a worker has at once.
constexpr char kOverlay[] = "overlayfs";

std::string LayerOf(int image, int layer) {
  // The lowest is everybody's.
  const int number = layer == 0 ? 0 : 10 * (image / 2) + layer;
  return testing::RandomBytes(1000 + 300 * number, number + 1);
}

std::string ChainOf(int image, int layer) {
  std::string chain;
  for (int i = 0; i <= layer; ++i) {
    chain = Digest::Of(
                absl::StrCat(chain, " ", Digest::Of(LayerOf(image, i)).str()))
                .str();
  }
  return chain;
}

// In memory where there is room: syncing must not slow the races down.
class Folder {
 public:
  Folder() {
    for (const char* pattern :
         {"/dev/shm/bh-race-XXXXXX", "/tmp/bh-race-XXXXXX"}) {
      path_ = pattern;
      if (::mkdtemp(path_.data()) != nullptr) return;
    }
    std::abort();
  }
  ~Folder() {
    std::error_code error;
    fs::remove_all(path_, error);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

class Race : public ::testing::Test {
 protected:
  absl::Status WriteBlob(const std::string& ns, const std::string& lease,
                         const std::string& ref, const std::string& data,
                         const metadata::LabelMap& labels) {
    const std::string digest = Digest::Of(data).str();
    metadata::WriterRequest request;
    request.ns = ns;
    request.lease = lease;
    request.ref = ref;
    request.total_bytes = static_cast<int64_t>(data.size());
    request.expected = digest;
    absl::Status status;
    do {
      auto writer = content_->OpenWriter(request);
      status = writer.status();
      if (writer.ok()) {
        if (!(*writer)->is_virtual()) {
          const int64_t offset = (*writer)->opened().offset_bytes;
          status = (*writer)->Append(offset, data.substr(offset));
        }
        if (status.ok()) {
          status =
              (*writer)->Commit(request.total_bytes, digest, labels).status();
        }
      }
      // Somebody else writes the same.
    } while (absl::IsUnavailable(status) && !over_);
    if (absl::IsAlreadyExists(status)) {
      metadata::content_v1::Info info;
      info.set_digest(digest);
      info.mutable_labels()->insert(labels.begin(), labels.end());
      std::vector<std::string> mask;
      for (const auto& [key, value] : labels) mask.push_back("labels." + key);
      status = mask.empty() ? absl::OkStatus()
                            : content_->Update(ns, info, mask).status();
    }
    return Annotate(status, absl::StrCat("blob ", ref));
  }

  absl::Status Unpack(const metadata::SnapshotCall& call, int image,
                      const std::string& unique) {
    std::string parent;
    for (int layer = 0; layer < kLayers; ++layer) {
      const std::string chain = ChainOf(image, layer);
      const std::string key = absl::StrCat("extract ", unique, " ", layer);
      metadata::LabelMap labels;
      labels["containerd.io/snapshot.ref"] = chain;
      absl::Status status =
          snapshots_->Prepare(call, false, key, parent, labels).status();
      if (status.ok()) {
        status = snapshots_->Commit(call, chain, key, "", {});
        if (absl::IsAlreadyExists(status)) {
          (void)snapshots_->Remove(call, key);
        }
      }
      if (!status.ok() && !absl::IsAlreadyExists(status)) {
        return Annotate(status, absl::StrCat("layer ", layer));
      }
      parent = chain;
    }
    return absl::OkStatus();
  }

  // As a pull does it: a lease, blobs, snapshots, and last the image's record.
  absl::Status Pull(const std::string& ns, const std::string& name, int image,
                    const std::string& unique) {
    Lease lease;
    lease.set_id("pull " + unique);
    RETURN_IF_ERROR(leases_->Create(ns, lease).status());
    metadata::LabelMap labels;
    for (int i = 0; i < kLayers; ++i) {
      const std::string layer = LayerOf(image, i);
      RETURN_IF_ERROR(WriteBlob(ns, lease.id(),
                                absl::StrCat("layer-", Digest::Of(layer).hex()),
                                layer, {}));
      labels[absl::StrCat("containerd.io/gc.ref.content.l.", i)] =
          Digest::Of(layer).str();
    }
    RETURN_IF_ERROR(Unpack({ns, lease.id(), kOverlay}, image, unique));
    labels[absl::StrCat("containerd.io/gc.ref.snapshot.", kOverlay)] =
        ChainOf(image, kLayers - 1);
    const std::string manifest = absl::StrCat("manifest ", image);
    RETURN_IF_ERROR(WriteBlob(ns, lease.id(), absl::StrCat("manifest-", image),
                              manifest, labels));
    Image record;
    record.set_name(name);
    record.mutable_target()->set_digest(Digest::Of(manifest).str());
    record.mutable_target()->set_media_type("m");
    record.mutable_target()->set_size(static_cast<int64_t>(manifest.size()));
    RETURN_IF_ERROR(images_->Create(ns, record, "", std::nullopt).status());
    return leases_->Delete(ns, lease.id());
  }

  // Every byte and every snapshot below an image.
  absl::Status Whole(const std::string& ns, int image) {
    std::vector<std::string> blobs = {absl::StrCat("manifest ", image)};
    for (int i = 0; i < kLayers; ++i) blobs.push_back(LayerOf(image, i));
    for (const std::string& data : blobs) {
      const std::string digest = Digest::Of(data).str();
      ASSIGN_OR_RETURN(const auto blob, content_->Open(ns, digest));
      std::string read;
      RETURN_IF_ERROR(blob->Read(0, blob->size_bytes(), 1 << 20,
                                 [&](const std::string& piece) {
                                   read.append(piece);
                                   return true;
                                 }));
      if (read != data) return absl::DataLossError(digest + " is damaged");
    }
    for (int i = 0; i < kLayers; ++i) {
      RETURN_IF_ERROR(
          snapshots_->Stat({ns, "", kOverlay}, ChainOf(image, i)).status());
    }
    return absl::OkStatus();
  }

  void Work(int worker) {
    std::mt19937 random(worker + 1);
    const std::string ns = absl::StrCat("ns", worker % kNamespaces);
    std::map<std::string, int> mine;  // Image by name.
    std::vector<std::string> containers;
    const auto check = [&](const absl::Status& status,
                           const std::string& what) {
      if (status.ok() || over_) return;
      ADD_FAILURE() << ns << " " << what << ": " << status;
      over_ = true;
    };
    for (int i = 0; !over_; ++i) {
      const std::string unique = absl::StrCat(worker, "-", i);
      switch (random() % 6) {
        case 0:
        case 1: {
          if (mine.size() >= kKeptMax) break;
          const int image = static_cast<int>(random() % kImages);
          const std::string name = "image " + unique;
          const absl::Status pulled = Pull(ns, name, image, unique);
          check(pulled, "pull");
          if (!pulled.ok()) break;
          mine[name] = image;
          ++pulls_;
          check(Whole(ns, image),
                absl::StrCat("image ", image, " just pulled"));
          break;
        }
        case 2: {
          if (mine.empty()) break;
          const auto it = std::next(mine.begin(), random() % mine.size());
          check(images_->Delete(ns, it->first, "", ""), "remove");
          mine.erase(it);
          break;
        }
        case 3: {  // A container's snapshot, on top of an image.
          if (mine.empty()) break;
          const auto it = std::next(mine.begin(), random() % mine.size());
          Lease lease;
          lease.set_id("run " + unique);
          check(leases_->Create(ns, lease).status(), "lease");
          const std::string key = "container " + unique;
          check(snapshots_
                    ->Prepare({ns, lease.id(), kOverlay}, false, key,
                              ChainOf(it->second, kLayers - 1), {})
                    .status(),
                "prepare");
          Container container;
          container.set_id(absl::StrCat("c", worker, "-", i));
          container.mutable_runtime()->set_name("r");
          container.mutable_spec()->set_type_url("t");
          container.set_snapshotter(kOverlay);
          container.set_snapshot_key(key);
          check(containers_->Create(ns, container).status(), "create");
          check(leases_->Delete(ns, lease.id()), "drop lease");
          containers.push_back(container.id());
          break;
        }
        case 4: {
          if (containers.empty()) break;
          const std::string id = containers.back();
          containers.pop_back();
          const auto container = containers_->Get(ns, id);
          check(container.status(), "container");
          if (!container.ok()) break;
          check(snapshots_
                    ->MountsOf({ns, "", kOverlay}, container->snapshot_key())
                    .status(),
                "snapshot of " + id);
          check(containers_->Delete(ns, id), "delete");
          // The collector takes the snapshot, or already has.
          (void)snapshots_->Remove({ns, "", kOverlay},
                                   container->snapshot_key());
          break;
        }
        case 5: {  // A lease that expires while it holds something.
          Lease lease;
          lease.set_id("short " + unique);
          (*lease.mutable_labels())["containerd.io/gc.expire"] =
              absl::FormatTime(absl::RFC3339_full,
                               absl::Now() + absl::Milliseconds(random() % 30),
                               absl::UTCTimeZone());
          check(leases_->Create(ns, lease).status(), "short lease");
          const int image = static_cast<int>(random() % kImages);
          // It may be gone at any step.
          (void)WriteBlob(ns, lease.id(), "short " + unique,
                          LayerOf(image, random() % kLayers), {});
          (void)Unpack({ns, lease.id(), kOverlay}, image, "short " + unique);
          break;
        }
      }
      for (const auto& [name, image] : mine) {
        if (random() % 4 == 0) {
          check(Whole(ns, image), absl::StrCat(name, " (", image, ")"));
        }
      }
    }
    for (const auto& [name, image] : mine) {
      const absl::Status whole = Whole(ns, image);
      EXPECT_TRUE(whole.ok()) << ns << " " << name << ": " << whole;
      EXPECT_TRUE(images_->Delete(ns, name, "", "").ok());
    }
    for (const std::string& id : containers) {
      EXPECT_TRUE(containers_->Delete(ns, id).ok()) << id;
    }
  }

  std::unique_ptr<metadata::Content> content_;
  std::unique_ptr<metadata::Snapshots> snapshots_;
  std::unique_ptr<metadata::Images> images_;
  std::unique_ptr<metadata::Containers> containers_;
  std::unique_ptr<metadata::Leases> leases_;
  std::atomic<bool> over_{false};
  std::atomic<int> pulls_{0};
};

TEST_F(Race, NothingNeededIsCollectedAndNothingLeaks) {
  const char* given = std::getenv("BULKHEAD_RACE_SECONDS");
  const int seconds = given != nullptr ? std::atoi(given) : 5;
  const Folder folder;
  const std::string& root = folder.path();
  metadata::EventBus events;
  metadata::Store store(metadata::Db::Open(root + "/db").value(), &events);
  ASSERT_TRUE(events.OpenLog(store.db(), 1000).ok());
  const auto blobs = content::FsStore::Open(root + "/content").value();
  LocalContent backend(blobs.get());
  snapshotter::TreeSnapshotterOptions options;
  options.name = kOverlay;
  options.root = root + "/trees";
  const auto trees = snapshotter::OpenTreeSnapshotter(options).value();
  content_ = std::make_unique<metadata::Content>(store, backend, false);
  metadata::Snapshots::Backends backends;
  backends[kOverlay] = std::make_unique<LocalSnapshots>(trees.get());
  snapshots_ =
      std::make_unique<metadata::Snapshots>(store, std::move(backends));
  images_ = std::make_unique<metadata::Images>(store);
  containers_ = std::make_unique<metadata::Containers>(store);
  leases_ = std::make_unique<metadata::Leases>(store);
  int collections = 0;
  {
    metadata::CollectorOptions often;
    often.startup_delay = absl::ZeroDuration();
    often.mutation_threshold = 5;
    often.pause_threshold = 0.5;
    metadata::Collector collector(store, *content_, *snapshots_, often);
    std::vector<std::thread> workers;
    for (int i = 0; i < kWorkers; ++i) {
      workers.emplace_back([this, i] { Work(i); });
    }
    const absl::Time end = absl::Now() + absl::Seconds(seconds);
    while (absl::Now() < end && !over_) {
      EXPECT_TRUE(collector.CollectNow().ok());
      ++collections;
    }
    over_ = true;
    for (std::thread& worker : workers) worker.join();
    // Leases of pulls that were cut short.
    for (int n = 0; n < kNamespaces; ++n) {
      const std::string ns = absl::StrCat("ns", n);
      std::vector<std::string> ids;
      ASSERT_TRUE(
          store
              .Scan<Lease>(metadata::Prefix(metadata::kind::kLease, {ns}),
                           [&](const std::vector<std::string>& key, Lease&) {
                             ids.push_back(key[1]);
                             return true;
                           })
              .ok());
      for (const std::string& id : ids) {
        const absl::Status deleted = leases_->Delete(ns, id);
        EXPECT_TRUE(deleted.ok() || absl::IsNotFound(deleted)) << deleted;
      }
      std::vector<std::string> refs;
      ASSERT_TRUE(store.db()
                      .Scan(metadata::Prefix(metadata::kind::kIngest, {ns}),
                            [&](std::string_view key, std::string_view) {
                              refs.push_back(metadata::Split(key)[1]);
                              return true;
                            })
                      .ok());
      for (const std::string& ref : refs) {
        EXPECT_TRUE(content_->Abort(ns, ref, "").ok()) << ref;
      }
    }
    for (int i = 0; i < 2; ++i) EXPECT_TRUE(collector.CollectNow().ok());
  }
  EXPECT_TRUE(trees->Cleanup().ok());
  for (const char kind :
       {metadata::kind::kBlob, metadata::kind::kIngest,
        metadata::kind::kSnapshot, metadata::kind::kSnapshotChild,
        metadata::kind::kSnapshotBackend, metadata::kind::kSnapshotCommit,
        metadata::kind::kImage, metadata::kind::kLease,
        metadata::kind::kLeaseResource}) {
    EXPECT_FALSE(store.Any(metadata::Prefix(kind, {})).value())
        << "records of the kind " << kind << " leak";
  }
  for (const char* folder_name :
       {"content/blobs/sha256", "content/ingest", "trees/snapshots"}) {
    for (const auto& entry : fs::directory_iterator(root + "/" + folder_name)) {
      ADD_FAILURE() << entry.path() << " leaks";
    }
  }
  std::printf("%d pulls, %d collections in %d s\n", pulls_.load(), collections,
              seconds);
  EXPECT_GT(pulls_, 0);
}

}  // namespace
}  // namespace bulkhead::race
