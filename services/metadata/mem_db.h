// A database in memory, for tests that make many.
#ifndef BULKHEAD_SERVICES_METADATA_MEM_DB_H_
#define BULKHEAD_SERVICES_METADATA_MEM_DB_H_

#include <map>
#include <memory>
#include <string>

#include "absl/strings/match.h"
#include "absl/synchronization/mutex.h"
#include "services/metadata/db.h"

namespace bulkhead::metadata {

// Keeps every promise of Db but durability. A view costs a copy at the next
// write.
class MemDb final : public Db {
 public:
  absl::StatusOr<std::optional<std::string>> Get(
      const std::string& key, const View* view) const override {
    const std::shared_ptr<const Map> map = At(view);
    auto it = map->find(key);
    if (it == map->end()) return std::optional<std::string>();
    return std::make_optional(it->second);
  }
  absl::Status Scan(const std::string& prefix, const Visitor& visitor,
                    const View* view, const std::string& from) const override {
    const std::shared_ptr<const Map> map = At(view);
    for (auto it = map->lower_bound(from.empty() ? prefix : from);
         it != map->end() && it->first.starts_with(prefix); ++it) {
      if (!visitor(it->first, it->second)) break;
    }
    return absl::OkStatus();
  }
  absl::Status Write(const Batch& batch, bool) override {
    absl::MutexLock lock(&mutex_);
    if (map_.use_count() > 1) map_ = std::make_shared<Map>(*map_);
    for (const auto& [key, value] : batch.changes) {
      if (value.has_value()) {
        (*map_)[key] = *value;
      } else {
        map_->erase(key);
      }
    }
    return absl::OkStatus();
  }
  std::unique_ptr<View> TakeView() const override {
    auto view = std::make_unique<MapView>();
    view->map = At(nullptr);
    return view;
  }
  absl::StatusOr<std::optional<std::string>> LastKey(
      const std::string& prefix) const override {
    std::optional<std::string> last;
    for (const auto& [key, value] : *At(nullptr)) {
      if (key.starts_with(prefix)) last = key;
    }
    return last;
  }
  absl::Status Checkpoint(const std::string&) override {
    return absl::UnimplementedError("in memory");
  }

 private:
  using Map = std::map<std::string, std::string>;
  struct MapView : View {
    std::shared_ptr<const Map> map;
  };

  std::shared_ptr<const Map> At(const View* view) const {
    if (view != nullptr) return static_cast<const MapView*>(view)->map;
    absl::MutexLock lock(&mutex_);
    return map_;
  }

  mutable absl::Mutex mutex_;
  std::shared_ptr<Map> map_ = std::make_shared<Map>();
};

}  // namespace bulkhead::metadata

#endif  // BULKHEAD_SERVICES_METADATA_MEM_DB_H_
