// What tests of snapshotters do with snapshots. Not for production: a call that
// must work fails the test.
#ifndef BULKHEAD_SERVICES_SNAPSHOTTER_SNAPSHOTS_FOR_TESTS_H_
#define BULKHEAD_SERVICES_SNAPSHOTTER_SNAPSHOTS_FOR_TESTS_H_

#include <map>
#include <set>
#include <string>
#include <vector>

#include "services/snapshotter/snapshotter.h"
#include "services/snapshotter/tree_snapshotter.h"

namespace bulkhead::snapshotter {

// The database has one owner at a time. Null, and a failed test, if it cannot
// be opened.
std::unique_ptr<Snapshotter> OpenForTest(TreeSnapshotterOptions::Driver driver,
                                         const std::string& root);

// Mounts on the folder `at` (made if missing), returns what a shell command
// prints there (errors too), unmounts.
std::string ShellIn(const std::vector<os::MountSpec>& mounts,
                    const std::string& at, const std::string& command);
// The same for the committed `name`.
std::string ShellInCommitted(Snapshotter& snapshotter, const std::string& name,
                             const std::string& at, const std::string& command);

// Applies a layer, by default a plain tar, as the service does. What it says
// the tree takes must be what is found there; `write_back`: after everything
// was written back to the disk.
absl::Status ApplyTar(
    Snapshotter& snapshotter, const std::vector<os::MountSpec>& mounts,
    const std::string& layer, bool parallel = false,
    const std::string& type = "application/vnd.oci.image.layer.v1.tar",
    bool write_back = false);

std::map<std::string, SnapshotInfo> AllSnapshots(Snapshotter& snapshotter);
// Children first, however deep; waits until they are gone from the disk.
void RemoveAllSnapshots(Snapshotter& snapshotter);

// Names below `root`/snapshots.
std::set<std::string> FoldersOf(const std::string& root);

}  // namespace bulkhead::snapshotter

#endif  // BULKHEAD_SERVICES_SNAPSHOTTER_SNAPSHOTS_FOR_TESTS_H_
