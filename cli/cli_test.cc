// Formatting, names, terminal keys, progress, credentials, logs, metrics.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <set>

#include "absl/strings/str_cat.h"
#include "cli/event_text.h"
#include "cli/format.h"
#include "cli/logs.h"
#include "cli/metrics.h"
#include "cli/names.h"
#include "cli/progress.h"
#include "cli/pull.h"
#include "cli/remedy.h"
#include "cli/rootfs_view.h"
#include "cli/terminal.h"
#include "lib/testing/temp_dir.h"
#include "proto/containerd/events/task.pb.h"
#include "proto/io/containerd/cgroups/v1/metrics.pb.h"
#include "proto/io/containerd/cgroups/v2/metrics.pb.h"

namespace bulkhead::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

TEST(Format, Sizes) {
  EXPECT_EQ(HumanBytes(0), "0B");
  EXPECT_EQ(HumanBytes(999), "999B");
  EXPECT_EQ(HumanBytes(1500), "1.5kB");
  EXPECT_EQ(HumanBytes(123456789), "123MB");
  EXPECT_EQ(HumanBytes1024(1536), "1.5KiB");
}

TEST(Format, Durations) {
  EXPECT_EQ(HumanDuration(absl::Milliseconds(3)), "Less than a second");
  EXPECT_EQ(HumanDuration(absl::Seconds(5)), "5 seconds");
  EXPECT_EQ(HumanDuration(absl::Seconds(70)), "About a minute");
  EXPECT_EQ(HumanDuration(absl::Hours(3)), "3 hours");
  EXPECT_EQ(HumanDuration(absl::Hours(24 * 3)), "3 days");
}

TEST(Format, Table) {
  Listing listing({{"A", "First"}, {"", "Hidden"}, {"BB", "Second"}});
  listing.Add({"long one", "h", "x"});
  listing.Add({"s", "h2", "y"});
  EXPECT_EQ(listing.Render("").value(),
            "A          BB\nlong one   x\ns          y\n");
  EXPECT_EQ(listing.Render("{{.First}}-{{ .Hidden }}").value(),
            "long one-h\ns-h2\n");
  EXPECT_EQ(listing.Render("json").value(),
            "{\"First\":\"long one\",\"Hidden\":\"h\",\"Second\":\"x\"}\n"
            "{\"First\":\"s\",\"Hidden\":\"h2\",\"Second\":\"y\"}\n");
  EXPECT_EQ(listing.Render("table {{.Second}}\\t{{.First}}").value(),
            "BB   A\nx    long one\ny    s\n");
  EXPECT_THAT(listing.Render("{{.Nope}}").status().ToString(),
              HasSubstr(".First"));
  EXPECT_FALSE(listing.Render("{{.First").ok());
}

TEST(Format, NothingFromStrangersControlsTheTerminal) {
  Listing listing(std::vector<Listing::Column>{{"A", "A"}});
  listing.Add({"x\x1b[2Jy\n"});
  EXPECT_EQ(listing.Render("").value(), "A\nx?[2Jy?\n");
  EXPECT_EQ(Shorten("abcdef", 4), "abc…");
  EXPECT_EQ(Shorten("abcd", 4), "abcd");
}

TEST(Names, Shapes) {
  std::set<std::string> ids;
  for (int i = 0; i < 100; ++i) {
    const std::string id = NewId();
    EXPECT_EQ(id.size(), kIdHexDigits);
    EXPECT_EQ(ShortId(id).size(), kShortIdHexDigits);
    ids.insert(id);
    EXPECT_TRUE(ValidateName(RandomName()).ok());
    EXPECT_THAT(RandomName(), HasSubstr("_"));
  }
  EXPECT_EQ(ids.size(), 100u);
  EXPECT_EQ(ShortId("web"), "web");
  for (const char* bad : {"", "-a", "a b", "a/b", ".."}) {
    EXPECT_FALSE(ValidateName(bad).ok()) << bad;
  }
}

TEST(DetachKeys, FoundEvenWhenSplit) {
  DetachKeys keys = DetachKeys::Parse("ctrl-p,ctrl-q").value();
  bool detach = false;
  EXPECT_EQ(keys.Filter("ab\x10", &detach), "ab");
  EXPECT_FALSE(detach);
  EXPECT_EQ(keys.Filter("c", &detach),
            "\x10"
            "c");
  EXPECT_EQ(keys.Filter("x\x10\x10", &detach), "x\x10");
  EXPECT_EQ(keys.Filter("\x11rest", &detach), "");
  EXPECT_TRUE(detach);
  EXPECT_FALSE(DetachKeys::Parse("ctrl-").ok());
}

TEST(Progress, LinesAndNews) {
  Progress progress;
  const absl::Time start = absl::FromUnixSeconds(100);
  const std::string layer = "layer-sha256:0123456789abcdef";
  progress.Update("Resolving from OCI Registry (x)", "", 0, 0, start);
  progress.Update("waiting", layer, 0, 0, start);
  progress.Update("downloading", layer, 50, 100, start);
  progress.Update("downloading", layer, 60, 100, start);
  EXPECT_THAT(progress.News(), ElementsAre("Resolving from OCI Registry (x)",
                                           "layer 0123456789ab: waiting",
                                           "layer 0123456789ab: downloading"));
  const std::vector<std::string> lines =
      progress.Lines(100, start + absl::Seconds(2));
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_THAT(lines[0], HasSubstr("60B/100B"));
  EXPECT_THAT(lines[0], HasSubstr("=>"));
  EXPECT_THAT(lines[0], HasSubstr(" 5B/s"));  // Since it began with 50.
  EXPECT_THAT(lines[1], HasSubstr("30B/s"));
  progress.Update("extracted", layer, 0, 0, start + absl::Seconds(3));
  EXPECT_THAT(progress.Lines(40, start + absl::Seconds(4))[0],
              HasSubstr("done"));
  EXPECT_THAT(progress.News(), ElementsAre("layer 0123456789ab: done"));
  progress.Update("evil\x1b[2J", layer, 0, 0, start);
  EXPECT_THAT(progress.Lines(80, start)[0], Not(HasSubstr("\x1b")));
}

TEST(Remedies, FitTheCause) {
  const oci::Reference reference =
      oci::ParseNormalized("r.example/app:1").value();
  const auto remedy = [&](const absl::Status& status) {
    return Remedy(status, reference);
  };
  EXPECT_THAT(remedy(absl::UnauthenticatedError("x")),
              HasSubstr("bulkhead login r.example"));
  EXPECT_THAT(remedy(absl::PermissionDeniedError("HTTP 403")),
              HasSubstr("no right"));
  EXPECT_THAT(remedy(absl::NotFoundError("image x in its registry")),
              HasSubstr("spelling of r.example/app:1"));
  EXPECT_THAT(remedy(absl::NotFoundError("no match for platform linux/s390x")),
              HasSubstr("manifest inspect"));
  EXPECT_THAT(remedy(absl::UnknownError("Could not resolve host: r.example")),
              HasSubstr("DNS"));
  EXPECT_THAT(remedy(absl::UnknownError("SSL certificate problem: unable ...")),
              HasSubstr("hosts.toml"));
  EXPECT_THAT(remedy(absl::UnknownError("Failed to connect to r.example")),
              HasSubstr("port"));
  EXPECT_THAT(remedy(absl::DataLossError("wrong digest")),
              HasSubstr("nothing was kept"));
  EXPECT_EQ("", remedy(absl::OkStatus()));
  EXPECT_EQ("", remedy(absl::PermissionDeniedError(
                    "image x is refused by policy 'p': none")));
  EXPECT_EQ("", remedy(absl::InternalError("?")));
  const absl::Status with =
      WithRemedy(absl::NotFoundError("image x"), reference);
  EXPECT_TRUE(absl::IsNotFound(with));
  EXPECT_THAT(std::string(with.message()), HasSubstr("image x — check"));
}

TEST(Credentials, FromDockersConfig) {
  // "bob:secret".
  const std::string json =
      R"({"auths":{"r.example":{"auth":"Ym9iOnNlY3JldA=="},)"
      R"("https://index.docker.io/v1/":{"identitytoken":"tok"},)"
      R"("broken":{"auth":7}}})";
  EXPECT_EQ(CredentialsFrom(json, "r.example").user, "bob");
  EXPECT_EQ(CredentialsFrom(json, "r.example").secret, "secret");
  EXPECT_EQ(CredentialsFrom(json, "docker.io").secret, "tok");
  EXPECT_EQ(CredentialsFrom(json, "broken").secret, "");
  EXPECT_EQ(CredentialsFrom(json, "other").secret, "");
  EXPECT_EQ(CredentialsFrom("not json", "r.example").secret, "");
  EXPECT_EQ(CredentialsFrom("[]", "r.example").secret, "");
}

std::string Line(const std::string& text) {
  return absl::StrCat("{\"log\":\"", text,
                      "\\n\",\"stream\":\"stdout\",\"time\":"
                      "\"2024-01-02T03:04:05.000000006Z\"}\n");
}

TEST(Logs, ParseLine) {
  const LogEntry entry = ParseLogLine(Line("hi")).value();
  EXPECT_EQ(entry.text, "hi\n");
  EXPECT_EQ(entry.stream, "stdout");
  EXPECT_EQ(absl::ToUnixNanos(entry.time) % 1'000'000'000, 6);
  EXPECT_FALSE(ParseLogLine("garbage").ok());
  EXPECT_FALSE(ParseLogLine("{\"log\":1}").ok());
}

class LogFiles : public ::testing::Test {
 protected:
  void Append(const std::string& text) {
    std::ofstream(path_, std::ios::app) << text;
  }
  std::vector<std::string> Read(LogSource& source) {
    std::vector<std::string> texts;
    EXPECT_TRUE(source
                    .ReadAvailable([&](const LogEntry& entry) {
                      texts.push_back(entry.text);
                    })
                    .ok());
    return texts;
  }
  testing::TempDir dir_;
  std::string path_ = dir_.path() + "/json.log";
};

TEST_F(LogFiles, GrowsAndRotates) {
  LogSource source(path_, true);
  EXPECT_THAT(Read(source), ElementsAre());
  Append(Line("1"));
  EXPECT_THAT(Read(source), ElementsAre("1\n"));
  Append(Line("2"));
  ASSERT_EQ(::rename(path_.c_str(), (path_ + ".1").c_str()), 0);
  Append(Line("3"));
  EXPECT_THAT(Read(source), ElementsAre("2\n", "3\n"));
  // Twice between two looks.
  ASSERT_EQ(::rename((path_ + ".1").c_str(), (path_ + ".2").c_str()), 0);
  ASSERT_EQ(::rename(path_.c_str(), (path_ + ".1").c_str()), 0);
  Append(Line("4"));
  EXPECT_THAT(Read(source), ElementsAre("4\n"));
  // Somebody new reads all, oldest first.
  LogSource later(path_, true);
  EXPECT_THAT(Read(later), ElementsAre("1\n", "2\n", "3\n", "4\n"));
}

TEST_F(LogFiles, HalfLinesWait) {
  LogSource source(path_, true);
  const std::string line = Line("whole");
  Append(line.substr(0, 10));
  EXPECT_THAT(Read(source), ElementsAre());
  Append(line.substr(10) + "torn{\n" + Line("next"));
  EXPECT_THAT(Read(source), ElementsAre("whole\n", "next\n"));
}

TEST_F(LogFiles, RawText) {
  LogSource source(path_, false);
  Append("a\nb");
  EXPECT_THAT(Read(source), ElementsAre("a\n"));
  std::string rest;
  source.Flush([&](const LogEntry& entry) { rest = entry.text; });
  EXPECT_EQ(rest, "b");
}

TEST(Metrics, BothVersions) {
  io::containerd::cgroups::v1::Metrics v1;
  v1.mutable_cpu()->mutable_usage()->set_total(5);
  v1.mutable_memory()->mutable_usage()->set_usage(100);
  v1.mutable_memory()->mutable_usage()->set_limit(1000);
  v1.mutable_memory()->set_total_inactive_file(30);
  const Usage old =
      ParseUsage("io.containerd.cgroups.v1.Metrics", v1.SerializeAsString())
          .value();
  EXPECT_EQ(old.memory_bytes, 70);
  EXPECT_EQ(old.memory_limit, 1000);
  EXPECT_EQ(old.cpu_nanos, 5);
  io::containerd::cgroups::v2::Metrics v2;
  v2.mutable_cpu()->set_usage_usec(7);
  v2.mutable_memory()->set_usage(9);
  v2.mutable_memory()->set_usage_limit(UINT64_MAX);
  const Usage now =
      ParseUsage("x/io.containerd.cgroups.v2.Metrics", v2.SerializeAsString())
          .value();
  EXPECT_EQ(now.cpu_nanos, 7000);
  EXPECT_EQ(now.memory_limit, 0);
  EXPECT_FALSE(ParseUsage("other", "").ok());

  Usage before{.cpu_nanos = 0, .when = absl::FromUnixSeconds(1)};
  Usage after{.cpu_nanos = 500'000'000, .when = absl::FromUnixSeconds(2)};
  EXPECT_DOUBLE_EQ(CpuPercent(before, after), 50);
  EXPECT_DOUBLE_EQ(CpuPercent(after, before), 0);
}

TEST(Events, Lines) {
  containerd::events::TaskExit exit;
  exit.set_container_id("c");
  exit.set_exit_status(3);
  containerd::types::Envelope envelope;
  envelope.set_namespace_("default");
  envelope.set_topic("/tasks/exit");
  envelope.mutable_event()->set_type_url("containerd.events.TaskExit");
  envelope.mutable_event()->set_value(exit.SerializeAsString());
  EXPECT_THAT(EventLine(envelope, "").value(),
              HasSubstr("default /tasks/exit container_id=c pid=0 "
                        "exit_status=3"));
  EXPECT_THAT(EventLine(envelope, "json").value(),
              HasSubstr("\"exit_status\":3"));
  EXPECT_EQ(EventLine(envelope, "{{.Topic}}").value(), "/tasks/exit");
  envelope.mutable_event()->set_type_url("unknown.Type");
  EXPECT_THAT(EventLine(envelope, "").value(), HasSubstr("/tasks/exit"));
}

TEST(RootfsView, ReadOnlyMounts) {
  const os::MountSpec overlay =
      ReadOnly({"overlay",
                "overlay",
                "",
                {"index=off", "workdir=/w", "upperdir=/u", "lowerdir=/a:/b"}});
  EXPECT_THAT(overlay.options, ElementsAre("index=off", "lowerdir=/u:/a:/b"));
  EXPECT_THAT(ReadOnly({"bind", "/x", "", {"rbind", "rw"}}).options,
              ElementsAre("rbind", "ro"));
}

TEST(RootfsView, SymlinksStayInside) {
  testing::TempDir dir;
  ASSERT_EQ(::mkdir((dir.path() + "/etc").c_str(), 0755), 0);
  ASSERT_EQ(::symlink("/../../../../etc/shadow",
                      (dir.path() + "/etc/passwd").c_str()),
            0);
  std::ofstream(dir.path() + "/etc/real") << "inside";
  ASSERT_EQ(::symlink("/etc/real", (dir.path() + "/etc/group").c_str()), 0);
  ASSERT_EQ(::mkfifo((dir.path() + "/etc/fifo").c_str(), 0600), 0);
  const auto files =
      ReadFilesOf({{"bind", dir.path(), "", {"rbind", "ro"}}},
                  {"etc/passwd", "etc/group", "etc/none", "etc/fifo"}, 1000)
          .value();
  EXPECT_EQ(files.size(), 1u);
  EXPECT_EQ(files.at("etc/group"), "inside");
}

}  // namespace
}  // namespace bulkhead::cli
