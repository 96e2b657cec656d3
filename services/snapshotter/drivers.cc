// The drivers whose snapshots are plain directories, and what all share.
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "lib/base/status_macros.h"
#include "lib/log/log.h"
#include "lib/os/fd.h"
#include "lib/os/remove_tree.h"
#include "lib/os/volume.h"
#include "services/snapshotter/driver.h"
#include "services/snapshotter/tree_ops.h"
#include "services/snapshotter/tree_root.h"

namespace bulkhead::snapshotter {
namespace {

constexpr char kMaxSizeLabel[] = "containerd.io/snapshot/max-size";
constexpr size_t kImplicitFileBytesMax = 64 << 20;
constexpr int64_t kBlockBytes = 512;  // Of st_blocks.
constexpr size_t kUidMapFileBytesMax = 64 << 10;

// The host id of the container's root in "ctr:host:size[,...]".
std::optional<uint32_t> MappedRoot(const std::string& mapping) {
  for (absl::string_view part : absl::StrSplit(mapping, ',')) {
    const std::vector<std::string> fields = absl::StrSplit(part, ':');
    uint32_t inside = 0;
    uint32_t outside = 0;
    uint32_t size = 0;
    if (fields.size() != 3 || !absl::SimpleAtoi(fields[0], &inside) ||
        !absl::SimpleAtoi(fields[1], &outside) ||
        !absl::SimpleAtoi(fields[2], &size)) {
      return std::nullopt;
    }
    if (inside == 0 && size > 0) return outside;
  }
  return std::nullopt;
}

bool InUserNamespace() {
  const auto map = os::ReadFile("/proc/self/uid_map", kUidMapFileBytesMax);
  if (!map.ok()) return false;
  const std::vector<std::string> fields =
      absl::StrSplit(*map, absl::ByAnyChar(" \n"), absl::SkipEmpty());
  return fields != std::vector<std::string>{"0", "0", "4294967295"};
}

std::vector<std::string> ExtraOptions(const DriverOptions& options) {
  std::vector<std::string> extra = options.overlay_mount_options;
  const auto configured = [&extra](const std::string& prefix) {
    return std::any_of(extra.begin(), extra.end(),
                       [&prefix](const std::string& option) {
                         return absl::StartsWith(option, prefix);
                       });
  };
  if (InUserNamespace() && !configured("userxattr")) {
    extra.push_back("userxattr");  // trusted.* cannot be written there.
  }
  struct stat st;
  if (!configured("index=") &&
      ::stat("/sys/module/overlay/parameters/index", &st) == 0) {
    extra.push_back("index=off");
  }
  return extra;
}

std::string ImplicitOf(const std::string& dir) { return dir + "/implicit"; }

absl::Status MakeDir(const std::string& path, mode_t mode) {
  if (::mkdir(path.c_str(), mode) != 0 || ::chmod(path.c_str(), mode) != 0) {
    return os::ErrnoStatus(errno, absl::StrCat("mkdir ", path));
  }
  return absl::OkStatus();
}

absl::StatusOr<int64_t> BlocksOf(int fd) {
  struct stat st;
  if (::fstat(fd, &st) != 0) return os::ErrnoStatus(errno, "fstat");
  return static_cast<int64_t>(st.st_blocks);
}

// "1048576", "10M", "2Gi", "5GB": multiples of 1024.
absl::StatusOr<int64_t> ParseSize(const std::string& text) {
  size_t digits = 0;
  while (digits < text.size() && text[digits] >= '0' && text[digits] <= '9') {
    ++digits;
  }
  int64_t value = 0;
  const std::string suffix = text.substr(digits);
  static const char kUnits[] = "KMGT";
  int64_t unit = 1;
  const char* at = suffix.empty() ? nullptr : std::strchr(kUnits, suffix[0]);
  if (at != nullptr && suffix[0] != '\0') {
    unit = int64_t{1} << (10 * (at - kUnits + 1));
  }
  const bool known =
      suffix.empty() ||
      (at != nullptr && (suffix.size() == 1 || suffix.substr(1) == "i" ||
                         suffix.substr(1) == "B" || suffix.substr(1) == "iB"));
  if (!known || !absl::SimpleAtoi(text.substr(0, digits), &value) ||
      value <= 0 || value > (int64_t{1} << 60) / unit) {
    return absl::InvalidArgumentError(
        absl::StrCat("label ", kMaxSizeLabel, "=\"", text.substr(0, 64),
                     "\" is not a size such as 1048576, 100M or 2G"));
  }
  return value * unit;
}

class OverlayDriver : public Driver {
 public:
  explicit OverlayDriver(const DriverOptions& options) : overlay_(options) {}

  bool CanRebase() const override { return !InUserNamespace(); }

  absl::Status Make(const Place& place, const Places& below) override {
    RETURN_IF_ERROR(LimitSize(place));
    return overlay_.Make(place, below.empty() ? "" : below[0].tree());
  }
  absl::StatusOr<std::vector<os::MountSpec>> Mounts(
      const Place& place, const Places& below) override {
    return overlay_.Mounts(place, Trees(below));
  }
  absl::StatusOr<DiskUsage> Seal(
      const Place& place, const Places& below, bool rebased, bool synced,
      const std::optional<DiskUsage>& measured) override {
    int64_t grown_bytes = 0;
    if (rebased) {
      // Need not be synced: Settle() does it again.
      ASSIGN_OR_RETURN(grown_bytes, FillImplicitDirs(place.dir, Trees(below)));
    }
    if (!synced) RETURN_IF_ERROR(SyncFileSystem(place.dir));
    if (!synced || !measured) return UsageOfTree(place.tree());
    DiskUsage usage = *measured;
    usage.size_bytes += grown_bytes;
    return usage;
  }
  void Sealed(const Place& place, bool rebased) override {
    // Nothing was filled: of use to nobody now.
    if (!rebased) ::unlink(ImplicitOf(place.dir).c_str());
  }
  bool IsUnsettled(const Place& place) override {
    return HasImplicitDirs(place.dir);
  }
  absl::Status Settle(const std::vector<Places>& chains) override {
    absl::Status first_error;
    std::set<uint64_t> failed;
    std::vector<std::string> settled;
    for (const Places& chain : chains) {
      const Places below(chain.begin() + 1, chain.end());
      // What a parent lacks is not to be taken for what it has.
      absl::Status status =
          std::any_of(
              below.begin(), below.end(),
              [&](const Place& place) { return failed.contains(place.id); })
              ? absl::FailedPreconditionError("a parent is not settled")
              : FillImplicitDirs(chain[0].dir, Trees(below)).status();
      if (status.ok()) {
        settled.push_back(ImplicitOf(chain[0].dir));
        continue;
      }
      failed.insert(chain[0].id);
      first_error.Update(Annotate(status, chain[0].dir));
    }
    RETURN_IF_ERROR(SyncFileSystem(chains[0][0].dir));
    for (const std::string& file : settled) ::unlink(file.c_str());
    return first_error;
  }
  absl::StatusOr<DiskUsage> Usage(const Place& place, const Places&) override {
    return UsageOfTree(place.tree());
  }
  absl::Status NoteUnpacked(
      const Place& place,
      const std::vector<std::string>& implicit_dirs) override {
    return WriteImplicitDirs(place.dir, implicit_dirs);
  }

 private:
  static std::vector<std::string> Trees(const Places& places) {
    std::vector<std::string> trees;
    for (const Place& place : places) trees.push_back(place.tree());
    return trees;
  }

  OverlayMounts overlay_;
};

class NativeDriver : public Driver {
 public:
  absl::Status Make(const Place& place, const Places& below) override {
    RETURN_IF_ERROR(LimitSize(place));
    RETURN_IF_ERROR(MakeDir(place.tree(), 0755));
    if (place.kind != Kind::kActive || below.empty()) return absl::OkStatus();
    return CopyTree(below[0].tree(), place.tree());
  }
  absl::StatusOr<std::vector<os::MountSpec>> Mounts(
      const Place& place, const Places& below) override {
    const bool view = place.kind == Kind::kView;
    os::MountSpec mount;
    mount.type = "bind";
    mount.source = view && !below.empty() ? below[0].tree() : place.tree();
    mount.options = {"rbind", view ? "ro" : "rw"};
    return std::vector<os::MountSpec>{mount};
  }
  absl::StatusOr<DiskUsage> Seal(
      const Place& place, const Places& below, bool, bool synced,
      const std::optional<DiskUsage>& measured) override {
    if (!synced) RETURN_IF_ERROR(SyncFileSystem(place.dir));
    return synced && measured ? *measured : Usage(place, below);
  }
  absl::StatusOr<DiskUsage> Usage(const Place& place, const Places&) override {
    return UsageOfTree(place.tree());
  }
};

// Deletes the subvolumes below an open directory, however they are nested.
absl::Status DestroyInside(const std::string& path, int depth) {
  if (depth > kTreeDepthMax) {
    return absl::ResourceExhaustedError(
        absl::StrCat(path, " is deeper than ", kTreeDepthMax, " directories"));
  }
  DIR* stream = ::opendir(path.c_str());
  if (stream == nullptr) return os::ErrnoStatus(errno, path);
  struct stat own {};
  absl::Status status;
  if (::fstat(::dirfd(stream), &own) != 0) {
    status = os::ErrnoStatus(errno, path);
  }
  while (const dirent* entry = status.ok() ? ::readdir(stream) : nullptr) {
    const std::string name = entry->d_name;
    struct stat st;
    if (name == "." || name == ".." ||
        ::fstatat(::dirfd(stream), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) !=
            0 ||
        !S_ISDIR(st.st_mode)) {
      continue;
    }
    status = DestroyInside(absl::StrCat(path, "/", name), depth + 1);
    if (status.ok() && st.st_dev != own.st_dev) {
      status = os::DestroySubvolume(path, name);
    }
  }
  ::closedir(stream);
  return status;
}

class BtrfsDriver : public NativeDriver {
 public:
  absl::Status Check(const std::string& root) override {
    ASSIGN_OR_RETURN(const bool btrfs, os::IsBtrfs(root));
    if (btrfs) return absl::OkStatus();
    return absl::FailedPreconditionError(
        absl::StrCat("snapshotter btrfs: ", root, " is not on btrfs"));
  }
  absl::Status Make(const Place& place, const Places& below) override {
    RETURN_IF_ERROR(LimitSize(place));
    if (place.kind == Kind::kActive && !below.empty()) {
      return os::SnapshotSubvolume(below[0].tree(), place.dir, "fs");
    }
    return os::CreateSubvolume(place.dir, "fs");
  }
  absl::StatusOr<DiskUsage> Usage(const Place& place,
                                  const Places& below) override {
    if (below.empty()) return UsageOfTree(place.tree());
    return UsageSince(place.tree(), below[0].tree());
  }
  absl::Status Delete(const std::string& dir) override {
    // A crash between making the folder and the subvolume leaves none.
    absl::Status status = os::DestroySubvolume(dir, "fs");
    if (!status.ok() && !absl::IsNotFound(status)) {
      // A container made subvolumes of its own.
      RETURN_IF_ERROR(DestroyInside(dir + "/fs", 0));
      RETURN_IF_ERROR(os::DestroySubvolume(dir, "fs"));
    }
    return Driver::Delete(dir);
  }
};

}  // namespace

absl::Status Driver::Delete(const std::string& dir) {
  UnlimitSize(dir);
  // Two deletions at once keep the processors busy; one alone gets help.
  static std::atomic<int> deletions = 0;
  ++deletions;
  const absl::Status status =
      os::RemoveAllParallel(dir, [] { return deletions == 1; });
  --deletions;
  return status;
}

OverlayMounts::OverlayMounts(const DriverOptions& options)
    : extra_(ExtraOptions(options)) {}

// The tree belongs to the mapped root, or to whom the nearest parent's belongs.
absl::Status OverlayMounts::Make(const Place& place,
                                 const std::string& nearest) {
  const std::string fs = place.tree();
  RETURN_IF_ERROR(MakeDir(fs, 0755));
  if (place.kind == Kind::kActive) {
    RETURN_IF_ERROR(MakeDir(place.dir + "/work", 0711));
  }
  const auto uid_label = place.labels.find(kUidMappingLabel);
  const auto gid_label = place.labels.find(kGidMappingLabel);
  uid_t uid = 0;
  gid_t gid = 0;
  if (uid_label != place.labels.end() && gid_label != place.labels.end()) {
    const std::optional<uint32_t> mapped_uid = MappedRoot(uid_label->second);
    const std::optional<uint32_t> mapped_gid = MappedRoot(gid_label->second);
    if (!mapped_uid || !mapped_gid) {
      return absl::InvalidArgumentError(
          absl::StrCat("no container root in uid mapping \"", uid_label->second,
                       "\", gid mapping \"", gid_label->second, "\""));
    }
    uid = *mapped_uid;
    gid = *mapped_gid;
  } else if (!nearest.empty()) {
    struct stat st;
    if (::stat(nearest.c_str(), &st) != 0) {
      return os::ErrnoStatus(errno, nearest);
    }
    uid = st.st_uid;
    gid = st.st_gid;
  }
  if ((uid != 0 || gid != 0) && ::lchown(fs.c_str(), uid, gid) != 0) {
    return os::ErrnoStatus(errno, absl::StrCat("chown ", fs));
  }
  return absl::OkStatus();
}

std::vector<os::MountSpec> OverlayMounts::Mounts(
    const Place& place, const std::vector<std::string>& lowers) {
  const bool view = place.kind == Kind::kView;
  os::MountSpec mount;
  const auto uid = place.labels.find(kUidMappingLabel);
  const auto gid = place.labels.find(kGidMappingLabel);
  if (uid != place.labels.end() && gid != place.labels.end()) {
    mount.options.push_back("uidmap=" + uid->second);
    mount.options.push_back("gidmap=" + gid->second);
  }
  if (lowers.empty() || (view && lowers.size() == 1)) {
    mount.type = "bind";
    mount.source = lowers.empty() ? place.tree() : lowers[0];
    mount.options.push_back(view ? "ro" : "rw");
    mount.options.push_back("rbind");
    return {mount};
  }
  mount.type = "overlay";
  mount.source = "overlay";
  if (!view) {
    mount.options.push_back(absl::StrCat("workdir=", place.dir, "/work"));
    mount.options.push_back(absl::StrCat("upperdir=", place.tree()));
  }
  mount.options.push_back(
      absl::StrCat("lowerdir=", absl::StrJoin(lowers, ":")));
  mount.options.insert(mount.options.end(), extra_.begin(), extra_.end());
  return {mount};
}

absl::Status WriteImplicitDirs(const std::string& dir,
                               const std::vector<std::string>& names) {
  if (names.empty()) return absl::OkStatus();
  std::string text;
  for (const std::string& name : names) text.append(name).push_back('\0');
  ASSIGN_OR_RETURN(
      os::UniqueFd fd,
      os::Open(ImplicitOf(dir), O_WRONLY | O_CREAT | O_TRUNC, 0600));
  return os::WriteFull(fd.get(), text.data(), text.size());
}

bool HasImplicitDirs(const std::string& dir) {
  return ::access(ImplicitOf(dir).c_str(), F_OK) == 0;
}

absl::StatusOr<int64_t> FillImplicitDirs(
    const std::string& dir, const std::vector<std::string>& lowers) {
  absl::StatusOr<std::string> text =
      os::ReadFile(ImplicitOf(dir), kImplicitFileBytesMax);
  if (absl::IsNotFound(text.status())) return 0;
  RETURN_IF_ERROR(text.status());
  ASSIGN_OR_RETURN(os::UniqueFd tree,
                   os::Open(dir + "/fs", O_RDONLY | O_DIRECTORY));
  std::vector<os::UniqueFd> below;
  for (const std::string& lower : lowers) {
    ASSIGN_OR_RETURN(os::UniqueFd fd, os::Open(lower, O_PATH | O_DIRECTORY));
    below.push_back(std::move(fd));
  }
  int64_t grown_blocks = 0;
  for (absl::string_view part : absl::StrSplit(*text, '\0')) {
    const std::string path(part.data(), part.size());
    if (path.empty()) continue;
    absl::StatusOr<os::UniqueFd> to =
        os::OpenInRoot(tree.get(), path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
    if (!to.ok()) continue;  // Replaced further on in the layer.
    for (const os::UniqueFd& fd : below) {
      absl::StatusOr<os::UniqueFd> from =
          os::OpenInRoot(fd.get(), path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
      if (absl::IsNotFound(from.status())) continue;
      // Anything but a directory hides what is further below.
      if (!from.ok()) break;
      ASSIGN_OR_RETURN(const int64_t before, BlocksOf(to->get()));
      RETURN_IF_ERROR(CopyDirAttributes(from->get(), to->get()));
      ASSIGN_OR_RETURN(const int64_t after, BlocksOf(to->get()));
      grown_blocks += after - before;
      break;
    }
  }
  return grown_blocks * kBlockBytes;
}

absl::Status SyncFileSystem(const std::string& dir) {
  ASSIGN_OR_RETURN(os::UniqueFd fd, os::Open(dir, O_RDONLY | O_DIRECTORY));
  if (::syncfs(fd.get()) != 0) return os::ErrnoStatus(errno, "syncfs");
  return absl::OkStatus();
}

absl::Status LimitSize(const Place& place) {
  const auto label = place.labels.find(kMaxSizeLabel);
  if (label == place.labels.end() || place.kind != Kind::kActive) {
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(const int64_t bytes, ParseSize(label->second));
  return Annotate(os::SetTreeLimit(place.dir, bytes), kMaxSizeLabel);
}

void UnlimitSize(const std::string& dir) {
  const absl::Status status = os::ClearTreeLimit(dir);
  if (status.ok()) return;
  log::Warn("size limit not removed",
            {{"path", dir}, {"error", MessageOf(status)}});
}

std::unique_ptr<Driver> NewOverlayDriver(const DriverOptions& options) {
  return std::make_unique<OverlayDriver>(options);
}
std::unique_ptr<Driver> NewNativeDriver() {
  return std::make_unique<NativeDriver>();
}
std::unique_ptr<Driver> NewBtrfsDriver() {
  return std::make_unique<BtrfsDriver>();
}

}  // namespace bulkhead::snapshotter
