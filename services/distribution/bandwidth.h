// One limit of bytes a second for all requests of a direction, in turns.
#ifndef BULKHEAD_SERVICES_DISTRIBUTION_BANDWIDTH_H_
#define BULKHEAD_SERVICES_DISTRIBUTION_BANDWIDTH_H_

#include <cstdint>
#include <deque>
#include <map>

#include "absl/time/time.h"

namespace bulkhead::distribution {

// A bucket that fills at the limit's rate, and a queue of those who wait for
// it. Whoever wants to move bytes asks MayMove(); who is told no waits until
// Next() names it, and may then move about a turn's worth (TurnBytes()) before
// others that wait come first. What moves at once may be more than what is in
// the bucket: it is then empty for as much longer, so that the rate is exact
// but for the last burst. Not thread-safe; never blocks.
class Bandwidth {
 public:
  // Whoever moves bytes: an address of its own.
  using Mover = const void*;

  // 0: no limit; nobody waits then, but Next() still names those who did.
  void SetRate(int64_t bytes_per_second, absl::Time now);
  bool limited() const { return rate_ > 0; }

  // False: `who` waits now for its turn. True without a limit.
  bool MayMove(Mover who, absl::Time now);
  // After MayMove().
  void Moved(Mover who, int64_t bytes);
  // The next that may go on, or null: nobody waits, or the bucket is empty.
  Mover Next(absl::Time now);
  // How long until Next() may name somebody; infinite if nobody waits.
  absl::Duration UntilNext(absl::Time now);
  // `who` is not to be named any more.
  void Forget(Mover who);

  // What one may move before it is the next one's turn.
  int64_t TurnBytes() const;

 private:
  void Fill(absl::Time now);

  int64_t rate_ = 0;   // Bytes a second.
  double bytes_ = 0;   // In the bucket; negative: moved ahead of time.
  absl::Time filled_;  // When bytes_ was right.
  std::deque<Mover> queue_;
  std::map<Mover, int64_t> turns_;  // What is left of the turn of each.
};

}  // namespace bulkhead::distribution

#endif  // BULKHEAD_SERVICES_DISTRIBUTION_BANDWIDTH_H_
