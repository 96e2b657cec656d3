#include "services/snapshotter/processors.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <thread>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/os/child.h"
#include "lib/os/fd.h"
#include "services/snapshotter/apply.h"

namespace bulkhead::snapshotter {
namespace {

constexpr size_t kFeedBytes = 128 << 10;

absl::Status MakePipe(os::UniqueFd* read, os::UniqueFd* write) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return os::ErrnoStatus(errno, "pipe");
  read->Reset(ends[0]);
  write->Reset(ends[1]);
  return absl::OkStatus();
}

class Running : public ProcessorChain, private LayerSource {
 public:
  explicit Running(LayerSource& source) : source_(source) {}
  ~Running() override { (void)End(false); }  // Nobody asked.

  absl::Status Start(const std::vector<const StreamProcessor*>& chain,
                     std::string media_type, const Payloads& payloads) {
    os::UniqueFd feed;
    os::UniqueFd in;
    RETURN_IF_ERROR(MakePipe(&in, &feed));
    for (const StreamProcessor* processor : chain) {
      os::UniqueFd out;
      os::UniqueFd child_out;
      RETURN_IF_ERROR(MakePipe(&out, &child_out));
      ASSIGN_OR_RETURN(os::UniqueFd errors,
                       os::FixedMemoryFile("stderr", kProcessorErrorBytesMax));
      os::ChildSpec spec;
      spec.path = processor->path;
      spec.args = processor->args;
      // The first of two settings of a name counts.
      spec.env = {absl::StrCat("STREAM_PROCESSOR_MEDIATYPE=", media_type)};
      spec.env.insert(spec.env.end(), processor->env.begin(),
                      processor->env.end());
      spec.env.push_back(absl::StrCat("PATH=", os::kChildPath));
      spec.fds = {{in.get(), 0}, {child_out.get(), 1}, {errors.get(), 2}};
      os::UniqueFd payload;
      if (const auto found = payloads.find(processor->id);
          found != payloads.end()) {
        ASSIGN_OR_RETURN(payload, os::MemoryFile("payload", found->second));
        spec.fds.emplace_back(payload.get(), 3);
      }
      absl::StatusOr<os::Child> child = os::Child::Start(spec);
      if (!child.ok()) {
        return Annotate(child.status(),
                        absl::StrCat("stream processor ", processor->id));
      }
      programs_.push_back(
          {processor->id, *std::move(child), std::move(errors)});
      in = std::move(out);
      media_type = processor->returns;
    }
    output_ = std::move(in);
    media_type_ = std::move(media_type);
    feeding_ =
        std::thread([this, feed = std::move(feed)] { Feed(feed.get()); });
    return absl::OkStatus();
  }

  LayerSource& output() override { return *this; }
  const std::string& media_type() const override { return media_type_; }

  absl::Status Finish(bool ok) override {
    const absl::Status ended = End(ok);
    RETURN_IF_ERROR(ended);
    return fed_;
  }

 private:
  struct Program {
    std::string id;
    os::Child child;
    os::UniqueFd errors;
  };

  absl::StatusOr<size_t> Read(char* out, size_t size_bytes) override {
    for (;;) {
      const ssize_t n = ::read(output_.get(), out, size_bytes);
      if (n >= 0) return static_cast<size_t>(n);
      if (errno != EINTR) {
        return os::ErrnoStatus(errno, "reading from a stream processor");
      }
    }
  }

  void Cancel() override {
    cancelled_ = true;
    source_.Cancel();
    for (Program& program : programs_) program.child.Kill();
  }

  // A thread of its own: the source into the first program.
  void Feed(int to) {
    sigset_t broken_pipe;  // An error, not a signal.
    ::sigemptyset(&broken_pipe);
    ::sigaddset(&broken_pipe, SIGPIPE);
    ::pthread_sigmask(SIG_BLOCK, &broken_pipe, nullptr);
    if (source_.MayBeConfined()) {
      fed_ = ConfineWorker(Worker::kInflate);  // write(2) is always allowed.
    }
    std::string buffer(kFeedBytes, '\0');
    while (fed_.ok()) {
      const absl::StatusOr<size_t> n =
          source_.Read(buffer.data(), buffer.size());
      if (!n.ok()) fed_ = n.status();
      if (!n.ok() || *n == 0) break;
      // A program may stop reading before the end: its exit status tells.
      if (!os::WriteFull(to, buffer.data(), *n).ok()) break;
    }
  }

  static std::string ErrorsOf(const os::UniqueFd& file) {
    std::string text(kProcessorErrorBytesMax, '\0');
    const absl::StatusOr<size_t> n =
        os::PReadFull(file.get(), text.data(), text.size(), 0);
    text.resize(std::min(n.ok() ? *n : 0, text.find('\0')));
    absl::StripTrailingAsciiWhitespace(&text);
    return text;
  }

  absl::Status End(bool ok) {
    if (ended_) return absl::OkStatus();
    ended_ = true;
    if (!ok) Cancel();
    output_.Reset();
    absl::Status status;
    // The feeder holds the write end of the first pipe as long as it runs.
    if (feeding_.joinable()) feeding_.join();
    for (Program& program : programs_) {
      const int code = program.child.Wait();
      if (code == 0 || !status.ok()) continue;
      if (cancelled_ && WIFSIGNALED(code) && WTERMSIG(code) == SIGKILL) {
        continue;  // By us.
      }
      const std::string errors = ErrorsOf(program.errors);
      status = absl::UnknownError(absl::StrCat(
          "stream processor ", program.id, " ",
          WIFSIGNALED(code)
              ? absl::StrCat("was ended by signal ", WTERMSIG(code))
              : absl::StrCat("ended with ", WEXITSTATUS(code)),
          errors.empty() ? "" : ": ", errors));
    }
    return status;
  }

  LayerSource& source_;
  std::vector<Program> programs_;
  os::UniqueFd output_;
  std::string media_type_;
  std::thread feeding_;
  absl::Status fed_;  // The feeder's until it is joined.
  std::atomic<bool> cancelled_{false};
  bool ended_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ProcessorChain>> StartProcessors(
    LayerSource& source, const std::string& media_type,
    const std::vector<StreamProcessor>& processors, const Payloads& payloads) {
  std::vector<const StreamProcessor*> chain;
  std::string type = media_type;
  for (;;) {
    const auto next = std::find_if(
        processors.begin(), processors.end(), [&](const StreamProcessor& one) {
          return std::find(one.accepts.begin(), one.accepts.end(), type) !=
                 one.accepts.end();
        });
    if (next == processors.end()) break;
    if (chain.size() >= kProcessorChainMax) {
      return absl::InvalidArgumentError(
          absl::StrCat("more than ", kProcessorChainMax,
                       " stream processors in a row for ", media_type));
    }
    chain.push_back(&*next);
    type = next->returns;
    // What it returns is a plain layer: nothing is left to be done.
    if (type == "application/vnd.oci.image.layer.v1.tar") break;
  }
  if (chain.empty()) return nullptr;
  for (const auto& [id, payload] : payloads) {
    if (payload.size() > kPayloadBytesMax) {
      return absl::InvalidArgumentError(
          absl::StrCat("the payload for stream processor ", id, " is over ",
                       kPayloadBytesMax, " bytes"));
    }
  }
  auto running = std::make_unique<Running>(source);
  RETURN_IF_ERROR(running->Start(chain, media_type, payloads));
  return running;
}

}  // namespace bulkhead::snapshotter
