#include "lib/os/volume.h"

#include <fcntl.h>
#include <linux/btrfs.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <sys/ioctl.h>
#include <sys/quota.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/os/fd.h"

namespace bulkhead::os {
namespace {

// Set in every project number of ours; the rest is of the inode's number.
constexpr uint32_t kProjectBit = 1u << 30;
constexpr int kProjectQuota = 2;
constexpr int64_t kQuotaUnitBytes = 1024;

template <typename Args>
absl::Status CopyName(const std::string& name, Args* args) {
  if (name.empty() || name.size() >= sizeof(args->name)) {
    return absl::InvalidArgumentError(
        absl::StrCat("bad subvolume name ", name));
  }
  std::memcpy(args->name, name.data(), name.size());
  return absl::OkStatus();
}

absl::StatusOr<bool> IsOfType(const std::string& path, long magic) {
  struct statfs fs;
  if (::statfs(path.c_str(), &fs) != 0) return ErrnoStatus(errno, path);
  return fs.f_type == magic;
}

absl::Status SetLimit(int fd, uint32_t project, int64_t limit_bytes) {
  dqblk quota{};
  quota.dqb_bhardlimit = (limit_bytes + kQuotaUnitBytes - 1) / kQuotaUnitBytes;
  quota.dqb_valid = QIF_BLIMITS;
  if (::syscall(SYS_quotactl_fd, fd, QCMD(Q_SETQUOTA, kProjectQuota), project,
                &quota) == 0) {
    return absl::OkStatus();
  }
  const int error = errno;
  if (error == ESRCH || error == ENOSYS || error == EOPNOTSUPP ||
      error == EINVAL || error == ENOTBLK || error == ENODEV) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the file system keeps no project quotas (mount it with prjquota): ",
        std::strerror(error)));
  }
  return ErrnoStatus(error, "quotactl_fd");
}

}  // namespace

absl::StatusOr<bool> IsBtrfs(const std::string& path) {
  return IsOfType(path, BTRFS_SUPER_MAGIC);
}

absl::StatusOr<bool> IsXfs(const std::string& path) {
  return IsOfType(path, XFS_SUPER_MAGIC);
}

absl::Status CreateSubvolume(const std::string& parent,
                             const std::string& name) {
  ASSIGN_OR_RETURN(UniqueFd dir, Open(parent, O_RDONLY | O_DIRECTORY));
  btrfs_ioctl_vol_args args{};
  RETURN_IF_ERROR(CopyName(name, &args));
  if (::ioctl(dir.get(), BTRFS_IOC_SUBVOL_CREATE, &args) != 0) {
    return ErrnoStatus(errno, absl::StrCat("new subvolume in ", parent));
  }
  if (::fchmodat(dir.get(), name.c_str(), 0755, 0) != 0) {
    return ErrnoStatus(errno, absl::StrCat("chmod in ", parent));
  }
  return absl::OkStatus();
}

absl::Status SnapshotSubvolume(const std::string& source,
                               const std::string& parent,
                               const std::string& name) {
  ASSIGN_OR_RETURN(UniqueFd dir, Open(parent, O_RDONLY | O_DIRECTORY));
  ASSIGN_OR_RETURN(UniqueFd from, Open(source, O_RDONLY | O_DIRECTORY));
  btrfs_ioctl_vol_args_v2 args{};
  args.fd = from.get();
  RETURN_IF_ERROR(CopyName(name, &args));
  if (::ioctl(dir.get(), BTRFS_IOC_SNAP_CREATE_V2, &args) != 0) {
    return ErrnoStatus(
        errno, absl::StrCat("snapshot of subvolume ", source, " in ", parent));
  }
  return absl::OkStatus();
}

absl::Status DestroySubvolume(const std::string& parent,
                              const std::string& name) {
  ASSIGN_OR_RETURN(UniqueFd dir, Open(parent, O_RDONLY | O_DIRECTORY));
  btrfs_ioctl_vol_args args{};
  RETURN_IF_ERROR(CopyName(name, &args));
  if (::ioctl(dir.get(), BTRFS_IOC_SNAP_DESTROY, &args) != 0) {
    return ErrnoStatus(errno, absl::StrCat("delete subvolume in ", parent));
  }
  return absl::OkStatus();
}

absl::Status SetTreeLimit(const std::string& path, int64_t limit_bytes) {
  ASSIGN_OR_RETURN(UniqueFd dir, Open(path, O_RDONLY | O_DIRECTORY));
  struct stat st;
  if (::fstat(dir.get(), &st) != 0) return ErrnoStatus(errno, path);
  const uint32_t project =
      kProjectBit | (static_cast<uint32_t>(st.st_ino) & (kProjectBit - 1));
  // First, as it says best what is missing.
  RETURN_IF_ERROR(SetLimit(dir.get(), project, limit_bytes));
  fsxattr attributes{};
  if (::ioctl(dir.get(), FS_IOC_FSGETXATTR, &attributes) != 0) {
    return ErrnoStatus(errno, absl::StrCat("attributes of ", path));
  }
  attributes.fsx_projid = project;
  attributes.fsx_xflags |= FS_XFLAG_PROJINHERIT;
  if (::ioctl(dir.get(), FS_IOC_FSSETXATTR, &attributes) != 0) {
    return ErrnoStatus(errno, absl::StrCat("project of ", path));
  }
  return absl::OkStatus();
}

absl::Status ClearTreeLimit(const std::string& path) {
  absl::StatusOr<UniqueFd> dir = Open(path, O_RDONLY | O_DIRECTORY);
  if (absl::IsNotFound(dir.status())) return absl::OkStatus();
  RETURN_IF_ERROR(dir.status());
  fsxattr attributes{};
  if (::ioctl(dir->get(), FS_IOC_FSGETXATTR, &attributes) != 0 ||
      (attributes.fsx_projid & kProjectBit) == 0) {
    return absl::OkStatus();
  }
  const absl::Status status = SetLimit(dir->get(), attributes.fsx_projid, 0);
  return absl::IsFailedPrecondition(status) ? absl::OkStatus() : status;
}

}  // namespace bulkhead::os
