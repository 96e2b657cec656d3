#include "services/distribution/ranges.h"

#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <list>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "lib/base/status_macros.h"
#include "lib/log/log.h"

namespace bulkhead::distribution {
namespace {

constexpr std::chrono::milliseconds kTick(50);
constexpr absl::Duration kSample = absl::Milliseconds(300);
constexpr int kSamplesAfterAdding = 2;  // The first has the connecting in it.
constexpr double kGain = 1.25;          // Of a doubling that was worth it.
constexpr absl::Duration kRestStart = absl::Seconds(5);
constexpr absl::Duration kRestMax = absl::Minutes(1);
constexpr absl::Duration kRangeTime = absl::Milliseconds(300);
constexpr absl::Duration kRangeTimeMax = absl::Seconds(2);
constexpr int kRangeWaits = 5;  // A range takes so many waits for an answer.
constexpr int64_t kCutBytes = 1 << 20;  // Ranges begin at multiples of this.

int64_t AlignUp(int64_t value, int64_t unit) {
  return (value + unit - 1) / unit * unit;
}

class RangeFetch {
 public:
  RangeFetch(Registry& registry, const oci::Descriptor& descriptor,
             StreamSlots* slots, int streams_max, const RangeTarget& target,
             const std::map<int64_t, int64_t>& gaps)
      : registry_(registry),
        descriptor_(descriptor),
        slots_(slots),
        helpers_max_(streams_max - 1),
        target_(target),
        size_(descriptor.size_bytes),
        page_(std::max(4096L, ::sysconf(_SC_PAGESIZE))),
        prefix_(gaps.empty() ? size_ : gaps.begin()->first),
        todo_(gaps) {}

  absl::Status Run() {
    std::unique_lock<std::mutex> lock(mutex_);
    StartWorker(true);
    absl::Time sampled = absl::Now();
    int64_t before = 0;
    while (workers_ > 0) {
      changed_.wait_for(lock, kTick);
      const absl::Time now = absl::Now();
      if (got_ == 0) sampled = now;  // The first answer is not here yet.
      if (now - sampled < SampleTime() || stop_) continue;
      const int64_t got = got_;
      rate_ = static_cast<double>(got - before) /
              absl::ToDoubleSeconds(now - sampled);
      before = got;
      sampled = now;
      Adapt(now);
    }
    lock.unlock();
    for (std::thread& thread : threads_) thread.join();
    if (failed_.ok() && most_ > 0) {
      log::Debug("ranges", {{"digest", descriptor_.digest.str()},
                            {"streams", std::to_string(most_ + 1)}});
    }
    return failed_;
  }

  int64_t prefix() const { return prefix_; }

 private:
  struct Piece {
    Piece(int64_t begin, int64_t end, bool main)
        : stretch(begin, end), written(begin), is_main(main) {}
    Stretch stretch;
    int64_t written;   // Below it, all of the piece is in the file.
    std::string tail;  // What came behind `written`, less than a page.
    const bool is_main;
  };

  // All below: with mutex_ held, but for Work(), Write() and Advance().

  void StartWorker(bool main) {
    ++workers_;
    threads_.emplace_back([this, main] { Work(main); });
  }

  // What a range should take once its bytes come.
  absl::Duration RangeTime() const {
    return std::clamp(kRangeWaits * wait_, kRangeTime, kRangeTimeMax);
  }

  // With several streams a sample is as long as a range: what comes between two
  // ranges is part of it.
  absl::Duration SampleTime() const {
    if (adding_ > 0 && samples_ == 0) return kSample + wait_;
    return helpers_ > 0 ? RangeTime() + wait_ : kSample;
  }

  // Bytes a second of one stream; those on trial have not been counted.
  double StreamRate() const {
    return adding_ > 0 ? base_rate_ / (helpers_ + 1 - adding_)
                       : rate_ / (helpers_ + 1);
  }

  // Doubles the streams, or takes the last doubling back.
  void Adapt(absl::Time now) {
    if (adding_ > 0) {
      if (++samples_ < kSamplesAfterAdding) return;
      if (rate_ < base_rate_ * kGain) {
        retire_ += std::min(adding_, helpers_);
        next_try_ = now + rest_;
        rest_ = std::min(rest_ * 2, kRestMax);
      }
      adding_ = 0;
    }
    if (now < next_try_ || no_helpers_ || retire_ > 0 ||
        rate_ >= static_cast<double>(kFastEnoughBytesPerSecond)) {
      return;
    }
    const int wanted = std::min(helpers_ + 1, helpers_max_ - helpers_);
    int slots = 0;
    while (slots < wanted && slots_->TryTake()) ++slots;
    if (slots == 0) return;
    if (!MakeRoom()) {
      for (; slots > 0; --slots) slots_->Give();
      return;
    }
    adding_ = slots;
    helpers_ += slots;
    for (; slots > 0; --slots) StartWorker(false);
    most_ = std::max(most_, helpers_);
    base_rate_ = rate_;
    samples_ = 0;
  }

  // Something that helpers can fetch: cuts it off the main stream.
  bool MakeRoom() {
    if (ToDoBytes() >= kRangesFromBytes / 2) return true;
    for (Piece& piece : pieces_) {
      if (!piece.is_main) continue;
      if (!piece.stretch.ranges) return false;
      const auto soon =
          static_cast<int64_t>(rate_ * absl::ToDoubleSeconds(RangeTime()));
      const int64_t cut =
          AlignUp(piece.stretch.at_bytes + std::max(soon, 2 * kRangeBytesMin),
                  kCutBytes);
      const int64_t end = piece.stretch.end_bytes;
      if (end - cut < kRangesFromBytes / 2) return false;
      piece.stretch.end_bytes = cut;
      todo_[cut] = end;
      return true;
    }
    return false;
  }

  // Without helpers the main stream goes on where it was to be cut.
  void Rejoin() {
    for (Piece& piece : pieces_) {
      const auto next = todo_.find(piece.stretch.end_bytes);
      if (!piece.is_main || next == todo_.end()) continue;
      piece.stretch.end_bytes = next->second;
      todo_.erase(next);
      return;
    }
  }

  int64_t ToDoBytes() const {
    int64_t bytes = 0;
    for (const auto& [begin, end] : todo_) bytes += end - begin;
    return bytes;
  }

  int64_t RangeBytes() const {
    const double each = StreamRate() * absl::ToDoubleSeconds(RangeTime());
    // Near the end all streams should end at about the same time.
    return std::clamp(
        std::min(static_cast<int64_t>(each), ToDoBytes() / (helpers_ + 1)),
        kRangeBytesMin, kRangeBytesMax);
  }

  // The next piece for a worker; waits for room in the window. Null: nothing is
  // left for it.
  Piece* Take(std::unique_lock<std::mutex>& lock, bool main) {
    for (;;) {
      if (stop_) return nullptr;
      if (!main && retire_ > 0) {
        --retire_;
        return nullptr;
      }
      if (!todo_.empty()) {
        const auto [begin, last] = *todo_.begin();
        int64_t end = last;
        if (!main || helpers_ > 0) {
          end = std::min(end, AlignUp(begin + RangeBytes(), kCutBytes));
        }
        if (begin == prefix_ || (main && helpers_ == 0) ||
            end <= prefix_ + kRangeWindowBytes) {
          todo_.erase(todo_.begin());
          if (end < last) todo_[end] = last;
          pieces_.emplace_back(begin, end, main);
          return &pieces_.back();
        }
      } else if (!main || pieces_.empty()) {
        return nullptr;
      }
      changed_.wait_for(lock, kTick);
    }
  }

  void Work(bool main) {
    std::unique_lock<std::mutex> lock(mutex_);
    while (Piece* const piece = Take(lock, main)) {
      piece->stretch.ranges_only = !main;
      piece->stretch.stop = &stop_;
      lock.unlock();
      absl::Status fatal;
      const absl::Time asked = absl::Now();
      absl::Duration waited = absl::InfiniteDuration();
      const absl::Status status = registry_.FetchStretch(
          descriptor_, &piece->stretch,
          [&](const char* data, size_t size) -> absl::Status {
            if (waited == absl::InfiniteDuration())
              waited = absl::Now() - asked;
            fatal = Write(*piece, data, size);
            return fatal;
          });
      lock.lock();
      if (waited != absl::InfiniteDuration()) wait_ = (wait_ + waited) / 2;
      const int64_t written = piece->written;
      const int64_t end = piece->stretch.end_bytes;
      pieces_.remove_if([&](const Piece& each) { return &each == piece; });
      if (written < end) todo_[written] = end;
      MovePrefix();
      changed_.notify_all();
      lock.unlock();
      const absl::Status told = Advance();
      lock.lock();
      if (fatal.ok()) fatal = told;
      if (status.ok() && fatal.ok()) continue;
      if (main && fatal.ok() && helpers_ > 0 && !no_helpers_ && !stop_) {
        // Perhaps the registry serves one stream at a time, and a helper has
        // it: once more without them.
        no_helpers_ = true;
        retire_ = helpers_;
        while (helpers_ > 0 && !stop_) changed_.wait_for(lock, kTick);
        continue;
      }
      if (main || !fatal.ok()) {
        if (failed_.ok()) failed_ = fatal.ok() ? status : fatal;
        stop_ = true;
      } else if (!stop_) {
        // It may be that the registry wants no more than one: have done with
        // it. What is missing goes to the main stream.
        log::Debug("ranges", {{"digest", descriptor_.digest.str()},
                              {"error", status.ToString()}});
        no_helpers_ = true;
        retire_ = helpers_ - 1;
      }
      break;
    }
    if (!main) {
      --helpers_;
      retire_ = std::min(retire_, helpers_);
      if (helpers_ == 0) Rejoin();
      slots_->Give();
    }
    --workers_;
    changed_.notify_all();
  }

  // In the HTTP thread.
  absl::Status Write(Piece& piece, const char* data, size_t size) {
    got_ += static_cast<int64_t>(size);
    const int64_t have =
        piece.written + static_cast<int64_t>(piece.tail.size());
    const int64_t end = have + static_cast<int64_t>(size);
    const int64_t cut = end == size_ ? end : end / page_ * page_;
    if (cut <= have) {
      piece.tail.append(data, size);
    } else {
      int64_t written = piece.written;
      if (!piece.tail.empty()) {
        const auto fill =
            static_cast<size_t>(std::min(cut, AlignUp(have + 1, page_)) - have);
        piece.tail.append(data, fill);
        RETURN_IF_ERROR(
            target_.write(written, piece.tail.data(), piece.tail.size()));
        written += static_cast<int64_t>(piece.tail.size());
        piece.tail.clear();
        data += fill;
        size -= fill;
      }
      if (cut > written) {
        const auto whole = static_cast<size_t>(cut - written);
        RETURN_IF_ERROR(target_.write(written, data, whole));
        data += whole;
        size -= whole;
      }
      piece.tail.assign(data, size);
      std::lock_guard<std::mutex> lock(mutex_);
      piece.written = cut;
      MovePrefix();
    }
    target_.got(got_);
    return Advance();
  }

  void MovePrefix() {
    int64_t prefix = todo_.empty() ? size_ : todo_.begin()->first;
    for (const Piece& each : pieces_) prefix = std::min(prefix, each.written);
    prefix_ = prefix;
  }

  // Without mutex_.
  absl::Status Advance() {
    std::lock_guard<std::mutex> lock(advance_mutex_);
    const int64_t prefix = prefix_;
    if (prefix <= advanced_) return absl::OkStatus();
    advanced_ = prefix;
    return target_.advance(prefix);
  }

  Registry& registry_;
  const oci::Descriptor& descriptor_;
  StreamSlots* const slots_;
  const int helpers_max_;
  const RangeTarget& target_;
  const int64_t size_;
  const int64_t page_;
  std::atomic<int64_t> got_{0};
  std::atomic<bool> stop_{false};
  std::atomic<int64_t> prefix_;  // Moved under mutex_.

  std::mutex advance_mutex_;
  int64_t advanced_ = 0;  // Guarded by advance_mutex_.

  std::mutex mutex_;
  std::condition_variable changed_;
  // All below are guarded by mutex_.
  std::list<Piece> pieces_;          // Being fetched.
  std::map<int64_t, int64_t> todo_;  // Begin and end: nobody fetches it.
  std::vector<std::thread> threads_;
  int workers_ = 0;
  int helpers_ = 0;  // Workers but the main one.
  int most_ = 0;     // Helpers there ever were at once.
  int retire_ = 0;   // Helpers to end.
  int adding_ = 0;   // Helpers on trial.
  int samples_ = 0;  // Since they came.
  bool no_helpers_ = false;
  double rate_ = 0;      // Bytes a second.
  absl::Duration wait_;  // For the first byte of a range, about.
  double base_rate_ = 0;
  absl::Time next_try_ = absl::InfinitePast();
  absl::Duration rest_ = kRestStart;
  absl::Status failed_;
};

}  // namespace

absl::Status FetchInRanges(Registry& registry,
                           const oci::Descriptor& descriptor,
                           const std::map<int64_t, int64_t>& gaps,
                           StreamSlots* slots, int streams_max,
                           const RangeTarget& target, int64_t* prefix_bytes) {
  RangeFetch fetch(registry, descriptor, slots, streams_max, target, gaps);
  const absl::Status status = fetch.Run();
  *prefix_bytes = fetch.prefix();
  return status;
}

}  // namespace bulkhead::distribution
