#include "services/snapshotter/snapshots_for_tests.h"

#include <dirent.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <filesystem>
#include <optional>

#include "absl/strings/str_cat.h"
#include "services/snapshotter/apply.h"
#include "services/snapshotter/tar_for_tests.h"
#include "services/snapshotter/tree_ops.h"

namespace bulkhead::snapshotter {
namespace {

constexpr uint32_t kExtentsAtOnce = 256;
// ext4 lists more in blocks of their own, which a file gets when it is written
// back.
constexpr int kExtentsInInode = 4;

// What the files of a tree take besides their data for the lists of where it
// is, and what each takes, for people.
struct Lists {
  int64_t size_bytes = 0;
  std::string files;
  std::set<ino_t> seen;
};

void LookAtFile(const std::string& path, Lists* lists) {
  struct stat st;
  if (::lstat(path.c_str(), &st) != 0 || !S_ISREG(st.st_mode) ||
      !lists->seen.insert(st.st_ino).second) {
    return;
  }
  const int64_t before_bytes = st.st_blocks * int64_t{512};
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  std::vector<char> room(sizeof(fiemap) +
                         kExtentsAtOnce * sizeof(fiemap_extent));
  int extents = 0;
  int64_t data_bytes = 0;
  for (uint64_t at = 0;;) {
    std::memset(room.data(), 0, room.size());
    auto* const map = reinterpret_cast<fiemap*>(room.data());
    map->fm_start = at;
    map->fm_length = FIEMAP_MAX_OFFSET - at;
    map->fm_flags = FIEMAP_FLAG_SYNC;  // Writes it back first.
    map->fm_extent_count = kExtentsAtOnce;
    if (::ioctl(fd, FS_IOC_FIEMAP, map) != 0 || map->fm_mapped_extents == 0) {
      break;
    }
    const fiemap_extent* last = nullptr;
    for (uint32_t i = 0; i < map->fm_mapped_extents; ++i, ++extents) {
      last = &map->fm_extents[i];
      data_bytes += static_cast<int64_t>(last->fe_length);
    }
    if ((last->fe_flags & FIEMAP_EXTENT_LAST) != 0) break;
    at = last->fe_logical + last->fe_length;
  }
  EXPECT_EQ(::fstat(fd, &st), 0) << path;
  ::close(fd);
  const int64_t list_bytes =
      extents > kExtentsInInode ? st.st_blocks * int64_t{512} - data_bytes : 0;
  lists->size_bytes += list_bytes;
  absl::StrAppend(&lists->files, path, ": ", before_bytes,
                  " bytes, written back ", st.st_blocks * int64_t{512}, ", in ",
                  extents, " extents listed in ", list_bytes, "\n");
}

// `counted`: what files took right after they had been filled.
void ExpectCounted(const std::string& tree, const DiskUsage& counted) {
  absl::StatusOr<DiskUsage> walked = UsageOfTree(tree);
  if (!walked.ok()) return;  // A fault was injected.
  EXPECT_EQ(walked->inodes, counted.inodes);
  if (walked->size_bytes == counted.size_bytes) return;
  Lists lists;
  std::error_code error;
  std::filesystem::recursive_directory_iterator entries(tree, error);
  for (; !error && entries != end(entries); entries.increment(error)) {
    LookAtFile(entries->path(), &lists);
  }
  EXPECT_FALSE(error) << tree << ": " << error.message();
  walked = UsageOfTree(tree);
  if (!walked.ok()) return;
  EXPECT_EQ(walked->size_bytes - lists.size_bytes, counted.size_bytes)
      << lists.files;
}

}  // namespace

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
                      const std::string& type, bool write_back) {
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
              if (write_back) ::sync();
              ExpectCounted(tree, *usage);
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
