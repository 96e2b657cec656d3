#include "services/runtime/shim/sinks.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"

namespace bulkhead::shim {
namespace {

constexpr int64_t kTeeGraceMs = 5000;
constexpr int64_t kReopenDelayMsMax = 250;

// One buffer for everybody: it is never in use across calls.
char copy_buffer[kCopySizeBytes];

// What can be read from a pipe or terminal; 0 also if that cannot be known.
int64_t ReadableBytes(const os::UniqueFd& fd) {
  int size = 0;
  return ::ioctl(fd.get(), FIONREAD, &size) == 0 ? size : 0;
}

}  // namespace

absl::StatusOr<std::shared_ptr<FifoReader>> FifoReader::Open(
    const std::string& path) {
  ASSIGN_OR_RETURN(os::UniqueFd fd, os::Open(path, O_RDONLY | O_NONBLOCK));
  return std::shared_ptr<FifoReader>(new FifoReader(std::move(fd)));
}

int64_t FifoReader::UnreadBytes() const { return ReadableBytes(fd_); }

bool FifoReader::HasOther() {
  // By its descriptor: the name may be gone, or another's.
  const auto name = [](const os::UniqueFd& fd) {
    return absl::StrCat("/proc/self/fd/", fd.get());
  };
  const absl::StatusOr<os::UniqueFd> handle = os::Open(name(fd_), O_PATH);
  if (!handle.ok()) return true;  // For all we know.
  fd_.Reset();
  const bool other = os::Open(name(*handle), O_WRONLY | O_NONBLOCK).ok();
  absl::StatusOr<os::UniqueFd> again =
      os::Open(name(*handle), O_RDONLY | O_NONBLOCK);
  if (again.ok()) fd_ = *std::move(again);
  return other;
}

void PipeSink::Write(std::string_view bytes) {
  while (!bytes.empty() && fd_.valid()) {
    const ssize_t size = ::write(fd_.get(), bytes.data(), bytes.size());
    if (size >= 0) {
      bytes.remove_prefix(static_cast<size_t>(size));
    } else if (errno == EAGAIN) {
      pending_.assign(bytes);
      watched_ =
          loop_->Watch(fd_.get(), EPOLLOUT, [this](uint32_t) { Flush(); }).ok();
      if (!watched_) pending_.clear();
      return;
    } else if (errno != EINTR) {
      Detach();
      return;
    }
  }
}

void PipeSink::Flush() {
  const ssize_t size = ::write(fd_.get(), pending_.data(), pending_.size());
  if (size < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (size < 0) {
    Detach();
  } else {
    pending_.erase(0, static_cast<size_t>(size));
    if (!pending_.empty()) return;
    std::string().swap(pending_);
    loop_->Unwatch(fd_.get());
    watched_ = false;
  }
  Ready();
}

void PipeSink::Detach() {
  if (watched_) loop_->Unwatch(fd_.get());
  watched_ = false;
  std::string().swap(pending_);
  fd_.Reset();
}

FifoSink::FifoSink(Loop* loop, std::string path, FifoMode mode)
    : PipeSink(loop, os::UniqueFd()), path_(std::move(path)), mode_(mode) {
  TryOpen();
  if (waiting_) Retry();
}

void FifoSink::Open() {
  if (fd_.valid()) return;
  absl::StatusOr<os::UniqueFd> fd = os::Open(path_, O_WRONLY | O_NONBLOCK);
  if (!fd.ok()) {
    // Nobody reads yet, or it is no FIFO any more.
    const auto reader = os::Open(path_, O_RDONLY | O_NONBLOCK);
    if (reader.ok()) fd = os::Open(path_, O_WRONLY | O_NONBLOCK);
  }
  if (fd.ok()) fd_ = *std::move(fd);
}

bool FifoSink::IsRead() const {
  if (!fd_.valid()) return false;
  pollfd fd{fd_.get(), 0, 0};
  return ::poll(&fd, 1, 0) == 0;  // POLLERR: no reader.
}

void FifoSink::TryOpen() {
  Open();
  if (!IsRead()) return;
  if (mode_ == FifoMode::kKeepReader) {
    absl::StatusOr<std::shared_ptr<FifoReader>> reader =
        FifoReader::Open(path_);
    if (!reader.ok()) return;
    reader_ = *std::move(reader);
  }
  waiting_ = false;
}

void FifoSink::Retry() {
  timer_ = loop_->After(delay_ms_, [this] {
    waited_ms_ += delay_ms_;
    delay_ms_ = std::min(delay_ms_ * 2, kReopenDelayMsMax);
    TryOpen();
    if (waiting_ && mode_ == FifoMode::kTee && waited_ms_ >= kTeeGraceMs) {
      waiting_ = false;
    }
    if (waiting_) {
      Retry();
    } else {
      Ready();
    }
  });
}

bool FifoSink::blocked() const { return waiting_ || PipeSink::blocked(); }

bool FifoSink::HasReader() {
  return reader_ == nullptr ? IsRead() : reader_->HasOther();
}

void FifoSink::Write(std::string_view bytes) {
  if (mode_ == FifoMode::kTee) {
    Open();  // Writing to one whose reader left has closed it.
    if (!IsRead()) return;
  }
  PipeSink::Write(bytes);
}

void FileSink::Write(std::string_view bytes) {
  // A full disk must not stop the container: there is nobody to tell.
  (void)os::WriteFull(fd_.get(), bytes.data(), bytes.size());
}

LogSink::LogSink(std::shared_ptr<LogFile> log, std::unique_ptr<LogLines> lines,
                 std::unique_ptr<FifoSink> tee)
    : log_(std::move(log)), lines_(std::move(lines)), tee_(std::move(tee)) {
  if (tee_ != nullptr) tee_->set_on_ready([this] { Ready(); });
}

void LogSink::Write(std::string_view bytes) {
  (void)lines_->Write(bytes, Now());  // As in FileSink.
  if (tee_ != nullptr) tee_->Write(bytes);
}

void LogSink::Finish() { (void)lines_->Flush(Now()); }

OutputCopier::OutputCopier(Loop* loop, os::UniqueFd source,
                           std::unique_ptr<Sink> sink,
                           std::function<void()> on_end)
    : loop_(loop),
      source_(std::move(source)),
      sink_(std::move(sink)),
      on_end_(std::move(on_end)) {
  sink_->set_on_ready([this] {
    if (at_end_) {
      End();
    } else {
      Arm();
    }
  });
}

void OutputCopier::Start() {
  started_ = true;
  Arm();
}

OutputCopier::~OutputCopier() {
  if (armed_) loop_->Unwatch(source_.get());
}

void OutputCopier::Arm() {
  if (!started_ || armed_ || ended_ || sink_->blocked()) return;
  armed_ =
      loop_->Watch(source_.get(), EPOLLIN, [this](uint32_t) { Pump(); }).ok();
}

void OutputCopier::Pump() {
  const ssize_t size = ::read(source_.get(), copy_buffer, sizeof(copy_buffer));
  if (size < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (size > 0) {
    copied_bytes_ += size;
    sink_->Write({copy_buffer, static_cast<size_t>(size)});
    if (sink_->blocked() && armed_) {
      loop_->Unwatch(source_.get());
      armed_ = false;
    }
    return;
  }
  // End of a pipe, or of a terminal (EIO).
  at_end_ = true;
  if (armed_) loop_->Unwatch(source_.get());
  armed_ = false;
  if (!sink_->blocked()) End();
}

void OutputCopier::End() {
  if (ended_) return;
  ended_ = true;
  source_.Reset();
  sink_->Finish();
  if (!let_go_) tail_ = sink_->reader();
  // The sink may be calling us.
  loop_->After(0, [sink = std::shared_ptr<Sink>(std::move(sink_)),
                   call = std::move(on_end_)]() mutable {
    sink.reset();
    if (call) call();
  });
}

void OutputCopier::Mark() {
  mark_bytes_ = copied_bytes_;
  if (ended_ || !started_) return;
  // A terminal counts what its other side wrote once it was asked for it.
  pollfd source{source_.get(), POLLIN, 0};
  (void)::poll(&source, 1, 0);
  mark_bytes_ += ReadableBytes(source_);
  while (armed_ && copied_bytes_ < mark_bytes_) {
    const int64_t before = copied_bytes_;
    Pump();
    if (copied_bytes_ == before) return;
  }
}

int64_t OutputCopier::LeftBytes() const {
  int64_t unread = 0;
  if (ended_) {
    if (tail_ != nullptr) unread = tail_->UnreadBytes();
  } else {
    const std::shared_ptr<FifoReader> reader = sink_->reader();
    if (reader != nullptr) unread = reader->UnreadBytes();
    unread += sink_->PendingBytes();
  }
  return std::max<int64_t>(mark_bytes_ - (copied_bytes_ - unread), 0);
}

bool OutputCopier::HasReader() {
  if (!ended_) return sink_->HasReader();
  return tail_ != nullptr && tail_->HasOther();
}

void OutputCopier::LetGo() {
  let_go_ = true;
  tail_ = nullptr;
}

absl::StatusOr<std::unique_ptr<InputCopier>> InputCopier::Open(
    Loop* loop, const std::string& fifo) {
  std::unique_ptr<InputCopier> copier(new InputCopier(loop));
  ASSIGN_OR_RETURN(copier->source_, os::Open(fifo, O_RDONLY | O_NONBLOCK));
  ASSIGN_OR_RETURN(copier->writer_, os::Open(fifo, O_WRONLY | O_NONBLOCK));
  return copier;
}

InputCopier::~InputCopier() {
  if (source_armed_) loop_->Unwatch(source_.get());
  if (destination_armed_) loop_->Unwatch(destination_.get());
}

void InputCopier::Start(os::UniqueFd destination,
                        std::function<void()> on_end) {
  destination_ = std::move(destination);
  on_end_ = std::move(on_end);
  started_ = true;
  Arm();
}

void InputCopier::CloseWriter() { writer_.Reset(); }

void InputCopier::Arm() {
  if (source_armed_ || polling_ || !source_.valid()) return;
  source_armed_ =
      loop_->Watch(source_.get(), EPOLLIN, [this](uint32_t) { Pump(); }).ok();
  if (source_armed_) return;
  // A regular file or /dev/null cannot be watched: it is always ready.
  polling_ = true;
  while (source_.valid() && pending_.empty()) Pump();
  polling_ = false;
}

void InputCopier::Pump() {
  const ssize_t size = ::read(source_.get(), copy_buffer, sizeof(copy_buffer));
  if (size < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (size <= 0) return End();
  pending_.assign(copy_buffer, static_cast<size_t>(size));
  Flush();
}

void InputCopier::Flush() {
  while (!pending_.empty()) {
    const ssize_t size =
        ::write(destination_.get(), pending_.data(), pending_.size());
    if (size >= 0) {
      pending_.erase(0, static_cast<size_t>(size));
      continue;
    }
    if (errno == EINTR) continue;
    if (errno != EAGAIN) return End();  // The container closed its stdin.
    if (source_armed_) loop_->Unwatch(source_.get());
    source_armed_ = false;
    if (!destination_armed_) {
      destination_armed_ = loop_
                               ->Watch(destination_.get(), EPOLLOUT,
                                       [this](uint32_t) { Flush(); })
                               .ok();
    }
    return;
  }
  std::string().swap(pending_);
  if (destination_armed_) loop_->Unwatch(destination_.get());
  destination_armed_ = false;
  Arm();
}

void InputCopier::End() {
  if (source_armed_) loop_->Unwatch(source_.get());
  if (destination_armed_) loop_->Unwatch(destination_.get());
  source_armed_ = destination_armed_ = false;
  pending_.clear();
  source_.Reset();
  destination_.Reset();
  if (on_end_) loop_->After(0, std::exchange(on_end_, nullptr));
}

}  // namespace bulkhead::shim
