#include "cli/terminal.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace bulkhead::cli {

TerminalSize SizeOf(int fd) {
  winsize size{};
  if (::ioctl(fd, TIOCGWINSZ, &size) != 0) return {};
  return {size.ws_row, size.ws_col};
}

RawMode::RawMode(int fd) : fd_(fd) {
  if (!::isatty(fd) || ::tcgetattr(fd, &saved_) != 0) return;
  termios raw = saved_;
  ::cfmakeraw(&raw);
  active_ = ::tcsetattr(fd, TCSANOW, &raw) == 0;
}

RawMode::~RawMode() {
  if (active_) ::tcsetattr(fd_, TCSANOW, &saved_);
}

EchoOff::EchoOff(int fd) : fd_(fd) {
  if (!::isatty(fd) || ::tcgetattr(fd, &saved_) != 0) return;
  termios silent = saved_;
  silent.c_lflag &= ~static_cast<tcflag_t>(ECHO);
  active_ = ::tcsetattr(fd, TCSAFLUSH, &silent) == 0;
}

EchoOff::~EchoOff() {
  if (active_) ::tcsetattr(fd_, TCSAFLUSH, &saved_);
}

absl::StatusOr<DetachKeys> DetachKeys::Parse(const std::string& text) {
  DetachKeys keys;
  for (const std::string& key :
       std::vector<std::string>(absl::StrSplit(text, ',', absl::SkipEmpty()))) {
    if (key.size() == 1) {
      keys.keys_ += key;
    } else if (key.size() == 6 && absl::StartsWith(key, "ctrl-") &&
               ((key[5] >= 'a' && key[5] <= 'z') ||
                (key[5] >= '@' && key[5] <= '_'))) {
      keys.keys_ += static_cast<char>(key[5] & 0x1f);
    } else {
      return absl::InvalidArgumentError(absl::StrCat(
          "invalid detach key '", key, "': one character or ctrl-<letter>"));
    }
  }
  return keys;
}

std::string DetachKeys::Filter(const std::string& typed, bool* detach) {
  if (keys_.empty()) return typed;
  std::string passed;
  for (const char c : typed) {
    if (c == keys_[matched_]) {
      if (++matched_ == keys_.size()) {
        *detach = true;
        matched_ = 0;
        return passed;
      }
      continue;
    }
    passed += keys_.substr(0, matched_);
    matched_ = c == keys_[0] ? 1 : 0;
    if (matched_ == 0) passed += c;
  }
  return passed;
}

}  // namespace bulkhead::cli
