#include "services/runtime/checkpoint_store.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "lib/base/status_macros.h"
#include "lib/os/fd.h"

namespace bulkhead::runtime {
namespace {

constexpr size_t kBlockBytes = 512;
constexpr size_t kCopyBytes = 1 << 20;
// What the octal size field of a POSIX header holds.
constexpr int64_t kFileBytesMax = (int64_t{8} << 30) - 1;

// The POSIX ustar header: name, mode, size and so on at fixed offsets.
struct Header {
  char name[100];
  char mode[8];
  char uid[8];
  char gid[8];
  char size[12];
  char mtime[12];
  char checksum[8];
  char type;
  char link[100];
  char magic[6];
  char version[2];
  char owner[32];
  char group[32];
  char major[8];
  char minor[8];
  char prefix[155];
  char padding[12];
};
static_assert(sizeof(Header) == kBlockBytes);

unsigned Checksum(const Header& header) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(&header);
  unsigned sum = 0;
  for (size_t i = 0; i < sizeof(header); ++i) {
    const bool own = i >= offsetof(Header, checksum) &&
                     i < offsetof(Header, checksum) + sizeof(header.checksum);
    sum += own ? ' ' : bytes[i];
  }
  return sum;
}

absl::StatusOr<Header> MakeHeader(const std::string& name, char type,
                                  mode_t mode, int64_t size_bytes) {
  Header header{};
  if (name.size() > sizeof(header.name)) {
    return absl::InvalidArgumentError(
        absl::StrCat("checkpoint file name too long: ", name));
  }
  if (size_bytes > kFileBytesMax) {
    return absl::ResourceExhaustedError(
        absl::StrCat("checkpoint file over 8 GiB: ", name));
  }
  std::memcpy(header.name, name.data(), name.size());
  std::snprintf(header.mode, sizeof(header.mode), "%07o", mode & 07777u);
  std::snprintf(header.uid, sizeof(header.uid), "%07o", 0u);
  std::snprintf(header.gid, sizeof(header.gid), "%07o", 0u);
  std::snprintf(header.size, sizeof(header.size), "%011llo",
                static_cast<unsigned long long>(size_bytes));
  std::snprintf(header.mtime, sizeof(header.mtime), "%011o", 0u);
  header.type = type;
  std::memcpy(header.magic, "ustar", 6);
  std::memcpy(header.version, "00", 2);
  std::snprintf(header.checksum, sizeof(header.checksum), "%06o",
                Checksum(header));
  return header;
}

int64_t Padded(int64_t size_bytes) {
  constexpr int64_t kBlock = kBlockBytes;
  return (size_bytes + kBlock - 1) / kBlock * kBlock;
}

absl::Status Copy(int from, int64_t from_offset, int to, int64_t to_offset,
                  int64_t size_bytes) {
  std::vector<char> buffer(kCopyBytes);
  while (size_bytes > 0) {
    const size_t wanted = static_cast<size_t>(
        std::min<int64_t>(size_bytes, static_cast<int64_t>(kCopyBytes)));
    ASSIGN_OR_RETURN(const size_t got,
                     os::PReadFull(from, buffer.data(), wanted, from_offset));
    if (got == 0) return absl::DataLossError("a checkpoint file got shorter");
    RETURN_IF_ERROR(os::PWriteFull(to, buffer.data(), got, to_offset));
    from_offset += static_cast<int64_t>(got);
    to_offset += static_cast<int64_t>(got);
    size_bytes -= static_cast<int64_t>(got);
  }
  return absl::OkStatus();
}

absl::Status PackInto(const std::string& folder, const std::string& prefix,
                      int depth, int fd, int64_t* offset) {
  if (depth > kCheckpointDepthMax) {
    return absl::InvalidArgumentError("checkpoint folders nested too deeply");
  }
  std::vector<std::string> names;
  {
    std::unique_ptr<DIR, int (*)(DIR*)> dir(::opendir(folder.c_str()),
                                            ::closedir);
    if (dir == nullptr) return os::ErrnoStatus(errno, "opendir " + folder);
    while (const dirent* entry = ::readdir(dir.get())) {
      const std::string name = entry->d_name;
      if (name != "." && name != "..") names.push_back(name);
    }
  }
  std::sort(names.begin(), names.end());
  for (const std::string& name : names) {
    const std::string path = absl::StrCat(folder, "/", name);
    struct stat info {};
    if (::lstat(path.c_str(), &info) != 0) {
      return os::ErrnoStatus(errno, "stat " + path);
    }
    if (S_ISDIR(info.st_mode)) {
      ASSIGN_OR_RETURN(
          const Header header,
          MakeHeader(absl::StrCat(prefix, name, "/"), '5', info.st_mode, 0));
      RETURN_IF_ERROR(os::PWriteFull(fd, &header, sizeof(header), *offset));
      *offset += kBlockBytes;
      RETURN_IF_ERROR(PackInto(path, absl::StrCat(prefix, name, "/"), depth + 1,
                               fd, offset));
      continue;
    }
    if (!S_ISREG(info.st_mode)) {
      return absl::InvalidArgumentError(
          absl::StrCat("neither file nor folder in a checkpoint: ", path));
    }
    ASSIGN_OR_RETURN(
        const Header header,
        MakeHeader(prefix + name, '0', info.st_mode, info.st_size));
    RETURN_IF_ERROR(os::PWriteFull(fd, &header, sizeof(header), *offset));
    *offset += kBlockBytes;
    ASSIGN_OR_RETURN(const os::UniqueFd file,
                     os::Open(path, O_RDONLY | O_NOFOLLOW));
    RETURN_IF_ERROR(Copy(file.get(), 0, fd, *offset, info.st_size));
    const int64_t padding = Padded(info.st_size) - info.st_size;
    const char zeros[kBlockBytes] = {};
    RETURN_IF_ERROR(os::PWriteFull(fd, zeros, static_cast<size_t>(padding),
                                   *offset + info.st_size));
    *offset += Padded(info.st_size);
  }
  return absl::OkStatus();
}

// Whether the path stays below where it starts.
bool IsPlain(const std::string& path) {
  if (path.empty() || path[0] == '/') return false;
  int depth = 0;
  for (const auto part : absl::StrSplit(path, '/', absl::SkipEmpty())) {
    if (part == ".." || ++depth > kCheckpointDepthMax + 1) return false;
  }
  return true;
}

// A ref of its own for each upload of this process.
std::string NewRef() {
  static std::atomic<uint64_t> count = 0;
  return absl::StrCat("checkpoint-", ::getpid(), "-",
                      absl::ToUnixNanos(absl::Now()), "-", ++count);
}

absl::StatusOr<StoredBlob> Commit(dataplane::Ingest& ingest,
                                  int64_t size_bytes) {
  RETURN_IF_ERROR(ingest.Advance(size_bytes));
  ASSIGN_OR_RETURN(const dataplane::CommitResult done,
                   ingest.Commit(size_bytes, "", {}));
  return StoredBlob{done.digest, done.size_bytes};
}

}  // namespace

absl::StatusOr<int64_t> PackFolder(const std::string& folder, int fd) {
  int64_t offset = 0;
  RETURN_IF_ERROR(PackInto(folder, "", 0, fd, &offset));
  const char end[2 * kBlockBytes] = {};
  RETURN_IF_ERROR(os::PWriteFull(fd, end, sizeof(end), offset));
  return offset + static_cast<int64_t>(sizeof(end));
}

absl::Status UnpackFolder(int fd, int64_t size_bytes,
                          const std::string& folder) {
  int64_t offset = 0;
  while (offset + static_cast<int64_t>(kBlockBytes) <= size_bytes) {
    Header header{};
    ASSIGN_OR_RETURN(const size_t got,
                     os::PReadFull(fd, &header, sizeof(header), offset));
    offset += kBlockBytes;
    if (got != sizeof(header)) break;
    if (header.name[0] == '\0') return absl::OkStatus();  // The end.
    unsigned sum = 0;
    unsigned mode = 0;
    unsigned long long size = 0;
    const std::string size_text(header.size, sizeof(header.size));
    if (::sscanf(header.checksum, "%7o", &sum) != 1 ||
        sum != Checksum(header) || ::sscanf(header.mode, "%7o", &mode) != 1 ||
        ::sscanf(size_text.c_str(), "%12llo", &size) != 1) {
      return absl::InvalidArgumentError("not a checkpoint archive");
    }
    std::string name(header.name, ::strnlen(header.name, sizeof(header.name)));
    const std::string prefix(header.prefix,
                             ::strnlen(header.prefix, sizeof(header.prefix)));
    if (!prefix.empty()) name = absl::StrCat(prefix, "/", name);
    while (name.rfind("./", 0) == 0) name.erase(0, 2);
    const int64_t data_bytes = static_cast<int64_t>(size);
    if (data_bytes < 0 || data_bytes > size_bytes - offset) {
      return absl::InvalidArgumentError("a checkpoint archive that is cut off");
    }
    if (name.empty() || name == ".") continue;
    if (!IsPlain(name)) {
      return absl::InvalidArgumentError(
          absl::StrCat("a checkpoint archive with the path ", name));
    }
    const std::string path = absl::StrCat(folder, "/", name);
    if (header.type == '5') {
      RETURN_IF_ERROR(os::MakeDirs(path, 0700));
    } else if (header.type == '0' || header.type == '\0') {
      // There are no links in the folder, so no path leads out of it.
      const size_t slash = path.rfind('/');
      RETURN_IF_ERROR(os::MakeDirs(path.substr(0, slash), 0700));
      ASSIGN_OR_RETURN(
          const os::UniqueFd file,
          os::Open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0600));
      RETURN_IF_ERROR(Copy(fd, offset, file.get(), 0, data_bytes));
    } else {
      return absl::InvalidArgumentError(
          absl::StrCat("a checkpoint archive with more than files: ", name));
    }
    offset += Padded(data_bytes);
  }
  return absl::InvalidArgumentError("a checkpoint archive without an end");
}

absl::StatusOr<StoredBlob> CheckpointStore::SaveFolder(
    const std::string& ns, const std::string& lease,
    const std::string& folder) const {
  ASSIGN_OR_RETURN(
      const std::unique_ptr<dataplane::Ingest> ingest,
      content_.OpenIngest({.ref = NewRef(), .ns = ns, .lease = lease}));
  const absl::StatusOr<int64_t> size_bytes = PackFolder(folder, ingest->fd());
  if (!size_bytes.ok()) {
    (void)ingest->Abort();  // The first error counts.
    return size_bytes.status();
  }
  return Commit(*ingest, *size_bytes);
}

absl::StatusOr<StoredBlob> CheckpointStore::SaveBytes(
    const std::string& ns, const std::string& lease,
    const std::string& bytes) const {
  ASSIGN_OR_RETURN(
      const std::unique_ptr<dataplane::Ingest> ingest,
      content_.OpenIngest({.ref = NewRef(), .ns = ns, .lease = lease}));
  RETURN_IF_ERROR(os::PWriteFull(ingest->fd(), bytes.data(), bytes.size(), 0));
  return Commit(*ingest, static_cast<int64_t>(bytes.size()));
}

absl::Status CheckpointStore::Load(const std::string& ns,
                                   const std::string& digest,
                                   const std::string& folder) const {
  ASSIGN_OR_RETURN(const dataplane::OpenedBlob blob, content_.Open(digest, ns));
  RETURN_IF_ERROR(os::MakeDirs(folder, 0700));
  return UnpackFolder(blob.fd.get(), blob.size_bytes, folder);
}

}  // namespace bulkhead::runtime
