#include "services/runtime/event_forwarder.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "lib/base/status_macros.h"
#include "lib/log/log.h"
#include "lib/os/fd.h"

namespace bulkhead::runtime {
namespace {

constexpr absl::Duration kRetryMin = absl::Milliseconds(10);
constexpr absl::Duration kRetryMax = absl::Milliseconds(500);
constexpr absl::Duration kDrainMax = absl::Seconds(2);
constexpr size_t kIdBytesMax = 76;
constexpr char kIdPattern[] = "^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$";

bool IsFinal(const absl::Status& status) {
  return absl::IsInvalidArgument(status) ||
         absl::IsFailedPrecondition(status) ||
         absl::IsPermissionDenied(status) || absl::IsUnimplemented(status);
}

std::string Record(const std::string& bytes) {
  std::string out(sizeof(uint32_t), '\0');
  const uint32_t size = static_cast<uint32_t>(bytes.size());
  std::copy_n(reinterpret_cast<const char*>(&size), sizeof(size), out.data());
  return out + bytes;
}

}  // namespace

absl::Status ValidateId(const std::string& id) {
  if (id.empty()) {
    return absl::InvalidArgumentError("identifier must not be empty");
  }
  if (id.size() > kIdBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("identifier \"", id, "\" greater than maximum length (",
                     kIdBytesMax, " characters)"));
  }
  bool separator = true;  // One must not come first, last or twice.
  for (const char c : id) {
    const bool is_separator = c == '.' || c == '_' || c == '-';
    if ((!is_separator &&
         !absl::ascii_isalnum(static_cast<unsigned char>(c))) ||
        (is_separator && separator)) {
      separator = true;
      break;
    }
    separator = is_separator;
  }
  if (separator) {
    return absl::InvalidArgumentError(
        absl::StrCat("identifier \"", id, "\" must match ", kIdPattern));
  }
  return absl::OkStatus();
}

absl::Status ValidateEnvelope(const containerd::types::Envelope& envelope) {
  absl::Status valid = ValidateId(envelope.namespace_());
  if (!valid.ok()) {
    return Annotate(valid, "event envelope has invalid namespace");
  }
  const std::string& topic = envelope.topic();
  const std::string context = absl::StrCat("envelope topic \"", topic, "\"");
  if (topic.empty()) {
    return absl::InvalidArgumentError(context + ": must not be empty");
  }
  if (topic[0] != '/') {
    return absl::InvalidArgumentError(context + ": must start with '/'");
  }
  if (topic.size() == 1) {
    return absl::InvalidArgumentError(context +
                                      ": must have at least one component");
  }
  for (auto part : absl::StrSplit(topic.substr(1), '/')) {
    valid = ValidateId(std::string(part));
    if (!valid.ok()) return Annotate(valid, context);
  }
  if (envelope.timestamp().seconds() == 0 &&
      envelope.timestamp().nanos() == 0) {
    return absl::InvalidArgumentError("timestamp must be set on forward event");
  }
  return absl::OkStatus();
}

EventForwarder::EventForwarder(Send send, std::string spool)
    : send_(std::move(send)), spool_(std::move(spool)) {
  LoadSpool();
  thread_ = std::thread([this] { Run(); });
}

EventForwarder::~EventForwarder() {
  {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait_for(lock, absl::ToChronoNanoseconds(kDrainMax),
                      [this] { return queue_.empty(); });
    stopping_ = true;
    changed_.notify_all();
  }
  thread_.join();
  std::unique_lock<std::mutex> lock(mutex_);
  ReplyEarly(lock, absl::InfiniteFuture());
}

void EventForwarder::LoadSpool() {
  absl::StatusOr<std::string> bytes =
      os::ReadFile(spool_, 2 * kEventBytesBufferedMax);
  if (!bytes.ok()) return;
  size_t at = 0;
  while (at + sizeof(uint32_t) <= bytes->size()) {
    uint32_t size;
    std::copy_n(bytes->data() + at, sizeof(size),
                reinterpret_cast<char*>(&size));
    Item item;
    if (size > bytes->size() - at - sizeof(size) ||
        !item.envelope.ParseFromString(
            bytes->substr(at + sizeof(size), size))) {
      break;
    }
    at += sizeof(size) + size;
    item.spooled = true;
    item.size_bytes = size;
    bytes_ += size;
    queue_.push_back(std::move(item));
  }
  // A torn tail was never acknowledged, and nothing can be found behind it.
  if (at < bytes->size() &&
      ::truncate(spool_.c_str(), static_cast<off_t>(at)) != 0) {
    log::Error("cannot cut the spool of events",
               {{"error", MessageOf(os::ErrnoStatus(errno, spool_))}});
  }
  spool_used_ = !queue_.empty();
}

bool EventForwarder::HasRoom(const Item& item) const {
  if (queue_.size() < kEventsBufferedMax &&
      bytes_ + item.size_bytes <= kEventBytesBufferedMax) {
    return true;
  }
  log::Error("event buffer is full", {{"topic", item.envelope.topic()}});
  return false;
}

void EventForwarder::Queue(Item item) {
  item.queued_at = absl::Now();
  bytes_ += item.size_bytes;
  queue_.push_back(std::move(item));
  changed_.notify_all();
}

void EventForwarder::Publish(Envelope envelope, Done done) {
  Item item;
  item.size_bytes = envelope.ByteSizeLong();
  item.envelope = std::move(envelope);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (HasRoom(item)) {
      item.done = std::move(done);
      return Queue(std::move(item));
    }
  }
  if (done) done(absl::ResourceExhaustedError("event buffer is full"));
}

void EventForwarder::PublishSafely(Envelope envelope) {
  Item item;
  item.size_bytes = envelope.ByteSizeLong();
  item.envelope = std::move(envelope);
  std::lock_guard<std::mutex> lock(mutex_);
  if (!HasRoom(item)) return;
  item.spooled = Spool(Record(item.envelope.SerializeAsString())).ok();
  Queue(std::move(item));
}

size_t EventForwarder::buffered() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return queue_.size();
}

void EventForwarder::Run() {
  absl::Duration pause = kRetryMin;
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
    if (stopping_) return;
    // Only this thread removes items, and a deque's front stays put while
    // others append.
    const Envelope& envelope = queue_.front().envelope;
    lock.unlock();
    const absl::Status status = send_(envelope);
    lock.lock();
    if (!status.ok() && !IsFinal(status)) {
      ReplyEarly(lock, absl::Now() - kEarlyReply);
      changed_.wait_for(lock, absl::ToChronoNanoseconds(pause),
                        [this] { return stopping_; });
      pause = std::min(pause * 2, kRetryMax);
      continue;
    }
    pause = kRetryMin;
    Item item = std::move(queue_.front());
    queue_.pop_front();
    bytes_ -= item.size_bytes;
    if (queue_.empty()) {
      if (spool_used_) {
        spool_used_ = false;
        ::unlink(spool_.c_str());
      }
      changed_.notify_all();
    }
    lock.unlock();
    if (!status.ok()) {
      log::Warn("event refused", {{"topic", item.envelope.topic()},
                                  {"error", MessageOf(status)}});
    }
    if (item.done) item.done(status);
    lock.lock();
  }
}

absl::Status EventForwarder::Spool(const std::string& records) {
  absl::StatusOr<os::UniqueFd> fd =
      os::Open(spool_, O_WRONLY | O_CREAT | O_APPEND, 0600);
  absl::Status written = fd.status();
  if (written.ok()) {
    const off_t before = ::lseek(fd->get(), 0, SEEK_END);
    written = os::WriteFull(fd->get(), records.data(), records.size());
    // Behind half a record nothing would be found.
    if (!written.ok() && ::ftruncate(fd->get(), before) != 0) {
      log::Error("cannot cut the spool of events", {{"path", spool_}});
    }
  }
  if (!written.ok()) {
    log::Error("cannot spool events", {{"error", MessageOf(written)}});
    return written;
  }
  spool_used_ = true;
  return absl::OkStatus();
}

void EventForwarder::ReplyEarly(std::unique_lock<std::mutex>& lock,
                                absl::Time queued_before) {
  std::string records;
  std::vector<Item*> items;
  for (Item& item : queue_) {
    if (item.queued_at > queued_before) break;
    if (item.spooled) continue;
    records += Record(item.envelope.SerializeAsString());
    items.push_back(&item);
  }
  if (items.empty()) return;
  // Unacknowledged, they are sent again by their shims.
  if (!Spool(records).ok()) return;
  std::vector<Done> replies;
  for (Item* item : items) {
    item->spooled = true;
    if (item->done) replies.push_back(std::exchange(item->done, nullptr));
  }
  lock.unlock();
  for (const Done& done : replies) done(absl::OkStatus());
  lock.lock();
}

}  // namespace bulkhead::runtime
