// How one kind of snapshotter keeps the trees of snapshots. Names, records,
// locking and deletion are TreeSnapshotter's.
#ifndef BULKHEAD_SERVICES_SNAPSHOTTER_DRIVER_H_
#define BULKHEAD_SERVICES_SNAPSHOTTER_DRIVER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lib/os/mount.h"
#include "services/snapshotter/snapshotter.h"

namespace bulkhead::snapshotter {

constexpr char kUidMappingLabel[] = "containerd.io/snapshot/uidmapping";
constexpr char kGidMappingLabel[] = "containerd.io/snapshot/gidmapping";

// One snapshot, as a driver sees it.
struct Place {
  uint64_t id = 0;
  std::string dir;  // ROOT/snapshots/<id>, the driver's to fill.
  Kind kind = Kind::kUnknown;
  Labels labels;

  std::string tree() const { return dir + "/fs"; }
};
using Places = std::vector<Place>;  // Committed parents, nearest first.

// Calls on one snapshot come one after another, on others at once; parents
// stay while they are used. Everything may block on disk.
class Driver {
 public:
  virtual ~Driver() = default;

  // Whether the root can be used at all. kFailedPrecondition says why not.
  virtual absl::Status Check(const std::string& root) {
    (void)root;
    return absl::OkStatus();
  }
  // Whether Commit() may name a parent.
  virtual bool CanRebase() const { return false; }

  // Fills the folder of a new active snapshot or view. Need not be synced. On
  // error the folder is deleted as by Delete().
  virtual absl::Status Make(const Place& place, const Places& below) = 0;

  // How to mount an active snapshot or view.
  virtual absl::StatusOr<std::vector<os::MountSpec>> Mounts(
      const Place& place, const Places& below) = 0;

  // Makes the active snapshot durable and measures it, for a commit. `rebased`:
  // `below` was not known before. `synced`: it is durable and nobody has asked
  // for its mounts since; then its tree may be `measured` too. May be called
  // again after a failed commit.
  virtual absl::StatusOr<DiskUsage> Seal(
      const Place& place, const Places& below, bool rebased, bool synced,
      const std::optional<DiskUsage>& measured) = 0;
  // The commit is on record; `rebased` as it was sealed.
  virtual void Sealed(const Place& place, bool rebased) {
    (void)place;
    (void)rebased;
  }
  // Seal() may leave out of its sync what it can do again from files that are
  // durable. Whether it did so for a committed snapshot; for the start of the
  // process, and cheap.
  virtual bool IsUnsettled(const Place& place) {
    (void)place;
    return false;
  }
  // Does it again and makes it durable, before anything else is done with any
  // snapshot. Each of `chains` is one that IsUnsettled() and its parents; what
  // is a parent of others comes before them. One that fails stops only those
  // above it; the first error is returned.
  virtual absl::Status Settle(const std::vector<Places>& chains) {
    (void)chains;
    return absl::OkStatus();
  }

  // Of an active snapshot, now.
  virtual absl::StatusOr<DiskUsage> Usage(const Place& place,
                                          const Places& below) = 0;

  // A layer was unpacked into the active snapshot and is about to be synced.
  virtual absl::Status NoteUnpacked(
      const Place& place, const std::vector<std::string>& implicit_dirs) {
    (void)place;
    (void)implicit_dirs;
    return absl::OkStatus();
  }
  // See SinkChooser. `below` are the parents it has.
  virtual absl::StatusOr<std::unique_ptr<LayerSink>> SinkFor(
      const Place& place, const Places& below, ExtractOptions* options) {
    (void)place;
    (void)below;
    (void)options;
    return std::unique_ptr<LayerSink>();
  }

  // At the start of the process: redoes what a reboot undid below an active
  // snapshot or view, so that mounts handed out before it still hold. Failures
  // are logged; Mounts() meets them again.
  virtual void Restore(const Place& place, const Places& below) {
    (void)place;
    (void)below;
  }
  // At the end of the process and after a failed call, for each committed
  // snapshot that nothing active and no view is above of; at the end also for
  // folders that are still to be deleted. Mounts() may follow.
  virtual void Release(const Place& place) { (void)place; }

  // Deletes a snapshot's folder, wherever it has been renamed to.
  virtual absl::Status Delete(const std::string& dir);
};

struct DriverOptions {
  // Overlay options added to every overlay mount.
  std::vector<std::string> overlay_mount_options;
};

std::unique_ptr<Driver> NewOverlayDriver(const DriverOptions& options);
// Each active snapshot is a copy of its parent, reflinked where possible.
std::unique_ptr<Driver> NewNativeDriver();
// Each is a subvolume, made as a snapshot of its parent's.
std::unique_ptr<Driver> NewBtrfsDriver();
// Layers are images (erofs_layer.h), mounted at <dir>/image when first needed;
// what else is committed stays a directory. Overlayfs on top.
std::unique_ptr<Driver> NewErofsDriver(const DriverOptions& options);

// Shared by those that end in an overlay mount.
class OverlayMounts {
 public:
  explicit OverlayMounts(const DriverOptions& options);

  // Errors: kInvalidArgument: the id mapping labels have no container root.
  absl::Status Make(const Place& place, const std::string& nearest);
  // `lowers`: trees, nearest first.
  std::vector<os::MountSpec> Mounts(const Place& place,
                                    const std::vector<std::string>& lowers);

 private:
  const std::vector<std::string> extra_;
};

// Gives the directories that a layer made without knowing its parent (their
// names are in `<dir>/implicit`) the attributes they have in `lowers`, nearest
// first. Done again, it does the same. Not synced. Returns the bytes by which
// the tree has grown on the disk (attributes may take blocks).
absl::StatusOr<int64_t> FillImplicitDirs(
    const std::string& dir, const std::vector<std::string>& lowers);
bool HasImplicitDirs(const std::string& dir);
absl::Status WriteImplicitDirs(const std::string& dir,
                               const std::vector<std::string>& names);

// syncfs(2) on the file system of `dir`.
absl::Status SyncFileSystem(const std::string& dir);

// Sets "containerd.io/snapshot/max-size" as a project quota on the new folder
// of an active snapshot; later what is made below inherits it.
// Errors: kInvalidArgument: not a size. kFailedPrecondition: the file system
// has no project quota.
absl::Status LimitSize(const Place& place);
// Takes the limit off a folder; harmless where there is none.
void UnlimitSize(const std::string& dir);

}  // namespace bulkhead::snapshotter

#endif  // BULKHEAD_SERVICES_SNAPSHOTTER_DRIVER_H_
