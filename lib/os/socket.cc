#include "lib/os/socket.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstddef>
#include <cstdlib>
#include <cstring>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "lib/base/status_macros.h"

namespace bulkhead::os {
namespace {

constexpr int kFirstActivatedFd = 3;

absl::Status FillAddress(const std::string& path, sockaddr_un* address) {
  *address = {};
  address->sun_family = AF_UNIX;
  if (path.size() >= sizeof(address->sun_path)) {
    return absl::InvalidArgumentError(
        absl::StrCat("socket path '", path, "' is longer than ",
                     sizeof(address->sun_path) - 1, " bytes"));
  }
  std::memcpy(address->sun_path, path.c_str(), path.size() + 1);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<UniqueFd> ConnectUnix(const std::string& path, int type) {
  sockaddr_un address;
  RETURN_IF_ERROR(FillAddress(path, &address));
  UniqueFd fd(::socket(AF_UNIX, type | SOCK_CLOEXEC, 0));
  if (!fd.valid()) {
    return ErrnoStatus(errno, absl::StrCat("connect '", path, "': socket"));
  }
  while (::connect(fd.get(), reinterpret_cast<sockaddr*>(&address),
                   sizeof(address)) != 0) {
    if (errno == EINTR) continue;
    const int error = errno;
    const std::string context = absl::StrCat("connect '", path, "'");
    if (error == ENOENT || error == ECONNREFUSED || error == EAGAIN) {
      return absl::UnavailableError(
          absl::StrCat(context, ": ", std::strerror(error)));
    }
    return ErrnoStatus(error, context);
  }
  return fd;
}

constexpr absl::Duration kLeavingServerWait = absl::Milliseconds(500);

absl::StatusOr<UniqueFd> ListenUnix(const std::string& path,
                                    const ListenOptions& options) {
  sockaddr_un address;
  RETURN_IF_ERROR(FillAddress(path, &address));
  struct stat info;
  if (::lstat(path.c_str(), &info) == 0) {
    if (!S_ISSOCK(info.st_mode)) {
      return absl::FailedPreconditionError(
          absl::StrCat("'", path, "' is there and is no socket"));
    }
    // One that was just killed may still be served by a child of its own on the
    // way to exec, for milliseconds.
    const absl::Time give_up_at = absl::Now() + kLeavingServerWait;
    bool served = ConnectUnix(path, options.type).ok();
    while (served && absl::Now() < give_up_at) {
      absl::SleepFor(absl::Milliseconds(10));
      served = ConnectUnix(path, options.type).ok();
    }
    if (served) {
      return absl::FailedPreconditionError(
          absl::StrCat("somebody already serves '", path, "'"));
    }
    if (::unlink(path.c_str()) != 0 && errno != ENOENT) {
      return ErrnoStatus(errno, absl::StrCat("unlink '", path, "'"));
    }
  }
  UniqueFd fd(::socket(AF_UNIX, options.type | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return ErrnoStatus(errno, "socket");
  // Bound with no permission at all, so that nobody connects before the mode
  // is right. The mode comes from the socket's own inode (unix(7)): umask(2)
  // would be the whole process's, and a file another thread makes meanwhile
  // would get it.
  if (::fchmod(fd.get(), 0) != 0) return ErrnoStatus(errno, "fchmod socket");
  if (::bind(fd.get(), reinterpret_cast<sockaddr*>(&address),
             sizeof(address)) != 0) {
    return ErrnoStatus(errno, absl::StrCat("bind '", path, "'"));
  }
  if ((options.uid != static_cast<uid_t>(-1) ||
       options.gid != static_cast<gid_t>(-1)) &&
      ::lchown(path.c_str(), options.uid, options.gid) != 0) {
    return ErrnoStatus(errno, absl::StrCat("chown '", path, "'"));
  }
  if (::chmod(path.c_str(), options.mode) != 0) {
    return ErrnoStatus(errno, absl::StrCat("chmod '", path, "'"));
  }
  if (::listen(fd.get(), options.backlog) != 0) {
    return ErrnoStatus(errno, absl::StrCat("listen '", path, "'"));
  }
  return fd;
}

absl::StatusOr<UniqueFd> Accept(int listener) {
  for (;;) {
    const int fd = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    if (fd >= 0) return UniqueFd(fd);
    if (errno != EINTR && errno != ECONNABORTED) {
      return ErrnoStatus(errno, "accept");
    }
  }
}

absl::StatusOr<PeerCredentials> PeerOf(int socket) {
  ucred credentials{};
  socklen_t size = sizeof(credentials);
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &size) != 0) {
    return ErrnoStatus(errno, "SO_PEERCRED");
  }
  return PeerCredentials{credentials.pid, credentials.uid, credentials.gid};
}

absl::Status SendWithFds(int socket, const std::string& data,
                         const std::vector<int>& fds) {
  if (fds.size() > kPassedFdsMax) {
    return absl::ResourceExhaustedError("too many descriptors in a message");
  }
  iovec part{const_cast<char*>(data.data()), data.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kPassedFdsMax)] = {};
  if (!fds.empty()) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(sizeof(int) * fds.size());
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int) * fds.size());
    std::memcpy(CMSG_DATA(header), fds.data(), sizeof(int) * fds.size());
  }
  for (;;) {
    const ssize_t n = ::sendmsg(socket, &message, MSG_NOSIGNAL);
    if (n >= 0) {
      if (static_cast<size_t>(n) == data.size()) return absl::OkStatus();
      return absl::InternalError("short sendmsg");
    }
    if (errno == EINTR) continue;
    const int error = errno;
    if (error == EPIPE || error == ECONNRESET || error == ENOTCONN) {
      return absl::UnavailableError(
          absl::StrCat("sendmsg: ", std::strerror(error)));
    }
    return ErrnoStatus(error, "sendmsg");
  }
}

absl::StatusOr<ReceivedMessage> ReceiveWithFds(int socket,
                                               size_t size_bytes_max) {
  ReceivedMessage received;
  // The length is asked for first: most messages are tiny, the limit is not.
  ssize_t length;
  do {
    char probe;
    length = ::recv(socket, &probe, sizeof(probe), MSG_PEEK | MSG_TRUNC);
  } while (length < 0 && errno == EINTR);
  if (length < 0) {
    if (errno == ECONNRESET) return received;
    return ErrnoStatus(errno, "recv");
  }
  if (static_cast<size_t>(length) > size_bytes_max) {
    return absl::InvalidArgumentError(
        absl::StrCat("message longer than ", size_bytes_max, " bytes"));
  }
  received.data.resize(static_cast<size_t>(length) + 1);
  iovec part{received.data.data(), received.data.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kPassedFdsMax)];
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  ssize_t n;
  do {
    n = ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
  } while (n < 0 && errno == EINTR);
  if (n < 0) {
    if (errno == ECONNRESET) {
      received.data.clear();
      return received;
    }
    return ErrnoStatus(errno, "recvmsg");
  }
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
       header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) {
      continue;
    }
    const size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof(int));
      received.fds.emplace_back(fd);
    }
  }
  received.data.resize(static_cast<size_t>(n));
  if ((message.msg_flags & MSG_CTRUNC) != 0 &&
      received.fds.size() < kPassedFdsMax) {
    // There was room for more: this process has no descriptor free.
    return absl::ResourceExhaustedError(
        absl::StrCat("descriptors of a message: ", std::strerror(EMFILE)));
  }
  if ((message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0) {
    return absl::InvalidArgumentError("truncated message");
  }
  return received;
}

void NotifySystemd(const std::string& state) {
  const char* path = std::getenv("NOTIFY_SOCKET");
  if (path == nullptr || path[0] == '\0') return;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const size_t length = std::strlen(path);
  if (length >= sizeof(address.sun_path)) return;
  std::memcpy(address.sun_path, path, length);
  if (path[0] == '@') address.sun_path[0] = '\0';
  UniqueFd fd(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!fd.valid()) return;
  (void)!::sendto(
      fd.get(), state.data(), state.size(), MSG_NOSIGNAL,
      reinterpret_cast<sockaddr*>(&address),
      static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + length));
}

std::vector<std::pair<std::string, UniqueFd>> TakeActivatedSockets() {
  std::vector<std::pair<std::string, UniqueFd>> sockets;
  const char* pid = std::getenv("LISTEN_PID");
  const char* count = std::getenv("LISTEN_FDS");
  const char* names = std::getenv("LISTEN_FDNAMES");
  int expected_pid = 0;
  int fds = 0;
  if (pid == nullptr || count == nullptr ||
      !absl::SimpleAtoi(pid, &expected_pid) || expected_pid != ::getpid() ||
      !absl::SimpleAtoi(count, &fds)) {
    return sockets;
  }
  const std::vector<std::string> name_list =
      absl::StrSplit(names == nullptr ? "" : names, ':');
  for (int i = 0; i < fds; ++i) {
    const int fd = kFirstActivatedFd + i;
    ::fcntl(fd, F_SETFD, FD_CLOEXEC);
    sockets.emplace_back(static_cast<size_t>(i) < name_list.size()
                             ? name_list[static_cast<size_t>(i)]
                             : "",
                         UniqueFd(fd));
  }
  ::unsetenv("LISTEN_PID");
  ::unsetenv("LISTEN_FDS");
  ::unsetenv("LISTEN_FDNAMES");
  return sockets;
}

}  // namespace bulkhead::os
