// Drives the shim as a daemon does: bootstrap, ttrpc calls, events, real
// containers under runc and crun.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <fstream>
#include <map>
#include <mutex>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "lib/os/fd.h"
#include "lib/os/socket.h"
#include "lib/ttrpc/frame.h"
#include "lib/ttrpc/wire.h"

namespace bulkhead::shim {
namespace {

using ttrpc::WireReader;
using ttrpc::WireWriter;

constexpr char kShim[] = "services/runtime/shim/containerd-shim-bulkhead-v1";
constexpr char kHugetlb[] = "/sys/fs/cgroup/hugetlb";

std::string ReadAll(const std::string& path) {
  std::stringstream out;
  out << std::ifstream(path).rdbuf();
  return out.str();
}

template <typename Condition>
bool Eventually(Condition condition) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    ::usleep(2000);
  }
  return true;
}

struct Result {
  uint64_t code = 0;
  std::string message;
  std::map<uint32_t, uint64_t> numbers;
  std::map<uint32_t, std::string> texts;
  int count = 0;
  bool ok() const { return code == 0; }
};

// A blocking ttrpc connection.
class Client {
 public:
  explicit Client(const std::string& path)
      : socket_(os::ConnectUnix(path).value()) {}

  uint32_t Send(const std::string& method, const std::string& payload,
                const std::string& service = "containerd.task.v2.Task") {
    WireWriter request;
    request.Str(1, service).Str(2, method).Str(3, payload);
    std::string frame;
    const uint32_t stream = next_stream_;
    next_stream_ += 2;
    ttrpc::AppendFrame({.stream_id = stream, .type = ttrpc::kFrameRequest},
                       request.str(), &frame);
    EXPECT_TRUE(os::WriteFull(socket_.get(), frame.data(), frame.size()).ok());
    return stream;
  }

  Result Receive(uint32_t stream) {
    while (answers_.count(stream) == 0) {
      uint8_t bytes[ttrpc::kFrameHeaderSizeBytes];
      const auto size = os::ReadFull(socket_.get(), bytes, sizeof(bytes));
      if (!size.ok() || *size != sizeof(bytes)) {
        Result closed;
        closed.code = 14;
        return closed;
      }
      const ttrpc::FrameHeader header = ttrpc::DecodeFrameHeader(bytes);
      std::string body(header.body_size_bytes, '\0');
      (void)os::ReadFull(socket_.get(), body.data(), body.size());
      answers_[header.stream_id] = body;
    }
    Result result;
    WireReader response(answers_[stream]);
    while (response.Next()) {
      WireReader inner(response.bytes());
      while (inner.Next()) {
        if (response.field() == 1) {
          if (inner.field() == 1) result.code = inner.value();
          if (inner.field() == 2) result.message = inner.str();
        } else {
          result.numbers[inner.field()] = inner.value();
          result.texts[inner.field()] = inner.str();
          ++result.count;
        }
      }
    }
    return result;
  }

  Result Call(const std::string& method, const std::string& payload,
              const std::string& service = "containerd.task.v2.Task") {
    return Receive(Send(method, payload, service));
  }

 private:
  os::UniqueFd socket_;
  uint32_t next_stream_ = 1;
  std::map<uint32_t, std::string> answers_;
};

// The daemon's Events service: takes every event and keeps its topic.
class Events {
 public:
  explicit Events(const std::string& path)
      : listener_(os::ListenUnix(path, {}).value()),
        thread_([this] { Run(); }) {}
  ~Events() {
    stop_ = true;
    thread_.join();
  }
  std::vector<std::string> topics() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return topics_;
  }

 private:
  void Run() {
    std::vector<pollfd> fds = {{listener_.get(), POLLIN, 0}};
    std::vector<os::UniqueFd> connections;
    while (!stop_) {
      ::poll(fds.data(), fds.size(), 20);
      for (size_t i = 1; i < fds.size(); ++i) {
        if (fds[i].revents == 0) continue;
        uint8_t bytes[ttrpc::kFrameHeaderSizeBytes];
        const auto size = os::ReadFull(fds[i].fd, bytes, sizeof(bytes));
        if (!size.ok() || *size != sizeof(bytes)) {
          fds[i].fd = -1;
          continue;
        }
        const ttrpc::FrameHeader header = ttrpc::DecodeFrameHeader(bytes);
        std::string body(header.body_size_bytes, '\0');
        (void)os::ReadFull(fds[i].fd, body.data(), body.size());
        WireReader request(body);
        while (request.Next()) {
          if (request.field() != 3) continue;
          WireReader forward(request.bytes());
          while (forward.Next()) {
            WireReader envelope(forward.bytes());
            while (envelope.Next()) {
              if (envelope.field() != 3) continue;
              const std::lock_guard<std::mutex> lock(mutex_);
              topics_.push_back(envelope.str());
            }
          }
        }
        std::string reply;
        ttrpc::AppendFrame(
            {.stream_id = header.stream_id, .type = ttrpc::kFrameResponse}, "",
            &reply);
        // A shim that was killed meanwhile needs none.
        (void)!::send(fds[i].fd, reply.data(), reply.size(), MSG_NOSIGNAL);
      }
      if (fds[0].revents != 0) {
        connections.push_back(os::Accept(listener_.get()).value());
        fds.push_back({connections.back().get(), POLLIN, 0});
      }
    }
  }

  os::UniqueFd listener_;
  std::mutex mutex_;
  std::vector<std::string> topics_;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

class ShimTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root";
    char path[] = "/tmp/bh-XXXXXX";
    dir_ = ::mkdtemp(path);
    shim_ = ::realpath(kShim, nullptr);
    if (GetParam() == "crun" && ::access(kHugetlb, F_OK) != 0) {
      // crun wants every controller of a hybrid machine in v1.
      ::mkdir(kHugetlb, 0755);
      ::mount("cgroup", kHugetlb, "cgroup", 0, "hugetlb");
    }
    const std::string rootfs = dir_ + "/rootfs";
    for (const char* name : {"/bin", "/proc", "/dev", "/tmp"}) {
      ASSERT_TRUE(os::MakeDirs(rootfs + name, 0755).ok());
    }
    const std::string busybox = os::ReadFile("/bin/busybox").value();
    std::ofstream(rootfs + "/bin/busybox") << busybox;
    ::chmod((rootfs + "/bin/busybox").c_str(), 0755);
    for (const char* name : {"sh", "cat", "sleep", "seq", "tty", "stty"}) {
      ASSERT_EQ(::symlink("busybox", (rootfs + "/bin/" + name).c_str()), 0);
    }
    events_ = std::make_unique<Events>(dir_ + "/events.sock");
  }

  void TearDown() override {
    if (dir_.empty()) return;
    if (client_ != nullptr) {
      // Whatever a failed test left.
      client_->Call("Kill", Id().Uint(3, 9).Uint(4, 1).Take());
      client_->Call("Wait", Id().Take());
      client_->Call("Delete", Id().Take());
      client_->Call("Shutdown", Id().Take());
    }
    client_.reset();
    events_.reset();
    (void)os::RemoveAll(dir_);
  }

  std::string id() const {
    return "bht-" + dir_.substr(dir_.rfind('-') + 1) + "-" + GetParam();
  }
  WireWriter Id() const {
    WireWriter writer;
    writer.Str(1, id());
    return writer;
  }
  std::string bundle() const { return dir_ + "/b"; }

  // Runs the shim's binary in the bundle; its stdout, and its exit status.
  std::pair<std::string, int> RunShim(const std::vector<std::string>& args,
                                      const std::string& input = "") {
    std::ofstream(dir_ + "/input") << input;
    int fds[2];
    EXPECT_EQ(::pipe2(fds, O_CLOEXEC), 0);
    const pid_t pid = ::fork();
    if (pid == 0) {
      std::vector<char*> argv = {const_cast<char*>(shim_.c_str())};
      for (const std::string& arg : args) {
        argv.push_back(const_cast<char*>(arg.c_str()));
      }
      argv.push_back(nullptr);
      (void)!::chdir(bundle().c_str());
      ::dup2(::open((dir_ + "/input").c_str(), O_RDONLY), 0);
      ::dup2(fds[1], 1);
      ::dup2(fds[1], 2);
      ::setenv("TTRPC_ADDRESS", (dir_ + "/events.sock").c_str(), 1);
      ::setenv("BULKHEAD_SHIM_SOCKET_DIR", (dir_ + "/s").c_str(), 1);
      ::setenv("BULKHEAD_OCI_ROOT", (dir_ + "/oci").c_str(), 1);
      ::setenv("BULKHEAD_OCI_RUNTIME", GetParam().c_str(), 1);
      ::setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin", 1);
      ::execv(argv[0], argv.data());
      ::_exit(127);
    }
    ::close(fds[1]);
    std::string out(65536, '\0');
    // End of file comes only if the server left these descriptors alone.
    out.resize(os::ReadFull(fds[0], out.data(), out.size()).value());
    ::close(fds[0]);
    int status = 0;
    ::waitpid(pid, &status, 0);
    return {out, WEXITSTATUS(status)};
  }

  void StartShim(const std::string& command, bool terminal = false) {
    ASSERT_TRUE(os::MakeDirs(bundle(), 0700).ok());
    std::ofstream(bundle() + "/config.json")
        << R"({"ociVersion":"1.0.2","process":{"terminal":)"
        << (terminal ? "true" : "false")
        << R"(,"user":{"uid":0,"gid":0},"args":["/bin/sh","-c",")" << command
        << R"("],"env":["PATH=/bin"],"cwd":"/"},"root":{"path":")" << dir_
        << R"(/rootfs"},"hostname":"t","mounts":[{"destination":"/proc",)"
        << R"("type":"proc","source":"proc"},{"destination":"/dev","type":)"
        << R"("tmpfs","source":"tmpfs"},{"destination":"/dev/pts","type":)"
        << R"("devpts","source":"devpts"}],"linux":{"cgroupsPath":"/)" << id()
        << R"(","namespaces":[{"type":"pid"},{"type":"mount"},)"
        << R"({"type":"ipc"},{"type":"uts"}]}})";
    const auto [out, status] = RunShim(
        {"-namespace", "bhtest", "-id", id(), "-address", "/nowhere", "start"});
    ASSERT_EQ(status, 0) << out;
    ASSERT_EQ(out.substr(0, 7), "unix://") << out;
    client_ = std::make_unique<Client>(out.substr(7));
  }

  Result Create(const std::string& in, const std::string& out,
                const std::string& err, bool terminal = false) {
    return client_->Call("Create", Id().Str(2, bundle())
                                       .Uint(4, terminal)
                                       .Str(5, in)
                                       .Str(6, out)
                                       .Str(7, err)
                                       .Take());
  }

  std::string Fifo(const std::string& name) {
    const std::string path = dir_ + "/" + name;
    EXPECT_EQ(::mkfifo(path.c_str(), 0700), 0);
    return path;
  }

  void Finish() {
    EXPECT_TRUE(client_->Call("Delete", Id().Take()).ok());
    EXPECT_TRUE(client_->Call("Shutdown", Id().Take()).ok());
    EXPECT_TRUE(Eventually([&] {
      return ::access((dir_ + "/s").c_str(), F_OK) == 0 &&
             ::rmdir((dir_ + "/s").c_str()) == 0;  // Its socket is gone.
    }));
    client_.reset();
    const auto [out, status] = RunShim(
        {"-namespace", "bhtest", "-id", id(), "-bundle", bundle(), "delete"});
    EXPECT_EQ(status, 0) << out;
  }

  std::string dir_;
  std::string shim_;
  std::unique_ptr<Events> events_;
  std::unique_ptr<Client> client_;
};

// Reads a FIFO to its end, on a thread of its own.
class Reader {
 public:
  explicit Reader(const std::string& path)
      : thread_([this, path] {
          const os::UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
          char buffer[4096];
          for (ssize_t size;
               (size = ::read(fd.get(), buffer, sizeof(buffer))) > 0;) {
            text_.append(buffer, static_cast<size_t>(size));
          }
        }) {}
  std::string Text() {
    thread_.join();
    return text_;
  }

 private:
  std::string text_;
  std::thread thread_;
};

TEST_P(ShimTest, RunsAndTellsTheExitInOrder) {
  StartShim("seq 1 50000; echo bad >&2; exit 7");
  Reader out(Fifo("out"));
  Reader err(Fifo("err"));
  const Result created = Create("", dir_ + "/out", dir_ + "/err");
  ASSERT_TRUE(created.ok()) << created.message;
  EXPECT_GT(created.numbers.at(1), 0u);
  EXPECT_EQ(Create("", "", "").code, 6u);  // Already exists.
  Client other(os::ReadFile(bundle() + "/address").value().substr(7));
  const uint32_t wait = other.Send("Wait", Id().Take());
  EXPECT_TRUE(client_->Call("Start", Id().Take()).ok());
  EXPECT_EQ(other.Receive(wait).numbers[1], 7u);
  EXPECT_EQ(client_->Call("State", Id().Take()).numbers[4], 3u);
  EXPECT_EQ(client_->Call("Start", Id().Take()).message,
            "cannot start a stopped process");
  EXPECT_EQ(client_->Call("Kill", Id().Uint(3, 9).Take()).code, 5u);
  Finish();
  const std::string text = out.Text();
  EXPECT_EQ(text.substr(text.size() - 6), "50000\n");
  EXPECT_EQ(err.Text(), "bad\n");
  // The shim gives up its socket before it has told its last events.
  EXPECT_TRUE(Eventually([&] { return events_->topics().size() >= 4; }));
  EXPECT_EQ(events_->topics(),
            (std::vector<std::string>{"/tasks/create", "/tasks/start",
                                      "/tasks/exit", "/tasks/delete"}));
}

TEST_P(ShimTest, ExecsKillsPausesAndMeasures) {
  StartShim("sleep 1000");
  ASSERT_TRUE(Create("", "", "").ok());
  EXPECT_EQ(client_->Call("Pause", Id().Take()).message,
            "cannot pause task in created state");
  ASSERT_TRUE(client_->Call("Start", Id().Take()).ok());
  // An exec that echoes its stdin and ends when that does.
  Reader out(Fifo("eout"));
  const std::string in = Fifo("ein");
  WireWriter process;
  process.Str(1, "x").Str(2, R"({"args":["/bin/sh","-c","cat; exit 3"],)"
                             R"("cwd":"/","env":["PATH=/bin"],)"
                             R"("user":{"uid":0,"gid":0}})");
  const std::string exec = Id().Str(2, "e1").Take();
  ASSERT_TRUE(client_
                  ->Call("Exec", Id().Str(2, "e1")
                                     .Str(4, in)
                                     .Str(5, dir_ + "/eout")
                                     .Message(7, process.str())
                                     .Take())
                  .ok());
  EXPECT_EQ(
      client_->Call("Exec", Id().Str(2, "e1").Message(7, process.str()).Take())
          .code,
      6u);
  const Result started = client_->Call("Start", exec);
  ASSERT_TRUE(started.ok()) << started.message;
  {
    const os::UniqueFd writer(::open(in.c_str(), O_WRONLY | O_CLOEXEC));
    ASSERT_TRUE(os::WriteFull(writer.get(), "typed\n", 6).ok());
  }
  EXPECT_TRUE(Eventually([&] {  // sleep, sh, cat.
    return client_->Call("Pids", Id().Take()).count == 3;
  }));
  ASSERT_TRUE(
      client_->Call("CloseIO", Id().Str(2, "e1").Uint(3, 1).Take()).ok());
  EXPECT_EQ(client_->Call("Wait", exec).numbers[1], 3u);
  EXPECT_EQ(client_->Call("Delete", exec).numbers[2], 3u);
  EXPECT_EQ(out.Text(), "typed\n");
  EXPECT_EQ(client_->Call("State", exec).code, 5u);

  // A second exec dies with init, and is told first.
  ASSERT_TRUE(client_
                  ->Call("Exec", Id().Str(2, "e2")
                                     .Str(5, Fifo("e2out"))
                                     .Message(7, process.str())
                                     .Take())
                  .ok());
  WireWriter bad;
  bad.Str(2, R"({"args":["/no/such"],"cwd":"/","user":{"uid":0,"gid":0}})");
  ASSERT_TRUE(
      client_->Call("Exec", Id().Str(2, "e3").Message(7, bad.str()).Take())
          .ok());
  const Result failed = client_->Call("Start", Id().Str(2, "e3").Take());
  EXPECT_EQ(failed.message.substr(0, 24), "OCI runtime exec failed:");

  ASSERT_TRUE(client_->Call("Pause", Id().Take()).ok());
  EXPECT_EQ(client_->Call("State", Id().Take()).numbers[4], 4u);
  ASSERT_TRUE(client_->Call("Resume", Id().Take()).ok());
  const Result stats = client_->Call("Stats", Id().Take());
  EXPECT_TRUE(stats.ok());
  EXPECT_NE(stats.texts.at(1).find("io.containerd.cgroups."),
            std::string::npos);
  ASSERT_TRUE(client_->Call("Kill", Id().Uint(3, 9).Take()).ok());
  EXPECT_EQ(client_->Call("Wait", Id().Take()).numbers[1], 137u);
  EXPECT_TRUE(client_->Call("Shutdown", Id().Take()).ok());  // Ignored.
  EXPECT_EQ(client_->Call("Connect", Id().Take()).code, 0u);
  Finish();
}

TEST_P(ShimTest, GivesATerminal) {
  StartShim("stty size; tty; read x; echo got $x; exit 4", true);
  Reader out(Fifo("out"));
  const std::string in = Fifo("in");
  const Result created = Create(in, dir_ + "/out", "", true);
  ASSERT_TRUE(created.ok()) << created.message;
  ASSERT_TRUE(
      client_->Call("ResizePty", Id().Uint(3, 90).Uint(4, 30).Take()).ok());
  ASSERT_TRUE(client_->Call("Start", Id().Take()).ok());
  const os::UniqueFd writer(::open(in.c_str(), O_WRONLY | O_CLOEXEC));
  ASSERT_TRUE(os::WriteFull(writer.get(), "abc\n", 4).ok());
  EXPECT_EQ(client_->Call("Wait", Id().Take()).numbers[1], 4u);
  Finish();
  const std::string text = out.Text();
  EXPECT_NE(text.find("30 90\r\n"), std::string::npos) << text;
  EXPECT_NE(text.find("/dev/pts/0"), std::string::npos) << text;
  EXPECT_NE(text.find("got abc"), std::string::npos) << text;
}

TEST_P(ShimTest, WritesJsonLogsAndATee) {
  StartShim("echo one; echo two >&2; printf three");
  Reader tee(Fifo("tee"));
  const std::string uri = "json-file://" + dir_ + "/logs/c.log";
  const Result created = Create("", uri + "?tee=" + dir_ + "/tee", uri);
  ASSERT_TRUE(created.ok()) << created.message;
  ASSERT_TRUE(client_->Call("Start", Id().Take()).ok());
  EXPECT_EQ(client_->Call("Wait", Id().Take()).numbers[1], 0u);
  Finish();
  EXPECT_EQ(tee.Text(), "one\nthree");
  const std::string log = ReadAll(dir_ + "/logs/c.log");
  for (const char* part : {R"({"log":"one\n","stream":"stdout","time":"20)",
                           R"({"log":"two\n","stream":"stderr","time":"20)",
                           R"({"log":"three","stream":"stdout","time":"20)"}) {
    EXPECT_NE(log.find(part), std::string::npos) << log;
  }
}

TEST_P(ShimTest, ReportsWhatTheRuntimeSays) {
  StartShim("true");
  const std::string config = ReadAll(bundle() + "/config.json");
  std::string broken = config;
  broken.replace(broken.find("/bin/sh"), 7, "/bin/no");
  std::ofstream(bundle() + "/config.json") << broken;
  const Result created = Create("", "", "");
  EXPECT_EQ(created.code, 2u);
  EXPECT_EQ(created.message.substr(0, 26), "OCI runtime create failed:");
  EXPECT_NE(created.message.find("/bin/no"), std::string::npos)
      << created.message;
  EXPECT_EQ(client_->Call("State", Id().Take()).message,
            "container not created");
  EXPECT_EQ(client_->Call("Nonsense", "").code, 12u);
  EXPECT_EQ(client_->Call("Get", "", "no.Such").message, "service no.Such");
  // The same id works once the reason is gone.
  std::ofstream(bundle() + "/config.json") << config;
  const Result again = Create("", "", "");
  EXPECT_TRUE(again.ok()) << again.message;
  Finish();  // Deleted without ever having been started.
}

TEST_P(ShimTest, DeleteCleansUpAfterAKilledShim) {
  StartShim("sleep 1000");
  const Result created = Create("", "", "");
  ASSERT_TRUE(created.ok()) << created.message;
  ASSERT_TRUE(client_->Call("Start", Id().Take()).ok());
  const Result connected = client_->Call("Connect", Id().Take());
  const pid_t init = static_cast<pid_t>(created.numbers.at(1));
  ASSERT_EQ(::kill(static_cast<pid_t>(connected.numbers.at(1)), SIGKILL), 0);
  client_.reset();
  EXPECT_EQ(::kill(init, 0), 0);  // The container does not notice.
  const std::vector<std::string> args = {"-namespace", "bhtest", "-id",   id(),
                                         "-bundle",    bundle(), "delete"};
  for (int round = 0; round < 2; ++round) {
    const auto [out, status] = RunShim(args);
    EXPECT_EQ(status, 0) << out;
    WireReader response(out);
    std::map<uint32_t, uint64_t> numbers;
    while (response.Next()) numbers[response.field()] = response.value();
    EXPECT_EQ(numbers[1], static_cast<uint64_t>(init));
    EXPECT_EQ(numbers[2], 137u);
  }
  EXPECT_TRUE(Eventually([&] {
    // Gone, or somebody else's zombie.
    const std::string stat = ReadAll("/proc/" + std::to_string(init) + "/stat");
    return stat.empty() || stat.find(") Z ") != std::string::npos;
  }));
  EXPECT_NE(::access((dir_ + "/oci/bhtest/" + id()).c_str(), F_OK), 0);
}

TEST_P(ShimTest, LateReadersGetEverythingAndNobodyElseWaits) {
  StartShim("seq 1 300000");
  const std::string out = Fifo("out");
  ASSERT_TRUE(Create("", out, "").ok());
  ASSERT_TRUE(client_->Call("Start", Id().Take()).ok());
  // Nobody reads; the container waits in its own pipe, the shim does not.
  EXPECT_EQ(client_->Call("State", Id().Take()).numbers[4], 2u);
  {
    // A reader that takes a little and goes away loses nothing for the next.
    const os::UniqueFd first(::open(out.c_str(), O_RDONLY | O_CLOEXEC));
    char two[2];
    ASSERT_EQ(os::ReadFull(first.get(), two, 2).value(), 2u);
    EXPECT_EQ(std::string(two, 2), "1\n");
    // The shim has opened its own reading end before it wrote.
  }
  Reader reader(out);
  EXPECT_EQ(client_->Call("Wait", Id().Take()).numbers[1], 0u);
  Finish();
  const std::string text = reader.Text();
  std::string expected;
  for (int i = 2; i <= 300000; ++i) expected += std::to_string(i) + "\n";
  EXPECT_EQ(text.size(), expected.size());
  EXPECT_TRUE(text == expected);
}

TEST_P(ShimTest, OutputOfAShortLifeWaitsForItsReader) {
  StartShim("echo hi");
  const std::string out = Fifo("out");
  ASSERT_TRUE(Create("", out, "").ok());
  ASSERT_TRUE(client_->Call("Start", Id().Take()).ok());
  EXPECT_EQ(client_->Call("Wait", Id().Take()).numbers[1], 0u);
  Reader reader(out);
  Finish();
  EXPECT_EQ(reader.Text(), "hi\n");
}

TEST_P(ShimTest, LoggingBinaryGetsAllOutput) {
  StartShim("seq 1 20000; echo bad >&2");
  const std::string logger = dir_ + "/logger";
  std::ofstream(logger)
      << "#!/bin/sh\nexec >" << dir_
      << "/log\nprintf x >&5\nexec 5>&-\ncat <&3\ncat <&4\n"
      << "echo \"$CONTAINER_NAMESPACE $CONTAINER_ID $1=$2\"\n";
  ::chmod(logger.c_str(), 0755);
  const std::string uri = "binary-v2://" + logger + "?key=a%20b";
  const Result created = Create("", uri, uri);
  ASSERT_TRUE(created.ok()) << created.message;
  ASSERT_TRUE(client_->Call("Start", Id().Take()).ok());
  EXPECT_EQ(client_->Call("Wait", Id().Take()).numbers[1], 0u);
  Finish();
  const std::string log = ReadAll(dir_ + "/log");
  EXPECT_NE(log.find("\n20000\nbad\nbhtest " + id() + " key=a b\n"),
            std::string::npos);
}

TEST_P(ShimTest, LoggingBinaryThatFailsFailsTheCreate) {
  StartShim("true");
  const Result created = Create("", "binary-v2:///bin/false", "");
  EXPECT_NE(created.message.find("logging binary did not call ready"),
            std::string::npos)
      << created.message;
  EXPECT_TRUE(client_->Call("Shutdown", Id().Take()).ok());
  client_.reset();
}

TEST_P(ShimTest, GroupsShareAShimAndTheNewestDaemonIsUnderstood) {
  StartShim("true");
  const std::string address = os::ReadFile(bundle() + "/address").value();
  WireWriter params;
  params.Str(1, "other").Str(2, "bhtest").Str(6, "/nowhere");
  params.Str(5, dir_ + "/events.sock").Str(9, dir_ + "/s");
  // Another container of the group named after the first.
  const std::string config = ReadAll(bundle() + "/config.json");
  std::ofstream(bundle() + "/config.json")
      << R"({"annotations":{"io.kubernetes.cri.sandbox-id":")" << id()
      << R"("}})";
  const auto [out, status] = RunShim(
      {"-namespace", "bhtest", "-id", "other", "-address", "/nowhere", "start"},
      params.Take());
  EXPECT_EQ(status, 0) << out;
  WireReader result(out);
  std::map<uint32_t, std::string> texts;
  while (result.Next()) texts[result.field()] = result.str();
  EXPECT_EQ(texts[2], address);
  EXPECT_EQ(texts[3], "ttrpc");
  std::ofstream(bundle() + "/config.json") << config;
  ASSERT_TRUE(Create("", "", "").ok());
  Finish();
}

// What the OCI runtime prints about its own failure is in the error; a
// container that never was has no output.
TEST_P(ShimTest, AFailedCreatePrintsNothing) {
  StartShim("true");
  const std::string config = ReadAll(bundle() + "/config.json");
  std::string broken = config;
  broken.replace(broken.find("/bin/sh"), 7, "/bin/no");
  std::ofstream(bundle() + "/config.json") << broken;
  std::ofstream(dir_ + "/log") << "";
  const Result created = Create("", dir_ + "/log", dir_ + "/log");
  EXPECT_EQ(created.message.substr(0, 26), "OCI runtime create failed:");
  EXPECT_EQ(ReadAll(dir_ + "/log"), "");
  std::ofstream(bundle() + "/config.json") << config;
  const Result again = Create("", "file://" + dir_ + "/log", "");
  ASSERT_TRUE(again.ok()) << again.message;
  ASSERT_TRUE(client_->Call("Start", Id().Take()).ok());
  EXPECT_EQ(client_->Call("Wait", Id().Take()).numbers[1], 0u);
  Finish();
  EXPECT_EQ(ReadAll(dir_ + "/log"), "");
}

INSTANTIATE_TEST_SUITE_P(Runtimes, ShimTest, ::testing::Values("runc", "crun"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace bulkhead::shim
