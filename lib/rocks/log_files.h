// RocksDB's write-ahead logs, written into zeros. A record appended to a file
// changes the file's length, and on a journalling file system that makes each
// fdatasync a commit of the journal: on ext4 a synced write takes 0.9 ms, one
// into bytes that the file has already 0.3 ms. So zeros are written
// ahead of a log, a chunk at a time, and records over them.
//
// A log that was not closed ends with zeros. RocksDB passes over them when it
// reads the log; one that is closed is cut to its records.
#ifndef BULKHEAD_LIB_ROCKS_LOG_FILES_H_
#define BULKHEAD_LIB_ROCKS_LOG_FILES_H_

#include <rocksdb/env.h>

#include <cstddef>
#include <memory>

namespace bulkhead::rocks {

// Zeros are written in pieces of this; so much more may a log take on the disk.
constexpr size_t kLogAheadBytes = 256 << 10;

// `base`, borrowed, with such logs. A disk that has no room for the zeros has
// ordinary logs. Thread-safe as `base` is.
std::unique_ptr<rocksdb::Env> WithLogsAhead(rocksdb::Env* base);

}  // namespace bulkhead::rocks

#endif  // BULKHEAD_LIB_ROCKS_LOG_FILES_H_
