#include "lib/rocks/log_files.h"

#include <rocksdb/file_system.h>

#include <cstdint>
#include <string>
#include <utility>

#include "absl/strings/match.h"

namespace bulkhead::rocks {
namespace {

using rocksdb::FileOptions;
using rocksdb::IODebugContext;
using rocksdb::IOOptions;
using rocksdb::IOStatus;
using rocksdb::Slice;

// Used by one thread at a time, as RocksDB does with its files.
class LogFile : public rocksdb::FSWritableFileOwnerWrapper {
 public:
  // `zeros` is the same file.
  LogFile(std::unique_ptr<rocksdb::FSWritableFile> file,
          std::unique_ptr<rocksdb::FSRandomRWFile> zeros)
      : FSWritableFileOwnerWrapper(std::move(file)), zeros_(std::move(zeros)) {}

  IOStatus Append(const Slice& data, const IOOptions& options,
                  IODebugContext* debug) override {
    const IOStatus status = target()->Append(data, options, debug);
    if (status.ok()) Appended(data.size(), options, debug);
    return status;
  }
  IOStatus Append(const Slice& data, const IOOptions& options,
                  const rocksdb::DataVerificationInfo& checksum,
                  IODebugContext* debug) override {
    const IOStatus status = target()->Append(data, options, checksum, debug);
    if (status.ok()) Appended(data.size(), options, debug);
    return status;
  }
  // fallocate(2) would leave extents that a write has to convert, in the
  // journal too.
  void PrepareWrite(size_t, size_t, const IOOptions&,
                    IODebugContext*) override {}

  IOStatus Close(const IOOptions& options, IODebugContext* debug) override {
    // Nothing is lost with a tail of zeros.
    if (zeros_end_bytes_ > size_bytes_) {
      (void)target()->Truncate(size_bytes_, options, debug);
    }
    if (zeros_ != nullptr) (void)zeros_->Close(options, debug);
    zeros_.reset();
    return target()->Close(options, debug);
  }

 private:
  void Appended(size_t count_bytes, const IOOptions& options,
                IODebugContext* debug) {
    size_bytes_ += count_bytes;
    if (zeros_ == nullptr || size_bytes_ < zeros_end_bytes_) return;
    static const std::string* const zeros =
        new std::string(kLogAheadBytes, '\0');
    const IOStatus written = zeros_->Write(size_bytes_, *zeros, options, debug);
    zeros_end_bytes_ = size_bytes_ + kLogAheadBytes;  // Or less, if it failed.
    if (written.ok()) return;
    (void)zeros_->Close(options, debug);
    zeros_.reset();
  }

  std::unique_ptr<rocksdb::FSRandomRWFile> zeros_;
  uint64_t size_bytes_ = 0;
  uint64_t zeros_end_bytes_ = 0;
};

class LogsAhead : public rocksdb::FileSystemWrapper {
 public:
  using FileSystemWrapper::FileSystemWrapper;
  const char* Name() const override { return "BulkheadLogsAhead"; }

  IOStatus NewWritableFile(const std::string& path, const FileOptions& options,
                           std::unique_ptr<rocksdb::FSWritableFile>* file,
                           IODebugContext* debug) override {
    IOStatus status = target()->NewWritableFile(path, options, file, debug);
    if (!status.ok() || !absl::EndsWith(path, ".log")) return status;
    std::unique_ptr<rocksdb::FSRandomRWFile> zeros;
    if (target()->NewRandomRWFile(path, options, &zeros, debug).ok()) {
      *file = std::make_unique<LogFile>(std::move(*file), std::move(zeros));
    }
    return status;
  }
};

}  // namespace

std::unique_ptr<rocksdb::Env> WithLogsAhead(rocksdb::Env* base) {
  return rocksdb::NewCompositeEnv(
      std::make_shared<LogsAhead>(base->GetFileSystem()));
}

}  // namespace bulkhead::rocks
