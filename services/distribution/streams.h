// Named streams of Any messages that other calls refer to. No gRPC here.
#ifndef BULKHEAD_SERVICES_DISTRIBUTION_STREAMS_H_
#define BULKHEAD_SERVICES_DISTRIBUTION_STREAMS_H_

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"

namespace bulkhead::distribution {

constexpr size_t kStreamsMax = 1024;  // Open at once.
constexpr size_t kStreamIdBytesMax = 256;

struct StreamMessage {
  std::string type_url;
  std::string value;
};

// Clients in other languages send "type.googleapis.com/...".
inline std::string BareType(const std::string& type_url) {
  return type_url.substr(type_url.rfind('/') + 1);
}

// One end of a stream. Thread-safe; one Receive at a time.
class Stream {
 public:
  virtual ~Stream() = default;
  // False: the other side has gone.
  virtual bool Send(const StreamMessage& message) = 0;
  // False: the other side sends no more.
  virtual bool Receive(StreamMessage* message) = 0;
  // Ends it on this side; idempotent.
  virtual void Close() = 0;
};

// Thread-safe.
class StreamTable {
 public:
  // Errors: kAlreadyExists, kInvalidArgument, kResourceExhausted.
  absl::Status Add(const std::string& ns, const std::string& id,
                   std::shared_ptr<Stream> stream) {
    if (id.empty() || id.size() > kStreamIdBytesMax) {
      return absl::InvalidArgumentError("stream id: empty or too long");
    }
    std::lock_guard<std::mutex> lock(mutex_);
    if (streams_.size() >= kStreamsMax) {
      return absl::ResourceExhaustedError("too many open streams");
    }
    if (!streams_.emplace(std::make_pair(ns, id), std::move(stream)).second) {
      return absl::AlreadyExistsError(absl::StrCat("stream \"", id, "\""));
    }
    return absl::OkStatus();
  }

  void Remove(const std::string& ns, const std::string& id) {
    std::lock_guard<std::mutex> lock(mutex_);
    streams_.erase({ns, id});
  }

  // Errors: kNotFound.
  absl::StatusOr<std::shared_ptr<Stream>> Get(const std::string& ns,
                                              const std::string& id) {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = streams_.find({ns, id});
    if (found == streams_.end()) {
      return absl::NotFoundError(absl::StrCat("stream \"", id, "\""));
    }
    return found->second;
  }

 private:
  std::mutex mutex_;
  std::map<std::pair<std::string, std::string>, std::shared_ptr<Stream>>
      streams_;
};

}  // namespace bulkhead::distribution

#endif  // BULKHEAD_SERVICES_DISTRIBUTION_STREAMS_H_
