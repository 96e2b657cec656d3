// Sends task events to the daemon, in order, over a ttrpc connection of its
// own, and keeps them while the daemon is away.
#ifndef BULKHEAD_SERVICES_RUNTIME_SHIM_EVENTS_H_
#define BULKHEAD_SERVICES_RUNTIME_SHIM_EVENTS_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <string>

#include "lib/os/fd.h"
#include "services/runtime/shim/loop.h"

namespace bulkhead::shim {

constexpr size_t kEventsQueuedMax = 2048;  // The oldest is dropped.

class EventPublisher {
 public:
  // An empty `address`: every event is dropped.
  EventPublisher(Loop* loop, std::string address, std::string name_space);
  ~EventPublisher() { Disconnect(); }

  // `event` is the encoded message of the type `type_name`.
  void Publish(const std::string& topic, const std::string& type_name,
               const std::string& event);

  // Calls `done` once the queue is empty, or after `timeout_ms`.
  void Drain(int64_t timeout_ms, std::function<void()> done);

 private:
  struct Item {
    std::string request;  // An encoded ttrpc Request.
    int failures = 0;
  };

  void SendFirst();
  void OnReadable();
  void Failed();
  void Answered(bool delivered);
  void Disconnect();
  void CheckDrained();

  Loop* loop_;
  std::string address_;
  std::string name_space_;
  std::deque<Item> queue_;
  os::UniqueFd socket_;
  std::string in_;
  uint32_t next_stream_ = 1;
  bool in_flight_ = false;
  uint64_t timer_ = 0;  // Of the answer, or of the next attempt.
  std::function<void()> drained_;
  uint64_t drain_timer_ = 0;
};

}  // namespace bulkhead::shim

#endif  // BULKHEAD_SERVICES_RUNTIME_SHIM_EVENTS_H_
