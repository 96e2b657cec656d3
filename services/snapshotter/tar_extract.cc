#include "services/snapshotter/tar_extract.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <memory>
#include <optional>
#include <set>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/hash/hash.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/log/log.h"
#include "lib/os/fd.h"
#include "services/snapshotter/file_filler.h"
#include "services/snapshotter/layer_entries.h"
#include "services/snapshotter/tar_reader.h"
#include "services/snapshotter/tree_root.h"

namespace bulkhead::snapshotter {
namespace {

constexpr int64_t kNs = 1000000000;

// Of this process; it can be read from here alone.
mode_t CurrentUmask() {
  const absl::StatusOr<std::string> status = os::ReadFile("/proc/self/status");
  const size_t at = status.ok() ? status->find("Umask:\t") : std::string::npos;
  if (at == std::string::npos) return 0777;  // Not known: set every mode.
  return std::strtoul(status->c_str() + at + 7, nullptr, 8);
}

class Extractor {
 public:
  Extractor(ByteStream& stream, std::unique_ptr<TreeRoot> root,
            const ExtractOptions& options, FileWriter* writer)
      : stream_(stream),
        reader_(stream),
        writer_(writer),
        root_(std::move(root)),
        options_(options),
        umask_(CurrentUmask()) {}

  absl::StatusOr<ExtractResult> Run() {
    if (options_.count) {
      ASSIGN_OR_RETURN(counted_, IsEmpty());
    }
    ASSIGN_OR_RETURN(lowers_, OpenLowers(options_));
    const absl::Status status =
        ForEachEntry(reader_, options_, &result_,
                     [this](const TarEntry& entry, const LayerName& name) {
                       return Apply(entry, name);
                     });
    RETURN_IF_ERROR(Drain());  // What went wrong there came first.
    RETURN_IF_ERROR(status);
    RETURN_IF_ERROR(SetDirTimes());
    RETURN_IF_ERROR(CountDirs());
    for (const std::string& dir : implicit_)
      result_.implicit_dirs.push_back(dir);
    return std::move(result_);
  }

 private:
  struct DirTime {
    timespec times[2];
  };

  // The last entry of a name counts.
  absl::Status RememberTimes(const std::string& clean, const DirTime& times) {
    const auto [slot, added] = dir_times_.insert_or_assign(clean, times);
    if (!added) return absl::OkStatus();
    dir_names_bytes_ += static_cast<int64_t>(clean.size() + sizeof(*slot));
    if (dir_names_bytes_ <= kDirNamesBytesMax) return absl::OkStatus();
    return absl::ResourceExhaustedError(
        absl::StrCat("the names of the layer's directories take more than ",
                     kDirNamesBytesMax, " bytes"));
  }

  // Until files are as if no other thread filled them.
  absl::Status Drain() {
    return writer_ == nullptr ? absl::OkStatus() : writer_->Drain();
  }

  static timespec Spec(int64_t ns) { return {ns / kNs, ns % kNs}; }
  static void TimesOf(const TarEntry& entry, timespec out[2]) {
    out[0] = Spec(std::max(entry.atime_ns, entry.mtime_ns));
    out[1] = Spec(entry.mtime_ns);
  }

  absl::StatusOr<int> Parent(const std::string& clean) {
    return root_->Dir(clean, [this](const std::string& made, int fd) {
      return FillImplicit(made, fd);
    });
  }

  // Whether the root is.
  absl::StatusOr<bool> IsEmpty() {
    const int copy =
        ::openat(root_->fd(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR* stream = copy < 0 ? nullptr : ::fdopendir(copy);
    if (stream == nullptr) return os::ErrnoStatus(errno, "opendir");
    int names = 0;  // "." and ".." are two.
    while (names < 3 && ::readdir(stream) != nullptr) ++names;
    ::closedir(stream);
    return names < 3;
  }

  // A directory the layer assumes below it: attributes from the tree below.
  absl::Status FillImplicit(const std::string& made, int fd) {
    if (implicit_.size() < kImplicitDirsMax) implicit_.insert(made);
    ++dirs_made_;
    Unpacked(made);
    for (const os::UniqueFd& lower : lowers_) {
      absl::StatusOr<os::UniqueFd> from =
          os::OpenInRoot(lower.get(), made, O_RDONLY | O_DIRECTORY);
      if (!from.ok()) continue;
      RETURN_IF_ERROR(CopyDirAttributes(from->get(), fd));
      struct stat st;
      if (::fstat(from->get(), &st) == 0) {
        RETURN_IF_ERROR(RememberTimes(made, DirTime{{st.st_atim, st.st_mtim}}));
      }
      break;
    }
    return absl::OkStatus();
  }

  // Its directories too: they hold something of this layer.
  void Unpacked(const std::string& clean) {
    if (options_.overlay_whiteouts) return;
    std::string path = clean;
    while (!path.empty() &&
           unpacked_.insert(absl::HashOf(path, salt_)).second) {
      path = SplitName(path).first;
    }
  }
  bool WasUnpacked(const std::string& clean) const {
    return unpacked_.contains(absl::HashOf(clean, salt_));
  }

  absl::Status Apply(const TarEntry& entry, const LayerName& name) {
    // Run() finds out why.
    if (writer_ != nullptr && writer_->failed()) return absl::CancelledError();
    ASSIGN_OR_RETURN(const int parent, Parent(name.dir));
    switch (name.means) {
      case LayerName::Means::kOpaque:
        return MakeOpaque(parent, name.dir);
      case LayerName::Means::kWhiteout:
        return Whiteout(parent, name.base, entry);
      case LayerName::Means::kEntry:
        break;
    }
    return Create(entry, name.clean, parent, name.base);
  }

  absl::Status RemoveExisting(int parent, const std::string& name,
                              const struct stat& st) {
    counted_ = false;
    RETURN_IF_ERROR(RemoveAt(parent, name));
    // Cached descriptors may lead through what has gone.
    if (S_ISDIR(st.st_mode) || S_ISLNK(st.st_mode)) {
      stale_ = true;
      plain_dir_.reset();
    }
    return absl::OkStatus();
  }

  absl::Status Whiteout(int parent, const std::string& hidden,
                        const TarEntry& entry) {
    struct stat st;
    if (::fstatat(parent, hidden.c_str(), &st, AT_SYMLINK_NOFOLLOW) == 0) {
      RETURN_IF_ERROR(RemoveExisting(parent, hidden, st));
    }
    if (options_.overlay_whiteouts) {
      if (::mknodat(parent, hidden.c_str(), S_IFCHR, makedev(0, 0)) != 0) {
        return os::ErrnoStatus(errno, "mknod of a whiteout");
      }
      RETURN_IF_ERROR(CheckOwner(entry));
      if (::fchownat(parent, hidden.c_str(), entry.uid, entry.gid,
                     AT_SYMLINK_NOFOLLOW) != 0) {
        return os::ErrnoStatus(errno, "chown of a whiteout");
      }
      if (::fstatat(parent, hidden.c_str(), &st, AT_SYMLINK_NOFOLLOW) != 0) {
        return os::ErrnoStatus(errno, "stat of a whiteout");
      }
      Count(st);
    }
    return Settle();
  }

  // Descriptors are forgotten only after the last use of `parent`.
  absl::Status Settle() {
    if (stale_) root_->Forget();
    stale_ = false;
    return absl::OkStatus();
  }

  absl::Status MakeOpaque(int parent, const std::string& dir) {
    if (options_.overlay_whiteouts) {
      if (::fsetxattr(parent, kOpaqueXattr, "y", 1, 0) != 0) {
        return os::ErrnoStatus(errno, "setxattr trusted.overlay.opaque");
      }
      return absl::OkStatus();
    }
    const int copy = ::openat(parent, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR* stream = copy < 0 ? nullptr : ::fdopendir(copy);
    if (stream == nullptr) return os::ErrnoStatus(errno, "opendir");
    RETURN_IF_ERROR(ClearOld(stream, copy, dir, 0));
    return Settle();
  }

  // Deletes below an open directory what this layer did not put there. Takes
  // the stream.
  absl::Status ClearOld(DIR* stream, int fd, const std::string& dir,
                        int depth) {
    absl::Status status;
    if (depth > kTreeDepthMax) {
      status = absl::ResourceExhaustedError("the tree is too deep");
    }
    while (dirent* entry = status.ok() ? ::readdir(stream) : nullptr) {
      const std::string name = entry->d_name;
      if (name == "." || name == "..") continue;
      const std::string path =
          dir.empty() ? name : absl::StrCat(dir, "/", name);
      struct stat st;
      if (::fstatat(fd, name.c_str(), &st, AT_SYMLINK_NOFOLLOW) != 0) continue;
      if (!WasUnpacked(path)) {
        status = RemoveExisting(fd, name, st);
      } else if (S_ISDIR(st.st_mode)) {
        const int child = ::openat(
            fd, name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        DIR* below = child < 0 ? nullptr : ::fdopendir(child);
        if (below == nullptr) {
          status = os::ErrnoStatus(errno, absl::StrCat("open ", path));
        } else {
          status = ClearOld(below, child, path, depth + 1);
        }
      }
    }
    ::closedir(stream);
    return status;
  }

  absl::Status Create(const TarEntry& entry, const std::string& clean,
                      int parent, const std::string& base) {
    RETURN_IF_ERROR(CheckOwner(entry));
    struct stat st;
    bool was_whiteout = false;
    bool merge = false;
    // A fresh regular file, by far the commonest, needs no look first.
    if (entry.type == TarType::kFile) {
      const mode_t made = CreateMode(entry, clean, parent);
      os::UniqueFd fd(::openat(parent, base.c_str(), kCreateFlags, made));
      if (fd.valid()) return WriteFile(entry, clean, std::move(fd), made);
      if (errno != EEXIST) return os::ErrnoStatus(errno, "create");
    }
    if (::fstatat(parent, base.c_str(), &st, AT_SYMLINK_NOFOLLOW) == 0) {
      merge = S_ISDIR(st.st_mode) && entry.type == TarType::kDirectory;
      was_whiteout = S_ISCHR(st.st_mode) && st.st_rdev == makedev(0, 0);
      if (!merge) RETURN_IF_ERROR(RemoveExisting(parent, base, st));
    } else if (errno != ENOENT) {
      return os::ErrnoStatus(errno, "stat");
    }
    switch (entry.type) {
      case TarType::kFile: {
        os::UniqueFd fd(
            ::openat(parent, base.c_str(), kCreateFlags, kPrivateMode));
        if (!fd.valid()) return os::ErrnoStatus(errno, "create");
        RETURN_IF_ERROR(WriteFile(entry, clean, std::move(fd), kPrivateMode));
        break;
      }
      case TarType::kDirectory: {
        if (!merge && ::mkdirat(parent, base.c_str(), 0700) != 0) {
          return os::ErrnoStatus(errno, "mkdir");
        }
        if (!merge) ++dirs_made_;
        os::UniqueFd fd(
            ::openat(parent, base.c_str(),
                     O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
        if (!fd.valid()) return os::ErrnoStatus(errno, "open");
        // A directory in place of one deleted by this layer is a new one.
        if (was_whiteout && options_.overlay_whiteouts &&
            ::fsetxattr(fd.get(), kOpaqueXattr, "y", 1, 0) != 0) {
          return os::ErrnoStatus(errno, "setxattr trusted.overlay.opaque");
        }
        RETURN_IF_ERROR(
            SetOpenAttributes(fd.get(), FinishOf(entry, kPrivateMode)));
        plain_dir_.reset();  // It may have been this one.
        DirTime times{};
        TimesOf(entry, times.times);
        RETURN_IF_ERROR(RememberTimes(clean, times));
        implicit_.erase(clean);
        Unpacked(clean);
        break;
      }
      case TarType::kHardLink:
        RETURN_IF_ERROR(Link(entry, clean, parent, base));
        // Parent() may have replaced `parent`; nothing is done with it after.
        break;
      case TarType::kSymlink:
        if (::symlinkat(entry.link_name.c_str(), parent, base.c_str()) != 0) {
          return os::ErrnoStatus(errno, "symlink");
        }
        RETURN_IF_ERROR(SetAttributesAt(entry, parent, base));
        Unpacked(clean);
        break;
      case TarType::kCharDevice:
      case TarType::kBlockDevice:
      case TarType::kFifo:
        RETURN_IF_ERROR(MakeNode(entry, parent, base));
        Unpacked(clean);
        break;
    }
    return Settle();
  }

  // The mode to create a file with: its own where nothing of the directory
  // changes what becomes of it, so that it need not be set again.
  mode_t CreateMode(const TarEntry& entry, const std::string& clean,
                    int parent) {
    if ((entry.mode & 07000) != 0 || umask_ != 0 || !entry.xattrs.empty()) {
      return kPrivateMode;
    }
    const std::string dir = SplitName(clean).first;
    if (plain_dir_ != dir) {
      struct stat st;
      // Set-group-id hands down the group, a default ACL the mode's limits.
      const bool plain =
          ::fstat(parent, &st) == 0 && (st.st_mode & S_ISGID) == 0 &&
          ::fgetxattr(parent, "system.posix_acl_default", nullptr, 0) < 0;
      if (!plain) return kPrivateMode;
      plain_dir_ = dir;
    }
    return entry.mode;
  }

  static FileFinish FinishOf(const TarEntry& entry, mode_t made_mode) {
    FileFinish finish;
    finish.uid = entry.uid;
    finish.gid = entry.gid;
    finish.mode = entry.mode;
    finish.made_mode = made_mode;
    TimesOf(entry, finish.times);
    if (!entry.xattrs.empty()) finish.xattrs_of = &entry;
    return finish;
  }

  absl::Status WriteFile(const TarEntry& entry, const std::string& clean,
                         os::UniqueFd fd, mode_t made_mode) {
    for (const char* name : kStargzFiles) {
      std::vector<std::string>& seen = result_.stargz_files;
      if (clean == name &&
          std::find(seen.begin(), seen.end(), clean) == seen.end()) {
        seen.push_back(clean);
      }
    }
    Unpacked(clean);
    ++inodes_;
    if (entry.sparse && ::ftruncate(fd.get(), entry.size_bytes) != 0) {
      return os::ErrnoStatus(errno, "truncate");
    }
    // Jobs that wait keep no xattrs: these may be large.
    FileWriter* const writer = entry.xattrs.empty() ? writer_ : nullptr;
    FileJob job;
    job.fd = std::move(fd);
    if (writer != nullptr) job.name = entry.name;
    const auto hand_over = [&](FileJob next) -> absl::Status {
      if (writer == nullptr) return filler_.Do(next);
      writer->Push(std::move(next));
      return absl::OkStatus();
    };
    bool finished = false;
    if (entry.sparse || entry.size_bytes > 0) {
      RETURN_IF_ERROR(reader_.ReadData(
          [&](int64_t offset, absl::string_view data) -> absl::Status {
            job.data = data;
            job.offset_bytes = offset;
            if (writer != nullptr) job.hold = stream_.Hold();
            const auto end = offset + static_cast<int64_t>(data.size());
            finished = !entry.sparse && end == entry.size_bytes;
            if (finished) job.finish = FinishOf(entry, made_mode);
            return hand_over(std::exchange(job, FileJob{}));
          }));
    }
    if (finished) return absl::OkStatus();
    job.finish = FinishOf(entry, made_mode);
    return hand_over(std::move(job));
  }

  // Anything else, by name below `parent`; never follows a symlink.
  absl::Status SetAttributesAt(const TarEntry& entry, int parent,
                               const std::string& base) {
    os::UniqueFd fd(
        ::openat(parent, base.c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC));
    struct stat st;
    if (!fd.valid() || ::fstat(fd.get(), &st) != 0) {
      return os::ErrnoStatus(errno, "stat");
    }
    if (entry.type != TarType::kHardLink) Count(st);
    if (!entry.xattrs.empty()) counted_ = false;  // They may take a block.
    // A chown that changes nothing would still strip file capabilities.
    if ((st.st_uid != entry.uid || st.st_gid != entry.gid) &&
        ::fchownat(fd.get(), "", entry.uid, entry.gid, AT_EMPTY_PATH) != 0) {
      return os::ErrnoStatus(errno, "chown");
    }
    const std::string path = absl::StrCat("/proc/self/fd/", parent, "/", base);
    RETURN_IF_ERROR(
        SetXattrs(entry, [&](const std::string& key, const std::string& value) {
          return ::lsetxattr(path.c_str(), key.c_str(), value.data(),
                             value.size(), 0);
        }));
    if (!S_ISLNK(st.st_mode)) {
      const std::string self = absl::StrCat("/proc/self/fd/", fd.get());
      if (::chmod(self.c_str(), entry.mode) != 0) {
        return os::ErrnoStatus(errno, "chmod");
      }
    }
    timespec times[2];
    TimesOf(entry, times);
    if (::utimensat(parent, base.c_str(), times, AT_SYMLINK_NOFOLLOW) != 0) {
      return os::ErrnoStatus(errno, "utimes");
    }
    return absl::OkStatus();
  }

  absl::Status Link(const TarEntry& entry, const std::string& clean, int parent,
                    const std::string& base) {
    ASSIGN_OR_RETURN(const std::string target, CleanName(entry.link_name));
    if (target.empty()) {
      return absl::InvalidArgumentError("hard link to the root");
    }
    const auto [target_dir, target_base] = SplitName(target);
    // The next lookup may drop `parent` from the cache.
    ASSIGN_OR_RETURN(const os::UniqueFd own, os::Dup(parent));
    const absl::StatusOr<int> dir = root_->ExistingDir(target_dir);
    if (!dir.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("hard link to ", target.substr(0, 256), ": ",
                       MessageOf(dir.status())));
    }
    const int from = *dir;
    // The link's attributes are the file's, and count.
    RETURN_IF_ERROR(Drain());
    if (::linkat(from, target_base.c_str(), own.get(), base.c_str(), 0) != 0) {
      if (errno == ENOENT) {
        return absl::InvalidArgumentError(absl::StrCat(
            "hard link to ", target.substr(0, 256), ", which does not exist"));
      }
      return os::ErrnoStatus(errno, "link");
    }
    Unpacked(clean);
    return SetAttributesAt(entry, own.get(), base);
  }

  absl::Status MakeNode(const TarEntry& entry, int parent,
                        const std::string& base) {
    mode_t type = S_IFIFO;
    dev_t device = 0;
    if (entry.type != TarType::kFifo) {
      type = entry.type == TarType::kCharDevice ? S_IFCHR : S_IFBLK;
      ASSIGN_OR_RETURN(device, DeviceOf(entry));
    }
    if (::mknodat(parent, base.c_str(), type | 0600, device) != 0) {
      return os::ErrnoStatus(errno, "mknod");
    }
    return SetAttributesAt(entry, parent, base);
  }

  absl::Status SetDirTimes() {
    for (const auto& [path, dir] : dir_times_) {
      absl::StatusOr<int> fd = root_->ExistingDir(path);
      if (!fd.ok()) continue;  // Replaced or deleted further on in the layer.
      if (::futimens(*fd, dir.times) != 0) {
        return os::ErrnoStatus(errno, absl::StrCat("utimes ", path));
      }
      RETURN_IF_ERROR(CountDir(*fd));
    }
    return absl::OkStatus();
  }

  void Count(const struct stat& st) {
    ++inodes_;
    blocks_ += st.st_blocks;
  }

  absl::Status CountDir(int fd) {
    if (!counted_) return absl::OkStatus();
    struct stat st;
    if (::fstat(fd, &st) != 0) return os::ErrnoStatus(errno, "stat");
    Count(st);
    ++dirs_counted_;
    return absl::OkStatus();
  }

  // The rest of them; then everything is counted.
  absl::Status CountDirs() {
    for (const std::string& path : implicit_) {
      if (!counted_) break;
      if (dir_times_.contains(path)) continue;
      const absl::StatusOr<int> fd = root_->ExistingDir(path);
      if (fd.ok()) RETURN_IF_ERROR(CountDir(*fd));
    }
    // Others were made or counted under several names, through symlinks.
    if (!counted_ || dirs_counted_ != dirs_made_) return absl::OkStatus();
    RETURN_IF_ERROR(CountDir(root_->fd()));
    result_.inodes = inodes_;
    result_.blocks = blocks_ + filler_.blocks() +
                     (writer_ == nullptr ? 0 : writer_->blocks());
    return absl::OkStatus();
  }

  static constexpr int kCreateFlags =
      O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;

  ByteStream& stream_;
  TarReader reader_;
  FileWriter* const writer_;
  FileFiller filler_;  // What the writer is not for.
  std::unique_ptr<TreeRoot> root_;
  const ExtractOptions& options_;
  std::vector<os::UniqueFd> lowers_;
  absl::flat_hash_map<std::string, DirTime> dir_times_;
  int64_t dir_names_bytes_ = 0;
  std::set<std::string> implicit_;
  // Hashes only: a layer may have millions of entries.
  absl::flat_hash_set<size_t> unpacked_;
  const uintptr_t salt_ = reinterpret_cast<uintptr_t>(this);
  bool stale_ = false;
  // Whether what is below holds.
  bool counted_ = false;
  int64_t dirs_made_ = 0;
  int64_t dirs_counted_ = 0;
  int64_t inodes_ = 0;  // Directories and the blocks of files are added last.
  int64_t blocks_ = 0;
  const mode_t umask_;
  // The last directory that hands nothing down to files made in it.
  std::optional<std::string> plain_dir_;
  ExtractResult result_;
};

}  // namespace

absl::StatusOr<ExtractResult> ExtractTar(ByteStream& stream,
                                         const std::string& root,
                                         const ExtractOptions& options,
                                         FileWriter* writer) {
  ASSIGN_OR_RETURN(std::unique_ptr<TreeRoot> tree, TreeRoot::Open(root));
  return Extractor(stream, std::move(tree), options, writer).Run();
}

}  // namespace bulkhead::snapshotter
