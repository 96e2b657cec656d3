// A directory tree that hostile names are resolved in. Nothing outside the
// root can be reached, whatever the names and the symlinks in the tree say:
// every path is resolved by openat2(RESOLVE_IN_ROOT), and changes are made by
// one path component below a directory descriptor, never following a symlink.
#ifndef BULKHEAD_SERVICES_SNAPSHOTTER_TREE_ROOT_H_
#define BULKHEAD_SERVICES_SNAPSHOTTER_TREE_ROOT_H_

#include <sys/stat.h>

#include <cstdint>
#include <list>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lib/os/fd.h"

namespace bulkhead::snapshotter {

// Directory descriptors kept open by one tree.
constexpr size_t kCachedDirsMax = 128;
constexpr int kTreeDepthMax = 512;  // Of names, and what RemoveAt() deletes.
// Symlinks to nowhere on the way to one directory; each may nest the lookup by
// kTreeDepthMax frames.
constexpr int kDanglingLinksMax = 8;

// Lexical form of a name: no empty, "." or inner ".." components, no leading
// or trailing slash; "" is the root itself.
// Errors: kInvalidArgument: it climbs above the root. kResourceExhausted: more
// than kTreeDepthMax components.
absl::StatusOr<std::string> CleanName(const std::string& name);
// "a/b/c" -> {"a/b", "c"}; "c" -> {"", "c"}.
std::pair<std::string, std::string> SplitName(const std::string& clean);

// Deletes `name` below `dir_fd` and all below it. Missing: OK.
absl::Status RemoveAt(int dir_fd, const std::string& name, int depth = 0);

// All extended attributes of an open file (not O_PATH).
using Xattrs = std::vector<std::pair<std::string, std::string>>;
absl::StatusOr<Xattrs> ReadXattrs(int fd);
// The same for any file, symlinks included, as `name` below `dir_fd`.
absl::StatusOr<Xattrs> ReadXattrsAt(int dir_fd, const std::string& name);

// Owner, mode, times and xattrs (not trusted.*) of one open directory given
// to another.
absl::Status CopyDirAttributes(int from_fd, int to_fd);

// Not thread-safe.
class TreeRoot {
 public:
  // `root` is trusted and must be a directory.
  static absl::StatusOr<std::unique_ptr<TreeRoot>> Open(
      const std::string& root);

  int fd() const { return root_.get(); }

  // The directory `clean`, opened for reading; made with its parents where
  // missing. `on_made` is told each directory that was made. The descriptor
  // belongs to this object and stays valid until the next call.
  // Errors: kInvalidArgument: a component is no directory.
  absl::StatusOr<int> Dir(
      const std::string& clean,
      absl::FunctionRef<absl::Status(const std::string& clean, int fd)> on_made,
      int links_followed = 0);
  // The same without making anything. kNotFound if missing.
  absl::StatusOr<int> ExistingDir(const std::string& clean);

  // Call when a directory or symlink was removed: forgets descriptors.
  void Forget();

 private:
  explicit TreeRoot(os::UniqueFd root) : root_(std::move(root)) {}
  int Remember(const std::string& clean, os::UniqueFd fd);
  int Cached(const std::string& clean);

  struct Slot {
    os::UniqueFd fd;
    std::list<std::string>::iterator age;
  };
  os::UniqueFd root_;
  std::unordered_map<std::string, Slot> cache_;
  std::list<std::string> ages_;  // Most recently used first.
};

}  // namespace bulkhead::snapshotter

#endif  // BULKHEAD_SERVICES_SNAPSHOTTER_TREE_ROOT_H_
