// The standard streams of one container process.
#ifndef BULKHEAD_SERVICES_RUNTIME_SHIM_STDIO_H_
#define BULKHEAD_SERVICES_RUNTIME_SHIM_STDIO_H_

#include <sys/types.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "services/runtime/shim/sinks.h"

namespace bulkhead::shim {

constexpr int64_t kReadMs = 10000;
constexpr int64_t kStalledMs = 2000;

// As in a Create or Exec request. Empty names: not attached.
struct StdioSpec {
  std::string id;  // Container, or exec.
  std::string name_space;
  std::string in;
  std::string out;
  std::string err;
  bool terminal = false;
  uint32_t uid = 0;
  uint32_t gid = 0;
};

// Destroying it closes every stream and lets a logging binary go.
class ProcessIo {
 public:
  using Done = std::function<void(absl::Status)>;

  ProcessIo(Loop* loop, StdioSpec spec) : loop_(loop), spec_(std::move(spec)) {}
  ~ProcessIo();

  // Makes pipes or the console socket and starts the logging binary. `done`
  // may be called before this returns, and not after destruction.
  void Open(Done done);

  // What the OCI runtime gets; -1 for /dev/null.
  int child_stdin() const { return child_[0].get(); }
  int child_stdout() const { return child_[1].get(); }
  int child_stderr() const { return child_[2].get(); }
  const std::string& console_socket() const { return console_path_; }

  // The runtime was started: gives up the ends it has now.
  void CloseChildEnds();
  // The runtime ended well: the terminal must be here by now. Only now is
  // output copied: what a runtime says about its own failure is no output of a
  // container.
  absl::Status RuntimeDone();

  void CloseStdin();
  absl::Status Resize(uint32_t width, uint32_t height);  // No-op without tty.
  // The process has ended: calls `done` once clients have read what it wrote
  // until now, at once if they have or if nobody reads. One that stops reading
  // is waited for kStalledMs, one that is slow kReadMs. `done` may be called
  // before this returns, and not after destruction.
  void WhenRead(std::function<void()> done);
  // Calls `done` once all output was copied, or after `timeout_ms`; sooner if
  // it has nowhere to go because nobody reads.
  void WhenDrained(int64_t timeout_ms, std::function<void()> done);

 private:
  absl::Status OpenStreams();
  absl::Status OpenConsole();
  absl::StatusOr<std::unique_ptr<Sink>> MakeSink(bool is_stdout);
  absl::Status StartBinary(os::UniqueFd out, os::UniqueFd err);
  void AcceptConsole();
  void StartConsole(os::UniqueFd master);
  void RemoveConsoleSocket();
  void CheckRead();
  void CheckDrained();

  Loop* loop_;
  StdioSpec spec_;
  os::UniqueFd child_[3];
  std::unique_ptr<InputCopier> input_;
  std::vector<std::unique_ptr<OutputCopier>> outputs_;
  std::shared_ptr<LogFile> log_;
  std::unique_ptr<Sink> console_sink_;

  std::string console_dir_;
  std::string console_path_;
  os::UniqueFd console_listener_;
  os::UniqueFd console_;

  pid_t binary_ = 0;
  os::UniqueFd binary_ready_;
  bool binary_must_answer_ = false;
  Done open_done_;

  std::function<void()> read_;
  uint64_t read_timer_ = 0;
  int64_t read_delay_ms_ = 0;
  int64_t read_waited_ms_ = 0;
  int64_t read_stalled_ms_ = 0;
  int64_t read_left_bytes_ = 0;

  std::function<void()> drained_;
  uint64_t drain_timer_ = 0;
  bool drain_timed_out_ = false;
  // Tells late callbacks that this object is gone.
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace bulkhead::shim

#endif  // BULKHEAD_SERVICES_RUNTIME_SHIM_STDIO_H_
