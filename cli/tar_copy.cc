#include "cli/tar_copy.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <map>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "lib/base/status_macros.h"
#include "lib/os/fd.h"
#include "lib/tar/reader.h"
#include "lib/tar/writer.h"

namespace bulkhead::cli {
namespace {

constexpr size_t kChunkBytes = 256 << 10;
constexpr char kCapability[] = "security.capability";

class Writer {
 public:
  explicit Writer(int out)
      : sink_([out](absl::string_view data) {
          return os::WriteFull(out, data.data(), data.size());
        }) {}

  absl::Status Add(int dir, const std::string& name, const std::string& as,
                   int depth) {
    if (depth > kTreeDepthMax) {
      return absl::ResourceExhaustedError(
          absl::StrCat("more than ", kTreeDepthMax, " folders deep"));
    }
    struct stat info {};
    if (::fstatat(dir, name.c_str(), &info, AT_SYMLINK_NOFOLLOW) != 0) {
      return os::ErrnoStatus(errno, as);
    }
    if (S_ISSOCK(info.st_mode)) return absl::OkStatus();
    tar::Header header;
    header.name = S_ISDIR(info.st_mode) ? as + "/" : as;
    header.mode = info.st_mode & 07777;
    header.uid = info.st_uid;
    header.gid = info.st_gid;
    header.mtime = info.st_mtim.tv_sec;
    if (!S_ISDIR(info.st_mode) && info.st_nlink > 1) {
      const auto [first, added] =
          first_names_.insert({{info.st_dev, info.st_ino}, as});
      if (!added) {
        header.type = '1';
        header.link = first->second;
        return tar::WriteHeader(header, sink_);
      }
    }
    if (S_ISREG(info.st_mode)) return AddFile(dir, name, info, header);
    if (S_ISDIR(info.st_mode)) return AddFolder(dir, name, header, depth);
    if (S_ISLNK(info.st_mode)) {
      std::string link(PATH_MAX, '\0');
      const ssize_t size =
          ::readlinkat(dir, name.c_str(), link.data(), link.size());
      if (size < 0) return os::ErrnoStatus(errno, "readlink " + as);
      header.link = link.substr(0, static_cast<size_t>(size));
      header.type = '2';
    } else {
      header.type = S_ISCHR(info.st_mode)   ? '3'
                    : S_ISBLK(info.st_mode) ? '4'
                                            : '6';
      header.major = major(info.st_rdev);
      header.minor = minor(info.st_rdev);
    }
    return tar::WriteHeader(header, sink_);
  }

  absl::Status End() { return tar::WriteEnd(sink_); }

 private:
  absl::Status AddFile(int dir, const std::string& name,
                       const struct stat& info, tar::Header& header) {
    // Not held up by a FIFO that took its place.
    ASSIGN_OR_RETURN(const os::UniqueFd file,
                     os::OpenAt(dir, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK));
    char capability[256];
    const ssize_t has =
        ::fgetxattr(file.get(), kCapability, capability, sizeof(capability));
    if (has > 0) header.capability.assign(capability, has);
    header.size = static_cast<uint64_t>(info.st_size);
    RETURN_IF_ERROR(tar::WriteHeader(header, sink_));
    std::string chunk(kChunkBytes, '\0');
    for (uint64_t left = header.size; left > 0;) {
      ASSIGN_OR_RETURN(const size_t got,
                       os::ReadFull(file.get(), chunk.data(),
                                    std::min<uint64_t>(left, chunk.size())));
      if (got == 0) {
        return absl::AbortedError(
            absl::StrCat(header.name, " shrank while it was read"));
      }
      RETURN_IF_ERROR(sink_(absl::string_view(chunk.data(), got)));
      left -= got;
    }
    return sink_(tar::Padding(header.size));
  }

  absl::Status AddFolder(int dir, const std::string& name, tar::Header& header,
                         int depth) {
    header.type = '5';
    RETURN_IF_ERROR(tar::WriteHeader(header, sink_));
    ASSIGN_OR_RETURN(
        os::UniqueFd folder,
        os::OpenAt(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW));
    ASSIGN_OR_RETURN(os::UniqueFd listed,
                     os::OpenAt(folder.get(), ".", O_RDONLY | O_DIRECTORY));
    std::set<std::string> names;
    {
      std::unique_ptr<DIR, int (*)(DIR*)> stream(::fdopendir(listed.get()),
                                                 ::closedir);
      if (stream == nullptr) return os::ErrnoStatus(errno, "opendir");
      (void)listed.Release();  // closedir() closes it.
      while (const dirent* entry = ::readdir(stream.get())) {
        names.insert(entry->d_name);
      }
    }
    const std::string prefix = header.name;
    for (const std::string& each : names) {
      if (each == "." || each == "..") continue;
      RETURN_IF_ERROR(Add(folder.get(), each, prefix + each, depth + 1));
    }
    return absl::OkStatus();
  }

  const tar::ByteSink sink_;
  std::map<std::pair<dev_t, ino_t>, std::string> first_names_;
};

// Bytes of a descriptor.
class FdStream : public tar::ByteStream {
 public:
  explicit FdStream(int fd) : fd_(fd), buffer_(kChunkBytes, '\0') {}
  absl::StatusOr<absl::string_view> Fill() override {
    while (at_ == size_) {
      const ssize_t got = ::read(fd_, buffer_.data(), buffer_.size());
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return os::ErrnoStatus(errno, "reading the archive");
      at_ = 0;
      size_ = static_cast<size_t>(got);
      if (got == 0) return absl::string_view();
    }
    return absl::string_view(buffer_.data() + at_, size_ - at_);
  }
  void Consume(size_t size_bytes) override { at_ += size_bytes; }

 private:
  const int fd_;
  std::string buffer_;
  size_t at_ = 0;
  size_t size_ = 0;
};

// The parts of a name; none: the folder itself.
absl::StatusOr<std::vector<std::string>> PartsOf(const std::string& name) {
  std::vector<std::string> parts;
  for (const auto view : absl::StrSplit(name, '/', absl::SkipEmpty())) {
    std::string part(view.data(), view.size());
    if (part == ".") continue;
    if (part == "..") {
      return absl::InvalidArgumentError(
          absl::StrCat("\"", name.substr(0, 256), "\" climbs"));
    }
    parts.push_back(std::move(part));
  }
  if (parts.size() > static_cast<size_t>(kTreeDepthMax)) {
    return absl::ResourceExhaustedError(
        absl::StrCat("more than ", kTreeDepthMax, " folders deep"));
  }
  return parts;
}

class Extractor {
 public:
  Extractor(int in, int root, const std::string& folder,
            const CopyOptions& options)
      : stream_(in),
        reader_(stream_),
        root_(root),
        folder_(folder),
        options_(options) {}

  absl::Status Run() {
    RETURN_IF_ERROR(
        os::OpenInRoot(root_, folder_, O_PATH | O_DIRECTORY).status());
    tar::TarEntry entry;
    for (;;) {
      ASSIGN_OR_RETURN(const bool more, reader_.Next(&entry));
      if (!more) break;
      RETURN_IF_ERROR(
          Annotate(Make(entry), absl::StrCat("entry ", entry.name)));
    }
    for (auto each = folders_.rbegin(); each != folders_.rend(); ++each) {
      SetTimes(each->first.get(), each->second);
    }
    for (;;) {  // The rest of the pipe, so that its writer ends well.
      ASSIGN_OR_RETURN(const absl::string_view rest, stream_.Fill());
      if (rest.empty()) return absl::OkStatus();
      stream_.Consume(rest.size());
    }
  }

 private:
  // Folders whose times are set at the end; the rest keep what they get.
  static constexpr size_t kTimedFoldersMax = 512;

  static timespec Spec(int64_t ns) {
    return {ns / 1000000000, ns % 1000000000};
  }
  static void SetTimes(int fd, int64_t mtime_ns) {
    const timespec times[] = {Spec(mtime_ns), Spec(mtime_ns)};
    (void)::futimens(fd, times);  // The bytes are what counts.
  }

  // The folder that `parts` but the last name, made where it is missing.
  absl::StatusOr<os::UniqueFd> Parent(const std::vector<std::string>& parts) {
    std::string path = folder_;
    ASSIGN_OR_RETURN(os::UniqueFd at,
                     os::OpenInRoot(root_, path, O_PATH | O_DIRECTORY));
    for (size_t i = 0; i + 1 < parts.size(); ++i) {
      absl::StrAppend(&path, "/", parts[i]);
      auto next = os::OpenInRoot(root_, path, O_PATH | O_DIRECTORY);
      if (absl::IsNotFound(next.status())) {
        if (::mkdirat(at.get(), parts[i].c_str(), 0755) != 0) {
          return os::ErrnoStatus(errno, "mkdir " + path);
        }
        next = os::OpenInRoot(root_, path, O_PATH | O_DIRECTORY);
      }
      RETURN_IF_ERROR(next.status());
      at = *std::move(next);
    }
    return at;
  }

  absl::Status Make(const tar::TarEntry& entry) {
    ASSIGN_OR_RETURN(const std::vector<std::string> parts, PartsOf(entry.name));
    if (parts.empty()) return absl::OkStatus();
    ASSIGN_OR_RETURN(const os::UniqueFd parent, Parent(parts));
    const std::string& name = parts.back();
    const int dir = parent.get();
    struct stat there {};
    const bool exists =
        ::fstatat(dir, name.c_str(), &there, AT_SYMLINK_NOFOLLOW) == 0;
    const bool is_folder = entry.type == tar::TarType::kDirectory;
    if (exists && S_ISDIR(there.st_mode) != is_folder) {
      return absl::FailedPreconditionError(
          absl::StrCat("cannot copy a ", is_folder ? "folder" : "file",
                       " over a ", is_folder ? "file" : "folder"));
    }
    if (exists && !is_folder && ::unlinkat(dir, name.c_str(), 0) != 0) {
      return os::ErrnoStatus(errno, "replacing");
    }
    switch (entry.type) {
      case tar::TarType::kFile: {
        ASSIGN_OR_RETURN(
            const os::UniqueFd file,
            os::OpenAt(dir, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW,
                       0600));
        if (entry.sparse && ::ftruncate(file.get(), entry.size_bytes) != 0) {
          return os::ErrnoStatus(errno, "truncate");
        }
        RETURN_IF_ERROR(reader_.ReadData([&](int64_t offset,
                                             absl::string_view data) {
          return os::PWriteFull(file.get(), data.data(), data.size(), offset);
        }));
        RETURN_IF_ERROR(SetAttributes(entry, file.get()));
        SetTimes(file.get(), entry.mtime_ns);
        return absl::OkStatus();
      }
      case tar::TarType::kDirectory: {
        if (!exists && ::mkdirat(dir, name.c_str(), 0700) != 0) {
          return os::ErrnoStatus(errno, "mkdir");
        }
        ASSIGN_OR_RETURN(
            os::UniqueFd folder,
            os::OpenAt(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW));
        RETURN_IF_ERROR(SetAttributes(entry, folder.get()));
        if (folders_.size() < kTimedFoldersMax) {
          folders_.emplace_back(std::move(folder), entry.mtime_ns);
        }
        return absl::OkStatus();
      }
      case tar::TarType::kHardLink: {
        ASSIGN_OR_RETURN(const std::vector<std::string> target,
                         PartsOf(entry.link_name));
        if (target.empty()) {
          return absl::InvalidArgumentError("hard link to the folder itself");
        }
        ASSIGN_OR_RETURN(const os::UniqueFd from, Parent(target));
        if (::linkat(from.get(), target.back().c_str(), dir, name.c_str(), 0) !=
            0) {
          return os::ErrnoStatus(
              errno, absl::StrCat("hard link to ", entry.link_name));
        }
        return absl::OkStatus();
      }
      case tar::TarType::kSymlink:
        if (::symlinkat(entry.link_name.c_str(), dir, name.c_str()) != 0) {
          return os::ErrnoStatus(errno, "symlink");
        }
        return Chown(entry, dir, name);
      default: {
        const mode_t type = entry.type == tar::TarType::kFifo         ? S_IFIFO
                            : entry.type == tar::TarType::kCharDevice ? S_IFCHR
                                                                      : S_IFBLK;
        if (::mknodat(dir, name.c_str(), type | 0600,
                      makedev(entry.device_major, entry.device_minor)) != 0) {
          return os::ErrnoStatus(errno, "mknod");
        }
        RETURN_IF_ERROR(Chown(entry, dir, name));
        // Just made, in a folder held open: no symlink can have taken its place
        // but one of whoever may write there anyway.
        if (::fchmodat(dir, name.c_str(), entry.mode, AT_SYMLINK_NOFOLLOW) !=
                0 &&
            errno != ENOTSUP) {
          return os::ErrnoStatus(errno, "chmod");
        }
        return absl::OkStatus();
      }
    }
  }

  absl::Status Chown(const tar::TarEntry& entry, int dir,
                     const std::string& name) const {
    if (!options_.owners) return absl::OkStatus();
    if (::fchownat(dir, name.c_str(), static_cast<uid_t>(entry.uid),
                   static_cast<gid_t>(entry.gid), AT_SYMLINK_NOFOLLOW) != 0) {
      return os::ErrnoStatus(errno, "chown");
    }
    return absl::OkStatus();
  }

  // Owner before mode: chown takes setuid bits away, and capabilities.
  absl::Status SetAttributes(const tar::TarEntry& entry, int fd) const {
    if (options_.owners && ::fchown(fd, static_cast<uid_t>(entry.uid),
                                    static_cast<gid_t>(entry.gid)) != 0) {
      return os::ErrnoStatus(errno, "chown");
    }
    for (const auto& [key, value] : entry.xattrs) {
      // Those that the file system takes.
      if (key == kCapability ||
          absl::string_view(key).substr(0, 5) == "user.") {
        (void)::fsetxattr(fd, key.c_str(), value.data(), value.size(), 0);
      }
    }
    if (::fchmod(fd, entry.mode) != 0) return os::ErrnoStatus(errno, "chmod");
    return absl::OkStatus();
  }

  FdStream stream_;
  tar::TarReader reader_;
  const int root_;
  const std::string folder_;
  const CopyOptions& options_;
  std::vector<std::pair<os::UniqueFd, int64_t>> folders_;
};

}  // namespace

absl::Status WriteTar(int from_dir, const std::string& from,
                      const std::string& as, int out) {
  Writer writer(out);
  RETURN_IF_ERROR(writer.Add(from_dir, from, as, 0));
  return writer.End();
}

absl::Status ReadTar(int in, int root, const std::string& folder,
                     const CopyOptions& options) {
  return Extractor(in, root, folder, options).Run();
}

}  // namespace bulkhead::cli
