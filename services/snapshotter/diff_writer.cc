#include "services/snapshotter/diff_writer.h"

#include <dirent.h>
#include <fcntl.h>
#include <isa-l/igzip_lib.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>
#include <zstd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/os/fd.h"
#include "lib/tar/writer.h"
#include "services/snapshotter/tree_root.h"

namespace bulkhead::snapshotter {
namespace {

constexpr int kDirFlags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
constexpr size_t kCopyBytes = 256 << 10;
constexpr char kCapability[] = "security.capability";

using tar::Header;
using tar::Padding;

// What of a file the two walks compare and write.
struct Node {
  struct stat st {};
  std::string capability;
};

class DiffWalk {
 public:
  DiffWalk(std::optional<int64_t> mtime_max, const ByteSink& sink)
      : mtime_max_(mtime_max), sink_(sink) {}

  absl::Status Run(int left, int right, int upper) {
    RETURN_IF_ERROR(Walk(left, right, upper, "", 0));
    return tar::WriteEnd(sink_);
  }

 private:
  using InodeKey = std::pair<dev_t, ino_t>;

  static absl::StatusOr<std::set<std::string>> Names(int fd) {
    std::set<std::string> names;
    if (fd < 0) return names;
    const int copy = ::openat(fd, ".", kDirFlags);
    DIR* stream = copy < 0 ? nullptr : ::fdopendir(copy);
    if (stream == nullptr) return os::ErrnoStatus(errno, "opendir");
    while (const dirent* entry = ::readdir(stream)) {
      const std::string name = entry->d_name;
      if (name != "." && name != "..") names.insert(name);
    }
    ::closedir(stream);
    return names;
  }

  static absl::StatusOr<Node> Look(int dir, const std::string& name) {
    Node node;
    if (::fstatat(dir, name.c_str(), &node.st, AT_SYMLINK_NOFOLLOW) != 0) {
      return os::ErrnoStatus(errno, absl::StrCat("stat ", name));
    }
    const std::string path = absl::StrCat("/proc/self/fd/", dir, "/", name);
    char value[256];
    const ssize_t n =
        ::lgetxattr(path.c_str(), kCapability, value, sizeof(value));
    if (n > 0) node.capability.assign(value, n);
    return node;
  }

  static absl::StatusOr<std::string> LinkTarget(int dir,
                                                const std::string& name) {
    char target[PATH_MAX];
    const ssize_t n = ::readlinkat(dir, name.c_str(), target, sizeof(target));
    if (n < 0 || n == sizeof(target)) {
      return os::ErrnoStatus(n < 0 ? errno : ENAMETOOLONG, "readlink");
    }
    return std::string(target, n);
  }

  absl::StatusOr<bool> SameContent(int left, int right,
                                   const std::string& name) {
    os::UniqueFd a(
        ::openat(left, name.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC));
    os::UniqueFd b(
        ::openat(right, name.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC));
    if (!a.valid() || !b.valid()) return os::ErrnoStatus(errno, name);
    std::string x(kCopyBytes, '\0');
    std::string y(kCopyBytes, '\0');
    for (;;) {
      ASSIGN_OR_RETURN(const size_t n,
                       os::ReadFull(a.get(), x.data(), x.size()));
      ASSIGN_OR_RETURN(const size_t m,
                       os::ReadFull(b.get(), y.data(), y.size()));
      if (n != m || std::memcmp(x.data(), y.data(), n) != 0) return false;
      if (n == 0) return true;
    }
  }

  absl::StatusOr<bool> Same(int left, int right, const std::string& name,
                            const Node& a, const Node& b) {
    if (a.st.st_dev == b.st.st_dev && a.st.st_ino == b.st.st_ino) return true;
    if (a.st.st_mode != b.st.st_mode || a.st.st_uid != b.st.st_uid ||
        a.st.st_gid != b.st.st_gid || a.st.st_rdev != b.st.st_rdev ||
        a.capability != b.capability) {
      return false;
    }
    if (S_ISDIR(a.st.st_mode)) return true;
    if (a.st.st_size != b.st.st_size ||
        a.st.st_mtim.tv_sec != b.st.st_mtim.tv_sec ||
        a.st.st_mtim.tv_nsec != b.st.st_mtim.tv_nsec) {
      return false;
    }
    // Whole seconds may have been set by a tool: look inside.
    if (a.st.st_mtim.tv_nsec != 0) return true;
    if (S_ISLNK(a.st.st_mode)) {
      ASSIGN_OR_RETURN(const std::string to, LinkTarget(left, name));
      ASSIGN_OR_RETURN(const std::string too, LinkTarget(right, name));
      return to == too;
    }
    if (S_ISREG(a.st.st_mode)) return SameContent(left, right, name);
    return true;
  }

  static bool Exists(int dir, const std::string& name) {
    struct stat st;
    return dir >= 0 &&
           ::fstatat(dir, name.c_str(), &st, AT_SYMLINK_NOFOLLOW) == 0;
  }

  // A folder of an upper folder that shows what is below it, at its own place.
  static bool IsMerged(int upper) {
    for (const char* key :
         {"trusted.overlay.opaque", "trusted.overlay.redirect",
          "user.overlay.opaque", "user.overlay.redirect"}) {
      if (::fgetxattr(upper, key, nullptr, 0) >= 0) return false;
    }
    return true;
  }

  // `upper` (may be -1): where alone differences of this folder can be.
  absl::Status Walk(int left, int right, int upper, const std::string& dir,
                    int depth) {
    if (depth > kTreeDepthMax) {
      return absl::ResourceExhaustedError("the tree is too deep");
    }
    std::set<std::string> old_names;
    std::set<std::string> new_names;
    std::set<std::string> all;
    if (upper >= 0) {
      ASSIGN_OR_RETURN(all, Names(upper));
      for (const std::string& name : all) {
        if (Exists(left, name)) old_names.insert(name);
        if (Exists(right, name)) new_names.insert(name);
      }
    } else {
      ASSIGN_OR_RETURN(old_names, Names(left));
      ASSIGN_OR_RETURN(new_names, Names(right));
      all = old_names;
      all.insert(new_names.begin(), new_names.end());
    }
    for (const std::string& name : all) {
      const std::string path =
          dir.empty() ? name : absl::StrCat(dir, "/", name);
      if (!new_names.contains(name)) {
        if (!old_names.contains(name)) continue;  // Hides nothing.
        RETURN_IF_ERROR(EmitParents(dir));
        Header gone;
        gone.name = absl::StrCat(dir, dir.empty() ? "" : "/", ".wh.", name);
        RETURN_IF_ERROR(Emit(gone));
        continue;
      }
      ASSIGN_OR_RETURN(const Node now, Look(right, name));
      bool same = false;
      bool both_dirs = false;
      if (old_names.contains(name)) {
        ASSIGN_OR_RETURN(const Node then, Look(left, name));
        ASSIGN_OR_RETURN(same, Same(left, right, name, then, now));
        both_dirs = S_ISDIR(then.st.st_mode) && S_ISDIR(now.st.st_mode);
      }
      const bool is_dir = S_ISDIR(now.st.st_mode);
      if (is_dir) nodes_[path] = now;
      if (!same || (!is_dir && now.st.st_nlink > 1)) {
        RETURN_IF_ERROR(EmitNode(right, name, path, now, same));
      }
      if (is_dir) {
        os::UniqueFd below(::openat(right, name.c_str(), kDirFlags));
        os::UniqueFd old_below;
        if (both_dirs) {
          old_below.Reset(::openat(left, name.c_str(), kDirFlags));
        }
        if (!below.valid() || (both_dirs && !old_below.valid())) {
          return os::ErrnoStatus(errno, absl::StrCat("open ", path));
        }
        os::UniqueFd upper_below;
        if (both_dirs && upper >= 0) {
          upper_below.Reset(::openat(upper, name.c_str(), kDirFlags));
          if (upper_below.valid() && !IsMerged(upper_below.get())) {
            upper_below.Reset();
          }
        }
        RETURN_IF_ERROR(Walk(old_below.get(), below.get(), upper_below.get(),
                             path, depth + 1));
      }
    }
    return absl::OkStatus();
  }

  Header HeaderOf(const std::string& path, const Node& node) const {
    Header h;
    h.name = S_ISDIR(node.st.st_mode) ? path + "/" : path;
    h.mode = node.st.st_mode & 07777;
    h.uid = node.st.st_uid;
    h.gid = node.st.st_gid;
    h.mtime = node.st.st_mtim.tv_sec;
    if (mtime_max_ && h.mtime > *mtime_max_) h.mtime = *mtime_max_;
    h.capability = node.capability;
    return h;
  }

  // Every directory on the way, once each, the top first.
  absl::Status EmitParents(const std::string& dir) {
    if (dir.empty() || emitted_dirs_.contains(dir)) return absl::OkStatus();
    RETURN_IF_ERROR(EmitParents(SplitName(dir).first));
    Header h = HeaderOf(dir, nodes_[dir]);
    h.type = '5';
    emitted_dirs_.insert(dir);
    return Emit(h);
  }

  absl::Status EmitLink(const std::string& path, const std::string& to,
                        const Node& node) {
    RETURN_IF_ERROR(EmitParents(SplitName(path).first));
    Header h = HeaderOf(path, node);
    h.type = '1';
    h.link = to;
    return Emit(h);
  }

  // `same`: only of interest as a further name of something that changed.
  absl::Status EmitNode(int dir, const std::string& name,
                        const std::string& path, const Node& node, bool same) {
    const mode_t type = node.st.st_mode & S_IFMT;
    if (type == S_IFDIR) return EmitParents(path);
    if (type == S_IFSOCK) return absl::OkStatus();
    std::vector<std::string> waiting;
    if (node.st.st_nlink > 1) {
      const InodeKey key{node.st.st_dev, node.st.st_ino};
      const auto first = first_names_.find(key);
      if (first != first_names_.end()) {
        return EmitLink(path, first->second, node);
      }
      if (same) {
        unchanged_names_[key].push_back(path);
        return absl::OkStatus();
      }
      first_names_[key] = path;
      waiting = std::move(unchanged_names_[key]);
      unchanged_names_.erase(key);
    }
    RETURN_IF_ERROR(EmitParents(SplitName(path).first));
    Header h = HeaderOf(path, node);
    switch (type) {
      case S_IFREG: {
        h.size = node.st.st_size;
        RETURN_IF_ERROR(Emit(h));
        RETURN_IF_ERROR(EmitData(dir, name, path, h.size));
        break;
      }
      case S_IFLNK: {
        h.type = '2';
        ASSIGN_OR_RETURN(h.link, LinkTarget(dir, name));
        RETURN_IF_ERROR(Emit(h));
        break;
      }
      default:
        h.type = type == S_IFCHR ? '3' : type == S_IFBLK ? '4' : '6';
        if (type != S_IFIFO) {
          h.major = major(node.st.st_rdev);
          h.minor = minor(node.st.st_rdev);
        }
        RETURN_IF_ERROR(Emit(h));
    }
    for (const std::string& other : waiting) {
      RETURN_IF_ERROR(EmitLink(other, path, node));
    }
    return absl::OkStatus();
  }

  absl::Status EmitData(int dir, const std::string& name,
                        const std::string& path, uint64_t size) {
    os::UniqueFd fd(
        ::openat(dir, name.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC));
    if (!fd.valid()) return os::ErrnoStatus(errno, absl::StrCat("open ", path));
    if (buffer_.empty()) buffer_.resize(kCopyBytes);
    for (uint64_t left = size; left > 0;) {
      ASSIGN_OR_RETURN(const size_t n,
                       os::ReadFull(fd.get(), buffer_.data(),
                                    std::min<uint64_t>(left, buffer_.size())));
      if (n == 0) {
        return absl::AbortedError(
            absl::StrCat(path, " shrank while it was read"));
      }
      RETURN_IF_ERROR(sink_(absl::string_view(buffer_.data(), n)));
      left -= n;
    }
    return sink_(Padding(size));
  }

  absl::Status Emit(const Header& h) { return tar::WriteHeader(h, sink_); }

  const std::optional<int64_t> mtime_max_;
  const ByteSink& sink_;
  std::map<std::string, Node> nodes_;   // The directories of `right`.
  std::set<std::string> emitted_dirs_;  // Of those.
  std::map<InodeKey, std::string> first_names_;
  std::map<InodeKey, std::vector<std::string>> unchanged_names_;
  std::string buffer_;
};

absl::Status Gzip(const ByteSink& sink,
                  absl::FunctionRef<absl::Status(const ByteSink&)> produce) {
  isal_zstream stream;
  isal_deflate_init(&stream);
  std::vector<uint8_t> level_buffer(ISAL_DEF_LVL2_DEFAULT);
  stream.level = 2;
  stream.level_buf = level_buffer.data();
  stream.level_buf_size = level_buffer.size();
  stream.gzip_flag = IGZIP_GZIP;
  stream.flush = NO_FLUSH;
  std::vector<uint8_t> out(kCopyBytes);
  auto run = [&](absl::string_view data, bool end) -> absl::Status {
    stream.next_in = reinterpret_cast<uint8_t*>(const_cast<char*>(data.data()));
    stream.avail_in = data.size();
    stream.end_of_stream = end;
    do {
      stream.next_out = out.data();
      stream.avail_out = out.size();
      if (isal_deflate(&stream) != COMP_OK) {
        return absl::InternalError("deflate failed");
      }
      const size_t n = out.size() - stream.avail_out;
      if (n > 0) {
        RETURN_IF_ERROR(sink(
            absl::string_view(reinterpret_cast<const char*>(out.data()), n)));
      }
    } while (stream.avail_out == 0 ||
             (end && stream.internal_state.state != ZSTATE_END));
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(
      produce([&](absl::string_view data) { return run(data, false); }));
  return run("", true);
}

absl::Status Zstd(const ByteSink& sink,
                  absl::FunctionRef<absl::Status(const ByteSink&)> produce) {
  const std::unique_ptr<ZSTD_CStream, size_t (*)(ZSTD_CStream*)> stream(
      ZSTD_createCStream(), ZSTD_freeCStream);
  if (stream == nullptr) return absl::ResourceExhaustedError("zstd memory");
  ZSTD_CCtx_setParameter(stream.get(), ZSTD_c_compressionLevel, 3);
  std::vector<char> out(kCopyBytes);
  auto run = [&](absl::string_view data, ZSTD_EndDirective end) {
    ZSTD_inBuffer input{data.data(), data.size(), 0};
    size_t left = 0;
    do {
      ZSTD_outBuffer output{out.data(), out.size(), 0};
      left = ZSTD_compressStream2(stream.get(), &output, &input, end);
      if (ZSTD_isError(left)) {
        return absl::InternalError(
            absl::StrCat("zstd: ", ZSTD_getErrorName(left)));
      }
      if (output.pos > 0) {
        RETURN_IF_ERROR(sink(absl::string_view(out.data(), output.pos)));
      }
    } while (end == ZSTD_e_end ? left != 0 : input.pos < input.size);
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(produce(
      [&](absl::string_view data) { return run(data, ZSTD_e_continue); }));
  return run("", ZSTD_e_end);
}

}  // namespace

absl::Status WriteDiff(const std::string& left, const std::string& right,
                       std::optional<int64_t> mtime_max_seconds,
                       const ByteSink& sink, const std::string& upper) {
  ASSIGN_OR_RETURN(os::UniqueFd a, os::Open(left, O_RDONLY | O_DIRECTORY));
  ASSIGN_OR_RETURN(os::UniqueFd b, os::Open(right, O_RDONLY | O_DIRECTORY));
  os::UniqueFd c;
  if (!upper.empty()) {
    ASSIGN_OR_RETURN(c, os::Open(upper, O_RDONLY | O_DIRECTORY));
  }
  return DiffWalk(mtime_max_seconds, sink).Run(a.get(), b.get(), c.get());
}

std::string UpperOf(const std::vector<os::MountSpec>& left,
                    const std::vector<os::MountSpec>& right) {
  const auto value = [](const os::MountSpec& mount, const std::string& key) {
    for (const std::string& option : mount.options) {
      if (absl::StartsWith(option, key)) return option.substr(key.size());
    }
    return std::string();
  };
  if (left.size() != 1 || right.size() != 1) return "";
  const os::MountSpec& below = left[0];
  const os::MountSpec& top = right[0];
  if (top.type != "overlay" || !below.target.empty() || !top.target.empty()) {
    return "";
  }
  for (const os::MountSpec* mount : {&below, &top}) {
    // Owners differ all over, or layers are not what they seem.
    if (!value(*mount, "uidmap=").empty()) return "";
  }
  const std::string lowers = value(top, "lowerdir=");
  const std::string under =
      below.type == "bind" ? below.source
      : below.type == "overlay" && value(below, "upperdir=").empty()
          ? value(below, "lowerdir=")
          : "";
  return !lowers.empty() && lowers == under ? value(top, "upperdir=") : "";
}

absl::Status Compress(
    Compression compression, const ByteSink& sink,
    absl::FunctionRef<absl::Status(const ByteSink&)> produce) {
  switch (compression) {
    case Compression::kGzip:
      return Gzip(sink, produce);
    case Compression::kZstd:
      return Zstd(sink, produce);
    case Compression::kNone:
      break;
  }
  return produce(sink);
}

std::vector<os::MountSpec> ReadOnlyMounts(
    const std::vector<os::MountSpec>& mounts) {
  std::vector<os::MountSpec> out;
  for (os::MountSpec mount : mounts) {
    std::string upper;
    std::vector<std::string> options;
    for (const std::string& option : mount.options) {
      if (absl::StartsWith(option, "upperdir=")) {
        upper = option.substr(sizeof("upperdir=") - 1);
      } else if (!absl::StartsWith(option, "workdir=") && option != "rw" &&
                 option != "ro") {
        options.push_back(option);
      }
    }
    if (mount.type == "overlay") {
      for (std::string& option : options) {
        if (upper.empty() || !absl::StartsWith(option, "lowerdir=")) continue;
        option.insert(sizeof("lowerdir=") - 1, upper + ":");
      }
    } else {
      options.push_back("ro");
    }
    mount.options = std::move(options);
    out.push_back(std::move(mount));
  }
  return out;
}

}  // namespace bulkhead::snapshotter
