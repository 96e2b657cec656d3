#include "lib/os/mount.h"

#include <fcntl.h>
#include <linux/mount.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "lib/base/status_macros.h"
#include "lib/os/fd.h"
#include "lib/os/idmap.h"

namespace bulkhead::os {
namespace {

constexpr size_t kMountDataSizeBytesMax = 4095;
constexpr size_t kMountInfoSizeBytesMax = 64 << 20;

struct Flag {
  const char* name;
  bool clear;
  unsigned long bit;
};

constexpr Flag kFlags[] = {
    {"async", true, MS_SYNCHRONOUS},
    {"atime", true, MS_NOATIME},
    {"bind", false, MS_BIND},
    {"defaults", false, 0},
    {"dev", true, MS_NODEV},
    {"diratime", true, MS_NODIRATIME},
    {"dirsync", false, MS_DIRSYNC},
    {"exec", true, MS_NOEXEC},
    {"mand", false, MS_MANDLOCK},
    {"noatime", false, MS_NOATIME},
    {"nodev", false, MS_NODEV},
    {"nodiratime", false, MS_NODIRATIME},
    {"noexec", false, MS_NOEXEC},
    {"nomand", true, MS_MANDLOCK},
    {"norelatime", true, MS_RELATIME},
    {"nostrictatime", true, MS_STRICTATIME},
    {"nosuid", false, MS_NOSUID},
    {"nosymfollow", false, 256 /* MS_NOSYMFOLLOW */},
    {"rbind", false, MS_BIND | MS_REC},
    {"relatime", false, MS_RELATIME},
    {"remount", false, MS_REMOUNT},
    {"ro", false, MS_RDONLY},
    {"rw", true, MS_RDONLY},
    {"strictatime", false, MS_STRICTATIME},
    {"suid", true, MS_NOSUID},
    {"sync", false, MS_SYNCHRONOUS},
};

constexpr Flag kPropagation[] = {
    {"private", false, MS_PRIVATE},
    {"rprivate", false, MS_PRIVATE | MS_REC},
    {"rshared", false, MS_SHARED | MS_REC},
    {"rslave", false, MS_SLAVE | MS_REC},
    {"runbindable", false, MS_UNBINDABLE | MS_REC},
    {"shared", false, MS_SHARED},
    {"slave", false, MS_SLAVE},
    {"unbindable", false, MS_UNBINDABLE},
};

std::string ProcFdPath(int fd) { return absl::StrCat("/proc/self/fd/", fd); }

// Mount attributes of the new API for the MS_* bits that have one.
unsigned MountAttributes(unsigned long flags) {
  unsigned attributes = 0;
  if (flags & MS_RDONLY) attributes |= MOUNT_ATTR_RDONLY;
  if (flags & MS_NOSUID) attributes |= MOUNT_ATTR_NOSUID;
  if (flags & MS_NODEV) attributes |= MOUNT_ATTR_NODEV;
  if (flags & MS_NOEXEC) attributes |= MOUNT_ATTR_NOEXEC;
  if (flags & MS_NODIRATIME) attributes |= MOUNT_ATTR_NODIRATIME;
  if (flags & MS_NOATIME) {
    attributes |= MOUNT_ATTR_NOATIME;
  } else if (flags & MS_STRICTATIME) {
    attributes |= MOUNT_ATTR_STRICTATIME;
  }
  return attributes;
}

// The kernel's own words for what an fsconfig call refused.
std::string FsContextText(int fs) {
  char text[512];
  const ssize_t size = ::read(fs, text, sizeof(text) - 1);
  if (size <= 0) return "";
  return absl::StrCat(" (", std::string(text, static_cast<size_t>(size)), ")");
}

absl::Status FsConfig(int fs, unsigned command, const std::string& key,
                      const char* value) {
  if (::syscall(SYS_fsconfig, fs, command, key.empty() ? nullptr : key.c_str(),
                value, 0) == 0) {
    return absl::OkStatus();
  }
  const int error = errno;
  return ErrnoStatus(error, absl::StrCat("fsconfig ", key, FsContextText(fs)));
}

absl::Status Attach(const UniqueFd& mount, int target) {
  if (::syscall(SYS_move_mount, mount.get(), "", target, "",
                MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) != 0) {
    return ErrnoStatus(errno, "move_mount");
  }
  return absl::OkStatus();
}

// One lower folder of an overlay being made; as `user_ns` maps it if valid:
// then what is added to `keep` must stay open until the overlay is made.
absl::Status AddLower(int fs, const std::string& path, int user_ns,
                      std::vector<UniqueFd>* keep) {
  if (user_ns < 0) {
    return FsConfig(fs, FSCONFIG_SET_STRING, "lowerdir+", path.c_str());
  }
  ASSIGN_OR_RETURN(UniqueFd lower, CloneIdMapped(path, user_ns, 0, false));
  if (::syscall(SYS_fsconfig, fs, FSCONFIG_SET_FD, "lowerdir+", nullptr,
                lower.get()) != 0) {
    const int error = errno;
    return ErrnoStatus(
        error, absl::StrCat("fsconfig lowerdir+ ", path, FsContextText(fs)));
  }
  keep->push_back(std::move(lower));
  return absl::OkStatus();
}

// Overlay whose options do not fit in the page mount(2) takes, or with mapped
// lower folders: one lower folder an fsconfig call.
absl::Status MountOverlay(const MountSpec& spec, const MountFlags& parsed,
                          int target) {
  std::vector<UniqueFd> keep;
  UniqueFd user_ns;
  if (!parsed.uid_map.empty()) {
    ASSIGN_OR_RETURN(user_ns,
                     OpenIdMapNamespace(parsed.uid_map, parsed.gid_map));
  }
  UniqueFd fs(static_cast<int>(
      ::syscall(SYS_fsopen, spec.type.c_str(), FSOPEN_CLOEXEC)));
  if (!fs.valid()) return ErrnoStatus(errno, "fsopen overlay");
  const std::string source = spec.source.empty() ? "overlay" : spec.source;
  RETURN_IF_ERROR(
      FsConfig(fs.get(), FSCONFIG_SET_STRING, "source", source.c_str()));
  for (const std::string& option : parsed.data) {
    const size_t equals = option.find('=');
    if (equals == std::string::npos) {
      RETURN_IF_ERROR(FsConfig(fs.get(), FSCONFIG_SET_FLAG, option, nullptr));
      continue;
    }
    const std::string key = option.substr(0, equals);
    const std::string value = option.substr(equals + 1);
    if (key != "lowerdir") {
      RETURN_IF_ERROR(
          FsConfig(fs.get(), FSCONFIG_SET_STRING, key, value.c_str()));
      continue;
    }
    std::string lower;
    for (size_t i = 0; i <= value.size(); ++i) {
      if (i < value.size() && value[i] == '\\' && i + 1 < value.size()) {
        lower.push_back(value[++i]);  // An escaped colon.
      } else if (i < value.size() && value[i] != ':') {
        lower.push_back(value[i]);
      } else if (!lower.empty()) {
        RETURN_IF_ERROR(AddLower(fs.get(), lower, user_ns.get(), &keep));
        lower.clear();
      }
    }
  }
  if (parsed.flags & MS_RDONLY) {
    RETURN_IF_ERROR(FsConfig(fs.get(), FSCONFIG_SET_FLAG, "ro", nullptr));
  }
  RETURN_IF_ERROR(FsConfig(fs.get(), FSCONFIG_CMD_CREATE, "", nullptr));
  UniqueFd mount(static_cast<int>(::syscall(
      SYS_fsmount, fs.get(), FSMOUNT_CLOEXEC, MountAttributes(parsed.flags))));
  if (!mount.valid()) return ErrnoStatus(errno, "fsmount overlay");
  return Attach(mount, target);
}

absl::Status MountIdMappedBind(const MountSpec& spec, const MountFlags& parsed,
                               int target) {
  ASSIGN_OR_RETURN(const UniqueFd user_ns,
                   OpenIdMapNamespace(parsed.uid_map, parsed.gid_map));
  ASSIGN_OR_RETURN(
      const UniqueFd tree,
      CloneIdMapped(spec.source, user_ns.get(), MountAttributes(parsed.flags),
                    (parsed.flags & MS_REC) != 0));
  return Attach(tree, target);
}

// The mount points of this namespace at or below `path`, in mount order.
absl::StatusOr<std::vector<std::string>> MountsBelow(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string table,
                   ReadFile("/proc/self/mountinfo", kMountInfoSizeBytesMax));
  std::vector<std::string> points;
  for (size_t at = 0; at < table.size();) {
    size_t end = table.find('\n', at);
    if (end == std::string::npos) end = table.size();
    size_t field = at;  // The fifth field is the mount point.
    for (int i = 0; i < 4; ++i) {
      field = table.find(' ', field);
      if (field == std::string::npos) break;
      ++field;
    }
    if (field != std::string::npos && field < end) {
      std::string point;
      for (; field < end && table[field] != ' '; ++field) {
        if (table[field] == '\\' && field + 3 < end) {
          point.push_back(static_cast<char>((table[field + 1] - '0') * 64 +
                                            (table[field + 2] - '0') * 8 +
                                            (table[field + 3] - '0')));
          field += 3;
        } else {
          point.push_back(table[field]);
        }
      }
      if (point == path || absl::StartsWith(point, path + "/")) {
        points.push_back(std::move(point));
      }
    }
    at = end + 1;
  }
  return points;
}

// `path` with its folder resolved, as the mount table spells it; the last part
// stays as it is.
absl::StatusOr<std::string> ResolveParent(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  const size_t slash = path.rfind('/');
  std::string parent = slash == std::string::npos ? "." : path.substr(0, slash);
  if (parent.empty()) parent = "/";
  char* resolved = ::realpath(parent.c_str(), nullptr);
  if (resolved == nullptr) return ErrnoStatus(errno, parent);
  std::string out = resolved;
  ::free(resolved);
  if (out == "/") out.clear();
  return absl::StrCat(
      out, "/", slash == std::string::npos ? path : path.substr(slash + 1));
}

}  // namespace

absl::StatusOr<MountFlags> ParseMountOptions(
    const std::vector<std::string>& options) {
  MountFlags parsed;
  for (const std::string& option : options) {
    if (option.empty() || absl::StartsWith(option, "X-containerd.")) continue;
    if (option == "loop") {
      return absl::UnimplementedError("mount option loop is not supported");
    }
    if (absl::StartsWith(option, "uidmap=") ||
        absl::StartsWith(option, "gidmap=")) {
      const std::string map = option.substr(sizeof("uidmap=") - 1);
      RETURN_IF_ERROR(CheckIdMap(map));
      (option[0] == 'u' ? parsed.uid_map : parsed.gid_map) = map;
      continue;
    }
    const auto named = [&option](const Flag& flag) {
      return option == flag.name;
    };
    const Flag* flag =
        std::find_if(std::begin(kFlags), std::end(kFlags), named);
    if (flag != std::end(kFlags)) {
      if (flag->clear) {
        parsed.flags &= ~flag->bit;
      } else {
        parsed.flags |= flag->bit;
      }
      continue;
    }
    flag =
        std::find_if(std::begin(kPropagation), std::end(kPropagation), named);
    if (flag != std::end(kPropagation)) {
      parsed.propagation |= flag->bit;
      continue;
    }
    parsed.data.push_back(option);
  }
  if (parsed.uid_map.empty() != parsed.gid_map.empty()) {
    return absl::InvalidArgumentError(
        "uidmap= and gidmap= are given together or not at all");
  }
  return parsed;
}

absl::Status Mount(const MountSpec& spec, const std::string& root) {
  ASSIGN_OR_RETURN(MountFlags parsed, ParseMountOptions(spec.options));
  if (spec.type == "bind" || spec.type == "rbind") {
    parsed.flags |= MS_BIND | (spec.type == "rbind" ? MS_REC : 0);
  }
  UniqueFd target;
  if (spec.target.empty() || spec.target == "/") {
    ASSIGN_OR_RETURN(target, Open(root, O_PATH));
  } else {
    ASSIGN_OR_RETURN(UniqueFd root_fd, Open(root, O_PATH | O_DIRECTORY));
    ASSIGN_OR_RETURN(target, OpenInRoot(root_fd.get(), spec.target, O_PATH));
  }
  const std::string target_path = ProcFdPath(target.get());
  const std::string what =
      absl::StrCat("mount ", spec.type, " ", spec.source, " on ", root,
                   spec.target.empty() ? "" : "/", spec.target);
  const std::string data = absl::StrJoin(parsed.data, ",");
  const bool bind = (parsed.flags & MS_BIND) != 0;
  const bool mapped = !parsed.uid_map.empty();
  if (spec.type == "overlay" &&
      (mapped || data.size() > kMountDataSizeBytesMax - 64)) {
    RETURN_IF_ERROR(Annotate(MountOverlay(spec, parsed, target.get()), what));
  } else if (mapped && bind) {
    RETURN_IF_ERROR(
        Annotate(MountIdMappedBind(spec, parsed, target.get()), what));
  } else if (mapped) {
    return absl::UnimplementedError(
        absl::StrCat(what, ": id maps are for bind and overlay mounts"));
  } else {
    if (data.size() > kMountDataSizeBytesMax) {
      return absl::InvalidArgumentError(
          absl::StrCat(what, ": options longer than a page"));
    }
    const unsigned long first =
        bind ? parsed.flags & (MS_BIND | MS_REC) : parsed.flags;
    if (::mount(spec.source.c_str(), target_path.c_str(),
                bind ? nullptr : spec.type.c_str(), first,
                bind || data.empty() ? nullptr : data.c_str()) != 0) {
      return ErrnoStatus(errno, what);
    }
  }
  // The descriptor still names what lies under the new mount: open again.
  UniqueFd mounted;
  const unsigned long rest = mapped ? 0 : parsed.flags & ~(MS_BIND | MS_REC);
  if ((bind && rest != 0) || parsed.propagation != 0) {
    if (spec.target.empty() || spec.target == "/") {
      ASSIGN_OR_RETURN(mounted, Open(root, O_PATH));
    } else {
      ASSIGN_OR_RETURN(UniqueFd root_fd, Open(root, O_PATH | O_DIRECTORY));
      ASSIGN_OR_RETURN(mounted, OpenInRoot(root_fd.get(), spec.target, O_PATH));
    }
  }
  if (bind && rest != 0 &&
      ::mount("", ProcFdPath(mounted.get()).c_str(), nullptr,
              MS_BIND | MS_REMOUNT | rest, nullptr) != 0) {
    const int error = errno;
    mounted.Reset();
    (void)UnmountTree(absl::StrCat(root, "/", spec.target));  // Best effort.
    return ErrnoStatus(error, absl::StrCat("remount for ", what));
  }
  if (parsed.propagation != 0 &&
      ::mount("", ProcFdPath(mounted.get()).c_str(), nullptr,
              parsed.propagation, nullptr) != 0) {
    return ErrnoStatus(errno, absl::StrCat("propagation of ", what));
  }
  return absl::OkStatus();
}

absl::Status MountAll(const std::vector<MountSpec>& specs,
                      const std::string& root) {
  for (size_t i = 0; i < specs.size(); ++i) {
    const absl::Status status = Mount(specs[i], root);
    if (status.ok()) continue;
    if (i > 0) (void)UnmountTree(root);  // The first error is what counts.
    return status;
  }
  return absl::OkStatus();
}

absl::Status UnmountTree(const std::string& path) {
  absl::StatusOr<std::string> real = ResolveParent(path);
  if (absl::IsNotFound(real.status())) return absl::OkStatus();
  if (!real.ok()) return real.status();
  ASSIGN_OR_RETURN(std::vector<std::string> points, MountsBelow(*real));
  // Later mounts lie on earlier ones.
  for (auto point = points.rbegin(); point != points.rend(); ++point) {
    if (::umount2(point->c_str(), UMOUNT_NOFOLLOW) == 0) continue;
    if (errno == EBUSY &&
        ::umount2(point->c_str(), MNT_DETACH | UMOUNT_NOFOLLOW) == 0) {
      continue;
    }
    if (errno == EINVAL || errno == ENOENT) continue;  // Gone already.
    return ErrnoStatus(errno, absl::StrCat("unmount ", *point));
  }
  return absl::OkStatus();
}

}  // namespace bulkhead::os
