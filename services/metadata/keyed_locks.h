// Mutual exclusion by name, for any number of names.
#ifndef BULKHEAD_SERVICES_METADATA_KEYED_LOCKS_H_
#define BULKHEAD_SERVICES_METADATA_KEYED_LOCKS_H_

#include <algorithm>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"

namespace bulkhead::metadata {

// Thread-safe. A thread takes all the names it needs in one Lock() call
// (sorted, so that two threads cannot deadlock) and no second guard meanwhile.
class KeyedLocks {
 public:
  class Guard {
   public:
    Guard() = default;
    Guard(Guard&& other) noexcept { *this = std::move(other); }
    Guard& operator=(Guard&& other) noexcept {
      Release();
      locks_ = std::exchange(other.locks_, nullptr);
      names_ = std::move(other.names_);
      return *this;
    }
    ~Guard() { Release(); }
    void Release() {
      if (locks_ != nullptr) locks_->Unlock(names_);
      locks_ = nullptr;
    }

   private:
    friend class KeyedLocks;
    KeyedLocks* locks_ = nullptr;
    std::vector<std::string> names_;
  };

  Guard Lock(std::vector<std::string> names) {
    std::sort(names.begin(), names.end());
    names.erase(std::unique(names.begin(), names.end()), names.end());
    for (const std::string& name : names) {
      std::shared_ptr<Entry> entry;
      {
        absl::MutexLock lock(&mutex_);
        auto& slot = entries_[name];
        if (slot == nullptr) slot = std::make_shared<Entry>();
        ++slot->users;
        entry = slot;
      }
      entry->mutex.Lock();
    }
    Guard guard;
    guard.locks_ = this;
    guard.names_ = std::move(names);
    return guard;
  }

 private:
  struct Entry {
    absl::Mutex mutex;
    int users = 0;
  };

  void Unlock(const std::vector<std::string>& names) {
    for (const std::string& name : names) {
      std::shared_ptr<Entry> entry;
      absl::MutexLock lock(&mutex_);
      auto it = entries_.find(name);
      entry = it->second;
      if (--entry->users == 0) entries_.erase(it);
      entry->mutex.Unlock();
    }
  }

  absl::Mutex mutex_;
  std::unordered_map<std::string, std::shared_ptr<Entry>> entries_;
};

}  // namespace bulkhead::metadata

#endif  // BULKHEAD_SERVICES_METADATA_KEYED_LOCKS_H_
