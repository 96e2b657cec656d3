#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "lib/base/status_macros.h"
#include "lib/os/memory.h"
#include "services/distribution/layers.h"

namespace bulkhead::distribution {
namespace {

using oci::Descriptor;

constexpr int64_t kAdvanceBytes = 1 << 20;
constexpr int kRoundsMax = 4;  // Reopenings after the metadata service's end.
constexpr std::chrono::milliseconds kStopCheck(200);
constexpr absl::Duration kLockedWait = absl::Milliseconds(50);
constexpr absl::Duration kLockedWaitMax = absl::Seconds(1);

// The blobs being fetched by this process, so that transfers at the same time
// share them: the store's own lock on a ref ends a moment before its blob is
// there for others.
class Fetching {
 public:
  // False: stopped while waiting.
  static bool Begin(const std::string& key, const StopFlag& stop) {
    Fetching& all = Instance();
    std::unique_lock<std::mutex> lock(all.mutex_);
    while (all.keys_.count(key) > 0) {
      if (stop.Stopped()) return false;
      all.changed_.wait_for(lock, kStopCheck);
    }
    all.keys_.insert(key);
    return true;
  }
  static void End(const std::string& key) {
    Fetching& all = Instance();
    std::lock_guard<std::mutex> lock(all.mutex_);
    all.keys_.erase(key);
    all.changed_.notify_all();
  }

 private:
  static Fetching& Instance() {
    static Fetching* const instance = new Fetching;
    return *instance;
  }
  std::mutex mutex_;
  std::condition_variable changed_;
  std::set<std::string> keys_;
};

bool IsLocked(const absl::Status& status) {
  return absl::IsUnavailable(status) &&
         absl::StartsWith(MessageOf(status), "ref ");
}

}  // namespace

void BlobFetch::Fail(const absl::Status& status) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!state_.committed && state_.failed.ok()) state_.failed = status;
  changed_.notify_all();
}

BlobFetch::State BlobFetch::WaitBytes(int64_t beyond_bytes) {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    if (!state_.failed.ok()) return state_;
    if (state_.fd >= 0 &&
        (state_.complete || state_.available_bytes > beyond_bytes)) {
      return state_;
    }
    if (context_.stop->Stopped()) {
      State out = state_;
      out.failed = absl::CancelledError("the transfer was cancelled");
      return out;
    }
    changed_.wait_for(lock, kStopCheck);
  }
}

absl::Status BlobFetch::WaitCommitted() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (state_.failed.ok() && !state_.committed) {
    if (context_.stop->Stopped()) {
      return absl::CancelledError("the transfer was cancelled");
    }
    changed_.wait_for(lock, kStopCheck);
  }
  return state_.failed;
}

absl::Status BlobFetch::MergeSourceLabels() {
  ASSIGN_OR_RETURN(const Labels present,
                   context_.store->BlobLabels(descriptor_.digest.str()));
  Labels changed;
  for (const auto& [key, repository] : context_.source_labels) {
    const auto found = present.find(key);
    std::set<std::string> repositories = {repository};
    if (found != present.end()) {
      const std::vector<std::string> known =
          absl::StrSplit(found->second, ',', absl::SkipEmpty());
      repositories.insert(known.begin(), known.end());
    }
    const std::string value = absl::StrJoin(repositories, ",");
    if (found == present.end() || found->second != value) changed[key] = value;
  }
  if (changed.empty()) return absl::OkStatus();
  return context_.store->SetBlobLabels(descriptor_.digest.str(), changed);
}

// The blob is in the store already: read it from there.
absl::Status BlobFetch::Adopt() {
  ASSIGN_OR_RETURN(dataplane::OpenedBlob blob,
                   context_.store->Open(descriptor_.digest.str()));
  if (blob.size_bytes != descriptor_.size_bytes) {
    return absl::FailedPreconditionError(
        absl::StrCat(descriptor_.digest.str(), " has ", blob.size_bytes,
                     " bytes, but the manifest says ", descriptor_.size_bytes));
  }
  RETURN_IF_ERROR(MergeSourceLabels());
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!fd_.valid()) fd_ = std::move(blob.fd);
    state_.fd = fd_.get();
    state_.available_bytes = descriptor_.size_bytes;
    state_.complete = true;
    state_.committed = true;
    changed_.notify_all();
  }
  context_.progress->Set(descriptor_, "already exists", descriptor_.size_bytes,
                         parents_);
  return absl::OkStatus();
}

// Keeps a descriptor of the growing file for the unpacker, read-only if that
// can be had. After a restart of its owner it must still be the same file.
absl::Status BlobFetch::TakeFd(int ingest_fd) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (fd_.valid()) {
    struct stat ours;
    struct stat theirs;
    if (fstat(fd_.get(), &ours) != 0 || fstat(ingest_fd, &theirs) != 0 ||
        ours.st_ino != theirs.st_ino || ours.st_dev != theirs.st_dev) {
      return absl::AbortedError(
          "the ingest was replaced by another one meanwhile");
    }
    return absl::OkStatus();
  }
  absl::StatusOr<os::UniqueFd> again =
      os::Open(absl::StrCat("/proc/self/fd/", ingest_fd), O_RDONLY);
  if (!again.ok()) again = os::Dup(ingest_fd);
  RETURN_IF_ERROR(again.status());
  fd_ = *std::move(again);
  return absl::OkStatus();
}

absl::Status BlobFetch::RunOnce(bool* again) {
  const std::string digest = descriptor_.digest.str();
  const int64_t size = descriptor_.size_bytes;
  *again = false;
  absl::Duration wait = kLockedWait;
  for (;;) {
    if (context_.stop->Stopped()) {
      return absl::CancelledError("the transfer was cancelled");
    }
    ingest_.reset();  // Its lock first.
    auto opened =
        context_.store->OpenIngest(oci::RefKey(descriptor_), size, digest);
    if (absl::IsAlreadyExists(opened.status())) return Adopt();
    if (!IsLocked(opened.status())) {
      RETURN_IF_ERROR(Annotate(opened.status(), digest));
      ingest_ = *std::move(opened);
      // Whoever held this ref before may just have committed the blob.
      if (ingest_->opened().offset_bytes < size &&
          context_.store->Open(digest).ok()) {
        (void)ingest_->Abort();  // Empty, or the rest of an older attempt.
        continue;
      }
      break;
    }
    absl::SleepFor(wait);  // Another pull fetches the same blob.
    wait = std::min(wait * 2, kLockedWaitMax);
  }
  RETURN_IF_ERROR(TakeFd(ingest_->fd()));
  int64_t offset = ingest_->opened().offset_bytes;
  if (context_.registry == nullptr && offset < size) {
    (void)ingest_->Abort();  // Made by this open.
    return absl::NotFoundError(absl::StrCat("content ", digest));
  }
  if (offset > size) {
    RETURN_IF_ERROR(ingest_->Truncate(0));
    offset = 0;
  }
  int64_t advanced = offset;
  const auto show = [&](bool complete) {
    std::lock_guard<std::mutex> lock(mutex_);
    state_.fd = fd_.get();
    state_.available_bytes = std::max(state_.available_bytes, offset);
    state_.complete = state_.complete || complete;
    changed_.notify_all();
  };
  show(false);
  context_.progress->Set(descriptor_, "downloading", offset, parents_);

  // An earlier attempt may have left more behind a gap.
  const auto gaps = dataplane::Gaps(ingest_->fd(), offset, size);
  const bool large =
      context_.slots != nullptr && size - offset >= kRangesFromBytes;
  if (!large && gaps.size() > 1) RETURN_IF_ERROR(ingest_->Truncate(offset));
  int64_t there = size;
  for (const auto& [begin, end] : gaps) there -= end - begin;
  const int64_t start = offset;
  const auto advance = [&](int64_t prefix) -> absl::Status {
    offset = prefix;
    if (offset - advanced < kAdvanceBytes) return absl::OkStatus();
    advanced = offset;
    os::ReleaseCodeNowAndThen();
    RETURN_IF_ERROR(ingest_->Advance(offset));
    show(false);
    return absl::OkStatus();
  };
  absl::Status fetched;
  if (large) {
    RangeTarget target;
    target.write = [&](int64_t at, const char* data, size_t count) {
      return os::PWriteFull(ingest_->fd(), data, count, at);
    };
    target.advance = advance;
    target.got = [&](int64_t got) {
      context_.progress->Bytes(descriptor_, there + got);
    };
    fetched =
        FetchInRanges(*context_.registry, descriptor_, gaps, context_.slots,
                      context_.streams_per_blob_max, target, &offset);
  } else {
    fetched = context_.registry->FetchBlob(
        descriptor_, start,
        [&](const char* data, size_t count) -> absl::Status {
          RETURN_IF_ERROR(os::PWriteFull(ingest_->fd(), data, count, offset));
          const auto got = static_cast<int64_t>(count);
          context_.progress->Bytes(descriptor_, offset + got);
          return advance(offset + got);
        });
  }
  if (!fetched.ok()) {
    if (absl::IsDataLoss(fetched)) {
      (void)ingest_->Abort();  // Nothing worth resuming; it expires anyway.
    } else {
      (void)ingest_->Advance(offset);  // So that the rest can be resumed.
      if (offset >= kAdvanceBytes) context_.stop->resumable = true;
    }
    // The store went away: its ingest is still there after its restart.
    *again = absl::IsUnavailable(fetched) &&
             absl::StrContains(MessageOf(fetched), "data socket");
    return fetched;
  }
  show(true);
  auto done = ingest_->Commit(size, digest, context_.source_labels);
  if (absl::IsAlreadyExists(done.status())) {
    ingest_.reset();
    return Adopt();
  }
  if (absl::IsFailedPrecondition(done.status())) {
    (void)ingest_->Abort();
    return absl::DataLossError(
        absl::StrCat("the registry's bytes for ", digest,
                     " are wrong: ", MessageOf(done.status())));
  }
  *again = absl::IsUnavailable(done.status());
  RETURN_IF_ERROR(Annotate(done.status(), digest));
  ingest_.reset();
  std::lock_guard<std::mutex> lock(mutex_);
  state_.committed = true;
  context_.progress->Set(descriptor_, "complete", size);
  changed_.notify_all();
  return absl::OkStatus();
}

absl::Status BlobFetch::UseInstead(const Descriptor& other) {
  ASSIGN_OR_RETURN(dataplane::OpenedBlob blob,
                   context_.store->Open(other.digest.str()));
  std::lock_guard<std::mutex> lock(mutex_);
  wanted_ = false;
  source_ = other;
  source_.size_bytes = blob.size_bytes;
  fd_ = std::move(blob.fd);
  state_.fd = fd_.get();
  state_.available_bytes = source_.size_bytes;
  state_.complete = state_.committed = true;
  return absl::OkStatus();
}

void BlobFetch::Skip() {
  std::lock_guard<std::mutex> lock(mutex_);
  wanted_ = false;
  state_.committed = true;
}

void BlobFetch::Run() {
  absl::Status status;
  const std::string key =
      absl::StrCat(context_.ns, " ", descriptor_.digest.str());
  if (!Fetching::Begin(key, *context_.stop)) {
    Fail(absl::CancelledError("the transfer was cancelled"));
    return;
  }
  for (int round = 0; round < kRoundsMax; ++round) {
    bool again = false;
    status = RunOnce(&again);
    if (!again) break;
  }
  ingest_.reset();
  Fetching::End(key);
  if (!status.ok()) Fail(status);
}

absl::Status BlobFetch::Store(const std::string& bytes, const Labels& labels) {
  const std::string digest = descriptor_.digest.str();
  Labels all = labels;
  all.insert(context_.source_labels.begin(), context_.source_labels.end());
  context_.progress->Set(descriptor_, "downloading", 0, parents_);
  absl::Duration wait = kLockedWait;
  for (;;) {
    if (context_.stop->Stopped()) {
      return absl::CancelledError("the transfer was cancelled");
    }
    auto opened = context_.store->OpenIngest(
        oci::RefKey(descriptor_), static_cast<int64_t>(bytes.size()), digest);
    if (IsLocked(opened.status())) {
      absl::SleepFor(wait);
      wait = std::min(wait * 2, kLockedWaitMax);
      continue;
    }
    absl::Status status = opened.status();
    if (opened.ok()) {
      ingest_ = *std::move(opened);
      // All there already: another namespace's blob that is shared with this
      // one, behind a read-only descriptor, or an ingest cut off before its
      // commit. The commit verifies either.
      const int64_t there = ingest_->opened().offset_bytes;
      if (there != static_cast<int64_t>(bytes.size())) {
        if (there != 0) RETURN_IF_ERROR(ingest_->Truncate(0));
        RETURN_IF_ERROR(
            os::PWriteFull(ingest_->fd(), bytes.data(), bytes.size(), 0));
      }
      status = ingest_->Commit(static_cast<int64_t>(bytes.size()), digest, all)
                   .status();
      ingest_.reset();
      // An interrupted commit is tried anew; the open waits for the service.
      if (absl::IsUnavailable(status)) continue;
    }
    if (absl::IsAlreadyExists(status)) {
      if (!labels.empty()) {
        RETURN_IF_ERROR(context_.store->SetBlobLabels(digest, labels));
      }
      RETURN_IF_ERROR(MergeSourceLabels());
      context_.progress->Set(descriptor_, "already exists",
                             descriptor_.size_bytes);
      return absl::OkStatus();
    }
    RETURN_IF_ERROR(Annotate(status, digest));
    context_.progress->Set(descriptor_, "complete", descriptor_.size_bytes);
    return absl::OkStatus();
  }
}

}  // namespace bulkhead::distribution
