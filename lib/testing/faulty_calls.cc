#include "lib/testing/faulty_calls.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <linux/btrfs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstdint>
#include <cstring>

namespace bulkhead::testing {
namespace {

enum class Kind {
  kOther,
  kSync,
  kRelease,  // Lets go of something, or asks for no room.
};

Kind KindOfOpen(int flags) {
  return (flags & (O_CREAT | O_TRUNC)) != 0 ? Kind::kOther : Kind::kRelease;
}

CallFault g_fault;  // Written by Arm() only.
std::atomic<bool> g_armed{false};
std::atomic<bool> g_syncs{true};
std::atomic<int> g_calls{0};
std::atomic<const char*> g_fired{nullptr};

// The C library's own function.
template <typename Function>
Function* Next(const char* name) {
  return reinterpret_cast<Function*>(::dlsym(RTLD_NEXT, name));
}

long RealSyscall(long number, long a, long b, long c, long d, long e, long f) {
  static auto* const real =
      Next<long(long, long, long, long, long, long, long)>("syscall");
  return real(number, a, b, c, d, e, f);
}

// Whether the call that is about to be made has to fail, errno set. `half` is
// called before it does.
template <typename HalfOf>
bool Fails(const char* name, Kind kind, HalfOf half) {
  if (!g_armed) return false;
  if (*g_fault.only != '\0' && std::strcmp(g_fault.only, name) != 0) {
    return false;
  }
  const int number = g_calls++;
  if (g_fault.fail_at < 0 || number < g_fault.fail_at) return false;
  if (number > g_fault.fail_at &&
      (!g_fault.for_ever || kind == Kind::kRelease)) {
    return false;
  }
  const char* none = nullptr;
  g_fired.compare_exchange_strong(none, name);
  half();
  // Not kill(2): the caller may be confined to calls without it.
  if (g_fault.die) RealSyscall(SYS_exit_group, kDiedAtCall, 0, 0, 0, 0, 0);
  errno = g_fault.error;
  return true;
}
bool Fails(const char* name, Kind kind = Kind::kOther) {
  return Fails(name, kind, [] {});
}

// Standard streams belong to the test's reports.
bool Counts(int fd) { return fd > STDERR_FILENO; }

long Half(long size) { return size / 2; }

}  // namespace

void FaultyCalls::Arm(const CallFault& fault) {
  g_armed = false;
  g_fault = fault;
  g_syncs = false;
  g_calls = 0;
  g_fired = nullptr;
  g_armed = true;
}
void FaultyCalls::Disarm() { g_armed = false; }
int FaultyCalls::calls() { return g_calls; }
std::string FaultyCalls::fired() {
  const char* const name = g_fired;
  return name == nullptr ? "" : name;
}

// The functions have names of their own here and the C library's for the
// linker: its headers may have given those to others already.
#define BULKHEAD_CALL(name, kind, params, args)        \
  extern "C" int Faulty_##name params __asm__(#name);  \
  extern "C" int Faulty_##name params {                \
    static auto* const real = Next<int params>(#name); \
    return Fails(#name, Kind::kind) ? -1 : real args;  \
  }
#define BULKHEAD_SYNC(name)                            \
  extern "C" int Faulty_##name(int fd) __asm__(#name); \
  extern "C" int Faulty_##name(int fd) {               \
    static auto* const real = Next<int(int)>(#name);   \
    if (Fails(#name, Kind::kSync)) return -1;          \
    return g_syncs ? real(fd) : 0;                     \
  }
#define BULKHEAD_OPEN(name)                                                \
  extern "C" int Faulty_##name(const char* path, int flags,                \
                               mode_t mode) __asm__(#name);                \
  extern "C" int Faulty_##name(const char* path, int flags, mode_t mode) { \
    static auto* const real = Next<int(const char*, int, ...)>(#name);     \
    return Fails(#name, KindOfOpen(flags)) ? -1 : real(path, flags, mode); \
  }
#define BULKHEAD_OPEN_AT(name)                                              \
  extern "C" int Faulty_##name(int dir, const char* path, int flags,        \
                               mode_t mode) __asm__(#name);                 \
  extern "C" int Faulty_##name(int dir, const char* path, int flags,        \
                               mode_t mode) {                               \
    static auto* const real = Next<int(int, const char*, int, ...)>(#name); \
    return Fails(#name, KindOfOpen(flags)) ? -1                             \
                                           : real(dir, path, flags, mode);  \
  }
#define BULKHEAD_WRITE(name, params, args, half_args)              \
  extern "C" ssize_t Faulty_##name params __asm__(#name);          \
  extern "C" ssize_t Faulty_##name params {                        \
    static auto* const real = Next<ssize_t params>(#name);         \
    const auto half = [&] { (void)!real half_args; };              \
    if (Counts(fd) && Fails(#name, Kind::kOther, half)) return -1; \
    return real args;                                              \
  }

BULKHEAD_OPEN(open)
BULKHEAD_OPEN(open64)
BULKHEAD_OPEN_AT(openat)
BULKHEAD_OPEN_AT(openat64)
BULKHEAD_CALL(mkdir, kOther, (const char* path, mode_t mode), (path, mode))
BULKHEAD_CALL(mkdirat, kOther, (int dir, const char* path, mode_t mode),
              (dir, path, mode))
BULKHEAD_CALL(rename, kOther, (const char* from, const char* to), (from, to))
BULKHEAD_CALL(renameat, kOther,
              (int from_dir, const char* from, int to_dir, const char* to),
              (from_dir, from, to_dir, to))
BULKHEAD_CALL(link, kOther, (const char* from, const char* to), (from, to))
BULKHEAD_CALL(linkat, kOther,
              (int from_dir, const char* from, int to_dir, const char* to,
               int flags),
              (from_dir, from, to_dir, to, flags))
BULKHEAD_CALL(symlinkat, kOther, (const char* text, int dir, const char* path),
              (text, dir, path))
BULKHEAD_CALL(mknodat, kOther,
              (int dir, const char* path, mode_t mode, dev_t device),
              (dir, path, mode, device))
BULKHEAD_CALL(unlink, kRelease, (const char* path), (path))
BULKHEAD_CALL(unlinkat, kRelease, (int dir, const char* path, int flags),
              (dir, path, flags))
BULKHEAD_CALL(rmdir, kRelease, (const char* path), (path))
BULKHEAD_CALL(chmod, kOther, (const char* path, mode_t mode), (path, mode))
BULKHEAD_CALL(fchmod, kOther, (int fd, mode_t mode), (fd, mode))
BULKHEAD_CALL(fchmodat, kOther,
              (int dir, const char* path, mode_t mode, int flags),
              (dir, path, mode, flags))
BULKHEAD_CALL(lchown, kOther, (const char* path, uid_t uid, gid_t gid),
              (path, uid, gid))
BULKHEAD_CALL(fchown, kOther, (int fd, uid_t uid, gid_t gid), (fd, uid, gid))
BULKHEAD_CALL(fchownat, kOther,
              (int dir, const char* path, uid_t uid, gid_t gid, int flags),
              (dir, path, uid, gid, flags))
BULKHEAD_CALL(fsetxattr, kOther,
              (int fd, const char* name, const void* value, size_t size,
               int flags),
              (fd, name, value, size, flags))
BULKHEAD_CALL(lsetxattr, kOther,
              (const char* path, const char* name, const void* value,
               size_t size, int flags),
              (path, name, value, size, flags))
BULKHEAD_CALL(futimens, kOther, (int fd, const timespec* times), (fd, times))
BULKHEAD_CALL(utimensat, kOther,
              (int dir, const char* path, const timespec* times, int flags),
              (dir, path, times, flags))
BULKHEAD_CALL(ftruncate, kOther, (int fd, int64_t size), (fd, size))
BULKHEAD_CALL(ftruncate64, kOther, (int fd, int64_t size), (fd, size))
BULKHEAD_CALL(mount, kOther,
              (const char* source, const char* target, const char* type,
               unsigned long flags, const void* data),
              (source, target, type, flags, data))
BULKHEAD_CALL(umount2, kRelease, (const char* path, int flags), (path, flags))
BULKHEAD_SYNC(fsync)
BULKHEAD_SYNC(fdatasync)
BULKHEAD_SYNC(syncfs)
BULKHEAD_WRITE(write, (int fd, const void* data, size_t size), (fd, data, size),
               (fd, data, Half(size)))
BULKHEAD_WRITE(pwrite, (int fd, const void* data, size_t size, int64_t at),
               (fd, data, size, at), (fd, data, Half(size), at))
BULKHEAD_WRITE(pwrite64, (int fd, const void* data, size_t size, int64_t at),
               (fd, data, size, at), (fd, data, Half(size), at))
BULKHEAD_WRITE(writev, (int fd, const iovec* data, int count),
               (fd, data, count), (fd, data, Half(count)))

extern "C" ssize_t FaultyCopy(int from, int64_t* from_at, int to,
                              int64_t* to_at, size_t size,
                              unsigned flags) __asm__("copy_file_range");
extern "C" ssize_t FaultyCopy(int from, int64_t* from_at, int to,
                              int64_t* to_at, size_t size, unsigned flags) {
  static auto* const real =
      Next<ssize_t(int, int64_t*, int, int64_t*, size_t, unsigned)>(
          "copy_file_range");
  if (Fails("copy_file_range")) return -1;
  return real(from, from_at, to, to_at, size, flags);
}

extern "C" int FaultyIoctl(int fd, unsigned long request,
                           void* argument) __asm__("ioctl");
extern "C" int FaultyIoctl(int fd, unsigned long request, void* argument) {
  static auto* const real = Next<int(int, unsigned long, ...)>("ioctl");
  const bool changes = request == BTRFS_IOC_SUBVOL_CREATE ||
                       request == BTRFS_IOC_SNAP_CREATE_V2 ||
                       request == BTRFS_IOC_SNAP_DESTROY;
  if (changes &&
      Fails("ioctl", request == BTRFS_IOC_SNAP_DESTROY ? Kind::kRelease
                                                       : Kind::kOther)) {
    return -1;
  }
  return real(fd, request, argument);
}

extern "C" long FaultySyscall(long number, ...) __asm__("syscall");
extern "C" long FaultySyscall(long number, ...) {
  long arguments[6];
  va_list list;
  va_start(list, number);
  for (long& argument : arguments) argument = va_arg(list, long);
  va_end(list);
  const char* name = nullptr;
  switch (number) {
    case SYS_openat2:
      name = "openat2";
      break;
    case SYS_fsopen:
      name = "fsopen";
      break;
    case SYS_fsconfig:
      name = "fsconfig";
      break;
    case SYS_fsmount:
      name = "fsmount";
      break;
    case SYS_move_mount:
      name = "move_mount";
      break;
    case SYS_open_tree:
      name = "open_tree";
      break;
    case SYS_mount_setattr:
      name = "mount_setattr";
      break;
    default:
      break;
  }
  if (name != nullptr && Fails(name)) return -1;
  return RealSyscall(number, arguments[0], arguments[1], arguments[2],
                     arguments[3], arguments[4], arguments[5]);
}

}  // namespace bulkhead::testing
