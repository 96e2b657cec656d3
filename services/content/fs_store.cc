#include "services/content/fs_store.h"

#include <fcntl.h>

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/os/durable_dirs.h"
#include "services/content/fs_ingest.h"
#include "services/content/hash_file.h"

namespace bulkhead::content {
namespace {

constexpr mode_t kDirMode = 0700;
constexpr mode_t kIngestMode = 0600;
constexpr size_t kSmallFileBytesMax = 128;
constexpr int64_t kReadBytesMax = 16 << 20;
constexpr int kNameAttemptsMax = 64;

std::string IngestName(const std::string& ref) { return Digest::Of(ref).hex(); }

absl::Status NoBlob(const Digest& digest) {
  return absl::NotFoundError(absl::StrCat("content digest ", digest.str()));
}

absl::Status BlobError(const Digest& digest, const absl::Status& status) {
  if (absl::IsNotFound(status)) return NoBlob(digest);
  return absl::InternalError(
      absl::StrCat("blob ", digest.str(), ": ", MessageOf(status)));
}

}  // namespace

absl::Status NoReference(const std::string& ref) {
  return absl::NotFoundError(absl::StrCat("reference ", ref));
}

absl::Status BlobExists(const Digest& digest) {
  return absl::AlreadyExistsError(absl::StrCat("content ", digest.str()));
}

absl::Status IngestError(const std::string& ref, const absl::Status& status) {
  const std::string message =
      absl::StrCat("ingest ", ref, ": ", MessageOf(status));
  if (absl::IsResourceExhausted(status)) {
    return absl::ResourceExhaustedError(message);
  }
  return absl::InternalError(message);
}

absl::Status FsBlob::ReadAt(int64_t offset_bytes, int64_t size_bytes,
                            std::string* data) const {
  if (offset_bytes < 0 || offset_bytes > size_bytes_) {
    return absl::OutOfRangeError(
        absl::StrCat("read past object length ", size_bytes_, " bytes"));
  }
  const int64_t size = std::min({std::max<int64_t>(size_bytes, 0),
                                 size_bytes_ - offset_bytes, kReadBytesMax});
  data->resize(static_cast<size_t>(size));
  absl::StatusOr<size_t> n =
      files_.PReadFull(fd_.get(), data->data(), data->size(), offset_bytes);
  if (!n.ok()) return absl::InternalError(MessageOf(n.status()));
  if (*n != data->size()) {
    return absl::DataLossError("a blob is shorter than it was");
  }
  return absl::OkStatus();
}

std::string FsStoreOptions::KernelBootId() {
  absl::StatusOr<std::string> id = files::RealFiles().ReadSmall(
      AT_FDCWD, "/proc/sys/kernel/random/boot_id", kSmallFileBytesMax);
  if (!id.ok()) return "";
  absl::StripAsciiWhitespace(&*id);
  return *std::move(id);
}

absl::StatusOr<std::unique_ptr<FsStore>> FsStore::Open(
    const std::string& root, files::Files& files,
    const FsStoreOptions& options) {
  std::unique_ptr<FsStore> store(new FsStore(files, options));
  const absl::Status status = store->Init(root);
  if (!status.ok()) {
    return Annotate(status, absl::StrCat("content root ", root));
  }
  return store;
}

absl::Status FsStore::EnsureDir(int dir_fd, const std::string& name) {
  const absl::Status made = files_.MakeDir(dir_fd, name, kDirMode);
  return absl::IsAlreadyExists(made) ? absl::OkStatus() : made;
}

absl::Status FsStore::Init(const std::string& root) {
  RETURN_IF_ERROR(os::MakeDurableDirs(root, kDirMode));
  constexpr int kDirFlags = O_RDONLY | O_DIRECTORY;
  ASSIGN_OR_RETURN(root_, files_.Open(AT_FDCWD, root, kDirFlags));
  RETURN_IF_ERROR(files_.Lock(root_.get()));
  RETURN_IF_ERROR(EnsureDir(root_.get(), "blobs"));
  RETURN_IF_ERROR(EnsureDir(root_.get(), "ingest"));
  ASSIGN_OR_RETURN(ingests_, files_.Open(root_.get(), "ingest", kDirFlags));
  ASSIGN_OR_RETURN(const os::UniqueFd blobs,
                   files_.Open(root_.get(), "blobs", kDirFlags));
  for (auto algorithm : {DigestAlgorithm::kSha256, DigestAlgorithm::kSha384,
                         DigestAlgorithm::kSha512}) {
    const std::string name = AlgorithmName(algorithm);
    RETURN_IF_ERROR(EnsureDir(blobs.get(), name));
    os::UniqueFd& dir = blob_dirs_[static_cast<size_t>(algorithm)];
    ASSIGN_OR_RETURN(dir, files_.Open(blobs.get(), name, kDirFlags));
    // A blob that was renamed here just before a crash is visible from now on:
    // its name must not get lost later.
    RETURN_IF_ERROR(files_.Sync(dir.get()));
  }
  RETURN_IF_ERROR(files_.Sync(blobs.get()));
  RETURN_IF_ERROR(files_.Sync(root_.get()));
  return Sweep();
}

absl::Status FsStore::Sweep() {
  ASSIGN_OR_RETURN(const std::vector<std::string> names,
                   files_.List(ingests_.get(), ""));
  for (const std::string& name : names) {
    if (name[0] == '.') {
      RemoveTree(name);
      continue;
    }
    const absl::StatusOr<IngestInfo> info = ReadIngest(name);
    // Without its data it was committed just before a crash.
    if (absl::IsNotFound(info.status())) RemoveTree(name);
  }
  return absl::OkStatus();
}

absl::StatusOr<files::FileStat> FsStore::StatBlob(const Digest& digest) {
  absl::StatusOr<files::FileStat> stat =
      files_.Stat(BlobDir(digest.algorithm()), digest.hex());
  if (!stat.ok()) return BlobError(digest, stat.status());
  if (!stat->is_regular) return NoBlob(digest);
  return stat;
}

absl::StatusOr<BlobInfo> FsStore::Info(const Digest& digest) {
  const std::lock_guard<std::mutex> lock(StripeOf(digest));
  ASSIGN_OR_RETURN(const files::FileStat stat, StatBlob(digest));
  return BlobInfo{
      digest, stat.size_bytes, stat.modified_at, stat.modified_at, {}};
}

absl::Status FsStore::List(
    const std::function<absl::Status(const BlobInfo&)>& visit) {
  for (auto algorithm : {DigestAlgorithm::kSha256, DigestAlgorithm::kSha384,
                         DigestAlgorithm::kSha512}) {
    absl::StatusOr<std::vector<std::string>> names =
        files_.List(BlobDir(algorithm), "");
    if (!names.ok()) return absl::InternalError(MessageOf(names.status()));
    for (const std::string& name : *names) {
      absl::StatusOr<Digest> digest =
          Digest::Parse(absl::StrCat(AlgorithmName(algorithm), ":", name));
      if (!digest.ok()) continue;  // Not ours.
      absl::StatusOr<BlobInfo> info = Info(*digest);
      if (absl::IsNotFound(info.status())) continue;  // Deleted meanwhile.
      RETURN_IF_ERROR(info.status());
      RETURN_IF_ERROR(visit(*info));
    }
  }
  return absl::OkStatus();
}

absl::Status FsStore::Delete(const Digest& digest) {
  const std::lock_guard<std::mutex> lock(StripeOf(digest));
  const absl::Status status =
      files_.Unlink(BlobDir(digest.algorithm()), digest.hex());
  return status.ok() ? status : BlobError(digest, status);
}

absl::StatusOr<std::unique_ptr<FsBlob>> FsStore::OpenFsBlob(
    const Digest& digest) {
  absl::StatusOr<os::UniqueFd> fd =
      files_.Open(BlobDir(digest.algorithm()), digest.hex(), O_RDONLY);
  if (!fd.ok()) return BlobError(digest, fd.status());
  absl::StatusOr<files::FileStat> stat = files_.Stat(fd->get(), "");
  if (!stat.ok()) return BlobError(digest, stat.status());
  if (!stat->is_regular) return NoBlob(digest);
  return std::make_unique<FsBlob>(files_, *std::move(fd), stat->size_bytes);
}

absl::StatusOr<std::unique_ptr<BlobReader>> FsStore::OpenBlob(
    const Digest& digest) {
  ASSIGN_OR_RETURN(std::unique_ptr<FsBlob> blob, OpenFsBlob(digest));
  return std::unique_ptr<BlobReader>(std::move(blob));
}

absl::Status FsStore::Verify(const FsBlob& blob, const Digest& digest) {
  Hasher hasher(digest.algorithm());
  std::string chunk;
  while (hasher.size_bytes() < blob.size_bytes()) {
    RETURN_IF_ERROR(blob.ReadAt(hasher.size_bytes(), 256 << 10, &chunk));
    hasher.Update(chunk);
  }
  const Digest actual = hasher.Finish();
  if (actual == digest) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat("content ", digest.str(),
                                          " is damaged: its bytes hash to ",
                                          actual.str()));
}

absl::Status FsStore::LockRef(const std::string& ref) {
  std::unique_lock<std::mutex> lock(mutex_);
  unlocked_.wait_for(lock, absl::ToChronoMilliseconds(kRefLockWait),
                     [&] { return open_refs_.count(ref) == 0; });
  const auto found = open_refs_.find(ref);
  if (found != open_refs_.end()) {
    return absl::UnavailableError(absl::StrCat(
        "ref ", ref, " locked for ",
        absl::FormatDuration(absl::Trunc(absl::Now() - found->second.since,
                                         absl::Microseconds(1))),
        " (since ", absl::FormatTime(found->second.since), ")"));
  }
  if (open_refs_.size() >= kOpenIngestsMax) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "ingest ", ref, ": ", kOpenIngestsMax, " ingests are open already"));
  }
  open_refs_[ref].since = absl::Now();
  return absl::OkStatus();
}

void FsStore::UnlockRef(const std::string& ref) {
  const std::lock_guard<std::mutex> lock(mutex_);
  open_refs_.erase(ref);
  unlocked_.notify_all();
}

absl::StatusOr<std::unique_ptr<FsWriter>> FsStore::OpenFsWriter(
    const OpenOptions& options) {
  if (options.ref.empty()) {
    return absl::InvalidArgumentError("first message must have a reference");
  }
  if (options.ref.size() > kRefBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("reference of ", options.ref.size(), " bytes, more than ",
                     kRefBytesMax));
  }
  if (options.total_bytes < 0) {
    return absl::InvalidArgumentError("negative total");
  }
  if (!options.expected.empty() && Info(options.expected).ok()) {
    return BlobExists(options.expected);
  }
  RETURN_IF_ERROR(LockRef(options.ref));
  absl::StatusOr<std::shared_ptr<FsWriter::Ingest>> ingest =
      OpenIngest(options);
  if (!ingest.ok()) {
    UnlockRef(options.ref);
    return IngestError(options.ref, ingest.status());
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  open_refs_[options.ref].ingest = *ingest;
  unlocked_.notify_all();  // An Abort() may wait for this.
  return std::unique_ptr<FsWriter>(new FsWriter(this, *std::move(ingest)));
}

absl::StatusOr<std::unique_ptr<Writer>> FsStore::OpenWriter(
    const OpenOptions& options) {
  ASSIGN_OR_RETURN(std::unique_ptr<FsWriter> writer, OpenFsWriter(options));
  RETURN_IF_ERROR(writer->CutAtGap());
  return std::unique_ptr<Writer>(std::move(writer));
}

absl::StatusOr<std::shared_ptr<FsWriter::Ingest>> FsStore::OpenIngest(
    const OpenOptions& options) {
  const std::string name = IngestName(options.ref);
  absl::StatusOr<IngestInfo> info = ReadIngest(name);
  const bool conflict = info.ok() && options.total_bytes > 0 &&
                        info->total_bytes > 0 &&
                        options.total_bytes != info->total_bytes;
  if (absl::IsNotFound(info.status()) || conflict) {
    // A folder without data is what a crash after a commit leaves.
    const absl::Status removed = RemoveIngest(name);
    if (!removed.ok() && !absl::IsNotFound(removed)) return removed;
    RETURN_IF_ERROR(CreateIngest(name, options));
    info = ReadIngest(name);
  }
  RETURN_IF_ERROR(info.status());
  auto ingest = std::make_shared<FsWriter::Ingest>();
  ASSIGN_OR_RETURN(ingest->data, OpenData(name));
  // Less than its size if a writer that filled it in several places was cut
  // off: what is behind the first gap counts for nothing without it.
  info->offset_bytes = files_.FirstHole(ingest->data.get(), info->offset_bytes);
  ingest->ref = options.ref;
  ingest->name = name;
  ingest->total_bytes =
      options.total_bytes > 0 ? options.total_bytes : info->total_bytes;
  ingest->started_at = info->started_at;
  ingest->offset_bytes = info->offset_bytes;
  ingest->writeback_bytes = info->offset_bytes;
  const absl::StatusOr<files::FileStat> suspect =
      files_.Stat(ingests_.get(), name + "/suspect");
  if (suspect.ok()) {
    ingest->suspect = true;
  } else if (!absl::IsNotFound(suspect.status())) {
    return suspect.status();
  }
  RETURN_IF_ERROR(LoadHash(ingest.get()));
  return ingest;
}

absl::Status FsStore::LoadHash(FsWriter::Ingest* ingest) {
  const std::string path = ingest->name + "/hash";
  const absl::StatusOr<std::string> text =
      files_.ReadSmall(ingests_.get(), path, kHashFileBytesMax);
  if (absl::IsNotFound(text.status())) return absl::OkStatus();
  RETURN_IF_ERROR(text.status());
  const std::optional<Hasher> hasher = DecodeHashFile(*text, options_.boot_id);
  // What is behind a gap will be written anew.
  if (hasher.has_value() && !ingest->suspect &&
      hasher->size_bytes() <= ingest->offset_bytes) {
    ingest->hasher = *hasher;
    ingest->kept_bytes = hasher->size_bytes();
    return absl::OkStatus();
  }
  // Or it might seem true again, once there are as many bytes.
  return files_.Unlink(ingests_.get(), path);
}

absl::StatusOr<os::UniqueFd> FsStore::OpenData(const std::string& name) {
  const std::string path = name + "/data";
  absl::StatusOr<os::UniqueFd> data = files_.Open(ingests_.get(), path, O_RDWR);
  if (!absl::IsPermissionDenied(data.status())) return data;
  // A crash between Commit()'s chmod and its rename.
  ASSIGN_OR_RETURN(const os::UniqueFd sealed,
                   files_.Open(ingests_.get(), path, O_RDONLY));
  RETURN_IF_ERROR(files_.Chmod(sealed.get(), kIngestMode));
  return files_.Open(ingests_.get(), path, O_RDWR);
}

std::string FsStore::TemporaryName(const char* prefix) {
  return absl::StrCat(prefix, temporary_.fetch_add(1));
}

absl::Status FsStore::CreateIngest(const std::string& name,
                                   const OpenOptions& options) {
  std::string temporary;
  absl::Status made;
  for (int attempt = 0; attempt < kNameAttemptsMax; ++attempt) {
    temporary = TemporaryName(".new-");
    made = files_.MakeDir(ingests_.get(), temporary, kDirMode);
    if (!absl::IsAlreadyExists(made)) break;
  }
  RETURN_IF_ERROR(made);
  const absl::Status status = [&]() -> absl::Status {
    ASSIGN_OR_RETURN(
        const os::UniqueFd dir,
        files_.Open(ingests_.get(), temporary, O_RDONLY | O_DIRECTORY));
    RETURN_IF_ERROR(
        files_.WriteSmall(dir.get(), "ref", options.ref, kIngestMode));
    RETURN_IF_ERROR(files_.WriteSmall(
        dir.get(), "startedat",
        absl::FormatTime(absl::RFC3339_full, absl::Now(), absl::UTCTimeZone()),
        kIngestMode));
    if (options.total_bytes > 0) {
      RETURN_IF_ERROR(files_.WriteSmall(
          dir.get(), "total", absl::StrCat(options.total_bytes), kIngestMode));
    }
    RETURN_IF_ERROR(files_.WriteSmall(dir.get(), "data", "", kIngestMode));
    return files_.RenameNoReplace(ingests_.get(), temporary, ingests_.get(),
                                  name);
  }();
  if (!status.ok()) RemoveTree(temporary);
  return status;
}

absl::StatusOr<IngestInfo> FsStore::ReadIngest(const std::string& name) {
  IngestInfo info;
  ASSIGN_OR_RETURN(
      info.ref, files_.ReadSmall(ingests_.get(), name + "/ref", kRefBytesMax));
  ASSIGN_OR_RETURN(const files::FileStat data,
                   files_.Stat(ingests_.get(), name + "/data"));
  if (IngestName(info.ref) != name || !data.is_regular) {
    return absl::NotFoundError(absl::StrCat("no ingest: ", name));
  }
  info.offset_bytes = data.size_bytes;
  info.updated_at = data.modified_at;
  info.started_at = data.modified_at;
  const absl::StatusOr<std::string> started =
      files_.ReadSmall(ingests_.get(), name + "/startedat", kSmallFileBytesMax);
  if (started.ok()) {
    absl::Time time;
    std::string error;
    if (absl::ParseTime(absl::RFC3339_full, *started, &time, &error)) {
      info.started_at = time;
    }
  }
  const absl::StatusOr<std::string> total =
      files_.ReadSmall(ingests_.get(), name + "/total", kSmallFileBytesMax);
  if (total.ok()) {
    if (!absl::SimpleAtoi(*total, &info.total_bytes)) info.total_bytes = 0;
  } else if (!absl::IsNotFound(total.status())) {
    return total.status();
  }
  return info;
}

absl::Status FsStore::RemoveIngest(const std::string& name) {
  for (int attempt = 0; attempt < kNameAttemptsMax; ++attempt) {
    const std::string temporary = TemporaryName(".del-");
    const absl::Status renamed =
        files_.RenameNoReplace(ingests_.get(), name, ingests_.get(), temporary);
    if (absl::IsAlreadyExists(renamed)) continue;
    RETURN_IF_ERROR(renamed);
    RemoveTree(temporary);
    return absl::OkStatus();
  }
  return absl::InternalError("no free name for what is to be removed");
}

void FsStore::RemoveTree(const std::string& name) {
  for (const char* file :
       {"data", "ref", "total", "startedat", "updatedat", "hash", "suspect"}) {
    (void)files_.Unlink(ingests_.get(), absl::StrCat(name, "/", file));
  }
  (void)files_.RemoveDir(ingests_.get(), name);
}

absl::StatusOr<IngestInfo> FsStore::Status(const std::string& ref) {
  absl::StatusOr<IngestInfo> info = ReadIngest(IngestName(ref));
  if (info.ok()) return info;
  if (absl::IsNotFound(info.status())) return NoReference(ref);
  return IngestError(ref, info.status());
}

absl::StatusOr<std::vector<IngestInfo>> FsStore::ListStatuses() {
  absl::StatusOr<std::vector<std::string>> names =
      files_.List(ingests_.get(), "");
  if (!names.ok()) return absl::InternalError(MessageOf(names.status()));
  std::vector<IngestInfo> infos;
  for (const std::string& name : *names) {
    if (name[0] == '.') continue;
    absl::StatusOr<IngestInfo> info = ReadIngest(name);
    if (absl::IsNotFound(info.status())) continue;  // Gone meanwhile.
    if (!info.ok()) return IngestError(name, info.status());
    infos.push_back(*std::move(info));
  }
  return infos;
}

absl::Status FsStore::Abort(const std::string& ref) {
  std::shared_ptr<FsWriter::Ingest> open;
  {
    std::unique_lock<std::mutex> lock(mutex_);
    // One that is just being opened will be open or fail in a moment.
    const auto settled = [&] {
      const auto found = open_refs_.find(ref);
      return found == open_refs_.end() || found->second.ingest != nullptr;
    };
    if (!unlocked_.wait_for(lock, absl::ToChronoMilliseconds(kRefLockWait),
                            settled)) {
      return absl::UnavailableError(
          absl::StrCat("ref ", ref, " is just being opened"));
    }
    const auto found = open_refs_.find(ref);
    if (found != open_refs_.end()) {
      open = found->second.ingest;
    } else {
      open_refs_[ref].since = absl::Now();
    }
  }
  absl::Status removed;
  if (open != nullptr) {
    const std::lock_guard<std::mutex> lock(open->mutex);
    if (open->gone) return NoReference(ref);
    removed = RemoveIngest(open->name);
    if (removed.ok()) open->gone = true;
  } else {
    removed = RemoveIngest(IngestName(ref));
    UnlockRef(ref);
  }
  if (absl::IsNotFound(removed)) return NoReference(ref);
  return removed.ok() ? removed : IngestError(ref, removed);
}

}  // namespace bulkhead::content
