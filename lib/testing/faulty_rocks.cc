#include "lib/testing/faulty_rocks.h"

#include <fcntl.h>

#include <functional>
#include <mutex>
#include <utility>

namespace bulkhead::testing {

using rocksdb::FileOptions;
using rocksdb::IODebugContext;
using rocksdb::IOOptions;
using rocksdb::IOStatus;

class FaultyRocks::FileSystem : public rocksdb::FileSystemWrapper {
 public:
  enum class Call { kOpen, kWrite, kSync, kOther };

  explicit FileSystem(Disk* disk)
      : rocksdb::FileSystemWrapper(rocksdb::FileSystem::Default()),
        disk_(disk) {}

  const char* Name() const override { return "FaultyRocks"; }

  // The fate of the change that is about to be made.
  struct Fate {
    IOStatus status;
    bool half = false;  // Half of it is done all the same.
    bool lie = false;   // Nothing is done, and that is kept secret.
  };
  Fate Next(Call call, const std::string& path) {
    Fate fate;
    const int number = calls_++;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (disk_ != nullptr && disk_->off()) {
      fate.status = IOStatus::IOError("the power is off", path);
      return fate;
    }
    if (fault_.fail_at < 0 || number < fault_.fail_at ||
        (number > fault_.fail_at && !fault_.for_ever)) {
      return fate;
    }
    using Kind = RocksFault::Kind;
    if (fault_.kind == Kind::kTooMany && call != Call::kOpen) return fate;
    if (fault_.kind == Kind::kLostSync && call != Call::kSync) return fate;
    fired_ = true;
    fate.half = call == Call::kWrite &&
                (fault_.kind == Kind::kFull || fault_.kind == Kind::kTorn);
    switch (fault_.kind) {
      case Kind::kLostSync:
        fate.lie = true;
        break;
      case Kind::kFull:
        // A full disk lets go of things.
        if (call == Call::kOther) break;
        fate.status = IOStatus::NoSpace("fault: no space left", path);
        break;
      case Kind::kTooMany:
        fate.status = IOStatus::IOError("fault: too many open files", path);
        break;
      default:
        fate.status = IOStatus::IOError("fault", path);
    }
    return fate;
  }

  // A change that is done whole or not at all, and noted by the disk.
  IOStatus Do(Call call, const std::string& path,
              const std::function<IOStatus()>& change,
              const std::function<bool(const Disk::Change&)>& note) {
    const Fate fate = Next(call, path);
    if (!fate.status.ok()) return fate.status;
    if (disk_ == nullptr) return change();
    IOStatus status = IOStatus::IOError("the power is off", path);
    note([&] {
      status = change();
      return status.ok();
    });
    return status;
  }
  IOStatus Sync(const std::string& path) {
    const Fate fate = Next(Call::kSync, path);
    if (!fate.status.ok() || fate.lie || disk_ == nullptr) return fate.status;
    return disk_->Sync(path) ? IOStatus::OK()
                             : IOStatus::IOError("the power is off", path);
  }
  IOStatus Append(const rocksdb::Slice& data, const std::string& path,
                  const std::function<IOStatus(const rocksdb::Slice&)>& write) {
    const Fate fate = Next(Call::kWrite, path);
    if (!fate.status.ok() && !fate.half) return fate.status;
    const rocksdb::Slice part(data.data(),
                              fate.half ? data.size() / 2 : data.size());
    IOStatus status = IOStatus::IOError("the power is off", path);
    if (disk_ == nullptr) {
      status = write(part);
    } else {
      disk_->Touch([&] {
        status = write(part);
        return status.ok();
      });
    }
    return fate.status.ok() ? status : fate.status;
  }

  IOStatus NewWritableFile(const std::string& path, const FileOptions& options,
                           std::unique_ptr<rocksdb::FSWritableFile>* result,
                           IODebugContext* debug) override {
    return Opened(path, result, [&](auto* file) {
      return target()->NewWritableFile(path, options, file, debug);
    });
  }
  IOStatus ReopenWritableFile(const std::string& path,
                              const FileOptions& options,
                              std::unique_ptr<rocksdb::FSWritableFile>* result,
                              IODebugContext* debug) override {
    return Opened(path, result, [&](auto* file) {
      return target()->ReopenWritableFile(path, options, file, debug);
    });
  }
  IOStatus NewRandomRWFile(const std::string& path, const FileOptions& options,
                           std::unique_ptr<rocksdb::FSRandomRWFile>* result,
                           IODebugContext* debug) override;
  IOStatus NewDirectory(const std::string& path, const IOOptions& options,
                        std::unique_ptr<rocksdb::FSDirectory>* result,
                        IODebugContext* debug) override;
  IOStatus DeleteFile(const std::string& path, const IOOptions& options,
                      IODebugContext* debug) override {
    return Do(
        Call::kOther, path,
        [&] { return target()->DeleteFile(path, options, debug); },
        [&](const Disk::Change& change) {
          return disk_->Remove(AT_FDCWD, path, change);
        });
  }
  IOStatus DeleteDir(const std::string& path, const IOOptions& options,
                     IODebugContext* debug) override {
    return Do(
        Call::kOther, path,
        [&] { return target()->DeleteDir(path, options, debug); },
        [&](const Disk::Change& change) {
          return disk_->Remove(AT_FDCWD, path, change);
        });
  }
  IOStatus CreateDir(const std::string& path, const IOOptions& options,
                     IODebugContext* debug) override {
    return Made(path,
                [&] { return target()->CreateDir(path, options, debug); });
  }
  IOStatus CreateDirIfMissing(const std::string& path, const IOOptions& options,
                              IODebugContext* debug) override {
    return Made(path, [&] {
      return target()->CreateDirIfMissing(path, options, debug);
    });
  }
  IOStatus LinkFile(const std::string& from, const std::string& to,
                    const IOOptions& options, IODebugContext* debug) override {
    return Made(to,
                [&] { return target()->LinkFile(from, to, options, debug); });
  }
  IOStatus RenameFile(const std::string& from, const std::string& to,
                      const IOOptions& options,
                      IODebugContext* debug) override {
    return Do(
        Call::kWrite, from,
        [&] { return target()->RenameFile(from, to, options, debug); },
        [&](const Disk::Change& change) {
          return disk_->Rename(AT_FDCWD, from, AT_FDCWD, to, change);
        });
  }
  IOStatus Truncate(const std::string& path, size_t size,
                    const IOOptions& options, IODebugContext* debug) override {
    return Do(
        Call::kOther, path,
        [&] { return target()->Truncate(path, size, options, debug); },
        [&](const Disk::Change& change) { return disk_->Touch(change); });
  }

  void Set(const RocksFault& fault) {
    const std::lock_guard<std::mutex> lock(mutex_);
    fault_ = fault;
    calls_ = 0;
    fired_ = false;
  }
  Disk* disk() const { return disk_; }
  int calls() const { return calls_; }
  bool fired() const { return fired_; }

 private:
  IOStatus Made(const std::string& path,
                const std::function<IOStatus()>& change) {
    return Do(Call::kOpen, path, change, [&](const Disk::Change& made) {
      return disk_->Make(AT_FDCWD, path, made);
    });
  }
  IOStatus Opened(
      const std::string& path, std::unique_ptr<rocksdb::FSWritableFile>* result,
      const std::function<IOStatus(std::unique_ptr<rocksdb::FSWritableFile>*)>&
          open);
  // Of what is there already: nothing for the disk to note.
  template <typename Wrapped, typename Result>
  IOStatus OpenedOld(
      const std::string& path, std::unique_ptr<Result>* result,
      const std::function<IOStatus(std::unique_ptr<Result>*)>& open);

  Disk* const disk_;
  std::mutex mutex_;
  RocksFault fault_;
  std::atomic<int> calls_{0};
  std::atomic<bool> fired_{false};
};

namespace {

// Without the calls that nobody makes here.
template <typename Owner>
class File : public rocksdb::FSWritableFileOwnerWrapper {
 public:
  File(std::unique_ptr<rocksdb::FSWritableFile> file, Owner* owner,
       std::string path)
      : rocksdb::FSWritableFileOwnerWrapper(std::move(file)),
        owner_(*owner),
        path_(std::move(path)) {}

  IOStatus Append(const rocksdb::Slice& data, const IOOptions& options,
                  IODebugContext* debug) override {
    return owner_.Append(data, path_, [&](const rocksdb::Slice& part) {
      return target()->Append(part, options, debug);
    });
  }
  IOStatus Append(const rocksdb::Slice& data, const IOOptions& options,
                  const rocksdb::DataVerificationInfo&,
                  IODebugContext* debug) override {
    return Append(data, options, debug);
  }
  IOStatus Truncate(uint64_t size, const IOOptions& options,
                    IODebugContext* debug) override {
    return owner_.Do(
        Owner::Call::kOther, path_,
        [&] { return target()->Truncate(size, options, debug); },
        [&](const Disk::Change& change) {
          return owner_.disk()->Touch(change);
        });
  }
  IOStatus Sync(const IOOptions&, IODebugContext*) override {
    return owner_.Sync(path_);
  }
  IOStatus Fsync(const IOOptions&, IODebugContext*) override {
    return owner_.Sync(path_);
  }
  IOStatus RangeSync(uint64_t, uint64_t, const IOOptions&,
                     IODebugContext*) override {
    return IOStatus::OK();
  }

 private:
  Owner& owner_;
  const std::string path_;
};

template <typename Owner>
class RandomFile : public rocksdb::FSRandomRWFileOwnerWrapper {
 public:
  RandomFile(std::unique_ptr<rocksdb::FSRandomRWFile> file, Owner* owner,
             std::string path)
      : rocksdb::FSRandomRWFileOwnerWrapper(std::move(file)),
        owner_(*owner),
        path_(std::move(path)) {}
  IOStatus Write(uint64_t offset, const rocksdb::Slice& data,
                 const IOOptions& options, IODebugContext* debug) override {
    return owner_.Append(data, path_, [&](const rocksdb::Slice& part) {
      return target()->Write(offset, part, options, debug);
    });
  }

 private:
  Owner& owner_;
  const std::string path_;
};

template <typename Owner>
class Directory : public rocksdb::FSDirectoryWrapper {
 public:
  Directory(std::unique_ptr<rocksdb::FSDirectory> directory, Owner* owner,
            std::string path)
      : rocksdb::FSDirectoryWrapper(std::move(directory)),
        owner_(*owner),
        path_(std::move(path)) {}
  IOStatus Fsync(const IOOptions&, IODebugContext*) override {
    return owner_.Sync(path_);
  }
  IOStatus FsyncWithDirOptions(const IOOptions&, IODebugContext*,
                               const rocksdb::DirFsyncOptions&) override {
    return owner_.Sync(path_);
  }

 private:
  Owner& owner_;
  const std::string path_;
};

}  // namespace

IOStatus FaultyRocks::FileSystem::Opened(
    const std::string& path, std::unique_ptr<rocksdb::FSWritableFile>* result,
    const std::function<IOStatus(std::unique_ptr<rocksdb::FSWritableFile>*)>&
        open) {
  std::unique_ptr<rocksdb::FSWritableFile> file;
  const IOStatus status = Made(path, [&] { return open(&file); });
  if (status.ok()) {
    *result = std::make_unique<File<FileSystem>>(std::move(file), this, path);
  }
  return status;
}

template <typename Wrapped, typename Result>
IOStatus FaultyRocks::FileSystem::OpenedOld(
    const std::string& path, std::unique_ptr<Result>* result,
    const std::function<IOStatus(std::unique_ptr<Result>*)>& open) {
  const Fate fate = Next(Call::kOpen, path);
  if (!fate.status.ok()) return fate.status;
  std::unique_ptr<Result> real;
  const IOStatus status = open(&real);
  if (status.ok()) {
    *result = std::make_unique<Wrapped>(std::move(real), this, path);
  }
  return status;
}

IOStatus FaultyRocks::FileSystem::NewRandomRWFile(
    const std::string& path, const FileOptions& options,
    std::unique_ptr<rocksdb::FSRandomRWFile>* result, IODebugContext* debug) {
  return OpenedOld<RandomFile<FileSystem>, rocksdb::FSRandomRWFile>(
      path, result, [&](auto* file) {
        return target()->NewRandomRWFile(path, options, file, debug);
      });
}

IOStatus FaultyRocks::FileSystem::NewDirectory(
    const std::string& path, const IOOptions& options,
    std::unique_ptr<rocksdb::FSDirectory>* result, IODebugContext* debug) {
  return OpenedOld<Directory<FileSystem>, rocksdb::FSDirectory>(
      path, result, [&](auto* directory) {
        return target()->NewDirectory(path, options, directory, debug);
      });
}

FaultyRocks::FaultyRocks(Disk* disk)
    : files_(std::make_shared<FileSystem>(disk)),
      env_(rocksdb::NewCompositeEnv(files_)) {}

FaultyRocks::~FaultyRocks() = default;

void FaultyRocks::Set(const RocksFault& fault) { files_->Set(fault); }
int FaultyRocks::calls() const { return files_->calls(); }
bool FaultyRocks::fired() const { return files_->fired(); }

}  // namespace bulkhead::testing
