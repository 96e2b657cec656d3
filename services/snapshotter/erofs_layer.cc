#include "services/snapshotter/erofs_layer.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <climits>
#include <deque>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/log/log.h"
#include "lib/os/fd.h"
#include "services/snapshotter/layer_entries.h"
#include "services/snapshotter/tar_reader.h"
#include "services/snapshotter/tree_root.h"

namespace bulkhead::snapshotter {
namespace {

using Nid = ErofsWriter::Nid;

constexpr int64_t kNs = 1000000000;
constexpr int kLinksFollowedMax = 40;  // As the kernel's.
constexpr int64_t kEntryBytes = 64;    // In memory, besides its name.

class LayerWriter {
 public:
  LayerWriter(ByteStream& stream, int fd, const ErofsAttributes& root,
              const ExtractOptions& options)
      : stream_(stream), reader_(stream), image_(fd), options_(options) {
    dirs_.push_back(Dir{.attributes = root});
    dirs_[0].attributes.mode = S_IFDIR | (root.mode & 07777);
  }

  absl::StatusOr<ExtractResult> Run(std::vector<ErofsImplicitDir>* implicit) {
    ASSIGN_OR_RETURN(lowers_, OpenLowers(options_));
    bool table_last = false;
    RETURN_IF_ERROR(ForEachEntry(
        reader_, options_, &result_,
        [&](const TarEntry& entry, const LayerName& name) {
          table_last =
              name.clean == kStargzTable && entry.type == TarType::kFile;
          return Add(entry, name);
        }));
    if (table_last) {
      ASSIGN_OR_RETURN(const bool is_stargz, IsStargz());
      for (const char* name : kStargzFiles) {
        if (is_stargz) Drop(0, name);
      }
    }
    RETURN_IF_ERROR(Finish(implicit));
    return std::move(result_);
  }

 private:
  struct Child {
    uint64_t ref = 0;  // A nid, or of directories the index in dirs_.
    erofs::FileType type = erofs::kTypeFile;
    bool whiteout = false;
  };
  struct Dir {
    ErofsAttributes attributes;
    std::string name;
    size_t parent = 0;
    bool implicit = false;  // Its layer said nothing of it, nobody knew more.
    bool dead = false;
    absl::flat_hash_map<std::string, Child> children;
  };

  // The footer that tells is the last there is of the layer.
  absl::StatusOr<bool> IsStargz() {
    for (;;) {
      ASSIGN_OR_RETURN(const absl::string_view rest, stream_.Fill());
      if (rest.empty()) break;
      stream_.Consume(rest.size());
    }
    return options_.is_stargz && options_.is_stargz();
  }

  absl::Status Charge(size_t bytes) {
    names_bytes_ += static_cast<int64_t>(bytes) + kEntryBytes;
    if (names_bytes_ <= ErofsWriter::kNamesBytesMax) return absl::OkStatus();
    return absl::ResourceExhaustedError(
        absl::StrCat("the names in the layer take more than ",
                     ErofsWriter::kNamesBytesMax, " bytes"));
  }

  Nid Current(Nid nid) const {
    for (auto it = moved_.find(nid); it != moved_.end(); it = moved_.find(nid))
      nid = it->second;
    return nid;
  }

  std::string PathOf(size_t dir) const {
    std::string path;
    for (; dir != 0; dir = dirs_[dir].parent) {
      path = path.empty() ? dirs_[dir].name
                          : absl::StrCat(dirs_[dir].name, "/", path);
    }
    return path;
  }

  // The directory `path`, its symlinks followed inside the layer. Missing ones
  // are made if `make`, else kNotFound.
  absl::StatusOr<size_t> Walk(const std::string& path, bool make) {
    if (path == last_path_) return last_dir_;
    std::vector<std::string> todo;  // The next one last.
    const auto push = [&todo](absl::string_view text) {
      std::vector<std::string> parts;
      for (size_t at = 0; at <= text.size();) {
        size_t end = text.find('/', at);
        if (end == absl::string_view::npos) end = text.size();
        if (end > at) parts.emplace_back(text.substr(at, end - at));
        at = end + 1;
      }
      todo.insert(todo.end(), parts.rbegin(), parts.rend());
    };
    push(path);
    size_t at = 0;
    int links = 0;
    while (!todo.empty()) {
      const std::string name = std::move(todo.back());
      todo.pop_back();
      if (name == ".") continue;
      if (name == "..") {
        at = dirs_[at].parent;
        continue;
      }
      const auto it = dirs_[at].children.find(name);
      if (it == dirs_[at].children.end()) {
        if (!make) return absl::NotFoundError("no such directory");
        RETURN_IF_ERROR(CheckComponent(name));
        ASSIGN_OR_RETURN(at, MakeImplicit(at, name));
      } else if (it->second.type == erofs::kTypeDir) {
        at = it->second.ref;
      } else if (it->second.type == erofs::kTypeSymlink &&
                 ++links <= kLinksFollowedMax) {
        const std::string& target = targets_[Current(it->second.ref)];
        if (!target.empty() && target[0] == '/') at = 0;
        push(target);
        if (todo.size() > 2 * kTreeDepthMax) {
          return absl::ResourceExhaustedError("symlinks lead too deep");
        }
      } else {
        return absl::InvalidArgumentError(
            absl::StrCat(name, " in ", path, " is not a directory"));
      }
    }
    last_path_ = path;
    last_dir_ = at;
    return at;
  }

  absl::StatusOr<size_t> NewDir(size_t parent, const std::string& name,
                                ErofsAttributes attributes) {
    RETURN_IF_ERROR(Charge(2 * name.size() + sizeof(Dir)));
    const size_t index = dirs_.size();
    dirs_.push_back(Dir{
        .attributes = std::move(attributes), .name = name, .parent = parent});
    dirs_[parent].children[name] = Child{index, erofs::kTypeDir, false};
    return index;
  }

  // A directory the layer assumes: attributes from the layers below.
  absl::StatusOr<size_t> MakeImplicit(size_t parent, const std::string& name) {
    ErofsAttributes attributes;
    attributes.mode = S_IFDIR | 0755;
    attributes.mtime_ns = dirs_[0].attributes.mtime_ns;
    ASSIGN_OR_RETURN(const size_t index, NewDir(parent, name, attributes));
    dirs_[index].implicit = lowers_.empty();
    const std::string path = PathOf(index);
    for (const os::UniqueFd& lower : lowers_) {
      absl::StatusOr<os::UniqueFd> from =
          os::OpenInRoot(lower.get(), path, O_RDONLY | O_DIRECTORY);
      struct stat st;
      if (!from.ok() || ::fstat(from->get(), &st) != 0) continue;
      ErofsAttributes& own = dirs_[index].attributes;
      own.mode = S_IFDIR | (st.st_mode & 07777);
      own.uid = st.st_uid;
      own.gid = st.st_gid;
      own.mtime_ns = std::max<int64_t>(
          0, int64_t{st.st_mtim.tv_sec} * kNs + st.st_mtim.tv_nsec);
      ASSIGN_OR_RETURN(const Xattrs xattrs, ReadXattrs(from->get()));
      for (const auto& xattr : xattrs) {
        if (!absl::StartsWith(xattr.first, "trusted.")) {
          own.xattrs.push_back(xattr);
        }
      }
      break;
    }
    return index;
  }

  // Forgets `name` and all below it.
  void Drop(size_t parent, const std::string& name) {
    const auto it = dirs_[parent].children.find(name);
    if (it == dirs_[parent].children.end()) return;
    std::vector<Child> dying = {it->second};
    dirs_[parent].children.erase(it);
    last_path_ = "/";  // Never a clean name.
    while (!dying.empty()) {
      const Child child = dying.back();
      dying.pop_back();
      if (child.type != erofs::kTypeDir) {
        const auto links = links_.find(Current(child.ref));
        if (links != links_.end()) --links->second;
        continue;
      }
      Dir& dir = dirs_[child.ref];
      dir.dead = true;
      for (const auto& [below, one] : dir.children) dying.push_back(one);
      dir.children = {};
    }
  }

  absl::StatusOr<ErofsAttributes> AttributesOf(const TarEntry& entry,
                                               uint32_t type) {
    RETURN_IF_ERROR(CheckOwner(entry));
    ErofsAttributes out;
    out.mode = type | (type == S_IFLNK ? 0777 : entry.mode & 07777);
    out.uid = static_cast<uint32_t>(entry.uid);
    out.gid = static_cast<uint32_t>(entry.gid);
    out.mtime_ns = entry.mtime_ns;
    for (const auto& [key, value] : entry.xattrs) {
      if (absl::StartsWith(key, "trusted.")) {
        log::Warn("layer's trusted xattr left out", {{"xattr", key}});
        continue;
      }
      // As the kernel has it: of files and directories only.
      if (absl::StartsWith(key, "user.") && type != S_IFREG && type != S_IFDIR)
        continue;
      out.xattrs.emplace_back(key, value);
    }
    std::vector<std::string> left_out;
    RETURN_IF_ERROR(EncodeErofsXattrs(out.xattrs, &left_out).status());
    for (const std::string& key : left_out) {
      log::Warn("layer's xattr not supported here", {{"xattr", key}});
    }
    return out;
  }

  absl::Status Put(size_t parent, const std::string& base, Child child) {
    RETURN_IF_ERROR(Charge(base.size()));
    dirs_[parent].children[base] = child;
    return absl::OkStatus();
  }

  absl::Status Add(const TarEntry& entry, const LayerName& name) {
    ASSIGN_OR_RETURN(const size_t parent, Walk(name.dir, true));
    switch (name.means) {
      case LayerName::Means::kOpaque:
        SetXattr(&dirs_[parent].attributes, kOpaqueXattr, "y");
        return absl::OkStatus();
      case LayerName::Means::kWhiteout:
        return Whiteout(parent, name.base, entry);
      case LayerName::Means::kEntry:
        break;
    }
    return Create(entry, parent, name.base);
  }

  absl::Status Whiteout(size_t parent, const std::string& hidden,
                        const TarEntry& entry) {
    ASSIGN_OR_RETURN(ErofsAttributes attributes, AttributesOf(entry, S_IFCHR));
    attributes.mode = S_IFCHR;
    attributes.xattrs.clear();
    Drop(parent, hidden);
    ASSIGN_OR_RETURN(const Nid nid, image_.AddNode(attributes));
    return Put(parent, hidden, Child{nid, erofs::kTypeChar, true});
  }

  static void SetXattr(ErofsAttributes* attributes, const std::string& key,
                       const std::string& value) {
    for (auto& [name, old] : attributes->xattrs) {
      if (name != key) continue;
      old = value;
      return;
    }
    attributes->xattrs.emplace_back(key, value);
  }

  absl::Status CreateDir(const TarEntry& entry, size_t parent,
                         const std::string& base) {
    ASSIGN_OR_RETURN(ErofsAttributes attributes, AttributesOf(entry, S_IFDIR));
    size_t xattr_bytes = 0;
    for (const auto& [key, value] : attributes.xattrs) {
      xattr_bytes += key.size() + value.size() + kEntryBytes;
    }
    RETURN_IF_ERROR(Charge(xattr_bytes));
    const auto it = dirs_[parent].children.find(base);
    if (it != dirs_[parent].children.end() &&
        it->second.type == erofs::kTypeDir) {
      Dir& old = dirs_[it->second.ref];
      attributes.xattrs.swap(old.attributes.xattrs);
      for (const auto& [key, value] : old.attributes.xattrs) {
        SetXattr(&attributes, key, value);
      }
      old.attributes = std::move(attributes);
      old.implicit = false;
      return absl::OkStatus();
    }
    const bool was_whiteout =
        it != dirs_[parent].children.end() && it->second.whiteout;
    Drop(parent, base);
    // A directory in place of one deleted by this layer is a new one.
    if (was_whiteout) SetXattr(&attributes, kOpaqueXattr, "y");
    return NewDir(parent, base, std::move(attributes)).status();
  }

  absl::Status Create(const TarEntry& entry, size_t parent,
                      const std::string& base) {
    if (entry.type == TarType::kDirectory) {
      return CreateDir(entry, parent, base);
    }
    Drop(parent, base);
    switch (entry.type) {
      case TarType::kFile:
        return CreateFile(entry, parent, base);
      case TarType::kHardLink:
        return Link(entry, parent, base);
      case TarType::kSymlink: {
        if (entry.link_name.empty()) {
          return absl::InvalidArgumentError("symlink to nothing");
        }
        ASSIGN_OR_RETURN(const ErofsAttributes attributes,
                         AttributesOf(entry, S_IFLNK));
        ASSIGN_OR_RETURN(const Nid nid,
                         image_.AddNode(attributes, entry.link_name));
        RETURN_IF_ERROR(Charge(entry.link_name.size()));
        targets_[nid] = entry.link_name;
        last_path_ = "/";
        return Put(parent, base, Child{nid, erofs::kTypeSymlink, false});
      }
      default:
        return CreateNode(entry, parent, base);
    }
  }

  absl::Status CreateFile(const TarEntry& entry, size_t parent,
                          const std::string& base) {
    ASSIGN_OR_RETURN(const ErofsAttributes attributes,
                     AttributesOf(entry, S_IFREG));
    Nid nid = 0;
    if (entry.sparse) {
      RETURN_IF_ERROR(image_.BeginSparse(attributes, entry.size_bytes));
      RETURN_IF_ERROR(
          reader_.ReadData([&](int64_t offset, absl::string_view data) {
            return image_.WriteAt(offset, data);
          }));
      ASSIGN_OR_RETURN(nid, image_.EndSparse());
    } else {
      RETURN_IF_ERROR(image_.BeginFile(attributes, entry.size_bytes));
      if (entry.size_bytes > 0) {
        RETURN_IF_ERROR(reader_.ReadData([&](int64_t, absl::string_view data) {
          return image_.Append(data);
        }));
      }
      ASSIGN_OR_RETURN(nid, image_.EndFile());
    }
    return Put(parent, base, Child{nid, erofs::kTypeFile, false});
  }

  absl::Status CreateNode(const TarEntry& entry, size_t parent,
                          const std::string& base) {
    uint32_t mode = S_IFIFO;
    erofs::FileType type = erofs::kTypeFifo;
    dev_t device = 0;
    if (entry.type != TarType::kFifo) {
      const bool is_char = entry.type == TarType::kCharDevice;
      mode = is_char ? S_IFCHR : S_IFBLK;
      type = is_char ? erofs::kTypeChar : erofs::kTypeBlock;
      ASSIGN_OR_RETURN(device, DeviceOf(entry));
    }
    ASSIGN_OR_RETURN(ErofsAttributes attributes, AttributesOf(entry, mode));
    attributes.device = device;
    ASSIGN_OR_RETURN(const Nid nid, image_.AddNode(attributes));
    return Put(parent, base,
               Child{nid, type,
                     mode == S_IFCHR && attributes.device == makedev(0, 0)});
  }

  absl::Status Link(const TarEntry& entry, size_t parent,
                    const std::string& base) {
    ASSIGN_OR_RETURN(const std::string target, CleanName(entry.link_name));
    if (target.empty()) {
      return absl::InvalidArgumentError("hard link to the root");
    }
    const auto [target_dir, target_base] = SplitName(target);
    const std::string what =
        absl::StrCat("hard link to ", target.substr(0, 256));
    const absl::StatusOr<size_t> dir = Walk(target_dir, false);
    if (!dir.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat(what, ": ", MessageOf(dir.status())));
    }
    const auto it = dirs_[*dir].children.find(target_base);
    if (it == dirs_[*dir].children.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat(what, ", which does not exist"));
    }
    Child child = it->second;
    uint32_t type = S_IFREG;
    switch (child.type) {
      case erofs::kTypeDir:
        return absl::InvalidArgumentError(absl::StrCat(what, ", a directory"));
      case erofs::kTypeSymlink:
        type = S_IFLNK;
        break;
      case erofs::kTypeFile:
        break;
      default:
        type = S_IFCHR;  // Any that takes no user.*.
    }
    ASSIGN_OR_RETURN(const ErofsAttributes attributes,
                     AttributesOf(entry, type));
    const Nid old = Current(child.ref);
    ASSIGN_OR_RETURN(child.ref, image_.Change(old, attributes));
    uint32_t& links = links_.try_emplace(old, 1).first->second;
    ++links;
    if (child.ref != old) {
      moved_[old] = child.ref;
      const uint32_t count = links;
      links_.erase(old);
      links_[child.ref] = count;
      const auto symlink = targets_.find(old);
      if (symlink != targets_.end()) {
        std::string text = std::move(symlink->second);
        targets_.erase(symlink);
        targets_[child.ref] = std::move(text);
      }
    }
    return Put(parent, base, child);
  }

  absl::Status Finish(std::vector<ErofsImplicitDir>* implicit) {
    for (const auto& [nid, links] : links_) image_.SetLinks(nid, links);
    std::vector<size_t> places(dirs_.size());
    size_t alive = 0;
    for (size_t i = 0; i < dirs_.size(); ++i) {
      if (!dirs_[i].dead) places[i] = alive++;
    }
    std::vector<ErofsWriter::Dir> out;
    out.reserve(alive);
    std::vector<std::pair<size_t, std::string>> unknown;
    for (size_t i = 0; i < dirs_.size(); ++i) {
      if (dirs_[i].dead || !dirs_[i].implicit) continue;
      if (unknown.size() >= kImplicitDirsMax) break;
      unknown.emplace_back(places[i], PathOf(i));
    }
    for (Dir& dir : dirs_) {
      if (dir.dead) continue;
      ErofsWriter::Dir to;
      to.attributes = std::move(dir.attributes);
      to.parent = places[dir.parent];
      to.slack = dir.implicit;
      to.entries.reserve(dir.children.size() + 2);
      for (const auto& [name, child] : dir.children) {
        to.entries.push_back({name, child.type,
                              child.type == erofs::kTypeDir
                                  ? places[child.ref]
                                  : Current(child.ref)});
      }
      dir.children = {};
      out.push_back(std::move(to));
    }
    RETURN_IF_ERROR(image_.Finish(&out));
    for (auto& [place, path] : unknown) {
      implicit->push_back({out[place].nid, std::move(path)});
    }
    return absl::OkStatus();
  }

  ByteStream& stream_;
  TarReader reader_;
  ErofsWriter image_;
  const ExtractOptions& options_;
  std::vector<os::UniqueFd> lowers_;
  std::deque<Dir> dirs_;
  absl::flat_hash_map<Nid, std::string> targets_;  // Of symlinks.
  absl::flat_hash_map<Nid, uint32_t> links_;       // Of what has several names.
  absl::flat_hash_map<Nid, Nid> moved_;
  int64_t names_bytes_ = 0;
  std::string last_path_ = "/";
  size_t last_dir_ = 0;
  ExtractResult result_;
};

}  // namespace

absl::StatusOr<ExtractResult> WriteErofsLayer(
    ByteStream& stream, int fd, const ErofsAttributes& root,
    const ExtractOptions& options, std::vector<ErofsImplicitDir>* implicit) {
  return LayerWriter(stream, fd, root, options).Run(implicit);
}

}  // namespace bulkhead::snapshotter
