// The data socket: a peer that answers whatever it likes.
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <string>

#include "lib/dataplane/dataplane.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  int pair[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0)
    return 0;
  if (::send(pair[0], data, size, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0) {
    ::shutdown(pair[0], SHUT_WR);
    (void)bulkhead::dataplane::Receive(pair[1]);
  }
  ::close(pair[0]);
  ::close(pair[1]);
  return 0;
}
