// How many layers are unpacked at once, on a store in memory.
#include "services/distribution/layers.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>

#include "services/distribution/fake_store.h"

namespace bulkhead::distribution {
namespace {

constexpr std::chrono::seconds kPatience{20};

// Unpacks into nowhere. A layer is not synced before the next one is begun.
class SlowlySyncing : public FakeStore {
 public:
  SlowlySyncing(const std::vector<oci::Descriptor>& layers, std::string broken)
      : layers_(layers), broken_(std::move(broken)) {}

  int most_unpacked_at_once() const { return most_; }
  int synced_beside_others() const { return beside_; }
  size_t commits() const { return commits_; }

  absl::Status SetBlobLabels(const std::string&, const Labels&) override {
    return absl::OkStatus();
  }
  absl::Status StatSnapshot(const std::string&,
                            const std::string& name) override {
    return absl::NotFoundError(name);
  }
  absl::StatusOr<std::vector<dataplane::Mount>> Prepare(
      const std::string&, const std::string&, const std::string&,
      const Labels&) override {
    return std::vector<dataplane::Mount>{};
  }
  absl::Status Commit(const std::string&, const std::string&,
                      const std::string&, const std::string&,
                      const Labels&) override {
    ++commits_;  // Under the unpacker's lock.
    return absl::OkStatus();
  }
  absl::Status RemoveSnapshot(const std::string&, const std::string&) override {
    return absl::OkStatus();
  }
  absl::StatusOr<std::unique_ptr<dataplane::ApplySession>> StartApply(
      const dataplane::ApplyRequest& request, int) override {
    std::lock_guard lock(mutex_);
    most_ = std::max(most_, ++unpacking_);
    changed_.notify_all();
    return std::make_unique<Session>(*this, request, ++begun_);
  }

 private:
  class Session : public dataplane::ApplySession {
   public:
    Session(SlowlySyncing& store, const dataplane::ApplyRequest& request,
            int number)
        : store_(store), request_(request), number_(number) {}

    absl::Status Advance(int64_t) override { return absl::OkStatus(); }
    absl::StatusOr<dataplane::Applied> Finish(int64_t) override {
      {
        std::lock_guard lock(store_.mutex_);
        --store_.unpacking_;
      }
      if (request_.digest == store_.broken_) {
        return absl::DataLossError("broken");
      }
      request_.on_unpacked();
      std::unique_lock lock(store_.mutex_);
      if (store_.changed_.wait_for(lock, kPatience, [this] {
            return store_.begun_ > number_ || store_.IsLast(number_);
          })) {
        ++store_.beside_;
      }
      const std::string& digest = request_.digest;
      return dataplane::Applied{store_.blobs.at(digest).bytes, 1};
    }

   private:
    SlowlySyncing& store_;
    const dataplane::ApplyRequest request_;
    const int number_;
  };

  bool IsLast(int number) const {
    return number == static_cast<int>(layers_.size());
  }

  const std::vector<oci::Descriptor>& layers_;
  const std::string broken_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int begun_ = 0;
  int unpacking_ = 0;
  int most_ = 0;
  int beside_ = 0;
  size_t commits_ = 0;
};

// Four layers, each of whose blobs holds the diffID it unpacks to.
struct Layers {
  explicit Layers(int unpacks_max) : progress(nullptr) {
    plan.unpacks_max = unpacks_max;
    plan.rebase = true;
    for (const char* name : {"a", "b", "c", "d"}) {
      plan.diff_ids.push_back(Digest::Of(name));
      bytes.push_back(plan.diff_ids.back().str());
      oci::Descriptor layer;
      layer.digest = Digest::Of(bytes.back());
      layer.media_type = oci::kOciLayerGzip;
      layer.size_bytes = static_cast<int64_t>(bytes.back().size());
      layers.push_back(layer);
    }
  }
  absl::Status Fetch(SlowlySyncing& store) {
    for (const std::string& blob : bytes) store.Add(blob);
    StopFlag stop;
    FetchContext context;
    context.store = &store;
    context.progress = &progress;
    context.stop = &stop;
    context.ns = "tests";
    return FetchLayers(context, layers, {}, 1, &plan);
  }

  std::vector<std::string> bytes;
  std::vector<oci::Descriptor> layers;
  UnpackPlan plan;
  Progress progress;
};

TEST(Layers, TheNextIsUnpackedWhileOneIsSynced) {
  for (const int unpacks_max : {1, 2}) {
    Layers image(unpacks_max);
    SlowlySyncing store(image.layers, "");
    const absl::Status done = image.Fetch(store);
    EXPECT_TRUE(done.ok()) << done;
    EXPECT_LE(store.most_unpacked_at_once(), unpacks_max);
    EXPECT_EQ(store.synced_beside_others(), 4);
    EXPECT_EQ(store.commits(), 4u);
  }
}

TEST(Layers, OneThatFailsEndsThemAll) {
  for (size_t broken = 0; broken < 4; ++broken) {
    Layers image(1);
    SlowlySyncing store(image.layers, image.layers[broken].digest.str());
    EXPECT_TRUE(absl::IsDataLoss(image.Fetch(store)));
    EXPECT_LE(store.commits(), broken);
    EXPECT_EQ(store.most_unpacked_at_once(), 1);
  }
}

}  // namespace
}  // namespace bulkhead::distribution
