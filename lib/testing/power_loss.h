// What of a folder survives a power failure. A Disk is told of every change
// below a folder, in order, and of every fsync; Survivors() then writes a copy
// as a machine might find it afterwards:
//
//   - what was synced is there: a file's bytes after an fsync of the file, a
//     name after an fsync of its folder;
//   - of the rest, any part may be: each folder's changes up to some point, any
//     page of a file's new bytes, old, new, or zero, and any length between.
//
// Renames are atomic, as on any journalling file system; nothing else is taken
// for granted, not even that an fsync of a new file keeps its name.
#ifndef BULKHEAD_LIB_TESTING_POWER_LOSS_H_
#define BULKHEAD_LIB_TESTING_POWER_LOSS_H_

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "lib/files/files.h"

namespace bulkhead::testing {

// Thread-safe. Paths are relative to a folder descriptor or absolute, as in
// *at(2). Changes are made by the caller's `change`, under the disk's lock, and
// noted if that returns true.
class Disk {
 public:
  // Everything below `root` now is taken to be on stable storage.
  explicit Disk(const std::string& root);
  ~Disk();

  // After this, changes are refused: false comes back, nothing is done.
  void CutPower();
  bool off() const { return off_; }
  // Fsyncs that were noted.
  int syncs() const { return syncs_; }

  using Change = std::function<bool()>;
  // A new file or folder, or one more name (link) of an old one.
  bool Make(int dir_fd, const std::string& path, const Change& change);
  bool Rename(int from_dir_fd, const std::string& from, int to_dir_fd,
              const std::string& to, const Change& change);
  bool Remove(int dir_fd, const std::string& path, const Change& change);
  // Bytes, length or mode of a file: nothing to note until it is synced.
  bool Touch(const Change& change);
  // An fsync of the file or folder; makes none.
  bool Sync(int fd);
  bool Sync(const std::string& path);

  enum class Kept { kSyncedOnly, kEverything, kAnything };
  // Writes what may have survived into the new folder `to`.
  void Survivors(const std::string& to, Kept kept, std::mt19937& random);

 private:
  struct Node;
  struct Op;

  Node* At(int dir_fd, const std::string& path);
  Node* ByInode(uint64_t inode);
  Node* Adopt(uint64_t inode, bool is_dir);
  void Load(const std::string& path, Node* node);
  void MakeDurable(Node* dir);
  bool SyncNode(Node* node);
  std::string PathOf(const Node* node) const;
  // By folder, the names in it.
  using Trees = std::map<const Node*, std::map<std::string, const Node*>>;
  void Write(const Node* node, const Trees& trees, const std::string& path,
             Kept kept, std::mt19937& random);

  const std::string root_;
  std::mutex mutex_;
  std::atomic<bool> off_{false};
  std::atomic<int> syncs_{0};
  std::vector<std::unique_ptr<Node>> nodes_;
  std::map<uint64_t, Node*> by_inode_;
  std::vector<Op> pending_;  // Changes of folders, in order.
  Node* top_ = nullptr;
};

// Files below a Disk's root. Sync() reaches no real disk.
std::unique_ptr<files::Files> FilesOn(Disk* disk);

}  // namespace bulkhead::testing

#endif  // BULKHEAD_LIB_TESTING_POWER_LOSS_H_
