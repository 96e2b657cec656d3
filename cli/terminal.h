// The user's terminal: raw mode, size, and the keys that detach.
#ifndef BULKHEAD_CLI_TERMINAL_H_
#define BULKHEAD_CLI_TERMINAL_H_

#include <termios.h>

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace bulkhead::cli {

struct TerminalSize {
  uint16_t rows = 0;  // 0: unknown.
  uint16_t columns = 0;
};
TerminalSize SizeOf(int fd);

// Raw mode while it lives, if `fd` is a terminal; nothing otherwise.
class RawMode {
 public:
  explicit RawMode(int fd);
  ~RawMode();
  RawMode(const RawMode&) = delete;
  RawMode& operator=(const RawMode&) = delete;

 private:
  int fd_;
  bool active_ = false;
  termios saved_{};
};

// What is typed is not shown while it lives, if `fd` is a terminal.
class EchoOff {
 public:
  explicit EchoOff(int fd);
  ~EchoOff();
  EchoOff(const EchoOff&) = delete;
  EchoOff& operator=(const EchoOff&) = delete;

 private:
  int fd_;
  bool active_ = false;
  termios saved_{};
};

// Finds a key sequence in what is typed, even if split over reads.
class DetachKeys {
 public:
  // "ctrl-p,ctrl-q" or "a,b"; "" never detaches. kInvalidArgument.
  static absl::StatusOr<DetachKeys> Parse(const std::string& text);

  // What is to be passed on of `typed`; sets *detach when the sequence is
  // complete (the rest is dropped). A beginning of the sequence is held back
  // until it turns out not to be one.
  std::string Filter(const std::string& typed, bool* detach);

 private:
  std::string keys_;
  size_t matched_ = 0;
};

}  // namespace bulkhead::cli

#endif  // BULKHEAD_CLI_TERMINAL_H_
