// The content store on a file system. The file system is the index:
//
//   ROOT/blobs/<algorithm>/<hex>                       committed, mode 0444
//   ROOT/ingest/<sha256 of ref>/{ref,data,total,startedat,hash,
//                                  suspect}
//   ROOT/ingest/.new-*, .del-*      being made or removed; swept at the start
//
// The same names and contents as containerd's own store has.
#ifndef BULKHEAD_SERVICES_CONTENT_FS_STORE_H_
#define BULKHEAD_SERVICES_CONTENT_FS_STORE_H_

#include <array>
#include <atomic>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "lib/files/files.h"
#include "lib/os/fd.h"
#include "services/content/store.h"

namespace bulkhead::content {

constexpr size_t kRefBytesMax = 4096;
constexpr int kOpenIngestsMax = 512;  // Each holds a descriptor.
// How long an open waits for a ref that is just being let go: a client that
// reconnects must not meet its own old stream.
constexpr absl::Duration kRefLockWait = absl::Milliseconds(250);

struct FsStoreOptions {
  // Names this run of the machine; empty: hashes are not kept. Tests give
  // another one for what a power failure left.
  std::string boot_id = KernelBootId();
  // A running hash is kept each time it has come so much further, and when a
  // writer goes after at least `hash_min_bytes` (below, reading again is as
  // quick). Its data must be written back first: each step is kept only when
  // `hash_lag_bytes` have come after it, so that nobody waits for the disk.
  int64_t hash_step_bytes = 192 << 20;
  int64_t hash_lag_bytes = 64 << 20;
  int64_t hash_min_bytes = 64 << 20;

  // Of /proc/sys/kernel/random/boot_id; empty if it cannot be read.
  static std::string KernelBootId();
};

class FsStore;

// A reader that also hands out its descriptor.
class FsBlob final : public BlobReader {
 public:
  FsBlob(files::Files& files, os::UniqueFd fd, int64_t size_bytes)
      : files_(files), fd_(std::move(fd)), size_bytes_(size_bytes) {}
  int64_t size_bytes() const override { return size_bytes_; }
  absl::Status ReadAt(int64_t offset_bytes, int64_t size_bytes,
                      std::string* data) const override;
  // Read-only, an open file of its own. Nothing can be read here afterwards.
  os::UniqueFd TakeFd() { return std::move(fd_); }

 private:
  files::Files& files_;
  os::UniqueFd fd_;
  const int64_t size_bytes_;
};

// A Writer whose bytes may also be written by somebody else, through the
// descriptor of ShareFd(): then Advance() says how far they are, and Append()
// must not be used. The hash runs over what the file holds.
class FsWriter final : public Writer {
 public:
  ~FsWriter() override;

  absl::StatusOr<IngestInfo> Info() override;
  absl::StatusOr<Digest> DigestSoFar() override;
  absl::Status Append(absl::string_view data) override;
  absl::Status Truncate(int64_t size_bytes) override;
  absl::StatusOr<BlobInfo> Commit(const CommitOptions& options) override;

  // A read-write descriptor of the ingest's data, its own open file.
  absl::StatusOr<os::UniqueFd> ShareFd();
  // As far as the data was without a gap when the ingest was opened, or as
  // Append(), Advance() and Truncate() have moved it since.
  int64_t WholeBytes();
  // Drops what is behind that.
  absl::Status CutAtGap();
  // The hash of what was hashed so far: of a resumed ingest, as far as it was
  // kept.
  Hasher RunningHash();
  // Bytes below `offset_bytes` are written for good: hashes them and starts
  // their way to the disk. kInvalidArgument: the file is shorter, or an earlier
  // call said more.
  absl::Status Advance(int64_t offset_bytes);
  // Forgets the ingest and unlocks the ref.
  absl::Status Abort();

 private:
  friend class FsStore;
  struct Ingest;
  FsWriter(FsStore* store, std::shared_ptr<Ingest> ingest)
      : store_(store), ingest_(std::move(ingest)) {}

  // These hold ingest_->mutex.
  absl::Status CheckLive() const;
  absl::StatusOr<files::FileStat> StatData() const;
  absl::Status HashTo(int64_t offset_bytes);
  absl::StatusOr<Digest> DigestOf(int64_t size_bytes,
                                  DigestAlgorithm algorithm);
  absl::Status Publish(const Digest& digest, const files::FileStat& before);
  // After a failed fsync the kernel takes pages that are on no disk for clean;
  // only writing them once more makes a later fsync mean something.
  absl::Status Rewrite();
  void MarkSuspect();
  // Waits for the data to be written back and keeps its hash for whoever
  // resumes. What fails is left: then everything is read again.
  void KeepHash(const Hasher& hasher);
  void KeepHashNowAndThen();
  absl::Status DropHash();
  void RestartHash(DigestAlgorithm algorithm = DigestAlgorithm::kSha256);
  absl::Status Error(const absl::Status& status) const;
  void StartWriteback();

  FsStore* const store_;
  const std::shared_ptr<Ingest> ingest_;
  Digest committed_;
};

class FsStore final : public Store {
 public:
  // Creates what is missing below `root`, locks it against other processes and
  // sweeps what a crash left. `files` is borrowed.
  // Errors: kFailedPrecondition: another process has `root` open.
  static absl::StatusOr<std::unique_ptr<FsStore>> Open(
      const std::string& root, files::Files& files = files::RealFiles(),
      const FsStoreOptions& options = FsStoreOptions());

  absl::StatusOr<BlobInfo> Info(const Digest& digest) override;
  absl::Status List(
      const std::function<absl::Status(const BlobInfo&)>& visit) override;
  // Not synced: after a power failure the blob may be back.
  absl::Status Delete(const Digest& digest) override;
  absl::StatusOr<std::unique_ptr<BlobReader>> OpenBlob(
      const Digest& digest) override;
  absl::StatusOr<std::unique_ptr<Writer>> OpenWriter(
      const OpenOptions& options) override;
  absl::StatusOr<IngestInfo> Status(const std::string& ref) override;
  absl::StatusOr<std::vector<IngestInfo>> ListStatuses() override;
  absl::Status Abort(const std::string& ref) override;

  absl::StatusOr<std::unique_ptr<FsBlob>> OpenFsBlob(const Digest& digest);
  // kDataLoss: the blob's bytes are not its digest's.
  absl::Status Verify(const FsBlob& blob, const Digest& digest);
  absl::StatusOr<std::unique_ptr<FsWriter>> OpenFsWriter(
      const OpenOptions& options);

 private:
  friend class FsWriter;
  static constexpr size_t kStripes = 64;

  FsStore(files::Files& files, const FsStoreOptions& options)
      : files_(files), options_(options) {}
  absl::Status Init(const std::string& root);
  absl::Status Sweep();
  absl::Status EnsureDir(int dir_fd, const std::string& name);
  int BlobDir(DigestAlgorithm algorithm) const {
    return blob_dirs_[static_cast<size_t>(algorithm)].get();
  }
  // Held while a digest is published or deleted: whoever sees a blob under it
  // sees one whose name is on stable storage.
  std::mutex& StripeOf(const Digest& digest) {
    return stripes_[std::hash<Digest>()(digest) % kStripes];
  }
  absl::StatusOr<files::FileStat> StatBlob(const Digest& digest);

  absl::Status LockRef(const std::string& ref);
  void UnlockRef(const std::string& ref);
  absl::StatusOr<std::shared_ptr<FsWriter::Ingest>> OpenIngest(
      const OpenOptions& options);
  absl::Status CreateIngest(const std::string& name,
                            const OpenOptions& options);
  absl::StatusOr<os::UniqueFd> OpenData(const std::string& name);
  // Takes up the hash that an earlier writer kept, or removes it.
  absl::Status LoadHash(FsWriter::Ingest* ingest);
  absl::StatusOr<IngestInfo> ReadIngest(const std::string& name);
  // Makes the ingest invisible at once, then removes its files.
  absl::Status RemoveIngest(const std::string& name);
  // Best effort: what stays is swept at the next start.
  void RemoveTree(const std::string& name);
  std::string TemporaryName(const char* prefix);

  struct OpenRef {
    absl::Time since;
    std::shared_ptr<FsWriter::Ingest> ingest;  // Null while it is being opened.
  };

  files::Files& files_;
  const FsStoreOptions options_;
  os::UniqueFd root_;
  os::UniqueFd ingests_;
  std::array<os::UniqueFd, 3> blob_dirs_;  // By DigestAlgorithm.
  std::array<std::mutex, kStripes> stripes_;
  std::atomic<uint64_t> temporary_{0};

  std::mutex mutex_;
  std::condition_variable unlocked_;
  std::map<std::string, OpenRef> open_refs_;
};

}  // namespace bulkhead::content

#endif  // BULKHEAD_SERVICES_CONTENT_FS_STORE_H_
