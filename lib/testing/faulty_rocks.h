// RocksDB on a disk that fails on command, or loses its power.
#ifndef BULKHEAD_LIB_TESTING_FAULTY_ROCKS_H_
#define BULKHEAD_LIB_TESTING_FAULTY_ROCKS_H_

#include <rocksdb/env.h>
#include <rocksdb/file_system.h>

#include <atomic>
#include <memory>
#include <string>

#include "lib/testing/power_loss.h"

namespace bulkhead::testing {

struct RocksFault {
  enum class Kind {
    kError,     // EIO.
    kFull,      // ENOSPC; half of a write is there.
    kTorn,      // EIO; half of a write is there.
    kTooMany,   // EMFILE, of calls that open; others go through.
    kLostSync,  // An fsync says OK and does nothing.
  };
  int fail_at = -1;  // The change with this number fails; -1: none.
  Kind kind = Kind::kError;
  bool for_ever = false;  // Every change from then on fails too.
};

// An Env for rocksdb::Options::env. Changes (creating, writing, syncing,
// renaming, deleting, linking, truncating) are counted; reads never fail. Syncs
// reach no real disk. Thread-safe but for Set().
class FaultyRocks {
 public:
  // `disk` is borrowed and may be null.
  explicit FaultyRocks(Disk* disk = nullptr);
  ~FaultyRocks();

  rocksdb::Env* env() { return env_.get(); }
  // From now on; counting begins anew.
  void Set(const RocksFault& fault);
  int calls() const;
  // Whether the fault has been reached.
  bool fired() const;

 private:
  class FileSystem;
  std::shared_ptr<FileSystem> files_;
  std::unique_ptr<rocksdb::Env> env_;
};

}  // namespace bulkhead::testing

#endif  // BULKHEAD_LIB_TESTING_FAULTY_ROCKS_H_
