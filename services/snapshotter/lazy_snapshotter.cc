#include "services/snapshotter/lazy_snapshotter.h"

#include <sys/stat.h>

#include <mutex>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"

namespace bulkhead::snapshotter {
namespace {

using MountList = absl::StatusOr<std::vector<os::MountSpec>>;

class LazySnapshotter : public Snapshotter {
 public:
  explicit LazySnapshotter(const TreeSnapshotterOptions& options)
      : options_(options) {}

  const std::string& name() const override { return options_.name; }

  MountList Prepare(const std::string& key, const std::string& parent,
                    const Labels& labels) override {
    ASSIGN_OR_RETURN(Snapshotter * real, Open());
    return real->Prepare(key, parent, labels);
  }
  MountList View(const std::string& key, const std::string& parent,
                 const Labels& labels) override {
    ASSIGN_OR_RETURN(Snapshotter * real, Open());
    return real->View(key, parent, labels);
  }
  MountList Mounts(const std::string& key) override {
    Snapshotter* real = Opened();
    if (real == nullptr) return None(key);
    return real->Mounts(key);
  }
  absl::Status Commit(const std::string& name, const std::string& key,
                      const Labels& labels,
                      const std::string& parent) override {
    ASSIGN_OR_RETURN(Snapshotter * real, Open());
    return real->Commit(name, key, labels, parent);
  }
  std::vector<absl::Status> RemoveMany(
      const std::vector<std::string>& keys) override {
    Snapshotter* real = Opened();
    if (real != nullptr) return real->RemoveMany(keys);
    std::vector<absl::Status> results;
    for (const std::string& key : keys) results.push_back(None(key));
    return results;
  }
  absl::StatusOr<SnapshotInfo> Stat(const std::string& key) override {
    Snapshotter* real = Opened();
    if (real == nullptr) return None(key);
    return real->Stat(key);
  }
  absl::StatusOr<SnapshotInfo> Update(
      const std::string& key, const Labels& labels,
      const std::vector<std::string>& paths) override {
    Snapshotter* real = Opened();
    if (real == nullptr) return None(key);
    return real->Update(key, labels, paths);
  }
  absl::Status Walk(
      const std::function<absl::Status(const SnapshotInfo&)>& visit) override {
    Snapshotter* real = Opened();
    return real == nullptr ? absl::OkStatus() : real->Walk(visit);
  }
  absl::StatusOr<DiskUsage> Usage(const std::string& key) override {
    Snapshotter* real = Opened();
    if (real == nullptr) return None(key);
    return real->Usage(key);
  }
  absl::Status Cleanup() override {
    Snapshotter* real = Opened();
    return real == nullptr ? absl::OkStatus() : real->Cleanup();
  }
  absl::Status NoteUnpacked(const std::string& tree,
                            const std::vector<std::string>& implicit_dirs,
                            const std::optional<DiskUsage>& usage) override {
    Snapshotter* real = Opened();
    return real == nullptr ? absl::OkStatus()
                           : real->NoteUnpacked(tree, implicit_dirs, usage);
  }
  void NoteSynced(const std::string& tree) override {
    if (Snapshotter* real = Opened()) real->NoteSynced(tree);
  }
  absl::StatusOr<std::unique_ptr<LayerSink>> SinkFor(
      const std::string& tree, ExtractOptions* options) override {
    Snapshotter* real = Opened();
    if (real == nullptr) return std::unique_ptr<LayerSink>();
    return real->SinkFor(tree, options);
  }

  absl::StatusOr<Snapshotter*> Open() {
    std::lock_guard lock(mutex_);
    if (real_ == nullptr) {
      ASSIGN_OR_RETURN(real_, OpenTreeSnapshotter(options_));
    }
    return real_.get();
  }

 private:
  Snapshotter* Opened() {
    std::lock_guard lock(mutex_);
    return real_.get();
  }
  static absl::Status None(const std::string& key) {
    return absl::NotFoundError(
        absl::StrCat("snapshot ", key, " does not exist"));
  }

  const TreeSnapshotterOptions options_;
  std::mutex mutex_;
  std::unique_ptr<Snapshotter> real_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Snapshotter>> OpenLazySnapshotter(
    const TreeSnapshotterOptions& options) {
  auto lazy = std::make_unique<LazySnapshotter>(options);
  struct stat st;
  if (::stat((options.root + "/db").c_str(), &st) == 0) {
    RETURN_IF_ERROR(lazy->Open().status());
  }
  return lazy;
}

}  // namespace bulkhead::snapshotter
