#include "lib/os/remove_tree.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "lib/os/fd.h"

namespace bulkhead::os {
namespace {

// Enough to share out evenly, few enough to keep their parents open.
constexpr size_t kFoldersMin = 16;
constexpr size_t kFoldersWanted = 64;
// Between two questions to `may_help`: nobody tells when its answer changes.
constexpr std::chrono::milliseconds kLookAgain{2};

struct Folder {
  std::shared_ptr<UniqueFd> parent;
  std::string name;

  // By the open parent: nothing above the name is looked up again.
  std::string path() const {
    return absl::StrCat("/proc/self/fd/", parent->get(), "/", name);
  }
};

// The folders in `dir` that are no mount points. What cannot be read is left
// out: whoever deletes `dir` meets it again.
void ListFolders(const std::shared_ptr<UniqueFd>& dir, dev_t device,
                 std::deque<Folder>* out) {
  absl::StatusOr<UniqueFd> own = OpenAt(dir->get(), ".", O_RDONLY);
  if (!own.ok()) return;
  DIR* const stream = ::fdopendir(own->get());
  if (stream == nullptr) return;
  (void)own->Release();  // The stream's now.
  while (const dirent* entry = ::readdir(stream)) {
    struct stat info;
    if ((entry->d_type != DT_DIR && entry->d_type != DT_UNKNOWN) ||
        std::strcmp(entry->d_name, ".") == 0 ||
        std::strcmp(entry->d_name, "..") == 0 ||
        ::fstatat(dir->get(), entry->d_name, &info, AT_SYMLINK_NOFOLLOW) != 0 ||
        !S_ISDIR(info.st_mode) || info.st_dev != device) {
      continue;
    }
    out->push_back({dir, entry->d_name});
    if (out->size() >= 2 * kFoldersWanted) break;  // The rest comes next.
  }
  ::closedir(stream);
}

// Goes down level by level until there are enough.
std::deque<Folder> Split(UniqueFd root, dev_t device) {
  std::deque<Folder> folders;
  ListFolders(std::make_shared<UniqueFd>(std::move(root)), device, &folders);
  std::deque<Folder> leaves;
  while (!folders.empty() && folders.size() + leaves.size() < kFoldersWanted) {
    Folder folder = std::move(folders.front());
    folders.pop_front();
    absl::StatusOr<UniqueFd> fd = OpenAt(folder.parent->get(), folder.name,
                                         O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
    struct stat info;
    if (!fd.ok() || ::fstat(fd->get(), &info) != 0 || info.st_dev != device) {
      continue;
    }
    const size_t before = folders.size();
    ListFolders(std::make_shared<UniqueFd>(*std::move(fd)), device, &folders);
    // What else is in it goes at the end.
    if (folders.size() == before) leaves.push_back(std::move(folder));
  }
  for (Folder& leaf : leaves) folders.push_back(std::move(leaf));
  return folders;
}

}  // namespace

absl::Status RemoveAllParallel(const std::string& path,
                               const std::function<bool()>& may_help) {
  std::atomic<bool> removed = true;
  while (removed) {
    removed = false;
    absl::StatusOr<UniqueFd> root =
        Open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
    struct stat info;
    if (!root.ok() || ::fstat(root->get(), &info) != 0) break;
    std::deque<Folder> folders = Split(*std::move(root), info.st_dev);
    if (folders.size() < kFoldersMin) break;
    std::mutex mutex;
    const auto next = [&mutex, &folders](bool take, Folder* folder) {
      std::lock_guard lock(mutex);
      if (folders.empty()) return false;
      if (take) {
        *folder = std::move(folders.front());
        folders.pop_front();
      }
      return true;
    };
    // What cannot be removed is met again at the end. RemoveAll() is content
    // with a path that leads nowhere (no /proc): only what is gone counts, or
    // this would never end.
    const auto remove = [&removed](const Folder& folder) {
      struct stat left;
      if (RemoveAll(folder.path()).ok() &&
          ::fstatat(folder.parent->get(), folder.name.c_str(), &left,
                    AT_SYMLINK_NOFOLLOW) != 0) {
        removed = true;
      }
    };
    std::thread helper([&] {
      Folder folder;
      for (bool may = may_help(); next(may, &folder); may = may_help()) {
        if (may) {
          remove(folder);
        } else {
          std::this_thread::sleep_for(kLookAgain);
        }
      }
    });
    for (Folder folder; next(true, &folder);) remove(folder);
    helper.join();
  }
  return RemoveAll(path);
}

}  // namespace bulkhead::os
