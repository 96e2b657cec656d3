#include "lib/os/acceptor.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <cerrno>
#include <utility>

#include "absl/time/clock.h"
#include "lib/base/status_macros.h"

namespace bulkhead::os {

Acceptor::Acceptor(int listener, Refuse refuse)
    : listener_(listener), refuse_(std::move(refuse)) {
  Reserve();
}

void Acceptor::Reserve() {
  // Needs no path: some services may open none.
  reserve_ = UniqueFd(::eventfd(0, EFD_CLOEXEC));
}

absl::StatusOr<UniqueFd> Acceptor::Accept(int flags) {
  int error = 0;
  do {
    const int fd = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC | flags);
    if (fd >= 0) return UniqueFd(fd);
    error = errno;
  } while (error == EINTR || error == ECONNABORTED);
  if (error == EAGAIN) return absl::UnavailableError("nobody waits");
  const absl::Status status = ErrnoStatus(error, "accept");
  if (error != EMFILE && error != ENFILE && error != ENOBUFS &&
      error != ENOMEM) {
    // kResourceExhausted promises that another call may succeed.
    return absl::IsResourceExhausted(status)
               ? absl::InternalError(MessageOf(status))
               : status;
  }
  const absl::Status none = absl::ResourceExhaustedError(MessageOf(status));
  if (!reserve_.valid()) {
    Reserve();  // Perhaps one is free again.
    if (!reserve_.valid()) absl::SleepFor(kNoDescriptorWait);
    return none;
  }
  reserve_.Reset();
  // Non-blocking: the client may have left.
  const int old_flags = ::fcntl(listener_, F_GETFL);
  const bool blocking = old_flags >= 0 && (old_flags & O_NONBLOCK) == 0;
  if (blocking) ::fcntl(listener_, F_SETFL, old_flags | O_NONBLOCK);
  UniqueFd refused(
      ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  error = refused.valid() ? 0 : errno;
  if (blocking) ::fcntl(listener_, F_SETFL, old_flags);
  if (refused.valid() && refuse_ != nullptr) {
    refuse_(refused.get(), none);
    // Closed with something unread, it would be reset and the reason lost.
    ::shutdown(refused.get(), SHUT_RD);
    char unread[4096];
    while (::recv(refused.get(), unread, sizeof(unread), MSG_DONTWAIT) > 0) {
    }
  }
  refused.Reset();  // Its number is what the reserve gets.
  Reserve();
  if (error == EAGAIN && blocking) {
    // The kernel looks for a descriptor before it looks for a client: nobody
    // has come yet.
    pollfd wait{listener_, POLLIN, 0};
    if (::poll(&wait, 1, -1) > 0 && (wait.revents & POLLHUP) != 0) {
      return ErrnoStatus(EINVAL, "accept");  // Shut down.
    }
  } else if (error != 0 && error != EAGAIN && error != ECONNABORTED &&
             error != EINTR) {
    return ErrnoStatus(error, "accept");
  }
  return none;
}

}  // namespace bulkhead::os
