// Unix sockets: listening with the right modes, connecting, passing
// descriptors.
#ifndef BULKHEAD_LIB_OS_SOCKET_H_
#define BULKHEAD_LIB_OS_SOCKET_H_

#include <sys/socket.h>
#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "lib/os/fd.h"

namespace bulkhead::os {

struct ListenOptions {
  int type = SOCK_STREAM;  // Or SOCK_SEQPACKET.
  mode_t mode = 0600;      // Of the socket file.
  uid_t uid = -1;          // -1 leaves the owner.
  gid_t gid = -1;
  int backlog = 512;
};

// Binds and listens on `path`. A stale socket file (nobody answers) is
// replaced; a live one is kFailedPrecondition. Paths over 107 bytes are
// kInvalidArgument. The folder must exist.
absl::StatusOr<UniqueFd> ListenUnix(const std::string& path,
                                    const ListenOptions& options);
absl::StatusOr<UniqueFd> ConnectUnix(const std::string& path,
                                     int type = SOCK_STREAM);
// accept4 with O_CLOEXEC, retried on EINTR and ECONNABORTED.
absl::StatusOr<UniqueFd> Accept(int listener);

struct PeerCredentials {
  pid_t pid = 0;
  uid_t uid = 0;
  gid_t gid = 0;
};
absl::StatusOr<PeerCredentials> PeerOf(int socket);

constexpr size_t kPassedFdsMax = 8;

// One message with descriptors. kResourceExhausted past kPassedFdsMax.
absl::Status SendWithFds(int socket, const std::string& data,
                         const std::vector<int>& fds);
struct ReceivedMessage {
  std::string data;  // Empty with no fds: the peer closed.
  std::vector<UniqueFd> fds;
};
// A message longer than `size_bytes_max` is kInvalidArgument.
absl::StatusOr<ReceivedMessage> ReceiveWithFds(int socket,
                                               size_t size_bytes_max);

// sd_notify(3): a datagram to $NOTIFY_SOCKET; nothing without it.
void NotifySystemd(const std::string& state);
// Sockets handed over by socket activation (LISTEN_PID, LISTEN_FDS,
// LISTEN_FDNAMES): name and descriptor, taken at the first call.
std::vector<std::pair<std::string, UniqueFd>> TakeActivatedSockets();

}  // namespace bulkhead::os

#endif  // BULKHEAD_LIB_OS_SOCKET_H_
