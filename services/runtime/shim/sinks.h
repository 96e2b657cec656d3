// Where a container's output goes, and where its input comes from, on the loop.
// A sink that cannot take more says so; the copier then leaves the bytes in the
// container's own pipe, so nothing is lost and only that container waits.
#ifndef BULKHEAD_SERVICES_RUNTIME_SHIM_SINKS_H_
#define BULKHEAD_SERVICES_RUNTIME_SHIM_SINKS_H_

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "lib/os/fd.h"
#include "services/runtime/shim/log_lines.h"
#include "services/runtime/shim/loop.h"

namespace bulkhead::shim {

constexpr size_t kCopySizeBytes = 32 << 10;

// Our own reading end of a FIFO that clients read from.
class FifoReader {
 public:
  // Errors: the FIFO cannot be opened.
  static absl::StatusOr<std::shared_ptr<FifoReader>> Open(
      const std::string& path);

  // What is in the FIFO and not yet read by anybody.
  int64_t UnreadBytes() const;
  // Whether somebody else has it open for reading. Lets go of it for a moment:
  // nothing may be written meanwhile, and what is in it stays only if somebody
  // has it open.
  bool HasOther();

 private:
  explicit FifoReader(os::UniqueFd fd) : fd_(std::move(fd)) {}

  os::UniqueFd fd_;
};

class Sink {
 public:
  virtual ~Sink() = default;
  // Takes all of `bytes`. Only when not blocked().
  virtual void Write(std::string_view bytes) = 0;
  virtual bool blocked() const { return false; }
  virtual void Finish() {}  // End of stream, once nothing is pending.
  // The FIFO that the bytes wait in until a client takes them; may be null.
  virtual std::shared_ptr<FifoReader> reader() const { return nullptr; }
  // Bytes that were taken and are in no FIFO or file yet.
  virtual int64_t PendingBytes() const { return 0; }
  // False if nobody will take what a blocked sink waits to get rid of.
  virtual bool HasReader() { return true; }
  // Called when a blocked sink takes bytes again.
  void set_on_ready(std::function<void()> call) { on_ready_ = std::move(call); }

 protected:
  void Ready() {
    if (on_ready_) on_ready_();
  }

 private:
  std::function<void()> on_ready_;
};

// A pipe or FIFO, non-blocking.
class PipeSink : public Sink {
 public:
  PipeSink(Loop* loop, os::UniqueFd fd) : loop_(loop), fd_(std::move(fd)) {}
  ~PipeSink() override { Detach(); }

  void Write(std::string_view bytes) override;
  bool blocked() const override { return !pending_.empty(); }
  int64_t PendingBytes() const override {
    return static_cast<int64_t>(pending_.size());
  }

 protected:
  // The other side is gone for good: drops what is pending.
  void Detach();

  Loop* loop_;
  os::UniqueFd fd_;

 private:
  void Flush();

  std::string pending_;
  bool watched_ = false;
};

enum class FifoMode {
  kKeepReader,  // Waits for a first reader, then keeps one itself: a client
                // that vanishes loses nothing and a new one goes on reading.
  kTee,         // Goes on without a reader, after a grace period at the start.
};

class FifoSink : public PipeSink {
 public:
  FifoSink(Loop* loop, std::string path, FifoMode mode);
  ~FifoSink() override { loop_->Cancel(timer_); }

  void Write(std::string_view bytes) override;
  bool blocked() const override;
  std::shared_ptr<FifoReader> reader() const override { return reader_; }
  bool HasReader() override;

 private:
  // Has the writing end open from the first moment, so that a client's blocking
  // open() returns at once: one that is interrupted again and again (SIGSTOP)
  // is a reader for moments only, between which Retry() would look.
  void Open();
  bool IsRead() const;  // By anybody, us included.
  void TryOpen();
  void Retry();

  std::string path_;
  FifoMode mode_;
  std::shared_ptr<FifoReader> reader_;  // Null for a tee.
  bool waiting_ = true;
  int64_t waited_ms_ = 0;
  int64_t delay_ms_ = 1;
  uint64_t timer_ = 0;
};

// A regular file, appended to; writing may block on the disk.
class FileSink : public Sink {
 public:
  explicit FileSink(os::UniqueFd fd) : fd_(std::move(fd)) {}
  void Write(std::string_view bytes) override;

 private:
  os::UniqueFd fd_;
};

// A log file shared by both streams, and a FIFO that gets the raw bytes too.
class LogSink : public Sink {
 public:
  // `lines` writes to `log`; `tee` may be null.
  LogSink(std::shared_ptr<LogFile> log, std::unique_ptr<LogLines> lines,
          std::unique_ptr<FifoSink> tee);
  void Write(std::string_view bytes) override;
  bool blocked() const override { return tee_ != nullptr && tee_->blocked(); }
  void Finish() override;
  bool HasReader() override { return tee_ == nullptr || tee_->HasReader(); }

 private:
  std::shared_ptr<LogFile> log_;
  std::unique_ptr<LogLines> lines_;
  std::unique_ptr<FifoSink> tee_;
};

// Copies a container's stream into a sink until its end.
class OutputCopier {
 public:
  OutputCopier(Loop* loop, os::UniqueFd source, std::unique_ptr<Sink> sink,
               std::function<void()> on_end);
  ~OutputCopier();
  // Nothing is read before.
  void Start();
  bool ended() const { return ended_; }
  bool blocked() const { return !ended_ && sink_->blocked(); }

  // Remembers how much the container has written by now, and copies what the
  // sink takes of it.
  void Mark();
  // How much of what was written up to Mark() its reader has not taken yet.
  int64_t LeftBytes() const;
  // False if nobody is there to take what is left. See FifoReader::HasOther().
  bool HasReader();
  // Whoever is to read has what was written, or never will: does not keep the
  // FIFO any longer than copying needs it.
  void LetGo();

 private:
  void Arm();
  void Pump();
  void End();

  Loop* loop_;
  os::UniqueFd source_;
  std::unique_ptr<Sink> sink_;
  std::function<void()> on_end_;
  std::shared_ptr<FifoReader> tail_;  // After the end, the FIFO of the sink.
  int64_t copied_bytes_ = 0;
  int64_t mark_bytes_ = 0;
  bool let_go_ = false;
  bool started_ = false;
  bool armed_ = false;
  bool at_end_ = false;  // Read to the end; the sink still has bytes.
  bool ended_ = false;
};

// Copies a stdin FIFO to a container's pipe or terminal until CloseWriter()
// and the client's closing.
class InputCopier {
 public:
  // Errors: the FIFO cannot be opened.
  static absl::StatusOr<std::unique_ptr<InputCopier>> Open(
      Loop* loop, const std::string& fifo);
  ~InputCopier();
  // Starts copying to `destination`; `on_end` is called at end of file.
  void Start(os::UniqueFd destination, std::function<void()> on_end);
  // Gives up our own writing end, so that the client's closing is the end.
  void CloseWriter();

 private:
  explicit InputCopier(Loop* loop) : loop_(loop) {}
  void Arm();
  void Pump();
  void Flush();
  void End();

  Loop* loop_;
  os::UniqueFd source_;
  os::UniqueFd writer_;
  os::UniqueFd destination_;
  std::function<void()> on_end_;
  std::string pending_;
  bool started_ = false;
  bool source_armed_ = false;
  bool polling_ = false;  // In Arm(), on a source that is always ready.
  bool destination_armed_ = false;
};

}  // namespace bulkhead::shim

#endif  // BULKHEAD_SERVICES_RUNTIME_SHIM_SINKS_H_
