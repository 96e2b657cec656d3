// The two daemons that are compared, and what a test says about each.
#ifndef BULKHEAD_TESTS_CONFORMANCE_DAEMONS_H_
#define BULKHEAD_TESTS_CONFORMANCE_DAEMONS_H_

#include <google/protobuf/message.h>
#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <sys/types.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "lib/testing/temp_dir.h"

namespace bulkhead::conformance {

// One place where we mean to differ. `step` is "suite/label", or the beginning
// of several followed by "*"; the texts are searched for in what each says.
struct Difference {
  const char* step;
  const char* ours;
  const char* containerd;
  const char* reason;
};

// A difference that is met all over: made the same before lines are compared.
struct Rule {
  const char* pattern;  // A regular expression.
  const char* by;
  const char* reason;
};
const std::vector<Rule>& Rules();

// All of them: differences.cc. docs/api-coverage.md repeats the list.
const std::vector<Difference>& Differences();

// A running daemon with a root and a state of its own, started at the first
// use and ended by Stop(). With CONFORMANCE_BULKHEAD or CONFORMANCE_CONTAINERD
// set to the path of a socket, that one is used and nothing is started.
class Daemon {
 public:
  struct Setup {
    // Roots are folders of this one; empty: of temporary ones.
    std::string roots_below;
    // A snapshotter of ours, "native" on the same file system, is the proxy
    // plugin "far" of each, and btrfs one of ours.
    bool far = false;
  };
  // For daemons that are first used after this.
  static void Prepare(const Setup& setup);

  static Daemon& Ours();        // gateway, metadata, content, snapshotter
  static Daemon& Containerd();  // Debian's
  ~Daemon();
  // Ends it for good; returns when it is gone.
  void Stop();

  const std::string& name() const { return name_; }
  const std::shared_ptr<grpc::Channel>& channel() const { return channel_; }
  // A namespace nobody has used.
  std::string FreshNamespace();

 private:
  Daemon(std::string name, bool ours);
  void Start(const std::vector<std::string>& argv);
  // Starts a service of ours.
  void StartService(const std::string& service, const std::string& root,
                    const std::string& state, const std::string& config);
  void WaitUntilUp();

  const std::string name_;
  bulkhead::testing::TempDir dir_;
  std::string address_;
  std::vector<pid_t> pids_;
  std::shared_ptr<grpc::Channel> channel_;
  int namespaces_ = 0;
};

// What a daemon answered, step by step, in a form that can be compared:
// namespaces, folders, times and ids that a daemon makes up are replaced.
class Transcript {
 public:
  Transcript(Daemon& daemon, std::string ns)
      : daemon_(daemon), ns_(std::move(ns)) {}

  const std::shared_ptr<grpc::Channel>& channel() const {
    return daemon_.channel();
  }
  const std::string& ns() const { return ns_; }
  // A client context; "-" as `ns` sends none.
  std::unique_ptr<grpc::ClientContext> Call(const std::string& lease = "",
                                            const std::string& ns = "") const;

  void Say(const std::string& label, const std::string& text);
  void Say(const std::string& label, const grpc::Status& status);
  // The message if the status is OK.
  void Say(const std::string& label, const grpc::Status& status,
           const google::protobuf::Message& reply);
  // What is replaced from now on.
  void Hide(const std::string& text, const std::string& by) {
    hidden_.emplace_back(text, by);
  }

  const std::vector<std::pair<std::string, std::string>>& lines() const {
    return lines_;
  }

 private:
  std::string Normal(std::string text) const;

  Daemon& daemon_;
  const std::string ns_;
  std::vector<std::pair<std::string, std::string>> hidden_;
  std::vector<std::pair<std::string, std::string>> lines_;
};

// Runs `steps` on both daemons and compares: every line is the same, or in
// Differences() as it is; every row of `suite` there is met.
void Compare(const std::string& suite,
             const std::function<void(Transcript&)>& steps);

}  // namespace bulkhead::conformance

#endif  // BULKHEAD_TESTS_CONFORMANCE_DAEMONS_H_
