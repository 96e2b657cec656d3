#include "services/snapshotter/data_server.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <cerrno>
#include <functional>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/dataplane/dataplane.h"
#include "lib/log/log.h"
#include "lib/os/acceptor.h"
#include "lib/os/memory.h"

namespace bulkhead::snapshotter {
namespace {

using nlohmann::json;

std::string Text(const json& object, const char* key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_string() ? it->get<std::string>() : "";
}

bool Flag(const json& object, const char* key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_boolean() && it->get<bool>();
}

absl::StatusOr<int64_t> Offset(const json& object, const char* key) {
  const auto it = object.find(key);
  if (it == object.end() || !it->is_number_integer() ||
      it->get<int64_t>() < 0) {
    return absl::InvalidArgumentError(absl::StrCat("bad ", key));
  }
  return it->get<int64_t>();
}

absl::StatusOr<std::vector<os::MountSpec>> MountsOf(const json& request) {
  std::vector<os::MountSpec> mounts;
  const auto list = request.find("mounts");
  if (list == request.end() || !list->is_array()) {
    return absl::InvalidArgumentError("apply without mounts");
  }
  for (const json& item : *list) {
    if (!item.is_object()) return absl::InvalidArgumentError("bad mount");
    os::MountSpec mount{
        Text(item, "type"), Text(item, "source"), Text(item, "target"), {}};
    const auto options = item.find("options");
    if (options != item.end() && options->is_array()) {
      for (const json& option : *options) {
        if (!option.is_string()) return absl::InvalidArgumentError("bad mount");
        mount.options.push_back(option.get<std::string>());
      }
    }
    mounts.push_back(std::move(mount));
  }
  return mounts;
}

// One packet of the running session. False: the session is over.
absl::Status Feed(int socket, FdSource* source) {
  ASSIGN_OR_RETURN(const dataplane::Packet packet, dataplane::Receive(socket));
  if (packet.closed) return absl::CancelledError("the peer has gone");
  const json message = json::parse(packet.json, nullptr, false);
  if (!message.is_object()) return absl::InvalidArgumentError("not JSON");
  const std::string op = Text(message, "op");
  if (op == "advance") {
    os::ReleaseCodeNowAndThen();
    ASSIGN_OR_RETURN(const int64_t offset, Offset(message, "offset"));
    return source->Advance(offset);
  }
  if (op == "finish") {
    ASSIGN_OR_RETURN(const int64_t size, Offset(message, "size"));
    return source->Finish(size);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("unexpected op \"", op.substr(0, 64), "\""));
}

absl::StatusOr<Unpacked> RunApply(int socket, Applier& applier) {
  ASSIGN_OR_RETURN(dataplane::Packet packet, dataplane::Receive(socket));
  if (packet.closed) return absl::CancelledError("the peer has gone");
  const json request = json::parse(packet.json, nullptr, false);
  if (!request.is_object() || Text(request, "op") != "apply" ||
      packet.fds.size() != 1) {
    return absl::InvalidArgumentError(
        "the session must begin with \"apply\" and one descriptor");
  }
  ASSIGN_OR_RETURN(const std::vector<os::MountSpec> mounts, MountsOf(request));
  const bool parallel = Flag(request, "parallel");
  std::function<void()> on_unpacked;
  if (Flag(request, "tell_unpacked")) {
    // A peer that has gone is met by whoever reads from it.
    on_unpacked = [socket] {
      (void)dataplane::Send(socket, R"({"unpacked":true})");
    };
  }
  const std::string media_type = Text(request, "media_type");

  const os::UniqueFd done(::eventfd(0, EFD_CLOEXEC));
  if (!done.valid()) return os::ErrnoStatus(errno, "eventfd");
  RETURN_IF_ERROR(dataplane::Send(socket, "{}"));
  FdSource source(std::move(packet.fds[0]), 0, false);
  absl::StatusOr<Unpacked> result = absl::UnknownError("not run");
  std::thread working([&] {
    result =
        applier.Apply(mounts, source, media_type, parallel, {}, on_unpacked);
    (void)::eventfd_write(done.get(), 1);  // Cannot overflow.
  });
  absl::Status fed;
  for (;;) {
    pollfd fds[2] = {{done.get(), POLLIN, 0}, {socket, POLLIN, 0}};
    // After a broken session only the worker's end is awaited.
    if (::poll(fds, fed.ok() ? 2 : 1, -1) < 0 && errno != EINTR) {
      fed = os::ErrnoStatus(errno, "poll");
      source.Fail(fed);
      continue;
    }
    if (fds[0].revents != 0) break;
    if (fed.ok() && fds[1].revents != 0) {
      fed = Feed(socket, &source);
      if (!fed.ok()) source.Fail(fed);
    }
  }
  working.join();
  RETURN_IF_ERROR(fed);
  if (!result.ok()) {
    return Annotate(result.status(),
                    absl::StrCat("failed to apply ", Text(request, "digest")));
  }
  return result;
}

}  // namespace

DataServer::DataServer(os::UniqueFd listener, Applier& applier)
    : listener_(std::move(listener)),
      applier_(applier),
      accepting_([this] { AcceptLoop(); }) {}

DataServer::~DataServer() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    ::shutdown(listener_.get(), SHUT_RDWR);
    for (const int socket : sessions_) ::shutdown(socket, SHUT_RDWR);
  }
  accepting_.join();
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return sessions_.empty(); });
}

void DataServer::AcceptLoop() {
  os::Acceptor acceptor(listener_.get(), [](int fd, const absl::Status& why) {
    (void)dataplane::SendError(
        fd, Annotate(why, "bulkhead-snapshotter"));  // Or it has left.
  });
  for (;;) {
    absl::StatusOr<os::UniqueFd> socket = acceptor.Accept();
    std::lock_guard lock(mutex_);
    if (stopping_) return;
    if (!socket.ok()) {
      log::Error("data socket: accept",
                 {{"error", MessageOf(socket.status())}});
      if (!absl::IsResourceExhausted(socket.status())) return;
      continue;
    }
    if (sessions_.size() >= kApplySessionsMax) {
      (void)dataplane::SendError(
          socket->get(),
          absl::ResourceExhaustedError(absl::StrCat(
              "more than ", kApplySessionsMax, " layers are being applied")));
      continue;
    }
    const int raw = socket->Release();
    sessions_.insert(raw);
    std::thread([this, raw] { Serve(raw); }).detach();
  }
}

void DataServer::Serve(int raw) {
  const absl::StatusOr<Unpacked> result = RunApply(raw, applier_);
  // A peer that has gone misses the answer; that is all.
  if (result.ok()) {
    (void)dataplane::Send(
        raw, json({{"digest", result->diff_id}, {"size", result->size_bytes}})
                 .dump());
  } else {
    (void)dataplane::SendError(raw, result.status());
  }
  // Closing with packets unread would reset the connection and the peer would
  // lose the answer: refuse more, then take what is there.
  ::shutdown(raw, SHUT_RD);
  char packet[64];
  while (::recv(raw, packet, sizeof(packet), MSG_DONTWAIT) > 0) {
  }
  std::lock_guard lock(mutex_);
  sessions_.erase(raw);
  os::UniqueFd(raw).Reset();
  changed_.notify_all();
}

}  // namespace bulkhead::snapshotter
