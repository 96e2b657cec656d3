#include "services/distribution/bandwidth.h"

#include <algorithm>

namespace bulkhead::distribution {
namespace {

// What may come at once after a pause, in seconds of the rate.
constexpr double kBurstSeconds = 0.2;
// Those who wait are woken at most this often.
constexpr double kTickSeconds = 0.01;
constexpr int64_t kTurnBytesMin = 4 << 10;
constexpr int64_t kTurnBytesMax = 64 << 10;
constexpr int64_t kTurnsASecond = 64;

}  // namespace

void Bandwidth::SetRate(int64_t bytes_per_second, absl::Time now) {
  if (bytes_per_second == rate_) return;
  rate_ = bytes_per_second;
  bytes_ = 0;
  filled_ = now;
}

int64_t Bandwidth::TurnBytes() const {
  return std::clamp(rate_ / kTurnsASecond, kTurnBytesMin, kTurnBytesMax);
}

void Bandwidth::Fill(absl::Time now) {
  const double rate = static_cast<double>(rate_);
  // A clock that was set back fills nothing.
  const double seconds = std::max(0.0, absl::ToDoubleSeconds(now - filled_));
  bytes_ = std::min(bytes_ + seconds * rate, rate * kBurstSeconds);
  filled_ = now;
}

bool Bandwidth::MayMove(Mover who, absl::Time now) {
  if (!limited()) return true;
  Fill(now);
  const auto turn = turns_.find(who);
  const bool has_turn = turn != turns_.end() && turn->second > 0;
  if (bytes_ > 0 && (queue_.empty() || has_turn)) return true;
  if (std::find(queue_.begin(), queue_.end(), who) == queue_.end()) {
    queue_.push_back(who);
  }
  return false;
}

void Bandwidth::Moved(Mover who, int64_t bytes) {
  if (!limited()) return;
  bytes_ -= static_cast<double>(bytes);
  const auto turn = turns_.find(who);
  if (turn == turns_.end()) return;
  turn->second -= bytes;
  if (turn->second <= 0) turns_.erase(turn);
}

Bandwidth::Mover Bandwidth::Next(absl::Time now) {
  if (queue_.empty()) return nullptr;
  if (limited()) {
    Fill(now);
    if (bytes_ <= 0) return nullptr;
  }
  const Mover who = queue_.front();
  queue_.pop_front();
  if (limited()) turns_[who] = TurnBytes();
  return who;
}

absl::Duration Bandwidth::UntilNext(absl::Time now) {
  if (queue_.empty()) return absl::InfiniteDuration();
  if (!limited()) return absl::ZeroDuration();
  Fill(now);
  if (bytes_ > 0) return absl::ZeroDuration();
  return absl::Seconds(std::max(-bytes_ / static_cast<double>(rate_), 0.0) +
                       kTickSeconds);
}

void Bandwidth::Forget(Mover who) {
  queue_.erase(std::remove(queue_.begin(), queue_.end(), who), queue_.end());
  turns_.erase(who);
}

}  // namespace bulkhead::distribution
