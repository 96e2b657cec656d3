#include "lib/testing/power_loss.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <set>
#include <utility>

namespace bulkhead::testing {
namespace {

constexpr size_t kPageBytes = 4096;

// A test without its disk cannot go on.
[[noreturn]] void Die(const char* what, const std::string& path) {
  std::fprintf(stderr, "power loss simulation: %s %s: errno %d\n", what,
               path.c_str(), errno);
  std::abort();
}

std::string ReadAll(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) Die("open", path);
  std::string data;
  char buffer[64 << 10];
  for (;;) {
    const ssize_t n = ::read(fd, buffer, sizeof(buffer));
    if (n < 0) Die("read", path);
    if (n == 0) break;
    data.append(buffer, static_cast<size_t>(n));
  }
  ::close(fd);
  return data;
}

std::string DirName(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

std::string BaseName(const std::string& path) {
  return path.substr(path.rfind('/') + 1);
}

// Page by page, the old bytes, the new, or zeros.
std::string Mix(const std::string& before, const std::string& after,
                std::mt19937& random) {
  if (before == after) return after;
  const size_t low = std::min(before.size(), after.size());
  const size_t high = std::max(before.size(), after.size());
  size_t size = 0;
  switch (random() % 3) {
    case 0:
      size = before.size();
      break;
    case 1:
      size = after.size();
      break;
    default:
      size = low + random() % (high - low + 1);
  }
  std::string mixed(size, '\0');
  for (size_t at = 0; at < size; at += kPageBytes) {
    const size_t n = std::min(kPageBytes, size - at);
    const auto same = [&](const std::string& data) {
      return at < data.size() ? data.substr(at, n) : std::string();
    };
    const std::string old_page = same(before), new_page = same(after);
    // What did not change on a page is as it was.
    if (old_page == new_page) {
      mixed.replace(at, old_page.size(), old_page);
      continue;
    }
    const int choice = static_cast<int>(random() % 4);
    const std::string& page = choice == 0 ? old_page : new_page;
    // Zeros only where nothing had been.
    if (choice == 1 && old_page.empty()) continue;
    mixed.replace(at, page.size(), page);
  }
  return mixed;
}

}  // namespace

struct Disk::Node {
  bool is_dir = false;
  bool synced = false;  // `data` and `mode` mean something.
  std::string data;     // Durable.
  mode_t mode = 0644;
  bool removed = false;
  std::string last_data;  // When it was removed.
  mode_t last_mode = 0644;
  // A name that it has now, for a file that is not removed.
  Node* parent = nullptr;
  std::string name;
  std::map<std::string, Node*> durable;  // Names in this folder.
};

struct Disk::Op {
  enum class Kind { kLink, kRename, kUnlink } kind;
  Node* dir;
  std::string name;
  Node* node;
  Node* to_dir = nullptr;  // kRename.
  std::string to_name;
};

Disk::Disk(const std::string& root) : root_(root) {
  struct stat st;
  if (::stat(root.c_str(), &st) != 0) Die("stat", root);
  top_ = Adopt(st.st_ino, true);
  Load(root, top_);
}

Disk::~Disk() = default;

void Disk::Load(const std::string& path, Node* node) {
  DIR* dir = ::opendir(path.c_str());
  if (dir == nullptr) Die("opendir", path);
  while (const dirent* entry = ::readdir(dir)) {
    const std::string name = entry->d_name;
    if (name == "." || name == "..") continue;
    const std::string below = path + "/" + name;
    struct stat st;
    if (::lstat(below.c_str(), &st) != 0) Die("lstat", below);
    Node* child = Adopt(st.st_ino, S_ISDIR(st.st_mode));
    child->parent = node;
    child->name = name;
    child->synced = true;
    child->mode = st.st_mode & 07777;
    if (!child->is_dir) child->data = ReadAll(below);
    node->durable[name] = child;
    if (child->is_dir) Load(below, child);
  }
  ::closedir(dir);
}

void Disk::CutPower() {
  const std::lock_guard<std::mutex> lock(mutex_);
  off_ = true;
}

Disk::Node* Disk::Adopt(uint64_t inode, bool is_dir) {
  nodes_.push_back(std::make_unique<Node>());
  nodes_.back()->is_dir = is_dir;
  by_inode_[inode] = nodes_.back().get();
  return nodes_.back().get();
}

Disk::Node* Disk::ByInode(uint64_t inode) {
  const auto found = by_inode_.find(inode);
  return found == by_inode_.end() ? nullptr : found->second;
}

Disk::Node* Disk::At(int dir_fd, const std::string& path) {
  struct stat st;
  if (::fstatat(dir_fd, path.c_str(), &st,
                AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) != 0) {
    return nullptr;
  }
  return ByInode(st.st_ino);
}

std::string Disk::PathOf(const Node* node) const {
  if (node == top_) return root_;
  return PathOf(node->parent) + "/" + node->name;
}

bool Disk::Make(int dir_fd, const std::string& path, const Change& change) {
  const std::lock_guard<std::mutex> lock(mutex_);
  struct stat st;
  const bool existed =
      ::fstatat(dir_fd, path.c_str(), &st, AT_SYMLINK_NOFOLLOW) == 0;
  if (off_ || !change()) return false;
  if (existed) return true;  // Opened, not made.
  if (::fstatat(dir_fd, path.c_str(), &st, AT_SYMLINK_NOFOLLOW) != 0) {
    return true;
  }
  Node* dir = At(dir_fd, DirName(path));
  if (dir == nullptr) return true;  // Not below the root.
  Node* node = ByInode(st.st_ino);
  // A number that is used again is another file, unless it is a further name.
  if (node == nullptr || node->removed || st.st_nlink < 2 ||
      S_ISDIR(st.st_mode)) {
    node = Adopt(st.st_ino, S_ISDIR(st.st_mode));
    node->mode = node->last_mode = st.st_mode & 07777;
    node->parent = dir;
    node->name = BaseName(path);
  }
  pending_.push_back({Op::Kind::kLink, dir, BaseName(path), node, nullptr, ""});
  return true;
}

bool Disk::Rename(int from_dir_fd, const std::string& from, int to_dir_fd,
                  const std::string& to, const Change& change) {
  const std::lock_guard<std::mutex> lock(mutex_);
  Node* node = At(from_dir_fd, from);
  Node* from_dir = At(from_dir_fd, DirName(from));
  Node* to_dir = At(to_dir_fd, DirName(to));
  Node* replaced = At(to_dir_fd, to);
  if (replaced != nullptr && replaced != node && !replaced->is_dir) {
    replaced->last_data = ReadAll(PathOf(replaced));
  }
  if (off_ || !change()) return false;
  if (node == nullptr || from_dir == nullptr || to_dir == nullptr) return true;
  if (replaced != nullptr && replaced != node) replaced->removed = true;
  node->parent = to_dir;
  node->name = BaseName(to);
  pending_.push_back({Op::Kind::kRename, from_dir, BaseName(from), node, to_dir,
                      BaseName(to)});
  return true;
}

bool Disk::Remove(int dir_fd, const std::string& path, const Change& change) {
  const std::lock_guard<std::mutex> lock(mutex_);
  Node* node = At(dir_fd, path);
  Node* dir = At(dir_fd, DirName(path));
  bool last = true;
  if (node != nullptr && !node->is_dir) {
    struct stat st;
    if (::fstatat(dir_fd, path.c_str(), &st, AT_SYMLINK_NOFOLLOW) == 0) {
      last = st.st_nlink < 2;
      node->last_mode = st.st_mode & 07777;
    }
    // The name may come back, and the bytes with it.
    if (last && !off_) node->last_data = ReadAll(PathOf(node));
  }
  if (off_ || !change()) return false;
  if (node == nullptr || dir == nullptr) return true;
  if (last) node->removed = true;
  pending_.push_back(
      {Op::Kind::kUnlink, dir, BaseName(path), node, nullptr, ""});
  return true;
}

bool Disk::Touch(const Change& change) {
  const std::lock_guard<std::mutex> lock(mutex_);
  return !off_ && change();
}

void Disk::MakeDurable(Node* dir) {
  // A rename out of a folder that is not synced takes with it whatever made
  // that name there.
  for (size_t i = 0; i < pending_.size();) {
    Op op = pending_[i];
    if (op.dir != dir && op.to_dir != dir) {
      ++i;
      continue;
    }
    pending_.erase(pending_.begin() + static_cast<ptrdiff_t>(i));
    switch (op.kind) {
      case Op::Kind::kLink:
        op.dir->durable[op.name] = op.node;
        break;
      case Op::Kind::kUnlink:
        op.dir->durable.erase(op.name);
        break;
      case Op::Kind::kRename: {
        op.dir->durable.erase(op.name);
        op.to_dir->durable[op.to_name] = op.node;
        const size_t size = pending_.size();
        std::vector<Op> left;
        for (size_t k = 0; k < size; ++k) {
          const Op& earlier = pending_[k];
          const bool made_it =
              k < i && earlier.node == op.node &&
              ((earlier.kind == Op::Kind::kLink && earlier.dir == op.dir &&
                earlier.name == op.name) ||
               (earlier.kind == Op::Kind::kRename && earlier.to_dir == op.dir &&
                earlier.to_name == op.name));
          if (!made_it) {
            left.push_back(earlier);
          } else if (earlier.kind == Op::Kind::kRename) {
            earlier.dir->durable.erase(earlier.name);
          }
        }
        i -= size - left.size();
        pending_ = std::move(left);
        break;
      }
    }
  }
}

bool Disk::SyncNode(Node* node) {
  if (off_) return false;
  ++syncs_;
  if (node == nullptr) return true;
  if (node->is_dir) {
    MakeDurable(node);
    return true;
  }
  if (node->removed) return true;
  const std::string path = PathOf(node);
  struct stat st;
  if (::lstat(path.c_str(), &st) != 0) Die("lstat", path);
  node->data = ReadAll(path);
  node->mode = st.st_mode & 07777;
  node->synced = true;
  return true;
}

bool Disk::Sync(int fd) {
  const std::lock_guard<std::mutex> lock(mutex_);
  return SyncNode(At(fd, ""));
}

bool Disk::Sync(const std::string& path) {
  const std::lock_guard<std::mutex> lock(mutex_);
  return SyncNode(At(AT_FDCWD, path));
}

void Disk::Survivors(const std::string& to, Kept kept, std::mt19937& random) {
  const std::lock_guard<std::mutex> lock(mutex_);
  Trees trees;
  for (const auto& node : nodes_) {
    if (!node->is_dir) continue;
    auto& names = trees[node.get()];
    for (const auto& [name, child] : node->durable) names[name] = child;
  }
  // How many of each folder's pending changes made it.
  std::map<const Node*, size_t> left;
  for (const Op& op : pending_) {
    ++left[op.dir];
    if (op.to_dir != nullptr && op.to_dir != op.dir) ++left[op.to_dir];
  }
  const bool in_order = random() % 2 == 0;  // As one journal does.
  size_t journal = random() % (pending_.size() + 1);
  for (auto& [dir, count] : left) {
    count = kept == Kept::kSyncedOnly   ? 0
            : kept == Kept::kEverything ? count
                                        : random() % (count + 1);
  }
  for (const Op& op : pending_) {
    bool done =
        left[op.dir] > 0 && (op.to_dir == nullptr || left[op.to_dir] > 0);
    if (kept == Kept::kAnything && in_order) {
      done = journal > 0;
      if (done) --journal;
    } else if (!done) {
      // What comes later in these folders did not make it either.
      left[op.dir] = 0;
      if (op.to_dir != nullptr) left[op.to_dir] = 0;
    } else {
      --left[op.dir];
      if (op.to_dir != nullptr && op.to_dir != op.dir) --left[op.to_dir];
    }
    if (!done) continue;
    switch (op.kind) {
      case Op::Kind::kLink:
        trees[op.dir][op.name] = op.node;
        break;
      case Op::Kind::kUnlink:
        trees[op.dir].erase(op.name);
        break;
      case Op::Kind::kRename:
        trees[op.dir].erase(op.name);
        trees[op.to_dir][op.to_name] = op.node;
        break;
    }
  }
  Write(top_, trees, to, kept, random);
}

void Disk::Write(const Node* node, const Trees& trees, const std::string& path,
                 Kept kept, std::mt19937& random) {
  if (node->is_dir) {
    if (::mkdir(path.c_str(), 0700) != 0) Die("mkdir", path);
    for (const auto& [name, child] : trees.at(node)) {
      Write(child, trees, path + "/" + name, kept, random);
    }
    return;
  }
  std::string now = node->last_data;
  mode_t now_mode = node->last_mode;
  if (!node->removed) {
    const std::string source = PathOf(node);
    struct stat st;
    if (::lstat(source.c_str(), &st) != 0) Die("lstat", source);
    now = ReadAll(source);
    now_mode = st.st_mode & 07777;
  }
  const std::string before = node->synced ? node->data : "";
  const std::string data = kept == Kept::kSyncedOnly ? before
                           : kept == Kept::kEverything
                               ? now
                               : Mix(before, now, random);
  const mode_t mode =
      kept == Kept::kSyncedOnly || (kept == Kept::kAnything && random() % 2)
          ? node->mode
          : now_mode;
  const int fd =
      ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (fd < 0) Die("create", path);
  if (::write(fd, data.data(), data.size()) !=
      static_cast<ssize_t>(data.size())) {
    Die("write", path);
  }
  ::fchmod(fd, mode);
  ::close(fd);
}

namespace {

class DiskFiles final : public files::Files {
 public:
  explicit DiskFiles(Disk* disk) : disk_(*disk) {}

  absl::StatusOr<os::UniqueFd> Open(int dir_fd, const std::string& path,
                                    int flags, mode_t mode) override {
    if ((flags & O_CREAT) == 0) return real_.Open(dir_fd, path, flags, mode);
    absl::StatusOr<os::UniqueFd> fd = Off();
    disk_.Make(dir_fd, path, [&] {
      fd = real_.Open(dir_fd, path, flags, mode);
      return fd.ok();
    });
    return fd;
  }
  absl::StatusOr<size_t> PRead(int fd, void* data, size_t size_bytes,
                               int64_t offset_bytes) override {
    return real_.PRead(fd, data, size_bytes, offset_bytes);
  }
  absl::StatusOr<size_t> PWrite(int fd, const void* data, size_t size_bytes,
                                int64_t offset_bytes) override {
    absl::StatusOr<size_t> n = Off();
    disk_.Touch([&] {
      n = real_.PWrite(fd, data, size_bytes, offset_bytes);
      return n.ok();
    });
    return n;
  }
  absl::Status Truncate(int fd, int64_t size_bytes) override {
    return Do([&] { return real_.Truncate(fd, size_bytes); });
  }
  absl::Status Sync(int fd) override {
    return disk_.Sync(fd) ? absl::OkStatus() : Off();
  }
  void StartWriteback(int, int64_t, int64_t) override {}
  absl::Status WaitWritten(int, int64_t, int64_t) override {
    return absl::OkStatus();  // Nothing is safer than before.
  }
  absl::Status Lock(int fd) override { return real_.Lock(fd); }
  absl::Status Chmod(int fd, mode_t mode) override {
    return Do([&] { return real_.Chmod(fd, mode); });
  }
  absl::StatusOr<files::FileStat> Stat(int dir_fd,
                                       const std::string& path) override {
    return real_.Stat(dir_fd, path);
  }
  absl::Status MakeDir(int dir_fd, const std::string& path,
                       mode_t mode) override {
    absl::Status status = Off();
    disk_.Make(dir_fd, path, [&] {
      status = real_.MakeDir(dir_fd, path, mode);
      return status.ok();
    });
    return status;
  }
  absl::Status RenameNoReplace(int from_dir_fd, const std::string& from,
                               int to_dir_fd, const std::string& to) override {
    absl::Status status = Off();
    disk_.Rename(from_dir_fd, from, to_dir_fd, to, [&] {
      status = real_.RenameNoReplace(from_dir_fd, from, to_dir_fd, to);
      return status.ok();
    });
    return status;
  }
  absl::Status Unlink(int dir_fd, const std::string& path) override {
    absl::Status status = Off();
    disk_.Remove(dir_fd, path, [&] {
      status = real_.Unlink(dir_fd, path);
      return status.ok();
    });
    return status;
  }
  absl::Status RemoveDir(int dir_fd, const std::string& path) override {
    absl::Status status = Off();
    disk_.Remove(dir_fd, path, [&] {
      status = real_.RemoveDir(dir_fd, path);
      return status.ok();
    });
    return status;
  }
  absl::StatusOr<std::vector<std::string>> List(
      int dir_fd, const std::string& path) override {
    return real_.List(dir_fd, path);
  }

 private:
  static absl::Status Off() { return os::ErrnoStatus(EIO, "the power is off"); }
  absl::Status Do(const std::function<absl::Status()>& call) {
    absl::Status status = Off();
    disk_.Touch([&] {
      status = call();
      return status.ok();
    });
    return status;
  }

  files::Files& real_ = files::RealFiles();
  Disk& disk_;
};

}  // namespace

std::unique_ptr<files::Files> FilesOn(Disk* disk) {
  return std::make_unique<DiskFiles>(disk);
}

}  // namespace bulkhead::testing
