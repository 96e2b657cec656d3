#include "services/snapshotter/snapshots_for_tests.h"

#include <dirent.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdio>
#include <optional>

#include "absl/strings/str_cat.h"
#include "services/snapshotter/apply.h"
#include "services/snapshotter/tar_for_tests.h"
#include "services/snapshotter/tree_ops.h"

namespace bulkhead::snapshotter {

std::unique_ptr<Snapshotter> OpenForTest(TreeSnapshotterOptions::Driver driver,
                                         const std::string& root) {
  static const char* const names[] = {"overlayfs", "native", "btrfs", "erofs"};
  auto opened = OpenTreeSnapshotter({.driver = driver,
                                     .name = names[static_cast<int>(driver)],
                                     .root = root});
  EXPECT_TRUE(opened.ok()) << opened.status();
  return opened.ok() ? *std::move(opened) : nullptr;
}

std::string ShellIn(const std::vector<os::MountSpec>& mounts,
                    const std::string& at, const std::string& command) {
  ::mkdir(at.c_str(), 0755);
  const absl::Status mounted = os::MountAll(mounts, at);
  EXPECT_TRUE(mounted.ok()) << mounted;
  if (!mounted.ok()) return "";
  std::string out;
  FILE* pipe = ::popen(
      absl::StrCat("cd ", at, " && { ", command, "; } 2>&1").c_str(), "r");
  for (int c; (c = std::fgetc(pipe)) != EOF;) out += static_cast<char>(c);
  ::pclose(pipe);
  EXPECT_TRUE(os::UnmountTree(at).ok());
  return out;
}

std::string ShellInCommitted(Snapshotter& snapshotter, const std::string& name,
                             const std::string& at,
                             const std::string& command) {
  const auto view = snapshotter.View("shell-view", name, {});
  EXPECT_TRUE(view.ok()) << view.status();
  if (!view.ok()) return "";
  const std::string out = ShellIn(*view, at, command);
  EXPECT_TRUE(snapshotter.Remove("shell-view").ok());
  return out;
}

absl::Status ApplyTar(Snapshotter& snapshotter,
                      const std::vector<os::MountSpec>& mounts,
                      const std::string& layer, bool parallel,
                      const std::string& type) {
  StringSource source(layer);
  std::string written;
  const absl::Status status =
      ApplyLayer(
          mounts, source, type, parallel, {.temp_dir = "/tmp"},
          [&](const std::string& tree, const Unpacked& unpacked) {
            written = tree;
            std::optional<DiskUsage> usage;
            if (unpacked.extracted.blocks >= 0) {
              usage = DiskUsage{unpacked.extracted.blocks * 512,
                                unpacked.extracted.inodes};
              const absl::StatusOr<DiskUsage> walked = UsageOfTree(tree);
              if (walked.ok()) {  // Or a fault was injected.
                EXPECT_EQ(walked->inodes, usage->inodes);
                EXPECT_EQ(walked->size_bytes, usage->size_bytes);
              }
            }
            return snapshotter.NoteUnpacked(
                tree,
                parallel ? unpacked.extracted.implicit_dirs
                         : std::vector<std::string>{},
                usage);
          },
          [&](const std::string& tree, ExtractOptions* options) {
            return snapshotter.SinkFor(tree, options);
          })
          .status();
  if (status.ok()) snapshotter.NoteSynced(written);
  return status;
}

std::map<std::string, SnapshotInfo> AllSnapshots(Snapshotter& snapshotter) {
  std::map<std::string, SnapshotInfo> all;
  const absl::Status status = snapshotter.Walk([&](const SnapshotInfo& info) {
    all[info.name] = info;
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
  return all;
}

void RemoveAllSnapshots(Snapshotter& snapshotter) {
  for (bool removed = true; removed;) {
    removed = false;
    for (const auto& [name, info] : AllSnapshots(snapshotter)) {
      if (snapshotter.Remove(name).ok()) removed = true;
    }
  }
  const absl::Status status = snapshotter.Cleanup();
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_TRUE(AllSnapshots(snapshotter).empty());
}

std::set<std::string> FoldersOf(const std::string& root) {
  std::set<std::string> names;
  DIR* dir = ::opendir((root + "/snapshots").c_str());
  EXPECT_NE(dir, nullptr) << root;
  if (dir == nullptr) return names;
  while (const dirent* entry = ::readdir(dir)) {
    if (entry->d_name[0] != '.') names.insert(entry->d_name);
  }
  ::closedir(dir);
  return names;
}

}  // namespace bulkhead::snapshotter
