#include "services/gateway/proxy.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <mutex>
#include <optional>
#include <thread>
#include <unordered_set>
#include <vector>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/log/log.h"
#include "lib/os/acceptor.h"
#include "lib/stats/stats.h"
#include "services/gateway/forwarder.h"

namespace bulkhead::gateway {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kEventsMax = 64;
constexpr int kAcceptsAtOnceMax = 64;
// How often a connect to a backend with a full backlog is repeated.
constexpr int kConnectRetryMs = 5;
// How often idle upstream connections are looked at, while there are any.
constexpr int kSweepMs = 10000;

// Connects a non-blocking socket: 0, or the errno.
int ConnectNow(int fd, const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path)) return ENAMETOOLONG;
  std::memcpy(address.sun_path, path.data(), path.size());
  while (::connect(fd, reinterpret_cast<sockaddr*>(&address),
                   sizeof(address)) != 0) {
    if (errno != EINTR) return errno == EISCONN ? 0 : errno;
  }
  return 0;
}

std::string CannotConnect(const std::string& path, int error) {
  return absl::StrCat("cannot connect to \"", path,
                      "\": ", std::strerror(error));
}

class ProxyImpl : public Proxy {
 public:
  ProxyImpl(os::UniqueFd listener, os::UniqueFd epoll, os::UniqueFd wake,
            RouteTable routes, const Options& options, LocalHandler* local)
      : listener_(std::move(listener)),
        acceptor_(listener_.get(), Refuse),
        epoll_(std::move(epoll)),
        wake_(std::move(wake)),
        options_(options),
        forwarder_({[this](Client* client, const std::string& path) {
                      return UpstreamFor(client, path);
                    },
                    [this](Connection* connection) { MarkDirty(connection); }},
                   local) {
    forwarder_.SetRoutes(std::move(routes));
    thread_ = std::thread([this] { Loop(); });
  }

  ~ProxyImpl() override { Stop(absl::ZeroDuration()); }

  void SetRoutes(RouteTable routes) override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      new_routes_ = std::move(routes);
    }
    Wake();
  }

  void Stop(absl::Duration grace) override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!stop_at_.has_value()) {
        stop_at_ = Clock::now() + absl::ToChronoMilliseconds(grace);
      }
    }
    Wake();
    if (thread_.joinable()) thread_.join();
  }

 private:
  void Wake() {
    const uint64_t one = 1;
    (void)!::write(wake_.get(), &one, sizeof(one));  // Full means awake.
  }

  void MarkDirty(Connection* connection) {
    if (connection->dirty || connection->dead) return;
    connection->dirty = true;
    dirty_.push_back(connection);
  }

  void Kill(Connection* connection) {
    if (connection->dead) return;
    connection->dead = true;
    dead_.push_back(connection);
  }

  void Loop() {
    Watch(listener_.get(), &listener_);
    Watch(wake_.get(), &wake_);
    epoll_event events[kEventsMax];
    while (!finished_) {
      const int count =
          ::epoll_wait(epoll_.get(), events, kEventsMax, TimeoutMs());
      for (int i = 0; i < count; ++i) {
        Handle(events[i]);
        FlushDirty();
      }
      if (count == 0) Buffer::ReleaseSpares();  // A timeout: little to do.
      RetryConnects();
      FlushDirty();
      BuryDead();
      SweepIdle();
      if (stopping_) CheckDrained();
    }
    CloseEverything();
  }

  void Watch(int fd, void* tag) {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.ptr = tag;
    ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event);
  }

  int TimeoutMs() const {
    if (!connecting_.empty()) return kConnectRetryMs;
    if (stopping_) {
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
          stop_by_ - Clock::now());
      return static_cast<int>(std::clamp<int64_t>(left.count() + 1, 0, 1000));
    }
    return idle_count_ > 0 ? kSweepMs : -1;
  }

  void Handle(const epoll_event& event) {
    if (event.data.ptr == &listener_) return AcceptSome();
    if (event.data.ptr == &wake_) return HandleWake();
    auto* connection = static_cast<Connection*>(event.data.ptr);
    if (connection->dead) return;
    if ((event.events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0) {
      const bool ok = connection->ReadSome();
      MarkDirty(connection);  // Before it may die: replies to bad frames.
      if (!ok) {
        (void)connection->Flush();  // It goes either way.
        return Kill(connection);
      }
    } else {
      MarkDirty(connection);
    }
  }

  void HandleWake() {
    uint64_t count = 0;
    (void)!::read(wake_.get(), &count, sizeof(count));  // Only a wake-up.
    std::lock_guard<std::mutex> lock(mutex_);
    if (new_routes_.has_value()) {
      forwarder_.SetRoutes(std::move(*new_routes_));
      new_routes_.reset();
    }
    if (stop_at_.has_value() && !stopping_) {
      stopping_ = true;
      stop_by_ = *stop_at_;
      ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, listener_.get(), nullptr);
      for (Client* client : clients_) {
        client->draining = true;
        nghttp2_submit_goaway(
            client->session(), NGHTTP2_FLAG_NONE,
            nghttp2_session_get_last_proc_stream_id(client->session()),
            NGHTTP2_NO_ERROR, nullptr, 0);
        MarkDirty(client);
      }
    }
  }

  // HTTP/2's way to say why: an empty SETTINGS frame, then GOAWAY.
  static void Refuse(int fd, const absl::Status& why) {
    const std::string text = absl::StrCat("bulkhead-gateway: ", MessageOf(why));
    std::string frames("\0\0\0\4\0\0\0\0\0", 9);
    frames.append("\0\0", 2);
    frames.push_back(static_cast<char>(8 + text.size()));  // Below 256.
    frames.append("\7\0\0\0\0\0", 6);
    frames.append("\0\0\0\0\0\0\0\xb", 8);  // ENHANCE_YOUR_CALM.
    frames += text;
    (void)!::send(fd, frames.data(), frames.size(),
                  MSG_NOSIGNAL | MSG_DONTWAIT);  // Or it has left.
  }

  void AcceptSome() {
    for (int i = 0; i < kAcceptsAtOnceMax; ++i) {
      absl::StatusOr<os::UniqueFd> accepted = acceptor_.Accept(SOCK_NONBLOCK);
      if (absl::IsResourceExhausted(accepted.status())) {
        rejected_->Add();
        log::Error("a client was refused",
                   {{"error", MessageOf(accepted.status())}});
        return;  // Others first: their end may free one.
      }
      if (!accepted.ok()) return;
      os::UniqueFd fd = *std::move(accepted);
      if (clients_.size() >= kClientsMax) {
        rejected_->Add();
        continue;
      }
      auto* client = new Client(Connection::Kind::kClient, std::move(fd),
                                epoll_.get(), forwarder_.callbacks());
      client->forwarder = &forwarder_;
      clients_.insert(client);
      clients_gauge_->Set(static_cast<int64_t>(clients_.size()));
      if (!client->Register()) {
        Kill(client);
      } else {
        MarkDirty(client);
      }
    }
  }

  absl::StatusOr<Upstream*> UpstreamFor(Client* client,
                                        const std::string& path) {
    const auto found = client->upstreams.find(path);
    if (found != client->upstreams.end()) {
      if (!found->second->dead && !found->second->draining) {
        return found->second;
      }
      // It stays with its calls; nobody gives it new ones.
      client->upstreams.erase(found);
    }
    std::vector<Upstream*>& idle = idle_[path];
    while (!idle.empty()) {
      Upstream* upstream = idle.back();
      idle.pop_back();
      --idle_count_;
      if (upstream->dead || upstream->draining) continue;
      return Assign(upstream, client);
    }
    os::UniqueFd fd(
        ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!fd.valid()) {
      return absl::UnavailableError(CannotConnect(path, errno));
    }
    const int error = ConnectNow(fd.get(), path);
    if (error != 0 && error != EAGAIN) {
      return absl::UnavailableError(CannotConnect(path, error));
    }
    auto* upstream = new Upstream(Connection::Kind::kUpstream, std::move(fd),
                                  epoll_.get(), forwarder_.callbacks());
    upstream->forwarder = &forwarder_;
    upstream->path = path;
    upstreams_.insert(upstream);
    if (error == EAGAIN) {
      upstream->connecting = true;
      upstream->connect_by =
          Clock::now() + absl::ToChronoMilliseconds(options_.connect_timeout);
      connecting_.push_back(upstream);
    } else {
      upstream->Register();
    }
    return Assign(upstream, client);
  }

  static Upstream* Assign(Upstream* upstream, Client* client) {
    upstream->client = client;
    client->upstreams[upstream->path] = upstream;
    return upstream;
  }

  void RetryConnects() {
    if (connecting_.empty()) return;
    std::vector<Upstream*> waiting;
    waiting.swap(connecting_);
    for (Upstream* upstream : waiting) {
      if (upstream->dead) continue;
      const int error = ConnectNow(upstream->fd(), upstream->path);
      if (error == 0) {
        upstream->connecting = false;
        upstream->Register();
        MarkDirty(upstream);
      } else if (error == EAGAIN && Clock::now() < upstream->connect_by) {
        connecting_.push_back(upstream);
      } else {
        why_[upstream] =
            error == EAGAIN
                ? absl::StrCat("\"", upstream->path, "\" takes no connections")
                : CannotConnect(upstream->path, error);
        Kill(upstream);
      }
    }
  }

  void FlushDirty() {
    // Flushing one connection may make others dirty.
    while (!dirty_.empty()) {
      std::vector<Connection*> round;
      round.swap(dirty_);
      for (Connection* connection : round) {
        connection->dirty = false;
        if (!connection->dead && !connection->Flush()) Kill(connection);
      }
      round.clear();
      if (dirty_.empty()) dirty_.swap(round);  // Keeps the memory.
    }
  }

  void BuryDead() {
    while (!dead_.empty()) {
      std::vector<Connection*> round;
      round.swap(dead_);
      for (Connection* connection : round) {
        if (connection->kind() == Connection::Kind::kClient) {
          BuryClient(static_cast<Client*>(connection));
        } else {
          BuryUpstream(static_cast<Upstream*>(connection));
        }
      }
      FlushDirty();
    }
  }

  void Forget(Connection* connection) {
    dirty_.erase(std::remove(dirty_.begin(), dirty_.end(), connection),
                 dirty_.end());
  }

  void BuryClient(Client* client) {
    forwarder_.ClientGone(client);
    for (Upstream* upstream : upstreams_) {
      if (upstream->client != client) continue;
      upstream->client = nullptr;
      std::vector<Upstream*>& idle = idle_[upstream->path];
      if (upstream->dead) continue;
      if (upstream->draining || upstream->connecting || stopping_ ||
          idle.size() >= kIdleUpstreamsMax) {
        // Its last RST_STREAMs go out first.
        (void)upstream->Flush();
        Kill(upstream);
        continue;
      }
      upstream->idle_since = Clock::now();
      idle.push_back(upstream);
      ++idle_count_;
    }
    clients_.erase(client);
    clients_gauge_->Set(static_cast<int64_t>(clients_.size()));
    Forget(client);
    delete client;
  }

  void BuryUpstream(Upstream* upstream) {
    std::string why =
        absl::StrCat("the connection to \"", upstream->path, "\" ended");
    const auto known = why_.find(upstream);
    if (known != why_.end()) {
      why = known->second;
      why_.erase(known);
    }
    forwarder_.UpstreamGone(upstream, why);
    if (upstream->client != nullptr) {
      auto& upstreams = upstream->client->upstreams;
      const auto found = upstreams.find(upstream->path);
      if (found != upstreams.end() && found->second == upstream) {
        upstreams.erase(found);
      }
    } else {
      std::vector<Upstream*>& idle = idle_[upstream->path];
      const auto found = std::find(idle.begin(), idle.end(), upstream);
      if (found != idle.end()) {
        idle.erase(found);
        --idle_count_;
      }
    }
    connecting_.erase(
        std::remove(connecting_.begin(), connecting_.end(), upstream),
        connecting_.end());
    upstreams_.erase(upstream);
    Forget(upstream);
    delete upstream;
  }

  void SweepIdle() {
    if (idle_count_ == 0) return;
    const auto before =
        Clock::now() - absl::ToChronoMilliseconds(kIdleUpstreamTime);
    for (auto& [path, idle] : idle_) {
      for (Upstream* upstream : idle) {
        if (upstream->idle_since < before) Kill(upstream);
      }
    }
    BuryDead();
  }

  void CheckDrained() {
    bool busy = false;
    for (Client* client : clients_) busy = busy || !client->exchanges.empty();
    finished_ = !busy || Clock::now() >= stop_by_;
  }

  void CloseEverything() {
    for (Client* client : clients_) Kill(client);
    BuryDead();
    for (Upstream* upstream : upstreams_) Kill(upstream);
    BuryDead();
  }

  os::UniqueFd listener_;
  os::Acceptor acceptor_;
  os::UniqueFd epoll_;
  os::UniqueFd wake_;
  const Options options_;

  std::mutex mutex_;  // Guards what other threads hand over.
  std::optional<RouteTable> new_routes_;
  std::optional<Clock::time_point> stop_at_;

  // The rest belongs to the loop's thread.
  Forwarder forwarder_;
  std::unordered_set<Client*> clients_;
  std::unordered_set<Upstream*> upstreams_;
  std::map<std::string, std::vector<Upstream*>> idle_;
  int idle_count_ = 0;
  std::vector<Upstream*> connecting_;
  std::map<Upstream*, std::string> why_;
  std::vector<Connection*> dirty_;
  std::vector<Connection*> dead_;
  bool stopping_ = false;
  bool finished_ = false;
  Clock::time_point stop_by_;
  stats::Value* clients_gauge_ = stats::Gauge("bulkhead_gateway_clients");
  stats::Value* rejected_ =
      stats::Counter("bulkhead_gateway_clients_rejected_total");
  std::thread thread_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Proxy>> Proxy::Start(os::UniqueFd listener,
                                                    RouteTable routes,
                                                    const Options& options,
                                                    LocalHandler* local) {
  os::UniqueFd epoll(::epoll_create1(EPOLL_CLOEXEC));
  if (!epoll.valid()) return os::ErrnoStatus(errno, "epoll_create1");
  os::UniqueFd wake(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake.valid()) return os::ErrnoStatus(errno, "eventfd");
  const int flags = ::fcntl(listener.get(), F_GETFL);
  if (flags < 0 || ::fcntl(listener.get(), F_SETFL, flags | O_NONBLOCK) != 0) {
    return os::ErrnoStatus(errno, "make the listener non-blocking");
  }
  return std::unique_ptr<Proxy>(std::make_unique<ProxyImpl>(
      std::move(listener), std::move(epoll), std::move(wake), std::move(routes),
      options, local));
}

}  // namespace bulkhead::gateway
