#include "services/distribution/progress.h"

#include <utility>

#include "absl/time/clock.h"

namespace bulkhead::distribution {

Progress::Progress(std::function<bool(const ProgressEvent&)> send)
    : send_(std::move(send)) {
  if (send_) thread_ = std::thread([this] { Loop(); });
}

Progress::~Progress() {
  if (!thread_.joinable()) return;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
  }
  thread_.join();
}

void Progress::Push(ProgressEvent event) {
  if (queue_.size() >= kProgressQueueMax) return;
  queue_.push_back(std::move(event));
  changed_.notify_all();
}

void Progress::Event(const std::string& event, const std::string& name,
                     const oci::Descriptor* desc) {
  if (!send_) return;
  std::lock_guard<std::mutex> lock(mutex_);
  ProgressEvent out;
  out.event = event;
  out.name = name;
  if (desc != nullptr) out.desc = *desc;
  Push(std::move(out));
}

void Progress::Set(const oci::Descriptor& desc, const std::string& event,
                   int64_t progress, const std::vector<std::string>& parents) {
  if (!send_) return;
  std::lock_guard<std::mutex> lock(mutex_);
  const std::string name = oci::RefKey(desc);
  Part& part = parts_[name];
  // A document is labelled after it was fetched; that is no news.
  if (part.last.event == "complete" &&
      (event == "downloading" || event == "already exists")) {
    return;
  }
  part.last.event = event;
  part.last.name = name;
  if (!parents.empty()) part.last.parents = parents;
  part.last.progress = progress;
  part.last.total = desc.size_bytes;
  part.last.desc = desc;
  part.dirty = false;
  Push(part.last);
}

void Progress::Bytes(const oci::Descriptor& desc, int64_t progress) {
  if (!send_) return;
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = parts_.find(oci::RefKey(desc));
  if (found == parts_.end()) return;
  found->second.last.progress = progress;
  found->second.dirty = true;
}

void Progress::Loop() {
  bool listening = true;
  absl::Time tick = absl::Now() + kProgressTick;
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    if (queue_.empty() && !stopping_) {
      changed_.wait_for(lock, absl::ToChronoNanoseconds(tick - absl::Now()));
    }
    if (absl::Now() >= tick) {
      tick = absl::Now() + kProgressTick;
      for (auto& [name, part] : parts_) {
        if (part.dirty) Push(part.last);
        part.dirty = false;
      }
    }
    if (queue_.empty() && stopping_) return;
    std::deque<ProgressEvent> batch;
    batch.swap(queue_);
    lock.unlock();
    for (const ProgressEvent& event : batch) {
      if (listening) listening = send_(event);
    }
    lock.lock();
  }
}

}  // namespace bulkhead::distribution
