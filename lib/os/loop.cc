#include "lib/os/loop.h"

#include <fcntl.h>
#include <linux/loop.h>
#include <sys/ioctl.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"

namespace bulkhead::os {
namespace {

constexpr int kAttemptsMax = 64;  // Others take free devices, too.

}  // namespace

absl::StatusOr<LoopDevice> AttachLoop(const std::string& file, bool read_only,
                                      bool autoclear) {
  const int mode = read_only ? O_RDONLY : O_RDWR;
  ASSIGN_OR_RETURN(const UniqueFd backing, Open(file, mode));
  ASSIGN_OR_RETURN(const UniqueFd control, Open("/dev/loop-control", O_RDWR));
  int error = EBUSY;
  for (int attempt = 0; attempt < kAttemptsMax; ++attempt) {
    const int number = ::ioctl(control.get(), LOOP_CTL_GET_FREE);
    if (number < 0) return ErrnoStatus(errno, "no free loop device");
    LoopDevice device;
    device.path = absl::StrCat("/dev/loop", number);
    ASSIGN_OR_RETURN(device.fd, Open(device.path, mode));
    loop_config config{};
    config.fd = static_cast<uint32_t>(backing.get());
    config.info.lo_flags = (read_only ? LO_FLAGS_READ_ONLY : 0) |
                           (autoclear ? LO_FLAGS_AUTOCLEAR : 0);
    std::strncpy(reinterpret_cast<char*>(config.info.lo_file_name),
                 file.c_str(), LO_NAME_SIZE - 1);
    if (::ioctl(device.fd.get(), LOOP_CONFIGURE, &config) == 0) return device;
    error = errno;
    if (error != EBUSY) break;
  }
  return ErrnoStatus(error, absl::StrCat("loop device for ", file));
}

absl::Status DetachLoop(const std::string& device) {
  absl::StatusOr<UniqueFd> fd = Open(device, O_RDONLY);
  if (absl::IsNotFound(fd.status())) return absl::OkStatus();
  RETURN_IF_ERROR(fd.status());
  if (::ioctl(fd->get(), LOOP_CLR_FD) != 0 && errno != ENXIO) {
    return ErrnoStatus(errno, absl::StrCat("detach ", device));
  }
  return absl::OkStatus();
}

}  // namespace bulkhead::os
