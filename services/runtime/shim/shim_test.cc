// The parts of the shim that need no container.
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <fstream>
#include <functional>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "lib/os/fd.h"
#include "lib/ttrpc/wire.h"
#include "services/runtime/shim/bootstrap.h"
#include "services/runtime/shim/cgroup.h"
#include "services/runtime/shim/json_scan.h"
#include "services/runtime/shim/log_lines.h"
#include "services/runtime/shim/loop.h"
#include "services/runtime/shim/oci_runtime.h"
#include "services/runtime/shim/spawn.h"
#include "services/runtime/shim/spec.h"

namespace bulkhead::shim {
namespace {

class Folder {
 public:
  Folder() {
    char path[] = "/tmp/bh-XXXXXX";
    path_ = ::mkdtemp(path);
  }
  ~Folder() { (void)os::RemoveAll(path_); }
  const std::string& path() const { return path_; }
  void Write(const std::string& name, const std::string& text) const {
    const std::string file = path_ + "/" + name;
    (void)os::MakeDirs(file.substr(0, file.rfind('/')), 0755);
    std::ofstream(file) << text;
  }
  std::string Read(const std::string& name) const {
    std::stringstream out;
    out << std::ifstream(path_ + "/" + name).rdbuf();
    return out.str();
  }

 private:
  std::string path_;
};

// The values of a message's fields by number; submessages by their bytes.
struct Fields {
  explicit Fields(std::string_view bytes) {
    ttrpc::WireReader reader(bytes);
    while (reader.Next()) {
      numbers[reader.field()] = reader.value();
      texts[reader.field()] = reader.str();
    }
  }
  std::map<uint32_t, uint64_t> numbers;
  std::map<uint32_t, std::string> texts;
};

TEST(Json, FindsMembersAndElements) {
  const std::string json =
      R"({"a":{"b":[1,{"type":"pid"},"x\"y"],"c":null},"d" : "\u00e9\ud83d\ude00\n"})";
  EXPECT_EQ(JsonString(JsonMember(json, "d")), "\xc3\xa9\xf0\x9f\x98\x80\n");
  std::vector<std::string> elements;
  EXPECT_TRUE(
      JsonElements(JsonMember(JsonMember(json, "a"), "b"),
                   [&](std::string_view raw) { elements.emplace_back(raw); }));
  EXPECT_EQ(elements,
            (std::vector<std::string>{"1", R"({"type":"pid"})", R"("x\"y")"}));
  EXPECT_EQ(JsonMember(json, "zz"), "");
  EXPECT_EQ(JsonMember("[1]", "a"), "");
  EXPECT_EQ(JsonMember(std::string(1000, '['), "a"), "");
}

TEST(Json, SetsOneMemberAndKeepsTheRest) {
  EXPECT_EQ(JsonWithMember(R"({"x": 1, "terminal":false, "y":{}})", "terminal",
                           "true"),
            R"({"x": 1, "terminal":true, "y":{}})");
  EXPECT_EQ(JsonWithMember(R"({"x":1})", "terminal", "true"),
            R"({"terminal":true,"x":1})");
  EXPECT_EQ(JsonWithMember("{ }", "terminal", "true"), R"({"terminal":true })");
  EXPECT_EQ(JsonWithMember("7", "terminal", "true"), "");
}

TEST(Json, EscapesWhatItWrites) {
  std::string out;
  AppendJsonString("a\"\\\n\x01\xff\xc3\xa9", &out);
  EXPECT_EQ(out, "\"a\\\"\\\\\\n\\u0001\\ufffd\xc3\xa9\"");
}

TEST(JsonLog, WritesLinesOfBothStreamsAndTheUnfinishedOne) {
  const Folder dir;
  LogFile log({.path = dir.path() + "/sub/c.log"});
  ASSERT_TRUE(log.Open().ok());
  JsonLines out(&log, "stdout");
  JsonLines err(&log, "stderr");
  const timespec at{1704164645, 60};
  ASSERT_TRUE(out.Write("one\ntw", at).ok());
  ASSERT_TRUE(err.Write("bad\n", at).ok());
  ASSERT_TRUE(out.Write("o\nend", at).ok());
  ASSERT_TRUE(out.Flush(at).ok());
  const std::string time = ",\"time\":\"2024-01-02T03:04:05.00000006Z\"}\n";
  EXPECT_EQ(dir.Read("sub/c.log"),
            R"({"log":"one\n","stream":"stdout")" + time +
                R"({"log":"bad\n","stream":"stderr")" + time +
                R"({"log":"two\n","stream":"stdout")" + time +
                R"({"log":"end","stream":"stdout")" + time);
}

TEST(JsonLog, SplitsLongLines) {
  const Folder dir;
  LogFile log({.path = dir.path() + "/c.log"});
  ASSERT_TRUE(log.Open().ok());
  JsonLines out(&log, "stdout");
  const std::string line(kLogLineSizeBytesMax * 2 + 5, 'x');
  for (size_t at = 0; at < line.size(); at += 1000) {
    ASSERT_TRUE(out.Write(line.substr(at, 1000), Now()).ok());
  }
  ASSERT_TRUE(out.Write("\n", Now()).ok());
  std::string rest = dir.Read("c.log");
  std::string_view text = rest;
  std::string joined;
  int entries = 0;
  for (std::string_view entry; !(entry = JsonTake(&text)).empty(); ++entries) {
    joined += JsonString(JsonMember(entry, "log"));
  }
  EXPECT_EQ(entries, 3);
  EXPECT_EQ(joined, line + "\n");
}

TEST(JsonLog, RotatesAndLosesNothing) {
  const Folder dir;
  LogFile log(
      {.path = dir.path() + "/c.log", .size_bytes_max = 400, .files_max = 3});
  ASSERT_TRUE(log.Open().ok());
  JsonLines out(&log, "stdout");
  for (int i = 0; i < 12; ++i) {
    ASSERT_TRUE(out.Write("line " + std::to_string(i) + "\n", Now()).ok());
  }
  std::string all =
      dir.Read("c.log.2") + dir.Read("c.log.1") + dir.Read("c.log");
  EXPECT_NE(all.find("line 11"), std::string::npos);
  EXPECT_LT(all.find("line 10"), all.find("line 11"));
  EXPECT_LE(dir.Read("c.log").size(), 400u);
  EXPECT_LE(dir.Read("c.log.1").size(), 400u);
  EXPECT_EQ(dir.Read("c.log.3"), "");
}

TEST(JsonLog, ParsesItsUri) {
  const auto uri = ParseLogUri(
      "json-file",
      "json-file:///var/a%20b.log?tee=%2Frun%2Ff%26o&max-size=1000&max-file=4");
  ASSERT_TRUE(uri.ok());
  EXPECT_EQ(uri->file.path, "/var/a b.log");
  EXPECT_EQ(uri->tee, "/run/f&o");
  EXPECT_EQ(uri->file.size_bytes_max, 1000);
  EXPECT_EQ(uri->file.files_max, 4);
  EXPECT_FALSE(ParseLogUri("json-file", "json-file://relative").ok());
  EXPECT_FALSE(ParseLogUri("json-file", "file:///x").ok());
  EXPECT_EQ(
      ParseLogUri("cri-file", "cri-file:///x?max-line=7")->line_size_bytes_max,
      7u);
  const auto bad = ParseLogUri("cri-file", "cri-file:///x?max-size=10m");
  EXPECT_EQ(bad.status().message(), "max-size of a log: \"10m\" is no number");
}

// The entries of a CRI log without their times.
std::string WithoutTimes(const std::string& text) {
  std::string out;
  std::stringstream in(text);
  for (std::string line; std::getline(in, line);) {
    out += line.substr(line.find(' ') + 1) + "\n";
  }
  return out;
}

TEST(CriLog, TagsWholeAndCutLines) {
  const Folder dir;
  // However the bytes arrive, the entries are the same.
  for (const size_t step : {1, 2, 3, 7, 1000}) {
    (void)::unlink((dir.path() + "/c.log").c_str());
    LogFile log({.path = dir.path() + "/c.log"});
    ASSERT_TRUE(log.Open().ok());
    CriLines out(&log, "stdout", 5);
    const std::string text =
        "one\n\nabcde\nabcde\r\nabcdef\n0123456789\nxy\rz\r\n"
        "abcde\rf\nabcdefg";
    for (size_t at = 0; at < text.size(); at += step) {
      ASSERT_TRUE(out.Write(text.substr(at, step), Now()).ok());
    }
    ASSERT_TRUE(out.Flush(Now()).ok());
    EXPECT_EQ(WithoutTimes(dir.Read("c.log")),
              "stdout F one\nstdout F \nstdout F abcde\nstdout F abcde\n"
              "stdout P abcde\nstdout F f\nstdout P 01234\nstdout F 56789\n"
              "stdout F xy\rz\nstdout P abcde\nstdout F \rf\n"
              "stdout P abcde\nstdout P fg\n")
        << step;
  }
}

TEST(CriLog, TimesAreLocal) {
  const char* before = ::getenv("TZ");
  const std::string old = before != nullptr ? before : "";
  ::setenv("TZ", "XXX-5:30", 1);
  ::tzset();
  const timespec at{1704164645, 120000000};
  EXPECT_EQ(FormatRfc3339Nano(at, true), "2024-01-02T08:34:05.12+05:30");
  EXPECT_EQ(FormatRfc3339Nano(at), "2024-01-02T03:04:05.12Z");
  ::setenv("TZ", "UTC", 1);
  ::tzset();
  EXPECT_EQ(FormatRfc3339Nano(at, true), "2024-01-02T03:04:05.12Z");
  before != nullptr ? ::setenv("TZ", old.c_str(), 1) : ::unsetenv("TZ");
  ::tzset();
}

TEST(CriLog, GoesOnWhenTheFileIsMoved) {
  const Folder dir;
  const std::string path = dir.path() + "/c.log";
  LogFile log({.path = path});
  ASSERT_TRUE(log.Open().ok());
  CriLines out(&log, "stdout", 0);
  ASSERT_TRUE(out.Write("one\ntw", Now()).ok());
  ASSERT_EQ(::rename(path.c_str(), (path + ".old").c_str()), 0);
  ASSERT_TRUE(out.Write("o\n", Now()).ok());
  EXPECT_EQ(WithoutTimes(dir.Read("c.log.old")), "stdout F one\n");
  EXPECT_EQ(WithoutTimes(dir.Read("c.log")), "stdout F two\n");
}

TEST(LogFile, AFullDiskLeavesNoHalfEntry) {
  const Folder dir;
  LogFile log({.path = dir.path() + "/c.log"});
  ASSERT_TRUE(log.Open().ok());
  ASSERT_TRUE(log.Append("whole\n").ok());
  // A limit on the size of files stands for a full disk.
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  rlimit small = before;
  small.rlim_cur = 10;
  const auto handler = ::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const absl::Status status = log.Append("too long by far\n");
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  ::signal(SIGXFSZ, handler);
  EXPECT_FALSE(status.ok());
  EXPECT_EQ(dir.Read("c.log"), "whole\n");
  ASSERT_TRUE(log.Append("next\n").ok());
  EXPECT_EQ(dir.Read("c.log"), "whole\nnext\n");
}

absl::StatusOr<Flags> Parse(std::vector<std::string> args) {
  args.insert(args.begin(), "shim");
  std::vector<char*> argv;
  for (std::string& arg : args) argv.push_back(arg.data());
  return ParseFlags(static_cast<int>(argv.size()), argv.data());
}

TEST(Bootstrap, ParsesFlagsLikeGo) {
  const auto flags = Parse({"-namespace", "ns", "--address=/a", "-id", "c",
                            "-publish-binary", "/p", "-debug", "start"});
  ASSERT_TRUE(flags.ok()) << flags.status();
  EXPECT_EQ(flags->name_space, "ns");
  EXPECT_EQ(flags->grpc_address, "/a");
  EXPECT_TRUE(flags->debug);
  EXPECT_EQ(flags->action, "start");
  EXPECT_FALSE(Parse({"-id", "c", "start"}).ok());
  EXPECT_FALSE(Parse({"-namespace", "n", "-nonsense", "start"}).ok());
  EXPECT_FALSE(Parse({"-namespace"}).ok());
  EXPECT_FALSE(Parse({"-namespace", "n", "dance"}).ok());
}

TEST(Bootstrap, TellsParamsFromOptions) {
  Flags flags;
  flags.id = "c";
  flags.name_space = "ns";
  ttrpc::WireWriter params;
  params.Str(1, "c").Str(2, "ns").Str(5, "/t").Str(6, "/g").Str(9, "/s");
  const BootstrapInput input = ParseBootstrapInput(params.str(), flags);
  EXPECT_TRUE(input.has_params);
  EXPECT_EQ(input.ttrpc_address, "/t");
  EXPECT_EQ(input.socket_dir, "/s");
  EXPECT_EQ(input.options_any, "");
  // Options travel as one of the extensions.
  ttrpc::WireWriter other;
  ttrpc::WireWriter runc;
  other.Str(1, "other.Thing").Str(2, "x");
  runc.Str(1, "containerd.runc.v1.Options").Str(2, "\x1a\x02/s");
  for (const std::string& extension : {other.str(), runc.str(), other.str()}) {
    ttrpc::WireWriter wrapped;
    wrapped.Message(1, extension);
    params.Message(8, wrapped.str());
  }
  EXPECT_EQ(ParseOptions(ParseBootstrapInput(params.str(), flags).options_any)
                ->shim_cgroup,
            "/s");
  ttrpc::WireWriter any;
  any.Str(1, "containerd.runc.v1.Options").Str(2, "\x32\x04runc");
  EXPECT_FALSE(ParseBootstrapInput(any.str(), flags).has_params);
  EXPECT_FALSE(ParseBootstrapInput("", flags).has_params);
  EXPECT_FALSE(ParseBootstrapInput("\xff\xff", flags).has_params);
}

TEST(Spec, RefusesIdsNoProcessCanHave) {
  for (const char* user :
       {R"({})", R"({"uid":0,"gid":2147483647,"additionalGids":[1,2]})",
        R"({"username":"x"})"}) {
    EXPECT_TRUE(CheckUser(std::string(R"({"user":)") + user + "}").ok());
  }
  for (const char* user :
       {R"({"uid":4294967295})", R"({"uid":-1})", R"({"gid":4294967296})",
        R"({"uid":1.5})", R"({"additionalGids":[7,2147483648]})"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(
        CheckUser(std::string(R"({"user":)") + user + "}")))
        << user;
  }
  EXPECT_EQ(CheckUser(R"({"user":{"uid":4294967295}})").message(),
            "uid 4294967295 is not in the range 0-2147483647");
}

TEST(Bootstrap, AnswersInTheDaemonsForm) {
  EXPECT_EQ(BootstrapReply("unix:///s", false, false), "unix:///s");
  EXPECT_EQ(BootstrapReply("unix:///s", false, true),
            R"({"version":2,"address":"unix:///s","protocol":"ttrpc"})");
  const Fields result(BootstrapReply("unix:///s", true, true));
  EXPECT_EQ(result.numbers.at(1), 3u);
  EXPECT_EQ(result.texts.at(2), "unix:///s");
  EXPECT_EQ(result.texts.at(3), "ttrpc");
}

TEST(Bootstrap, SocketPathIsTheHashOfItsNames) {
  EXPECT_EQ(
      SocketPath("/run/s", "/run/containerd/containerd.sock", "default", "c1"),
      SocketPath("/run/s", "/run/containerd/containerd.sock", "default", "c1"));
  EXPECT_NE(SocketPath("/s", "/a", "n", "c1"),
            SocketPath("/s", "/a", "n", "c"));
  // printf '/a/n/c' | sha256sum
  EXPECT_EQ(SocketPath("/s", "", "", "").size(), 3u + 64u);
  EXPECT_LE(SocketPath("/" + std::string(70, 'd'), "/a", "n", "c").size(),
            106u);
}

TEST(Options, AreReadFromAnyAndWrittenAsJson) {
  ttrpc::WireWriter options;
  options.Uint(1, 1).Uint(4, 1000).Str(6, "crun").Str(7, "/r").Uint(9, 1);
  ttrpc::WireWriter any;
  any.Str(1, "type.googleapis.com/containerd.runc.v1.Options");
  any.Str(2, options.str());
  const auto parsed = ParseOptions(any.str());
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->binary_name, "crun");
  EXPECT_TRUE(parsed->systemd_cgroup);
  EXPECT_EQ(parsed->ToJson(),
            R"({"no_pivot_root":true,"io_uid":1000,"binary_name":"crun",)"
            R"("root":"/r","systemd_cgroup":true})");
  EXPECT_EQ(RuntimeOptions::FromJson(parsed->ToJson()).root, "/r");

  ttrpc::WireWriter empty;
  empty.Str(1, "some.other.Options");  // Without a value: unset.
  ASSERT_TRUE(ParseOptions(empty.str()).ok());
  EXPECT_EQ(ParseOptions(empty.str())->binary_name, "runc");
  empty.Str(2, "x");
  EXPECT_FALSE(ParseOptions(empty.str()).ok());

  ttrpc::WireWriter generic;
  generic.Str(3, "BinaryName = \"/usr/bin/crun\"\n  SystemdCgroup = true\n");
  ttrpc::WireWriter toml;
  toml.Str(1, "runtimeoptions.v1.Options").Str(2, generic.str());
  EXPECT_EQ(ParseOptions(toml.str())->binary_name, "/usr/bin/crun");
  EXPECT_TRUE(ParseOptions(toml.str())->systemd_cgroup);
}

TEST(Cgroup, ReadsARecordedV2Tree) {
  const Folder dir;
  dir.Write("a/c/cpu.stat",
            "usage_usec 300\nuser_usec 200\nsystem_usec 100\nnr_periods 4\n");
  dir.Write("a/c/memory.stat", "anon 4096\nfile 8192\npgfault 12\n");
  dir.Write("a/c/memory.current", "12288\n");
  dir.Write("a/c/memory.max", "max\n");
  dir.Write("a/c/memory.events", "low 0\nhigh 0\nmax 3\noom 2\noom_kill 1\n");
  dir.Write("a/c/pids.current", "2\n");
  dir.Write("a/c/pids.max", "max\n");
  dir.Write("a/c/io.stat",
            "8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n");
  dir.Write("a/c/memory.pressure",
            "some avg10=0.50 avg60=0.00 avg300=0.00 total=77\n"
            "full avg10=0.00 avg60=0.00 avg300=0.00 total=5\n");
  dir.Write("a/c/cgroup.procs", "10\n");
  dir.Write("a/c/sub/cgroup.procs", "11\n12\n");
  const Cgroup cgroup = Cgroup::Parse(dir.path(), true, "0::/a/c\n");
  EXPECT_EQ(cgroup.OomKills(), 1u);
  EXPECT_EQ(cgroup.Pids().value(), (std::vector<pid_t>{10, 11, 12}));
  const auto any = cgroup.Metrics();
  ASSERT_TRUE(any.ok());
  const Fields outer(*any);
  EXPECT_EQ(outer.texts.at(1), "io.containerd.cgroups.v2.Metrics");
  const Fields metrics(outer.texts.at(2));
  EXPECT_EQ(Fields(metrics.texts.at(1)).numbers.at(2), ~uint64_t{0});
  EXPECT_EQ(Fields(metrics.texts.at(2)).numbers.at(1), 300u);
  const Fields memory(metrics.texts.at(4));
  EXPECT_EQ(memory.numbers.at(1), 4096u);
  EXPECT_EQ(memory.numbers.at(32), 12288u);
  EXPECT_EQ(memory.numbers.at(33), ~uint64_t{0});
  EXPECT_EQ(Fields(Fields(memory.texts.at(38)).texts.at(1)).numbers.at(4), 77u);
  const Fields io(Fields(metrics.texts.at(6)).texts.at(1));
  EXPECT_EQ(io.numbers.at(1), 8u);
  EXPECT_EQ(io.numbers.at(6), 4u);
  EXPECT_EQ(Fields(metrics.texts.at(8)).numbers.at(5), 1u);
}

TEST(Cgroup, ReadsAV1TreeAndIgnoresTheUnifiedPart) {
  const Folder dir;
  dir.Write("memory/x/memory.stat", "cache 1\nrss 2\ntotal_rss 3\n");
  dir.Write("memory/x/memory.usage_in_bytes", "55\n");
  dir.Write("pids/x/pids.current", "4\n");
  dir.Write("pids/x/pids.max", "max\n");
  dir.Write("cpuacct/x/cpuacct.usage", "900\n");
  dir.Write("cpuacct/x/cpuacct.usage_percpu", "300 600 \n");
  dir.Write("cpuacct/x/cpuacct.stat", "user 2\nsystem 1\n");
  const Cgroup cgroup = Cgroup::Parse(
      dir.path(), false,
      "5:memory:/x\n4:cpu,cpuacct:/x\n3:pids:/x\n0::/elsewhere\n");
  EXPECT_EQ(cgroup.Folder("cpu"), dir.path() + "/cpu/x");
  const Fields outer(cgroup.Metrics().value());
  EXPECT_EQ(outer.texts.at(1), "io.containerd.cgroups.v1.Metrics");
  const Fields metrics(outer.texts.at(2));
  EXPECT_EQ(Fields(metrics.texts.at(2)).numbers.at(1), 4u);
  const Fields memory(metrics.texts.at(4));
  EXPECT_EQ(memory.numbers.at(19), 3u);
  EXPECT_EQ(Fields(memory.texts.at(33)).numbers.at(2), 55u);
  const Fields usage(Fields(metrics.texts.at(3)).texts.at(1));
  EXPECT_EQ(usage.numbers.at(1), 900u);
  EXPECT_EQ(usage.numbers.at(3), 20000000u);
  EXPECT_EQ(usage.texts.at(4), "\xac\x02\xd8\x04");
  // A process in the root group has no figures of its own.
  EXPECT_TRUE(absl::IsNotFound(
      Cgroup::Parse(dir.path(), false, "5:memory:/\n").Metrics().status()));
}

TEST(Cgroup, TellsTheOomKillsOfAV2Group) {
  const Folder dir;
  const auto write = [&dir](int kills) {
    dir.Write("a/c/memory.events",
              "oom 5\noom_kill " + std::to_string(kills) + "\n");
  };
  write(3);  // Those before are somebody else's.
  Loop loop;
  ASSERT_TRUE(loop.Init().ok());
  int told = 0;
  OomWatcher watcher(&loop, Cgroup::Parse(dir.path(), true, "0::/a/c\n"),
                     [&told] { ++told; });
  watcher.Check();
  EXPECT_EQ(told, 0);
  write(4);
  const std::function<void()> until_told = [&] {
    if (told > 0) return loop.Stop();
    loop.After(2, until_told);
  };
  loop.After(0, until_told);
  loop.After(20000, [&loop] { loop.Stop(); });
  loop.Run();
  EXPECT_EQ(told, 1);
  // An exit looks once more and finds what nobody has told yet.
  write(5);
  watcher.Check();
  EXPECT_EQ(told, 2);
  watcher.Check();
  EXPECT_EQ(told, 2);
}

TEST(Cgroup, EnablesControllersAboveAGroup) {
  const Folder dir;
  dir.Write("cgroup.controllers", "cpu memory\n");
  for (const char* name : {"", "a/", "a/b/"}) {
    dir.Write(std::string(name) + "cgroup.subtree_control", "");
  }
  Cgroup::Parse(dir.path(), true, "0::/a/b\n").EnableControllers();
  EXPECT_EQ(dir.Read("cgroup.subtree_control"), "+cpu+memory");
  EXPECT_EQ(dir.Read("a/cgroup.subtree_control"), "+cpu+memory");
  EXPECT_EQ(dir.Read("a/b/cgroup.subtree_control"), "");
}

TEST(Cgroup, JoinsEveryHierarchyThatHasTheGroup) {
  const Folder dir;
  dir.Write("cpu/s/cgroup.procs", "");
  dir.Write("memory/s/cgroup.procs", "");
  dir.Write("pids/other/cgroup.procs", "");
  ASSERT_TRUE(JoinCgroup(dir.path(), false, "/s", 77).ok());
  EXPECT_EQ(dir.Read("cpu/s/cgroup.procs"), "77");
  EXPECT_EQ(dir.Read("memory/s/cgroup.procs"), "77");
  EXPECT_TRUE(absl::IsNotFound(JoinCgroup(dir.path(), false, "/no", 77)));
  dir.Write("s/cgroup.procs", "");
  ASSERT_TRUE(JoinCgroup(dir.path(), true, "/s", 78).ok());
  EXPECT_EQ(dir.Read("s/cgroup.procs"), "78");
}

TEST(Loop, HandsOutExitsEvenEarlyOnes) {
  Loop loop;
  ASSERT_TRUE(loop.Init().ok());
  SpawnRequest request;
  request.argv = {"sh", "-c", "exit 3"};
  const auto early = Spawn(request);
  ASSERT_TRUE(early.ok()) << early.status();
  request.argv = {"sh", "-c", "kill -9 $$"};
  const auto killed = Spawn(request);
  ASSERT_TRUE(killed.ok());
  loop.KeepExits();
  std::map<pid_t, int> exits;
  loop.OnExitOfNew(*killed, [&](const ExitInfo& exit) {
    exits[*killed] = exit.status;
    if (exits.size() == 2) loop.Stop();
  });
  loop.After(20, [&] {
    loop.OnExit(*early, [&](const ExitInfo& exit) {
      exits[*early] = exit.status;
      if (exits.size() == 2) loop.Stop();
    });
  });
  loop.Run();
  EXPECT_EQ(exits[*early], 3);
  EXPECT_EQ(exits[*killed], 128 + 9);
  request.argv = {"no-such-program-here"};
  EXPECT_TRUE(absl::IsNotFound(Spawn(request).status()));
}

}  // namespace
}  // namespace bulkhead::shim
