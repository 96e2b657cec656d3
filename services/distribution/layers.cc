#include "services/distribution/layers.h"

#include <algorithm>
#include <atomic>
#include <functional>
#include <map>
#include <numeric>
#include <random>
#include <semaphore>
#include <set>
#include <thread>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "lib/base/status_macros.h"
#include "lib/log/log.h"

namespace bulkhead::distribution {
namespace {

constexpr char kSnapshotRef[] = "containerd.io/snapshot.ref";
constexpr char kUncompressed[] = "containerd.io/uncompressed";
constexpr int kStatTries = 3;

std::string ExtractKey(const Digest& chain_id) {
  std::random_device random;
  const uint32_t bits = random();
  const std::string suffix = absl::WebSafeBase64Escape(
      absl::string_view(reinterpret_cast<const char*>(&bits), 3));
  return absl::StrCat("extract-", absl::ToUnixNanos(absl::Now()) % 1000000000,
                      "-", suffix, " ", chain_id.str());
}

class Unpacker {
 public:
  Unpacker(const FetchContext& context, const UnpackPlan& plan,
           std::vector<BlobFetch*> blobs)
      : context_(context),
        plan_(plan),
        blobs_(std::move(blobs)),
        chain_ids_(oci::ChainIds(plan.diff_ids)),
        layers_(blobs_.size()) {}

  // How many layers from the first on the snapshotter has without us. The
  // answer that ends it is kept for Layer().
  absl::StatusOr<size_t> AskRemote() {
    size_t have = 0;
    for (; have < blobs_.size(); ++have) {
      const std::string& name = chain_ids_[have].str();
      const std::string key = ExtractKey(chain_ids_[have]);
      auto prepared = context_.store->Prepare(
          plan_.snapshotter, key, have == 0 ? "" : chain_ids_[have - 1].str(),
          {{kSnapshotRef, name}});
      if (prepared.ok()) {
        first_ = have;
        first_key_ = key;
        first_mounts_ = *std::move(prepared);
        break;
      }
      // Layer() asks again, and tells the client what is wrong.
      if (!absl::IsAlreadyExists(prepared.status()) ||
          !context_.store->StatSnapshot(plan_.snapshotter, name).ok()) {
        break;
      }
    }
    return have;
  }

  // Unpacks layer `i` and commits it, and later ones that wait for it. Calls
  // `on_unpacked` when it is only being synced, if it comes to that.
  absl::Status Layer(size_t i, const std::function<void()>& on_unpacked) {
    BlobFetch& blob = *blobs_[i];
    const std::string& name = chain_ids_[i].str();
    const std::string parent =
        plan_.rebase || i == 0 ? "" : chain_ids_[i - 1].str();
    const Labels labels = {{kSnapshotRef, name}};
    std::string key;
    std::vector<dataplane::Mount> mounts;
    bool present = false;
    if (!first_key_.empty() && i == first_) {
      key = first_key_;
      mounts = first_mounts_;
    }
    for (int attempt = 0; attempt < kStatTries && !present && key.empty();
         ++attempt) {
      key = ExtractKey(chain_ids_[i]);
      auto prepared =
          context_.store->Prepare(plan_.snapshotter, key, parent, labels);
      if (prepared.ok()) {
        mounts = *std::move(prepared);
        break;
      }
      if (!absl::IsAlreadyExists(prepared.status())) {
        return Annotate(prepared.status(),
                        absl::StrCat("preparing a snapshot for layer ",
                                     blob.descriptor().digest.str()));
      }
      const absl::Status found =
          context_.store->StatSnapshot(plan_.snapshotter, name);
      key.clear();
      if (found.ok()) {
        present = true;
      } else if (!absl::IsNotFound(found) || attempt + 1 == kStatTries) {
        return Annotate(found, absl::StrCat("snapshot ", name));
      }
    }
    if (!present) {
      absl::Status status =
          Extract(blob, plan_.diff_ids[i], mounts, on_unpacked);
      if (!status.ok()) {
        Drop(key);
        return status;
      }
    } else {
      RETURN_IF_ERROR(blob.WaitCommitted());
    }
    RETURN_IF_ERROR(Done(i, present ? "" : key));
    if (blob.wanted()) {
      RETURN_IF_ERROR(context_.store->SetBlobLabels(
          blob.descriptor().digest.str(),
          {{kUncompressed, plan_.diff_ids[i].str()}}));
    }
    context_.progress->Set(blob.descriptor(), "extracted",
                           blob.descriptor().size_bytes);
    return absl::OkStatus();
  }

  // After a failure: what was unpacked but not committed goes.
  void DropUncommitted() {
    std::lock_guard<std::mutex> lock(mutex_);
    for (LayerState& layer : layers_) {
      if (layer.ready && !layer.committed && !layer.key.empty()) {
        Drop(layer.key);
      }
    }
  }

 private:
  struct LayerState {
    bool ready = false;
    bool committed = false;
    std::string key;  // Empty: the snapshot was there already.
  };

  void Drop(const std::string& key) {
    const absl::Status status =
        context_.store->RemoveSnapshot(plan_.snapshotter, key);
    if (!status.ok() && !absl::IsNotFound(status)) {
      log::Warn("snapshot not removed; garbage collection takes it",
                {{"key", key}, {"error", MessageOf(status)}});
    }
  }

  absl::Status Extract(BlobFetch& blob, const Digest& diff_id,
                       const std::vector<dataplane::Mount>& mounts,
                       const std::function<void()>& on_unpacked) {
    const oci::Descriptor& desc = blob.source();
    BlobFetch::State state = blob.WaitBytes(-1);
    RETURN_IF_ERROR(state.failed);
    auto session =
        context_.store->StartApply({mounts, desc.media_type, desc.digest.str(),
                                    desc.size_bytes, plan_.rebase, on_unpacked},
                                   state.fd);
    absl::StatusOr<dataplane::Applied> applied;
    if (session.ok()) {
      int64_t sent = -1;
      while (!state.complete) {
        if (state.available_bytes > sent) {
          sent = state.available_bytes;
          // The apply has failed: Finish says why.
          if (!(*session)->Advance(sent).ok()) break;
        }
        state = blob.WaitBytes(sent);
        RETURN_IF_ERROR(state.failed);
      }
      context_.progress->Set(blob.descriptor(), "extracting",
                             state.available_bytes);
      applied = (*session)->Finish(desc.size_bytes);
      session->reset();
      RETURN_IF_ERROR(blob.WaitCommitted());
    } else if (absl::IsUnavailable(session.status())) {
      RETURN_IF_ERROR(blob.WaitCommitted());
      context_.progress->Set(blob.descriptor(), "extracting", desc.size_bytes);
      applied = context_.store->Apply(desc, mounts);
    } else {
      applied = session.status();
    }
    if (!applied.ok()) {
      return Annotate(applied.status(),
                      absl::StrCat("unpacking layer ", desc.digest.str()));
    }
    if (applied->diff_id != diff_id.str()) {
      return absl::FailedPreconditionError(absl::StrCat(
          "wrong diff id: layer ", desc.digest.str(), " unpacks to ",
          applied->diff_id, ", but the image's config says ", diff_id.str()));
    }
    return absl::OkStatus();
  }

  // Layer `i` is complete under `key`: commits all whose parents are there.
  absl::Status Done(size_t i, const std::string& key) {
    std::lock_guard<std::mutex> lock(mutex_);
    layers_[i].ready = true;
    layers_[i].key = key;
    for (; next_ < layers_.size() && layers_[next_].ready; ++next_) {
      LayerState& layer = layers_[next_];
      const std::string& name = chain_ids_[next_].str();
      if (!layer.key.empty()) {
        const std::string parent =
            plan_.rebase && next_ > 0 ? chain_ids_[next_ - 1].str() : "";
        const absl::Status status = context_.store->Commit(
            plan_.snapshotter, name, layer.key, parent, {{kSnapshotRef, name}});
        if (absl::IsAlreadyExists(status)) {
          Drop(layer.key);  // Another pull was faster.
        } else if (!status.ok()) {
          return Annotate(status, absl::StrCat("committing snapshot ", name));
        }
      }
      layer.committed = true;
    }
    return absl::OkStatus();
  }

  const FetchContext& context_;
  const UnpackPlan& plan_;
  const std::vector<BlobFetch*> blobs_;
  const std::vector<Digest> chain_ids_;
  std::mutex mutex_;
  std::vector<LayerState> layers_;  // Guarded by mutex_.
  size_t next_ = 0;                 // First not committed; guarded by mutex_.
  // Prepared by AskRemote(): layer, key, mounts.
  size_t first_ = 0;
  std::string first_key_;
  std::vector<dataplane::Mount> first_mounts_;
};

// Layers that the store lacks, but of which it has the same files in a blob
// of another compression: that one serves. True if there are any.
absl::StatusOr<bool> UseWhatIsThere(const FetchContext& context,
                                    const UnpackPlan& plan,
                                    const std::vector<BlobFetch*>& blobs) {
  std::vector<size_t> missing;
  std::vector<std::string> diff_ids;
  for (size_t i = 0; i < blobs.size(); ++i) {
    const std::string& digest = blobs[i]->descriptor().digest.str();
    const absl::Status there = context.store->Open(digest).status();
    if (there.ok()) continue;
    if (!absl::IsNotFound(there)) return there;
    missing.push_back(i);
    diff_ids.push_back(plan.diff_ids[i].str());
  }
  ASSIGN_OR_RETURN(const auto found,
                   context.store->FindByLabel(kUncompressed, diff_ids));
  bool any = false;
  for (const size_t i : missing) {
    const auto other = found.find(plan.diff_ids[i].str());
    if (other == found.end() || !blobs[i]->wanted()) continue;
    oci::Descriptor source;
    source.media_type = oci::kOciLayerGzip;  // What it is, its bytes tell.
    source.digest = other->second;
    if (!blobs[i]->UseInstead(source).ok()) continue;  // Just collected.
    any = true;
    context.progress->Set(blobs[i]->descriptor(), "already exists",
                          blobs[i]->descriptor().size_bytes);
  }
  return any;
}

absl::Status FetchOnce(const FetchContext& outer,
                       const std::vector<oci::Descriptor>& layers,
                       const std::vector<std::string>& parents,
                       int downloads_max, const UnpackPlan* plan,
                       bool* used_others);

}  // namespace

absl::Status FetchLayers(const FetchContext& context,
                         const std::vector<oci::Descriptor>& layers,
                         const std::vector<std::string>& parents,
                         int downloads_max, const UnpackPlan* plan) {
  bool use_others = plan != nullptr && context.registry != nullptr;
  const absl::Status status =
      FetchOnce(context, layers, parents, downloads_max, plan, &use_others);
  if (status.ok() || !use_others ||
      (context.stop->client_gone && context.stop->client_gone())) {
    return status;
  }
  // It may be the other blob that was no good.
  log::Info("unpacking from other blobs failed",
            {{"error", MessageOf(status)}});
  context.stop->failed = false;
  use_others = false;
  return FetchOnce(context, layers, parents, downloads_max, plan, &use_others);
}

namespace {

absl::Status FetchOnce(const FetchContext& outer,
                       const std::vector<oci::Descriptor>& layers,
                       const std::vector<std::string>& parents,
                       int downloads_max, const UnpackPlan* plan,
                       bool* used_others) {
  FetchContext context = outer;
  if (plan != nullptr && plan->diff_ids.size() != layers.size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the manifest has ", layers.size(), " layers, but the image's config ",
        plan->diff_ids.size(), " diff ids"));
  }
  std::vector<std::unique_ptr<BlobFetch>> fetches;
  std::map<std::string, BlobFetch*> by_digest;  // A layer may come twice.
  std::vector<BlobFetch*> blobs;
  for (const oci::Descriptor& layer : layers) {
    BlobFetch*& fetch = by_digest[layer.digest.str()];
    if (fetch == nullptr) {
      fetches.push_back(std::make_unique<BlobFetch>(context, layer, parents));
      fetch = fetches.back().get();
      context.progress->Set(layer, "waiting", 0, parents);
    }
    blobs.push_back(fetch);
  }
  std::mutex mutex;
  absl::Status failed;
  const auto note = [&](const absl::Status& status) {
    if (status.ok()) return;
    std::lock_guard<std::mutex> lock(mutex);
    if (failed.ok()) failed = status;
    context.stop->failed = true;
  };
  std::unique_ptr<Unpacker> unpacker;
  if (plan != nullptr) {
    unpacker = std::make_unique<Unpacker>(context, *plan, blobs);
    size_t have = 0;
    if (plan->remote && !plan->rebase) {
      ASSIGN_OR_RETURN(have, unpacker->AskRemote());
    }
    const std::set<BlobFetch*> needed(blobs.begin() + static_cast<long>(have),
                                      blobs.end());
    for (size_t i = 0; i < have; ++i) {
      if (needed.count(blobs[i]) == 0) blobs[i]->Skip();
    }
    if (*used_others) {
      ASSIGN_OR_RETURN(*used_others, UseWhatIsThere(context, *plan, blobs));
    }
  }
  std::vector<BlobFetch*> wanted;
  for (const auto& fetch : fetches) {
    if (fetch->wanted()) wanted.push_back(fetch.get());
  }
  const bool rebase = plan != nullptr && plan->rebase;
  // The order in which layers are unpacked, and fetched.
  std::vector<size_t> order(blobs.size());
  std::iota(order.begin(), order.end(), 0);
  if (rebase) {
    // None of them waits for another one: a large one that comes last would be
    // unpacked alone at the end.
    const auto size_of = [](const BlobFetch* fetch) {
      return fetch->descriptor().size_bytes;
    };
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
      return size_of(blobs[a]) > size_of(blobs[b]);
    });
    std::stable_sort(wanted.begin(), wanted.end(),
                     [&](const BlobFetch* a, const BlobFetch* b) {
                       return size_of(a) > size_of(b);
                     });
  }
  std::vector<std::thread> threads;
  std::atomic<size_t> next_fetch{0};
  const int streams = std::max(1, downloads_max);
  const size_t fetchers = std::min<size_t>(streams, wanted.size());
  // What is left of the streams helps the large layers.
  StreamSlots slots(streams - static_cast<int>(fetchers));
  context.slots = &slots;
  for (size_t t = 0; t < fetchers; ++t) {
    threads.emplace_back([&] {
      for (size_t i; (i = next_fetch++) < wanted.size();) {
        if (context.stop->Stopped()) {
          wanted[i]->Fail(absl::CancelledError("the transfer was cancelled"));
          continue;
        }
        wanted[i]->Run();
        note(wanted[i]->WaitCommitted());
      }
      slots.Give();
    });
  }
  std::atomic<size_t> next_unpack{0};
  const int unpacks_max = rebase ? std::max(1, plan->unpacks_max) : 1;
  std::counting_semaphore<> unpacks_free{unpacks_max};
  if (plan != nullptr) {
    // While a layer is only synced, another one keeps the processors busy.
    const size_t unpackers =
        std::min<size_t>(rebase ? unpacks_max * 2 : 1, blobs.size());
    for (size_t t = 0; t < unpackers; ++t) {
      threads.emplace_back([&] {
        for (bool more = true; more;) {
          unpacks_free.acquire();
          bool taken = true;
          const auto give = [&] {
            if (std::exchange(taken, false)) unpacks_free.release();
          };
          const size_t n = next_unpack++;
          more = n < order.size() && !context.stop->Stopped();
          if (more) note(unpacker->Layer(order[n], give));
          give();
        }
      });
    }
  }
  for (std::thread& thread : threads) thread.join();
  if (failed.ok() && context.stop->Stopped()) {
    failed = absl::CancelledError("the transfer was cancelled");
  }
  if (!failed.ok() && unpacker != nullptr) unpacker->DropUncommitted();
  return failed;
}

}  // namespace

}  // namespace bulkhead::distribution
