#include "tests/conformance/daemons.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <regex>
#include <set>

#include "absl/time/clock.h"
#include "lib/rpc/channel.h"
#include "lib/rpc/context.h"
#include "lib/rpc/status.h"
#include "proto/containerd/services/namespaces/v1/namespaces.grpc.pb.h"

namespace bulkhead::conformance {
namespace {

constexpr absl::Duration kTimeout = absl::Seconds(20);
constexpr char kContainerd[] = "/usr/bin/containerd";

bool Matches(const Difference& row, const std::string& step) {
  const std::string pattern = row.step;
  if (pattern.back() != '*') return step == pattern;
  return step.compare(0, pattern.size() - 1, pattern, 0, pattern.size() - 1) ==
         0;
}

bool Accepts(const std::string& path) {
  const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  const bool up = ::connect(fd, reinterpret_cast<sockaddr*>(&address),
                            sizeof(address)) == 0;
  ::close(fd);
  return up;
}

// gRPC's pauses between attempts are seconds: ask the kernel instead.
void WaitForSocket(const std::string& path) {
  const absl::Time end = absl::Now() + kTimeout;
  while (!Accepts(path)) {
    if (absl::Now() > end) {
      ADD_FAILURE() << path << " does not answer";
      return;
    }
    absl::SleepFor(absl::Milliseconds(10));
  }
}

Daemon::Setup& ThisSetup() {
  static auto* const setup = new Daemon::Setup;
  return *setup;
}

}  // namespace

void Daemon::Prepare(const Setup& setup) { ThisSetup() = setup; }

Daemon& Daemon::Ours() {
  static Daemon daemon("bulkhead", true);
  return daemon;
}

Daemon& Daemon::Containerd() {
  static Daemon daemon("containerd", false);
  return daemon;
}

Daemon::Daemon(std::string name, bool ours) : name_(std::move(name)) {
  const Setup& setup = ThisSetup();
  const std::string root =
      (setup.roots_below.empty() ? dir_.Path("r")
                                 : setup.roots_below + "/" + name_);
  const std::string state = dir_.Path("s");
  const char* given =
      ::getenv(ours ? "CONFORMANCE_BULKHEAD" : "CONFORMANCE_CONTAINERD");
  ::mkdir(root.c_str(), 0711);
  std::string config;
  if (setup.far && given == nullptr) {
    const std::string far = root + "-far";
    const std::string far_state = dir_.Path("f");
    const std::string socket = far_state + "/snapshotter/snapshotter.sock";
    const std::string far_config = dir_.Path("far.toml");
    std::ofstream(far_config) << "[snapshotter]\nsnapshotters = [\"native\"]\n";
    ::mkdir(far.c_str(), 0711);
    ::mkdir(far_state.c_str(), 0711);
    StartService("snapshotter", far, far_state, far_config);
    WaitForSocket(socket);
    config = "[proxy_plugins.far]\ntype = \"snapshot\"\naddress = \"" + socket +
             "\"\n";
  }
  if (given != nullptr) {
    address_ = given;
  } else if (ours) {
    address_ = state + "/bulkhead.sock";
    ::mkdir(state.c_str(), 0711);
    if (setup.far) {
      config += "[snapshotter]\nsnapshotters = [\"overlayfs\", \"btrfs\"]\n";
    }
    std::ofstream(dir_.Path("config.toml")) << config;
    for (const char* service :
         {"content", "snapshotter", "metadata", "gateway"}) {
      StartService(service, root, state, dir_.Path("config.toml"));
      WaitForSocket(std::string(service) == "gateway"
                        ? address_
                        : state + "/" + service + "/" + service + ".sock");
    }
  } else {
    address_ = state + "/c.sock";
    std::ofstream(dir_.Path("config.toml"))
        << "version = 2\nroot = \"" << root << "\"\nstate = \"" << state
        << "\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n"
        << "[grpc]\naddress = \"" << address_ << "\"\n[ttrpc]\naddress = \""
        << address_ << ".ttrpc\"\n"
        << config;
    Start({kContainerd, "--config", dir_.Path("config.toml"), "--log-level",
           "fatal"});
  }
  if (given == nullptr) WaitForSocket(address_);
  channel_ = rpc::Connect(address_);
  WaitUntilUp();
}

Daemon::~Daemon() { Stop(); }

void Daemon::Stop() {
  channel_ = nullptr;
  for (const pid_t pid : pids_) ::kill(pid, SIGTERM);
  for (const pid_t pid : pids_) ::waitpid(pid, nullptr, 0);
  pids_.clear();
}

void Daemon::StartService(const std::string& service, const std::string& root,
                          const std::string& state, const std::string& config) {
  ::mkdir((state + "/" + service).c_str(), 0710);
  Start({"services/" + service + "/bulkhead-" + service, "--root", root,
         "--state", state, "--config", config, "--log-level", "error"});
}

void Daemon::Start(const std::vector<std::string>& argv) {
  std::vector<char*> args;
  for (const std::string& arg : argv) {
    args.push_back(const_cast<char*>(arg.c_str()));
  }
  args.push_back(nullptr);
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::execv(args[0], args.data());
    ::_exit(127);
  }
  pids_.push_back(pid);
}

void Daemon::WaitUntilUp() {
  namespace v1 = containerd::services::namespaces::v1;
  v1::Namespaces::Stub stub(channel_);
  const absl::Status up = rpc::RetryUnavailable(kTimeout, [&] {
    v1::ListNamespacesResponse response;
    return rpc::FromGrpc(stub.List(
        rpc::MakeClientContext({"", ""}, kTimeout).get(), {}, &response));
  });
  EXPECT_TRUE(up.ok()) << name_ << ": " << up;
}

std::string Daemon::FreshNamespace() {
  return "ns" + std::to_string(::getpid()) + "-" +
         std::to_string(++namespaces_);
}

std::unique_ptr<grpc::ClientContext> Transcript::Call(
    const std::string& lease, const std::string& ns) const {
  auto context = rpc::MakeClientContext(
      {ns.empty() ? ns_ : (ns == "-" ? "" : ns), lease}, kTimeout);
  context->set_wait_for_ready(true);
  return context;
}

std::string Transcript::Normal(std::string text) const {
  for (const auto& [from, to] : hidden_) {
    for (size_t at = 0; (at = text.find(from, at)) != std::string::npos;
         at += to.size()) {
      text.replace(at, from.size(), to);
    }
  }
  for (size_t at; (at = text.find(ns_)) != std::string::npos;) {
    text.replace(at, ns_.size(), "NS");
  }
  static const std::vector<std::pair<std::regex, std::string>> kRules = {
      {std::regex("seconds: -?[0-9]+( nanos: [0-9]+)?"), "TIME"},
      {std::regex("NS/[0-9]+/"), "NS/SEQ/"},
      {std::regex("locked for [^ ]+ \\(since [^)]*\\)"), "locked for D (T)"},
      // Each keeps trees where it likes.
      {std::regex("/tmp/bh-[^ \",:]*/(native|btrfs)/snapshots/[0-9]+(/fs)?"),
       "DIR/N"},
      {std::regex(
           "/tmp/bh-[^ \",:]*snapshotter.v1.btrfs/(active|view|snapshots)/"
           "[0-9]+"),
       "DIR/N"},
      {std::regex("/tmp/bh-[^ \",:]*/snapshots/[0-9]+"), "DIR/N"},
  };
  for (const auto& [rule, by] : kRules) {
    text = std::regex_replace(text, rule, by);
  }
  for (const Rule& rule : Rules()) {
    text = std::regex_replace(text, std::regex(rule.pattern), rule.by);
  }
  return text;
}

void Transcript::Say(const std::string& label, const std::string& text) {
  lines_.emplace_back(label, Normal(text));
}

void Transcript::Say(const std::string& label, const grpc::Status& status) {
  Say(label,
      std::to_string(status.error_code()) + " " + status.error_message());
}

void Transcript::Say(const std::string& label, const grpc::Status& status,
                     const google::protobuf::Message& reply) {
  if (!status.ok()) return Say(label, status);
  Say(label, "0 {" + reply.ShortDebugString() + "}");
}

void Compare(const std::string& suite,
             const std::function<void(Transcript&)>& steps) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  Transcript ours(Daemon::Ours(), Daemon::Ours().FreshNamespace());
  Transcript theirs(Daemon::Containerd(),
                    Daemon::Containerd().FreshNamespace());
  steps(ours);
  steps(theirs);
  std::set<std::string> met;
  ASSERT_EQ(ours.lines().size(), theirs.lines().size());
  for (size_t i = 0; i < ours.lines().size(); ++i) {
    const auto& [label, text] = ours.lines()[i];
    const auto& [label2, text2] = theirs.lines()[i];
    ASSERT_EQ(label, label2);
    const std::string step = suite + "/" + label;
    const Difference* difference = nullptr;
    for (const Difference& row : Differences()) {
      if (Matches(row, step)) difference = &row;
    }
    if (difference == nullptr) {
      EXPECT_EQ(text, text2) << "ours, then containerd's, at " << step;
      continue;
    }
    met.insert(difference->step);
    EXPECT_NE(text, text2) << step << " no longer differs";
    EXPECT_NE(text.find(difference->ours), std::string::npos)
        << step << ": " << text;
    EXPECT_NE(text2.find(difference->containerd), std::string::npos)
        << step << ": " << text2;
  }
  for (const Difference& row : Differences()) {
    const std::string step = row.step;
    if (step.rfind(suite + "/", 0) == 0) {
      EXPECT_TRUE(met.count(step)) << step << " was not asked";
    }
  }
}

}  // namespace bulkhead::conformance
