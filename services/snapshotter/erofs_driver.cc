// Snapshots whose layers are EROFS images.
//
//   <dir>/layer.erofs        the layer's image, once it was unpacked
//   <dir>/layer.erofs.part   one being written
//   <dir>/image              where it is mounted, when needed
//   <dir>/image-implicit     directories it leaves to the layers below
//   <dir>/fs                 what was written by other ways; above the image
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <mutex>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "lib/base/status_macros.h"
#include "lib/log/log.h"
#include "lib/os/fd.h"
#include "services/snapshotter/driver.h"
#include "services/snapshotter/erofs_layer.h"
#include "services/snapshotter/tree_ops.h"
#include "services/snapshotter/tree_root.h"

namespace bulkhead::snapshotter {
namespace {

constexpr size_t kImplicitFileBytesMax = 64 << 20;
constexpr int64_t kNs = 1000000000;

std::string ImageOf(const Place& place) { return place.dir + "/layer.erofs"; }
std::string PointOf(const Place& place) { return place.dir + "/image"; }
std::string ImplicitOf(const std::string& dir) {
  return dir + "/image-implicit";
}

std::string PartOf(const std::string& dir) { return dir + "/layer.erofs.part"; }

bool Exists(const std::string& path) {
  struct stat st;
  return ::lstat(path.c_str(), &st) == 0;
}

bool IsEmptyDir(const std::string& path) {
  DIR* dir = ::opendir(path.c_str());
  if (dir == nullptr) return false;
  bool empty = true;
  while (const dirent* entry = empty ? ::readdir(dir) : nullptr) {
    const std::string name = entry->d_name;
    empty = name == "." || name == "..";
  }
  ::closedir(dir);
  return empty;
}

ErofsAttributes FromStat(const struct stat& st) {
  ErofsAttributes out;
  out.mode = st.st_mode;
  out.uid = st.st_uid;
  out.gid = st.st_gid;
  out.mtime_ns = std::max<int64_t>(
      0, int64_t{st.st_mtim.tv_sec} * kNs + st.st_mtim.tv_nsec);
  return out;
}

class ImageSink : public LayerSink {
 public:
  ImageSink(std::string dir, os::UniqueFd fd, const ErofsAttributes& root)
      : dir_(std::move(dir)), fd_(std::move(fd)), root_(root) {}
  ~ImageSink() override {
    if (!published_) ::unlink(Part().c_str());
  }

  absl::StatusOr<ExtractResult> Take(ByteStream& stream,
                                     const ExtractOptions& options) override {
    return WriteErofsLayer(stream, fd_.get(), root_, options, &implicit_);
  }

  absl::Status Publish() override {
    std::string text;
    for (const ErofsImplicitDir& dir : implicit_) {
      absl::StrAppend(&text, dir.nid, " ", dir.path, std::string(1, '\0'));
    }
    if (text.empty()) {
      ::unlink(ImplicitOf(dir_).c_str());
    } else {
      RETURN_IF_ERROR(os::WriteFileAtomic(ImplicitOf(dir_), text, 0600));
    }
    if (::fdatasync(fd_.get()) != 0) return os::ErrnoStatus(errno, Part());
    const std::string image = dir_ + "/layer.erofs";
    if (::rename(Part().c_str(), image.c_str()) != 0) {
      return os::ErrnoStatus(errno, image);
    }
    published_ = true;
    return os::SyncDir(dir_);
  }

 private:
  std::string Part() const { return PartOf(dir_); }

  const std::string dir_;
  const os::UniqueFd fd_;
  const ErofsAttributes root_;
  std::vector<ErofsImplicitDir> implicit_;
  bool published_ = false;
};

class ErofsDriver : public Driver {
 public:
  explicit ErofsDriver(const DriverOptions& options) : overlay_(options) {}

  bool CanRebase() const override { return true; }

  absl::Status Make(const Place& place, const Places& below) override {
    RETURN_IF_ERROR(LimitSize(place));
    // Images have the owner of their snapshot's tree for their root.
    return overlay_.Make(place, below.empty() ? "" : below[0].tree());
  }

  absl::StatusOr<std::vector<os::MountSpec>> Mounts(
      const Place& place, const Places& below) override {
    std::vector<std::string> lowers;
    if (Exists(ImageOf(place))) {
      RETURN_IF_ERROR(EnsureMounted(place));
      lowers.push_back(PointOf(place));
    }
    RETURN_IF_ERROR(AddLowers(below, &lowers));
    return overlay_.Mounts(place, lowers);
  }

  absl::StatusOr<DiskUsage> Seal(const Place& place, const Places& below,
                                 bool rebased, bool synced,
                                 const std::optional<DiskUsage>&) override {
    const bool image = Exists(ImageOf(place));
    if (rebased) {
      std::vector<std::string> lowers;
      RETURN_IF_ERROR(AddLowers(below, &lowers));
      RETURN_IF_ERROR(FillImplicitDirs(place.dir, lowers).status());
      if (HasImplicitDirs(place.dir)) synced = false;
      if (image) RETURN_IF_ERROR(PatchImage(place, lowers));
    }
    // The image was synced when it was published.
    if (!synced && !(image && IsEmptyDir(place.tree()))) {
      RETURN_IF_ERROR(SyncFileSystem(place.dir));
    }
    return Usage(place, below);
  }
  void Sealed(const Place& place, bool) override {
    ::unlink((place.dir + "/implicit").c_str());
    ::unlink(ImplicitOf(place.dir).c_str());
    ::unlink(PartOf(place.dir).c_str());  // Of a layer that was cut short.
  }

  absl::StatusOr<DiskUsage> Usage(const Place& place, const Places&) override {
    ASSIGN_OR_RETURN(DiskUsage usage, UsageOfTree(place.tree()));
    struct stat st;
    if (::stat(ImageOf(place).c_str(), &st) == 0) {
      usage.size_bytes += static_cast<int64_t>(st.st_blocks) * 512;
      ++usage.inodes;
    }
    return usage;
  }

  absl::Status NoteUnpacked(
      const Place& place,
      const std::vector<std::string>& implicit_dirs) override {
    return WriteImplicitDirs(place.dir, implicit_dirs);
  }

  absl::StatusOr<std::unique_ptr<LayerSink>> SinkFor(
      const Place& place, const Places& below,
      ExtractOptions* options) override {
    if (Exists(ImageOf(place))) {
      // One image a snapshot: what comes on top goes into the tree.
      options->overlay_whiteouts = true;
      RETURN_IF_ERROR(EnsureMounted(place));
      options->lower_dirs = {PointOf(place)};
      RETURN_IF_ERROR(AddLowers(below, &options->lower_dirs));
      return std::unique_ptr<LayerSink>();
    }
    if (!IsEmptyDir(place.tree())) return std::unique_ptr<LayerSink>();
    struct stat st;
    if (::stat(place.tree().c_str(), &st) != 0) {
      return os::ErrnoStatus(errno, place.tree());
    }
    ASSIGN_OR_RETURN(
        os::UniqueFd fd,
        os::Open(PartOf(place.dir), O_RDWR | O_CREAT | O_TRUNC, 0600));
    return std::make_unique<ImageSink>(place.dir, std::move(fd), FromStat(st));
  }

  void Restore(const Place& place, const Places& below) override {
    ::unlink(PartOf(place.dir).c_str());  // Nobody writes it any more.
    DropHalfWritten(place.dir);
    std::vector<std::string> lowers;
    absl::Status status = AddLowers(below, &lowers);
    if (status.ok() && Exists(ImageOf(place))) status = EnsureMounted(place);
    if (!status.ok()) {
      log::Warn("images below a snapshot not mounted",
                {{"path", place.dir}, {"error", MessageOf(status)}});
    }
  }

  void Release(const Place& place) override { Unmount(PointOf(place)); }

  absl::Status Delete(const std::string& dir) override {
    Unmount(dir + "/image");
    return Driver::Delete(dir);
  }

 private:
  static void Unmount(const std::string& point) {
    const absl::Status status = os::UnmountTree(point);
    if (status.ok()) return;
    log::Warn("image stays mounted",
              {{"path", point}, {"error", MessageOf(status)}});
  }

  // Of a WriteFileAtomic() that the process did not live to end.
  static void DropHalfWritten(const std::string& dir) {
    DIR* const stream = ::opendir(dir.c_str());
    if (stream == nullptr) return;
    const std::string prefix = ImplicitOf("") + ".tmp-";
    while (const dirent* entry = ::readdir(stream)) {
      const std::string path = absl::StrCat("/", entry->d_name);
      if (absl::StartsWith(path, prefix)) ::unlink((dir + path).c_str());
    }
    ::closedir(stream);
  }

  absl::Status EnsureMounted(const Place& place) {
    const std::string point = PointOf(place);
    std::lock_guard lock(mutex_);
    if (::mkdir(point.c_str(), 0700) != 0 && errno != EEXIST) {
      return os::ErrnoStatus(errno, absl::StrCat("mkdir ", point));
    }
    struct stat outer;
    struct stat inner;
    if (::stat(place.dir.c_str(), &outer) != 0 ||
        ::stat(point.c_str(), &inner) != 0) {
      return os::ErrnoStatus(errno, point);
    }
    if (outer.st_dev != inner.st_dev) return absl::OkStatus();
    return os::Mount({"erofs", ImageOf(place), "", {"ro"}}, point);
  }

  absl::Status AddLowers(const Places& below,
                         std::vector<std::string>* lowers) {
    for (const Place& place : below) {
      const bool image = Exists(ImageOf(place));
      if (!image || !IsEmptyDir(place.tree())) lowers->push_back(place.tree());
      if (!image) continue;
      RETURN_IF_ERROR(EnsureMounted(place));
      lowers->push_back(PointOf(place));
    }
    return absl::OkStatus();
  }

  // FillImplicitDirs() for the image.
  absl::Status PatchImage(const Place& place,
                          const std::vector<std::string>& lowers) {
    absl::StatusOr<std::string> text =
        os::ReadFile(ImplicitOf(place.dir), kImplicitFileBytesMax);
    if (absl::IsNotFound(text.status())) return absl::OkStatus();
    RETURN_IF_ERROR(text.status());
    Unmount(PointOf(place));
    ASSIGN_OR_RETURN(os::UniqueFd image, os::Open(ImageOf(place), O_RDWR));
    std::vector<os::UniqueFd> below;
    for (const std::string& lower : lowers) {
      ASSIGN_OR_RETURN(os::UniqueFd fd, os::Open(lower, O_PATH | O_DIRECTORY));
      below.push_back(std::move(fd));
    }
    for (absl::string_view line : absl::StrSplit(*text, '\0')) {
      const std::string item(line.data(), line.size());
      const size_t space = item.find(' ');
      uint64_t nid = 0;
      if (space == std::string::npos ||
          !absl::SimpleAtoi(item.substr(0, space), &nid)) {
        continue;
      }
      const std::string path = item.substr(space + 1);
      for (const os::UniqueFd& fd : below) {
        absl::StatusOr<os::UniqueFd> from =
            os::OpenInRoot(fd.get(), path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
        if (absl::IsNotFound(from.status())) continue;
        // Anything but a directory hides what is further below.
        struct stat st;
        if (!from.ok() || ::fstat(from->get(), &st) != 0) break;
        ErofsAttributes attributes = FromStat(st);
        ASSIGN_OR_RETURN(attributes.xattrs, ReadXattrs(from->get()));
        std::erase_if(attributes.xattrs, [](const auto& xattr) {
          return absl::StartsWith(xattr.first, "trusted.");
        });
        RETURN_IF_ERROR(
            Annotate(PatchErofsDir(image.get(), nid, attributes), path));
        break;
      }
    }
    if (::fdatasync(image.get()) != 0) {
      return os::ErrnoStatus(errno, ImageOf(place));
    }
    return absl::OkStatus();
  }

  OverlayMounts overlay_;
  std::mutex mutex_;  // One mount of an image at a time.
};

}  // namespace

std::unique_ptr<Driver> NewErofsDriver(const DriverOptions& options) {
  // Each image is a file system of its own: one st_dev for all and inode
  // numbers that do not meet need xino.
  DriverOptions with_xino = options;
  std::vector<std::string>& extra = with_xino.overlay_mount_options;
  if (std::none_of(extra.begin(), extra.end(), [](const std::string& option) {
        return absl::StartsWith(option, "xino=");
      })) {
    extra.push_back("xino=on");
  }
  return std::make_unique<ErofsDriver>(with_xino);
}

}  // namespace bulkhead::snapshotter
