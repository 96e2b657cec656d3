#include "cli/tree_copy.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/os/fd.h"

namespace bulkhead::cli {
namespace {

constexpr size_t kXattrBytesMax = 64 << 10;
constexpr size_t kChunkBytes = 1 << 20;

absl::Status CopyBytes(int from, int to) {
  for (;;) {
    const ssize_t moved =
        ::copy_file_range(from, nullptr, to, nullptr, kChunkBytes, 0);
    if (moved == 0) return absl::OkStatus();
    if (moved > 0 || errno == EINTR) continue;
    break;  // Across file systems of some kinds: by hand, from where it is.
  }
  std::string chunk(kChunkBytes, '\0');
  for (;;) {
    ASSIGN_OR_RETURN(const size_t got,
                     os::ReadFull(from, chunk.data(), chunk.size()));
    if (got == 0) return absl::OkStatus();
    RETURN_IF_ERROR(os::WriteFull(to, chunk.data(), got));
  }
}

// Those that the other file system takes.
void CopyXattrs(int from, int to) {
  std::string names(kXattrBytesMax, '\0');
  const ssize_t size = ::flistxattr(from, names.data(), names.size());
  std::string value(kXattrBytesMax, '\0');
  for (ssize_t at = 0; at < size;) {
    const char* name = names.data() + at;
    const ssize_t got = ::fgetxattr(from, name, value.data(), value.size());
    if (got >= 0) {
      (void)::fsetxattr(to, name, value.data(), static_cast<size_t>(got), 0);
    }
    at += static_cast<ssize_t>(std::char_traits<char>::length(name)) + 1;
  }
}

// Owner before mode: chown takes setuid bits away.
absl::Status CopyAttributes(const struct stat& info, int to,
                            const CopyOptions& options) {
  if (options.owners && ::fchown(to, info.st_uid, info.st_gid) != 0) {
    return os::ErrnoStatus(errno, "chown");
  }
  if (::fchmod(to, info.st_mode & 07777) != 0) {
    return os::ErrnoStatus(errno, "chmod");
  }
  const timespec times[] = {info.st_atim, info.st_mtim};
  (void)::futimens(to, times);  // The bytes are what counts.
  return absl::OkStatus();
}

absl::Status CopyAt(int from_dir, const std::string& from, int to_dir,
                    const std::string& to, const CopyOptions& options,
                    int depth);

absl::Status CopyFolder(int from, int to, const CopyOptions& options,
                        int depth) {
  if (depth > kTreeDepthMax) {
    return absl::ResourceExhaustedError(
        absl::StrCat("more than ", kTreeDepthMax, " folders deep"));
  }
  ASSIGN_OR_RETURN(os::UniqueFd listed,
                   os::OpenAt(from, ".", O_RDONLY | O_DIRECTORY));
  std::unique_ptr<DIR, int (*)(DIR*)> dir(::fdopendir(listed.get()),
                                          ::closedir);
  if (dir == nullptr) return os::ErrnoStatus(errno, "opendir");
  (void)listed.Release();  // closedir() closes it.
  while (const dirent* entry = ::readdir(dir.get())) {
    const std::string name = entry->d_name;
    if (name == "." || name == "..") continue;
    RETURN_IF_ERROR(CopyAt(from, name, to, name, options, depth + 1));
  }
  return absl::OkStatus();
}

absl::Status CopyAt(int from_dir, const std::string& from, int to_dir,
                    const std::string& to, const CopyOptions& options,
                    int depth) {
  struct stat info {};
  if (::fstatat(from_dir, from.c_str(), &info, AT_SYMLINK_NOFOLLOW) != 0) {
    return os::ErrnoStatus(errno, from);
  }
  struct stat there {};
  const bool exists =
      ::fstatat(to_dir, to.c_str(), &there, AT_SYMLINK_NOFOLLOW) == 0;
  if (exists && S_ISDIR(there.st_mode) != S_ISDIR(info.st_mode)) {
    return absl::FailedPreconditionError(absl::StrCat(
        "cannot copy a ", S_ISDIR(info.st_mode) ? "folder" : "file", " over a ",
        S_ISDIR(there.st_mode) ? "folder" : "file", ": ", to));
  }
  if (S_ISDIR(info.st_mode)) {
    ASSIGN_OR_RETURN(
        const os::UniqueFd source,
        os::OpenAt(from_dir, from, O_RDONLY | O_DIRECTORY | O_NOFOLLOW));
    if (!exists && ::mkdirat(to_dir, to.c_str(), 0700) != 0) {
      return os::ErrnoStatus(errno, "mkdir " + to);
    }
    ASSIGN_OR_RETURN(
        const os::UniqueFd target,
        os::OpenAt(to_dir, to, O_RDONLY | O_DIRECTORY | O_NOFOLLOW));
    RETURN_IF_ERROR(CopyFolder(source.get(), target.get(), options, depth));
    CopyXattrs(source.get(), target.get());
    return CopyAttributes(info, target.get(), options);
  }
  if (exists && ::unlinkat(to_dir, to.c_str(), 0) != 0) {
    return os::ErrnoStatus(errno, "replacing " + to);
  }
  if (S_ISREG(info.st_mode)) {
    // Not held up by a FIFO that took its place.
    ASSIGN_OR_RETURN(
        const os::UniqueFd source,
        os::OpenAt(from_dir, from, O_RDONLY | O_NOFOLLOW | O_NONBLOCK));
    ASSIGN_OR_RETURN(
        const os::UniqueFd target,
        os::OpenAt(to_dir, to, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0600));
    RETURN_IF_ERROR(Annotate(CopyBytes(source.get(), target.get()), to));
    CopyXattrs(source.get(), target.get());
    return CopyAttributes(info, target.get(), options);
  }
  if (S_ISLNK(info.st_mode)) {
    std::string link(PATH_MAX, '\0');
    const ssize_t size =
        ::readlinkat(from_dir, from.c_str(), link.data(), link.size());
    if (size < 0) return os::ErrnoStatus(errno, "readlink " + from);
    link.resize(static_cast<size_t>(size));
    if (::symlinkat(link.c_str(), to_dir, to.c_str()) != 0) {
      return os::ErrnoStatus(errno, "symlink " + to);
    }
  } else if (S_ISSOCK(info.st_mode)) {
    return absl::OkStatus();  // Nobody listens behind a copy.
  } else if (::mknodat(to_dir, to.c_str(), info.st_mode, info.st_rdev) != 0) {
    return os::ErrnoStatus(errno, "mknod " + to);
  }
  if (options.owners && ::fchownat(to_dir, to.c_str(), info.st_uid, info.st_gid,
                                   AT_SYMLINK_NOFOLLOW) != 0) {
    return os::ErrnoStatus(errno, "chown " + to);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CopyEntry(int from_dir, const std::string& from, int to_dir,
                       const std::string& to, const CopyOptions& options) {
  return CopyAt(from_dir, from, to_dir, to, options, 0);
}

absl::Status CopyContents(int from, int to, const CopyOptions& options) {
  ASSIGN_OR_RETURN(const os::UniqueFd source,
                   os::OpenAt(from, ".", O_RDONLY | O_DIRECTORY));
  ASSIGN_OR_RETURN(const os::UniqueFd target,
                   os::OpenAt(to, ".", O_RDONLY | O_DIRECTORY));
  struct stat info {};
  if (::fstat(source.get(), &info) != 0) return os::ErrnoStatus(errno, "fstat");
  RETURN_IF_ERROR(CopyFolder(source.get(), target.get(), options, 0));
  return options.owners ? CopyAttributes(info, target.get(), options)
                        : absl::OkStatus();
}

}  // namespace bulkhead::cli
