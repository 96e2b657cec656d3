#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/stats/stats.h"
#include "services/content/fs_ingest.h"
#include "services/content/fs_store.h"
#include "services/content/hash_file.h"

namespace bulkhead::content {
namespace {

constexpr size_t kHashStepBytes = 64 << 10;
constexpr int64_t kWritebackStepBytes = 8 << 20;
constexpr mode_t kBlobMode = 0444;
constexpr mode_t kIngestMode = 0600;

}  // namespace

FsWriter::~FsWriter() {
  if (!committed_.empty()) return;
  {
    const std::lock_guard<std::mutex> lock(ingest_->mutex);
    if (ingest_->hasher.size_bytes() - ingest_->kept_bytes >=
        store_->options_.hash_min_bytes) {
      KeepHash(ingest_->hasher);
    }
  }
  store_->UnlockRef(ingest_->ref);
}

void FsWriter::KeepHash(const Hasher& hasher) {
  if (ingest_->gone || ingest_->suspect || store_->options_.boot_id.empty()) {
    return;
  }
  files::Files& files = store_->files_;
  // What was hashed must not be lost by a write-back that fails unnoticed.
  if (!files.WaitWritten(ingest_->data.get(), 0, hasher.size_bytes()).ok()) {
    MarkSuspect();
    return;
  }
  if (!DropHash().ok()) return;  // The old one stays, and stays true.
  const std::string path = ingest_->name + "/hash";
  // Not synced: half a line is no line.
  if (files
          .WriteSmall(store_->ingests_.get(), path,
                      EncodeHashFile(store_->options_.boot_id, hasher),
                      kIngestMode)
          .ok()) {
    ingest_->kept_bytes = hasher.size_bytes();
  }
}

absl::Status FsWriter::DropHash() {
  const absl::Status removed =
      store_->files_.Unlink(store_->ingests_.get(), ingest_->name + "/hash");
  if (!removed.ok() && !absl::IsNotFound(removed)) return Error(removed);
  ingest_->kept_bytes = 0;
  return absl::OkStatus();
}

void FsWriter::RestartHash(DigestAlgorithm algorithm) {
  ingest_->hasher = Hasher(algorithm);
  ingest_->next.reset();
}

Hasher FsWriter::RunningHash() {
  const std::lock_guard<std::mutex> lock(ingest_->mutex);
  return ingest_->hasher;
}

absl::Status FsWriter::CheckLive() const {
  return ingest_->gone ? NoReference(ingest_->ref) : absl::OkStatus();
}

absl::Status FsWriter::Error(const absl::Status& status) const {
  return IngestError(ingest_->ref, status);
}

absl::StatusOr<files::FileStat> FsWriter::StatData() const {
  absl::StatusOr<files::FileStat> stat =
      store_->files_.Stat(ingest_->data.get(), "");
  if (!stat.ok()) return Error(stat.status());
  return stat;
}

absl::StatusOr<IngestInfo> FsWriter::Info() {
  const std::lock_guard<std::mutex> lock(ingest_->mutex);
  RETURN_IF_ERROR(CheckLive());
  ASSIGN_OR_RETURN(const files::FileStat stat, StatData());
  return IngestInfo{ingest_->ref, stat.size_bytes, ingest_->total_bytes,
                    ingest_->started_at, stat.modified_at};
}

absl::Status FsWriter::HashTo(int64_t offset_bytes) {
  Hasher& hasher = ingest_->hasher;
  char buffer[kHashStepBytes];
  while (hasher.size_bytes() < offset_bytes) {
    const size_t want = static_cast<size_t>(
        std::min<int64_t>(sizeof(buffer), offset_bytes - hasher.size_bytes()));
    absl::StatusOr<size_t> n = store_->files_.PReadFull(
        ingest_->data.get(), buffer, want, hasher.size_bytes());
    if (!n.ok()) return Error(n.status());
    if (*n != want) {
      return absl::FailedPreconditionError(absl::StrCat(
          "ingest ", ingest_->ref, " became shorter while it was read"));
    }
    hasher.Update(buffer, want);
  }
  return absl::OkStatus();
}

void FsWriter::KeepHashNowAndThen() {
  const FsStoreOptions& options = store_->options_;
  const int64_t hashed = ingest_->hasher.size_bytes();
  std::optional<Hasher>& next = ingest_->next;
  if (!next.has_value() &&
      hashed - ingest_->kept_bytes >= options.hash_step_bytes) {
    next = ingest_->hasher;
  }
  if (next.has_value() &&
      hashed - next->size_bytes() >= options.hash_lag_bytes) {
    const Hasher due = *next;
    next.reset();
    KeepHash(due);
  }
}

absl::StatusOr<Digest> FsWriter::DigestOf(int64_t size_bytes,
                                          DigestAlgorithm algorithm) {
  const Hasher& hasher = ingest_->hasher;
  if (algorithm != hasher.algorithm() || hasher.size_bytes() > size_bytes) {
    RestartHash(algorithm);
  }
  RETURN_IF_ERROR(HashTo(size_bytes));
  return hasher.Current();
}

absl::StatusOr<Digest> FsWriter::DigestSoFar() {
  const std::lock_guard<std::mutex> lock(ingest_->mutex);
  if (!committed_.empty()) return committed_;
  RETURN_IF_ERROR(CheckLive());
  return DigestOf(ingest_->offset_bytes, DigestAlgorithm::kSha256);
}

absl::Status FsWriter::Append(absl::string_view data) {
  const std::lock_guard<std::mutex> lock(ingest_->mutex);
  RETURN_IF_ERROR(CheckLive());
  // A resumed ingest is read once, here, and not at the commit.
  if (ingest_->hasher.size_bytes() < ingest_->offset_bytes) {
    RETURN_IF_ERROR(HashTo(ingest_->offset_bytes));
  }
  const absl::Status written = store_->files_.PWriteFull(
      ingest_->data.get(), data.data(), data.size(), ingest_->offset_bytes);
  if (!written.ok()) {
    // What was written of it must not count as part of the ingest. If even
    // this fails, a resuming writer sees the longer size and its true digest.
    (void)store_->files_.Truncate(ingest_->data.get(), ingest_->offset_bytes);
    return Error(written);
  }
  // Fresh from the caller's memory.
  if (ingest_->hasher.size_bytes() == ingest_->offset_bytes) {
    ingest_->hasher.Update(data);
  }
  ingest_->offset_bytes += static_cast<int64_t>(data.size());
  StartWriteback();
  KeepHashNowAndThen();
  return absl::OkStatus();
}

absl::Status FsWriter::Truncate(int64_t size_bytes) {
  const std::lock_guard<std::mutex> lock(ingest_->mutex);
  RETURN_IF_ERROR(CheckLive());
  ASSIGN_OR_RETURN(const files::FileStat stat, StatData());
  if (size_bytes < 0 || size_bytes > stat.size_bytes) {
    return absl::OutOfRangeError(absl::StrCat("truncate @", size_bytes,
                                              " beyond the current offset ",
                                              stat.size_bytes));
  }
  // Other bytes may come in the place of those that were hashed.
  if (ingest_->kept_bytes > size_bytes) RETURN_IF_ERROR(DropHash());
  const absl::Status cut =
      store_->files_.Truncate(ingest_->data.get(), size_bytes);
  if (!cut.ok()) return Error(cut);
  ingest_->offset_bytes = size_bytes;
  ingest_->writeback_bytes = std::min(ingest_->writeback_bytes, size_bytes);
  if (ingest_->hasher.size_bytes() > size_bytes) RestartHash();
  return absl::OkStatus();
}

int64_t FsWriter::WholeBytes() {
  const std::lock_guard<std::mutex> lock(ingest_->mutex);
  return ingest_->offset_bytes;
}

absl::Status FsWriter::CutAtGap() {
  const std::lock_guard<std::mutex> lock(ingest_->mutex);
  RETURN_IF_ERROR(CheckLive());
  ASSIGN_OR_RETURN(const files::FileStat stat, StatData());
  if (stat.size_bytes <= ingest_->offset_bytes) return absl::OkStatus();
  const absl::Status cut =
      store_->files_.Truncate(ingest_->data.get(), ingest_->offset_bytes);
  return cut.ok() ? cut : Error(cut);
}

absl::StatusOr<os::UniqueFd> FsWriter::ShareFd() {
  const std::lock_guard<std::mutex> lock(ingest_->mutex);
  RETURN_IF_ERROR(CheckLive());
  absl::StatusOr<os::UniqueFd> fd = store_->OpenData(ingest_->name);
  if (!fd.ok()) return Error(fd.status());
  return fd;
}

absl::Status FsWriter::Advance(int64_t offset_bytes) {
  const std::lock_guard<std::mutex> lock(ingest_->mutex);
  RETURN_IF_ERROR(CheckLive());
  if (offset_bytes < ingest_->offset_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("advance to ", offset_bytes, ", but ",
                     ingest_->offset_bytes, " was said before"));
  }
  ASSIGN_OR_RETURN(const files::FileStat stat, StatData());
  if (offset_bytes > stat.size_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("advance to ", offset_bytes,
                                                   ", but the ingest has ",
                                                   stat.size_bytes, " bytes"));
  }
  ingest_->offset_bytes = offset_bytes;
  RETURN_IF_ERROR(HashTo(offset_bytes));
  StartWriteback();
  KeepHashNowAndThen();
  return absl::OkStatus();
}

void FsWriter::StartWriteback() {
  const int64_t dirty = ingest_->offset_bytes - ingest_->writeback_bytes;
  if (dirty < kWritebackStepBytes) return;
  store_->files_.StartWriteback(ingest_->data.get(), ingest_->writeback_bytes,
                                dirty);
  ingest_->writeback_bytes = ingest_->offset_bytes;
}

absl::Status FsWriter::Abort() {
  {
    const std::lock_guard<std::mutex> lock(ingest_->mutex);
    RETURN_IF_ERROR(CheckLive());
    const absl::Status removed = store_->RemoveIngest(ingest_->name);
    if (!removed.ok()) return Error(removed);
    ingest_->gone = true;
  }
  return absl::OkStatus();
}

absl::StatusOr<BlobInfo> FsWriter::Commit(const CommitOptions& options) {
  const std::lock_guard<std::mutex> lock(ingest_->mutex);
  RETURN_IF_ERROR(CheckLive());
  if (ingest_->suspect) RETURN_IF_ERROR(Rewrite());
  ASSIGN_OR_RETURN(const files::FileStat before, StatData());
  const int64_t size = before.size_bytes;
  if ((options.size_bytes != 0 || options.exact_size) &&
      options.size_bytes != size) {
    return absl::FailedPreconditionError(
        absl::StrCat("\"", ingest_->ref, "\" failed size validation: ", size,
                     " != ", options.size_bytes));
  }
  const DigestAlgorithm algorithm = options.expected.empty()
                                        ? DigestAlgorithm::kSha256
                                        : options.expected.algorithm();
  ASSIGN_OR_RETURN(const Digest digest, DigestOf(size, algorithm));
  if (!options.expected.empty() && digest != options.expected) {
    return absl::FailedPreconditionError(
        absl::StrCat("unexpected commit digest ", digest.str(), ", expected ",
                     options.expected.str()));
  }
  // The ingest goes even if the blob is there already.
  const absl::Status published = Publish(digest, before);
  if (!published.ok() && !absl::IsAlreadyExists(published)) return published;
  (void)store_->RemoveIngest(ingest_->name);  // Else swept at the next start.
  ingest_->gone = true;
  ingest_->data.Reset();
  committed_ = digest;
  store_->UnlockRef(ingest_->ref);
  RETURN_IF_ERROR(published);
  static stats::Value* const blobs =
      stats::Counter("bulkhead_content_committed_blobs_total");
  static stats::Value* const bytes =
      stats::Counter("bulkhead_content_committed_bytes_total");
  blobs->Add();
  bytes->Add(size);
  return BlobInfo{digest, size, before.modified_at, before.modified_at,
                  options.labels};
}

void FsWriter::MarkSuspect() {
  files::Files& files = store_->files_;
  ingest_->suspect = true;
  const absl::Status dropped = DropHash();
  const absl::Status marked = files.WriteSmall(
      store_->ingests_.get(), ingest_->name + "/suspect", "", kIngestMode);
  if (marked.ok() || absl::IsAlreadyExists(marked)) return;
  // Whoever resumes it after a restart would not know.
  if (dropped.ok() && files.Truncate(ingest_->data.get(), 0).ok()) {
    ingest_->offset_bytes = ingest_->writeback_bytes = 0;
    RestartHash();
  }
}

absl::Status FsWriter::Rewrite() {
  files::Files& files = store_->files_;
  RETURN_IF_ERROR(DropHash());
  ASSIGN_OR_RETURN(const files::FileStat stat, StatData());
  std::string buffer(kHashStepBytes, '\0');
  for (int64_t at = 0; at < stat.size_bytes;) {
    absl::StatusOr<size_t> n =
        files.PReadFull(ingest_->data.get(), buffer.data(), buffer.size(), at);
    if (!n.ok()) return Error(n.status());
    if (*n == 0) break;  // Cut meanwhile: the size is compared later.
    const absl::Status written =
        files.PWriteFull(ingest_->data.get(), buffer.data(), *n, at);
    if (!written.ok()) return Error(written);
    at += static_cast<int64_t>(*n);
  }
  // What was hashed may be lost: these bytes count.
  RestartHash();
  ingest_->suspect = false;
  (void)files.Unlink(store_->ingests_.get(), ingest_->name + "/suspect");
  return absl::OkStatus();
}

absl::Status FsWriter::Publish(const Digest& digest,
                               const files::FileStat& before) {
  if (const auto stored = store_->Info(digest); stored.ok()) {
    if (stored->size_bytes == before.size_bytes) return BlobExists(digest);
    // What is stored cannot have this digest: it was damaged. These bytes do.
    (void)store_->Delete(digest);  // Else the rename says that it is there.
  }
  files::Files& files = store_->files_;
  const int fd = ingest_->data.get();
  const int blobs = store_->BlobDir(digest.algorithm());
  const std::string data = ingest_->name + "/data";

  absl::Status status = files.Chmod(fd, kBlobMode);
  if (status.ok()) {
    status = files.Sync(fd);
    if (!status.ok()) MarkSuspect();
  }
  if (status.ok()) {
    const std::lock_guard<std::mutex> stripe(store_->StripeOf(digest));
    status = files.RenameNoReplace(store_->ingests_.get(), data, blobs,
                                   digest.hex());
    if (absl::IsAlreadyExists(status)) return BlobExists(digest);
    if (status.ok()) {
      status = files.Sync(blobs);
      if (status.ok()) {
        // A peer on the data socket holds a descriptor it can write to.
        const absl::StatusOr<files::FileStat> after = files.Stat(fd, "");
        if (!after.ok()) {
          status = after.status();
        } else if (after->size_bytes != before.size_bytes ||
                   after->modified_at != before.modified_at) {
          status = absl::FailedPreconditionError("written to during commit");
        }
      }
      if (!status.ok()) {
        (void)files.RenameNoReplace(blobs, digest.hex(), store_->ingests_.get(),
                                    data);
      }
    }
  }
  if (status.ok()) return status;
  (void)files.Chmod(fd, kIngestMode);  // OpenData() does it too.
  if (absl::IsFailedPrecondition(status)) {
    RestartHash();     // It has seen bytes that are no more.
    (void)DropHash();  // Only a peer that cheats gets here.
    return Annotate(status, absl::StrCat("ingest ", ingest_->ref));
  }
  return Error(status);
}

}  // namespace bulkhead::content
