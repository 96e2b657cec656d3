// Bundles: the folder of each task, laid out as containerd's
// (facts/runtime.md section 2), so that shims find what they look for.
#ifndef BULKHEAD_SERVICES_RUNTIME_BUNDLE_H_
#define BULKHEAD_SERVICES_RUNTIME_BUNDLE_H_

#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace bulkhead::runtime {

// Files of a bundle that this service writes.
inline constexpr char kShimBinaryFile[] = "shim-binary-path";
inline constexpr char kBootstrapFile[] = "bootstrap.json";
inline constexpr char kAddressFile[] = "address";  // Written by old shims.
inline constexpr char kSandboxFile[] = "sandbox";
// There if mounts were activated for the container, unless it says kNotOurs.
inline constexpr char kActivatedFile[] = "mounts-activated";
inline constexpr char kNotOurs[] = "by somebody else";
inline constexpr char kLogFifo[] = "log";
// There once the shim has deleted the container.
inline constexpr char kDeletedFile[] = "bulkhead-deleted";
// The exit of the container's first process, and whether it was told.
inline constexpr char kExitFile[] = "bulkhead-exit.json";

// Thread-safe as long as no two threads work on the same task. The state
// folder is volatile (/run), so nothing here is synced to disk.
class Bundles {
 public:
  // `state` holds the bundles, `root` their work folders.
  Bundles(std::string state, std::string root)
      : state_(std::move(state)), root_(std::move(root)) {}

  // Makes the folders that hold all bundles.
  absl::Status Init() const;

  std::string Path(const std::string& ns, const std::string& id) const;
  // A new bundle with config.json = `spec` verbatim, rootfs, the log FIFO and
  // the work folder. A left-over of the same name is removed first.
  absl::Status Create(const std::string& ns, const std::string& id,
                      const std::string& spec) const;
  // Unmounts the root file system and removes bundle and work folder. A
  // missing one is OK.
  absl::Status Remove(const std::string& ns, const std::string& id) const;
  // The same, as far as anybody can see: another of that name may be created at
  // once. What has still to be deleted with RemoveAll() is added to `left`; a
  // start of this service deletes it, too.
  absl::Status Hide(const std::string& ns, const std::string& id,
                    std::vector<std::string>* left) const;
  // Namespace and id of every bundle. Half-removed ones are finished off.
  std::vector<std::pair<std::string, std::string>> List() const;
  // Removes work folders without a bundle.
  void RemoveOrphanedWork() const;

  // A small file of the bundle; writing is atomic.
  absl::StatusOr<std::string> Read(const std::string& ns, const std::string& id,
                                   const std::string& file) const;
  absl::Status Write(const std::string& ns, const std::string& id,
                     const std::string& file, const std::string& data) const;

 private:
  std::string WorkPath(const std::string& ns, const std::string& id) const;

  const std::string state_;
  const std::string root_;
};

}  // namespace bulkhead::runtime

#endif  // BULKHEAD_SERVICES_RUNTIME_BUNDLE_H_
