#include "services/content/data_server.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "lib/base/status_macros.h"
#include "lib/dataplane/dataplane.h"
#include "lib/log/log.h"
#include "lib/os/acceptor.h"
#include "lib/stats/stats.h"
#include "services/content/data_session.h"

namespace bulkhead::content {
namespace {

// A thread that had nothing to do for so long ends, unless it is the last.
constexpr int kIdleThreadMillis = 10'000;

// All threads wait on one epoll set. Every descriptor in it is one-shot, so a
// session is handled by one thread at a time, packet after packet.
class EpollDataServer final : public DataServer {
 public:
  EpollDataServer(os::UniqueFd listener, FsStore* store,
                  const DataServerOptions& options)
      : listener_(std::move(listener)),
        acceptor_(listener_.get(),
                  [](int fd, const absl::Status& why) {
                    (void)dataplane::SendError(
                        fd,
                        Annotate(why, "bulkhead-content"));  // Or it has left.
                  }),
        store_(store),
        options_(options) {}

  absl::Status Init() {
    epoll_ = os::UniqueFd(::epoll_create1(EPOLL_CLOEXEC));
    if (!epoll_.valid()) return os::ErrnoStatus(errno, "epoll_create1");
    stop_ = os::UniqueFd(::eventfd(0, EFD_CLOEXEC));
    if (!stop_.valid()) return os::ErrnoStatus(errno, "eventfd");
    RETURN_IF_ERROR(Watch(EPOLL_CTL_ADD, stop_.get(), EPOLLIN));
    RETURN_IF_ERROR(Watch(EPOLL_CTL_ADD, listener_.get(), kOnce));
    const std::lock_guard<std::mutex> lock(mutex_);
    StartThread();
    return absl::OkStatus();
  }

  ~EpollDataServer() override {
    std::unique_lock<std::mutex> lock(mutex_);
    stopping_ = true;
    if (stop_.valid() && ::eventfd_write(stop_.get(), 1) != 0) {
      log::Error("data server: eventfd_write failed");
    }
    // A thread may be blocked in a send to a peer that does not read.
    for (auto& [fd, session] : sessions_) ::shutdown(fd, SHUT_RDWR);
    changed_.wait(lock, [&] { return threads_ == 0; });
  }

 private:
  static constexpr uint32_t kOnce = EPOLLIN | EPOLLRDHUP | EPOLLONESHOT;

  absl::Status Watch(int operation, int fd, uint32_t events) {
    epoll_event event{};
    event.events = events;
    event.data.fd = fd;
    if (::epoll_ctl(epoll_.get(), operation, fd, &event) != 0) {
      return os::ErrnoStatus(errno, "epoll_ctl");
    }
    return absl::OkStatus();
  }

  void StartThread() {  // Under mutex_.
    ++threads_;
    ++idle_;
    std::thread([this] { Work(); }).detach();
  }

  void Work() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (!stopping_) {
      const int timeout = idle_ > 1 ? kIdleThreadMillis : -1;
      lock.unlock();
      epoll_event event{};
      const int n = ::epoll_wait(epoll_.get(), &event, 1, timeout);
      lock.lock();
      if (stopping_) break;
      if (n < 0) continue;  // EINTR.
      if (n == 0) {
        if (idle_ > 1) break;
        continue;
      }
      --idle_;
      if (idle_ == 0 && threads_ < kDataThreadsMax) StartThread();
      if (event.data.fd == listener_.get()) {
        lock.unlock();
        AcceptOne();
        lock.lock();
      } else {
        const auto found = sessions_.find(event.data.fd);
        DataSession* session = found->second.get();
        lock.unlock();
        const bool goes_on = session->HandleOne();
        lock.lock();
        if (!goes_on || !Watch(EPOLL_CTL_MOD, event.data.fd, kOnce).ok()) {
          auto ended = sessions_.extract(event.data.fd);
          open_->Set(static_cast<int64_t>(sessions_.size()));
          lock.unlock();
          ended.mapped().reset();  // Closes, and unlocks its ref.
          lock.lock();
        }
      }
      ++idle_;
    }
    --idle_;
    --threads_;
    changed_.notify_all();
  }

  void AcceptOne() {
    // One thread at a time: the listener is one-shot.
    absl::StatusOr<os::UniqueFd> socket = acceptor_.Accept();
    if (!socket.ok()) {
      log::Error("data server: accept",
                 {{"error", MessageOf(socket.status())}});
    } else {
      AddSession(*std::move(socket));
    }
    const absl::Status again = Watch(EPOLL_CTL_MOD, listener_.get(), kOnce);
    if (!again.ok()) {
      log::Error("data server: listener", {{"error", MessageOf(again)}});
    }
  }

  void AddSession(os::UniqueFd socket) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (stopping_) return;
    if (sessions_.size() >= kDataSessionsMax) {
      (void)dataplane::SendError(
          socket.get(), absl::ResourceExhaustedError("too many data sessions"));
      return;
    }
    const int fd = socket.get();
    sessions_[fd] = std::make_unique<DataSession>(std::move(socket), store_,
                                                  options_.verify_on_open);
    open_->Set(static_cast<int64_t>(sessions_.size()));
    if (!Watch(EPOLL_CTL_ADD, fd, kOnce).ok()) sessions_.erase(fd);
  }

  const os::UniqueFd listener_;
  os::Acceptor acceptor_;
  FsStore* const store_;
  const DataServerOptions options_;
  os::UniqueFd epoll_;
  os::UniqueFd stop_;
  stats::Value* const open_ = stats::Gauge("bulkhead_content_data_sessions");

  std::mutex mutex_;
  std::condition_variable changed_;
  bool stopping_ = false;
  int threads_ = 0;
  int idle_ = 0;
  std::map<int, std::unique_ptr<DataSession>> sessions_;  // By descriptor.
};

}  // namespace

absl::StatusOr<std::unique_ptr<DataServer>> DataServer::Start(
    os::UniqueFd listener, FsStore* store, const DataServerOptions& options) {
  auto server =
      std::make_unique<EpollDataServer>(std::move(listener), store, options);
  RETURN_IF_ERROR(server->Init());
  return std::unique_ptr<DataServer>(std::move(server));
}

}  // namespace bulkhead::content
