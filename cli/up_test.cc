// Runs `bulkhead up` over services that are shell scripts.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "lib/testing/temp_dir.h"

namespace bulkhead {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;

constexpr const char* kServices[] = {"content",      "snapshotter", "metadata",
                                     "distribution", "runtime",     "metrics",
                                     "gateway"};
// Ready at once; writes what it was told to the journal.
constexpr char kGoodService[] =
    "trap 'echo term $name >> $journal; exit 0' TERM\n"
    "trap 'echo hup $name >> $journal' HUP\n"
    "echo start $name >> $journal\n"
    "echo ready >&3; exec 3>&-\n"
    "while :; do sleep 0.05 & wait $!; done\n";

template <typename Predicate>
bool Eventually(const Predicate& predicate) {
  for (int i = 0; i < 1000; ++i) {
    if (predicate()) return true;
    std::this_thread::sleep_for(milliseconds(10));
  }
  return false;
}

std::string Slurp(const std::string& path) {
  std::ifstream in(path);
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

class Up : public ::testing::Test {
 protected:
  void SetUp() override {
    fs::copy_file("cli/up_tool", dir_.Path("bulkhead"));
    fs::permissions(dir_.Path("bulkhead"), fs::perms::owner_all);
    for (const char* name : kServices) WriteService(name, kGoodService);
  }
  void TearDown() override {
    if (pid_ > 0) {
      ::kill(pid_, SIGKILL);
      ::waitpid(pid_, nullptr, 0);
    }
  }

  void WriteService(const std::string& name, const std::string& body) {
    const std::string path = dir_.Path("bulkhead-" + name);
    std::ofstream(path) << "#!/bin/sh\nname=" << name
                        << "\njournal=" << dir_.Path("journal") << "\n"
                        << body;
    ::chmod(path.c_str(), 0755);
  }

  pid_t Start(const std::string& suffix = "",
              const std::vector<std::string>& more = {}) {
    const pid_t pid = ::fork();
    if (pid != 0) return pid;
    const std::string program = dir_.Path("bulkhead");
    const std::string root = dir_.Path("root");
    const std::string state = dir_.Path("s");
    const int out = ::open(dir_.Path("out" + suffix).c_str(),
                           O_WRONLY | O_CREAT | O_TRUNC, 0644);
    const int err = ::open(dir_.Path("err" + suffix).c_str(),
                           O_WRONLY | O_CREAT | O_TRUNC, 0644);
    ::dup2(out, 1);
    ::dup2(err, 2);
    std::vector<std::string> words = {program, "up",      "--root",
                                      root,    "--state", state};
    words.insert(words.end(), more.begin(), more.end());
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }

  bool IsReady() {
    return Eventually([&] {
      return absl::StrContains(Slurp(dir_.Path("out")), "bulkhead is ready: ");
    });
  }
  pid_t PidOf(const std::string& service) {
    return std::atoi(Slurp(dir_.Path("s/" + service + "/pid")).c_str());
  }
  static int ExitCode(pid_t pid) {
    int status = 0;
    ::waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }

  testing::TempDir dir_;
  pid_t pid_ = 0;
};

TEST_F(Up, StartsInOrderAndStopsInReverse) {
  pid_ = Start();
  ASSERT_TRUE(IsReady()) << Slurp(dir_.Path("err"));
  EXPECT_EQ(
      Slurp(dir_.Path("out")),
      absl::StrCat("bulkhead is ready: ", dir_.Path("s/bulkhead.sock"), "\n"));
  EXPECT_EQ(std::atoi(Slurp(dir_.Path("s/up.pid")).c_str()), pid_);
  const pid_t gateway = PidOf("gateway");
  EXPECT_EQ(::kill(gateway, 0), 0);
  ::kill(pid_, SIGHUP);
  ASSERT_TRUE(Eventually([&] {
    return absl::StrContains(Slurp(dir_.Path("journal")), "hup content");
  }));

  ::kill(pid_, SIGTERM);
  EXPECT_EQ(ExitCode(pid_), 0);
  pid_ = 0;
  EXPECT_EQ(::kill(gateway, 0), -1);
  const std::string journal = Slurp(dir_.Path("journal"));
  EXPECT_LT(journal.find("start content"), journal.find("start metadata"));
  EXPECT_LT(journal.find("start metadata"), journal.find("start gateway"));
  EXPECT_LT(journal.find("term gateway"), journal.find("term metadata"));
  EXPECT_LT(journal.find("term metadata"), journal.find("term content"));
  EXPECT_FALSE(fs::exists(dir_.Path("s/content/pid")));
}

TEST_F(Up, StartsADeadServiceAgain) {
  pid_ = Start();
  ASSERT_TRUE(IsReady());
  const pid_t before = PidOf("metadata");
  ::kill(before, SIGKILL);
  EXPECT_TRUE(Eventually([&] {
    const pid_t now = PidOf("metadata");
    return now > 0 && now != before && ::kill(now, 0) == 0;
  }));
}

TEST_F(Up, SaysWhyAServiceDoesNotStart) {
  WriteService("distribution", "echo no such option >&2\nexit 3\n");
  pid_ = Start();
  EXPECT_EQ(ExitCode(pid_), 1);
  pid_ = 0;
  EXPECT_TRUE(absl::StrContains(
      Slurp(dir_.Path("err")),
      "bulkhead up: distribution exited with code 3 before it was ready: no "
      "such option"))
      << Slurp(dir_.Path("err"));
  EXPECT_TRUE(absl::StrContains(Slurp(dir_.Path("journal")), "term content"));
}

TEST_F(Up, RefusesAFolderInUse) {
  pid_ = Start();
  ASSERT_TRUE(IsReady());
  EXPECT_EQ(ExitCode(Start("2")), 1);
  EXPECT_TRUE(absl::StrContains(
      Slurp(dir_.Path("err2")),
      absl::StrCat("in use by another 'bulkhead up', pid ", pid_)))
      << Slurp(dir_.Path("err2"));
}

TEST_F(Up, NoServiceSurvivesIt) {
  pid_ = Start();
  ASSERT_TRUE(IsReady());
  std::vector<pid_t> services;
  for (const char* name : kServices) services.push_back(PidOf(name));
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
  pid_ = 0;
  for (const pid_t service : services) {
    EXPECT_TRUE(Eventually([&] {
      // Gone, or a zombie that somebody else has to reap.
      const std::string stat = Slurp(absl::StrCat("/proc/", service, "/stat"));
      return stat.empty() || absl::StrContains(stat, ") Z");
    }));
  }
}

TEST_F(Up, ComplainsAboutFlags) {
  EXPECT_EQ(ExitCode(Start("", {"--colour"})), 2);
  EXPECT_TRUE(absl::StrContains(Slurp(dir_.Path("err")), "'--colour'"));
  EXPECT_EQ(ExitCode(Start("", {"--without", "nonsense"})), 1);
  EXPECT_TRUE(absl::StrContains(Slurp(dir_.Path("err")), "'nonsense'"));
}

}  // namespace
}  // namespace bulkhead
