// Snapshots: layered directory trees. The contract; no gRPC, no namespaces
// (keys arrive wrapped as the metadata service, or a foreign containerd, wraps
// them).
#ifndef BULKHEAD_SERVICES_SNAPSHOTTER_SNAPSHOTTER_H_
#define BULKHEAD_SERVICES_SNAPSHOTTER_SNAPSHOTTER_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lib/os/mount.h"
#include "services/snapshotter/layer_sink.h"

namespace bulkhead::snapshotter {

enum class Kind { kUnknown = 0, kView = 1, kActive = 2, kCommitted = 3 };
const char* KindName(Kind kind);  // "view", "active", "committed", "unknown".

using Labels = std::map<std::string, std::string>;

constexpr size_t kLabelBytesMax = 4096;  // Key and value together.
constexpr size_t kKeyBytesMax = 4096;    // Of a key or name.
constexpr size_t kLabelsTotalBytesMax = 1 << 20;

struct SnapshotInfo {
  std::string name;    // Key while active or a view, name once committed.
  std::string parent;  // Empty: none.
  Kind kind = Kind::kUnknown;
  int64_t created_at_ns = 0;  // Unix time.
  int64_t updated_at_ns = 0;
  Labels labels;  // Never with an empty value.
};

struct DiskUsage {
  int64_t size_bytes = 0;  // st_blocks * 512 over unique inodes.
  int64_t inodes = 0;
};

// Thread-safe; every call may block on disk. On OK, the change is on stable
// storage; a process killed at any instant leaves each snapshot as it was
// before or after the call, and what no record names is deleted at the next
// start.
class Snapshotter {
 public:
  virtual ~Snapshotter() = default;
  virtual const std::string& name() const = 0;

  // A new writable snapshot, or a read-only one, on top of `parent` (may be
  // empty). Returns how to mount it.
  // Errors: kAlreadyExists: `key` is taken. kNotFound: no such parent.
  //   kInvalidArgument: the parent is not committed; bad key or labels.
  virtual absl::StatusOr<std::vector<os::MountSpec>> Prepare(
      const std::string& key, const std::string& parent,
      const Labels& labels) = 0;
  virtual absl::StatusOr<std::vector<os::MountSpec>> View(
      const std::string& key, const std::string& parent,
      const Labels& labels) = 0;

  // Errors: kNotFound. kFailedPrecondition: `key` is committed.
  virtual absl::StatusOr<std::vector<os::MountSpec>> Mounts(
      const std::string& key) = 0;

  // Turns the active `key` into the committed `name`. Labels are replaced. A
  // non-empty `parent` becomes the parent of a snapshot that has none.
  // Errors: kAlreadyExists: `name` is taken (looked at first). kNotFound: no
  //   `key`, or no `parent`. kFailedPrecondition: not active.
  //   kInvalidArgument: there is another parent. kUnimplemented: `parent` with
  //   a snapshotter that cannot rebase.
  virtual absl::Status Commit(const std::string& name, const std::string& key,
                              const Labels& labels,
                              const std::string& parent) = 0;

  // Errors: kNotFound. kFailedPrecondition: it has children.
  absl::Status Remove(const std::string& key) { return RemoveMany({key})[0]; }

  // The same for many in one durable step; a parent goes in a later one than
  // its last child. One result each, in the same order.
  virtual std::vector<absl::Status> RemoveMany(
      const std::vector<std::string>& keys) = 0;

  // Errors: kNotFound.
  virtual absl::StatusOr<SnapshotInfo> Stat(const std::string& key) = 0;

  // Changes labels. `paths`: "labels", "labels.<key>", or none for all of them.
  // Errors: kNotFound. kInvalidArgument: another path.
  virtual absl::StatusOr<SnapshotInfo> Update(
      const std::string& key, const Labels& labels,
      const std::vector<std::string>& paths) = 0;

  // Calls `visit` for each snapshot, by key, on a view of one instant. A
  // failing `visit` ends the walk.
  virtual absl::Status Walk(
      const std::function<absl::Status(const SnapshotInfo&)>& visit) = 0;

  // Without parents. Active: as of now; committed: as of Commit(); view: 0.
  // Errors: kNotFound.
  virtual absl::StatusOr<DiskUsage> Usage(const std::string& key) = 0;

  // Deletes folders that belong to no snapshot; on OK they are gone.
  virtual absl::Status Cleanup() = 0;

  // Tells that `tree` (a mount's upperdir or bind source) was unpacked and is
  // about to be synced, which directories it had to make without knowing their
  // attributes, and what the tree takes, where that is known. Other trees are
  // not an error.
  virtual absl::Status NoteUnpacked(
      const std::string& tree, const std::vector<std::string>& implicit_dirs,
      const std::optional<DiskUsage>& usage) = 0;
  // That sync has succeeded: unless somebody asks for the mounts or calls
  // SinkFor() after NoteUnpacked(), Commit() need not sync again.
  virtual void NoteSynced(const std::string& tree) = 0;

  // As SinkChooser, for the trees of this snapshotter's active snapshots; a
  // layer is about to be unpacked.
  virtual absl::StatusOr<std::unique_ptr<LayerSink>> SinkFor(
      const std::string& tree, ExtractOptions* options) {
    (void)tree;
    (void)options;
    return std::unique_ptr<LayerSink>();
  }
};

}  // namespace bulkhead::snapshotter

#endif  // BULKHEAD_SERVICES_SNAPSHOTTER_SNAPSHOTTER_H_
