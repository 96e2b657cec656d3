#include "cli/spec/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include "cli/spec/user.h"

namespace bulkhead::cli {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;

TEST(Options, Bytes) {
  EXPECT_EQ(ParseBytes("512").value(), 512);
  EXPECT_EQ(ParseBytes("64k").value(), 64 << 10);
  EXPECT_EQ(ParseBytes("1.5g").value(), int64_t{3} << 29);
  EXPECT_EQ(ParseBytes("10MiB").value(), 10 << 20);
  EXPECT_EQ(ParseBytes("7b").value(), 7);
  for (const char* bad : {"", "m", "-1", "1x", "nan", "99999999999t"}) {
    EXPECT_FALSE(ParseBytes(bad).ok()) << bad;
  }
}

TEST(Options, Volume) {
  const MountSpec mount = ParseVolume("/a:/b:ro,rshared").value();
  EXPECT_EQ(mount.source, "/a");
  EXPECT_EQ(mount.target, "/b");
  EXPECT_THAT(mount.options, ElementsAre("rbind", "ro", "rshared"));
  EXPECT_TRUE(mount.make_source);
  for (const char* bad : {"a", "x:/b", "a/b:/b", ":/b", "/a:b", "/a:/",
                          "/a:/b:what", "/a:/b:ro:x", ""}) {
    EXPECT_FALSE(ParseVolume(bad).ok()) << bad;
  }
  const MountSpec named = ParseVolume("data:/b").value();
  EXPECT_EQ(named.type, "volume");
  EXPECT_EQ(named.source, "data");
  const MountSpec anonymous = ParseVolume("/b").value();
  EXPECT_EQ(anonymous.type, "volume");
  EXPECT_EQ(anonymous.source, "");
  EXPECT_EQ(anonymous.target, "/b");
}

TEST(Options, Mount) {
  const MountSpec bind = ParseMount("type=bind,src=/a,dst=/b,readonly").value();
  EXPECT_THAT(bind.options, ElementsAre("rbind", "ro", "rprivate"));
  EXPECT_FALSE(bind.make_source);
  const MountSpec tmpfs =
      ParseMount("type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=700").value();
  EXPECT_EQ(tmpfs.type, "tmpfs");
  EXPECT_THAT(tmpfs.options, Contains("size=1048576"));
  EXPECT_THAT(tmpfs.options, Contains("mode=700"));
  for (const char* bad :
       {"type=bind,src=a,dst=/b", "type=bind,dst=/b", "type=nfs,dst=/b",
        "src=x,dst=/b", "type=volume,src=a/b,dst=/b", "type=bind,src=/a",
        "type=bind,src=/a,dst=/b,what=1", "type=tmpfs,src=/a,dst=/b"}) {
    EXPECT_FALSE(ParseMount(bad).ok()) << bad;
  }
}

TEST(Options, Device) {
  const DeviceSpec device = ParseDevice("/dev/a:/dev/b:r").value();
  EXPECT_EQ(device.container_path, "/dev/b");
  EXPECT_EQ(device.access, "r");
  EXPECT_EQ(ParseDevice("/dev/a:rw").value().container_path, "/dev/a");
  EXPECT_FALSE(ParseDevice("a").ok());
  EXPECT_FALSE(ParseDevice("/a:/b:x").ok());
}

TEST(Options, Ulimit) {
  const UlimitSpec limit = ParseUlimit("nofile=1024:2048").value();
  EXPECT_EQ(limit.type, "RLIMIT_NOFILE");
  EXPECT_EQ(limit.soft, 1024u);
  EXPECT_EQ(limit.hard, 2048u);
  EXPECT_EQ(ParseUlimit("core=-1").value().hard, UINT64_MAX);
  for (const char* bad : {"nofile", "nofile=x", "files=1", "nofile=2:1"}) {
    EXPECT_FALSE(ParseUlimit(bad).ok()) << bad;
  }
}

TEST(Options, EnvFile) {
  EXPECT_THAT(
      ParseEnvFile("# comment\n\nA=1\nB=x y=z\r\n  C=\nD\nE\n", {{"D", "here"}})
          .value(),
      ElementsAre("A=1", "B=x y=z", "C=", "D=here"));
  EXPECT_FALSE(ParseEnvFile("a b=1\n", {}).ok());
  EXPECT_FALSE(ParseEnvFile("=1\n", {}).ok());
}

TEST(Options, MergeEnv) {
  EXPECT_THAT(MergeEnv({"A=1", "B=2"}, {"B=3", "C=4", "A="}),
              ElementsAre("A=", "B=3", "C=4"));
}

TEST(Options, Signal) {
  EXPECT_EQ(ParseSignal("TERM").value(), SIGTERM);
  EXPECT_EQ(ParseSignal("sigusr1").value(), SIGUSR1);
  EXPECT_EQ(ParseSignal("9").value(), SIGKILL);
  EXPECT_EQ(ParseSignal("SIGRTMIN+3").value(), 37);
  EXPECT_EQ(ParseSignal("RTMAX-1").value(), 63);
  for (const char* bad : {"", "0", "65", "NOPE", "RTMIN+99"}) {
    EXPECT_FALSE(ParseSignal(bad).ok()) << bad;
  }
}

TEST(Options, When) {
  const absl::Time now = absl::FromUnixSeconds(1'700'000'000);
  EXPECT_EQ(ParseWhen("10m", now).value(), now - absl::Minutes(10));
  EXPECT_EQ(ParseWhen("1600000000", now).value(),
            absl::FromUnixSeconds(1'600'000'000));
  EXPECT_EQ(ParseWhen("2020-01-01T00:00:00Z", now).value(),
            absl::FromUnixSeconds(1577836800));
  EXPECT_FALSE(ParseWhen("yesterday", now).ok());
}

constexpr char kPasswd[] =
    "root:x:0:0:root:/root:/bin/sh\n"
    "# nobody\n"
    "broken\n"
    "bob:x:1000:1001:Bob:/home/bob:/bin/sh\n";
constexpr char kGroup[] = "root:x:0:\nbobs:x:1001:\nwheel:x:10:alice,bob\n";

TEST(User, Names) {
  const User user = ResolveUser("bob", kPasswd, kGroup).value();
  EXPECT_EQ(user.uid, 1000u);
  EXPECT_EQ(user.gid, 1001u);
  EXPECT_EQ(user.home, "/home/bob");
  EXPECT_THAT(user.additional_gids, ElementsAre(1001u, 10u));
}

TEST(User, Numbers) {
  EXPECT_EQ(ResolveUser("1000", kPasswd, kGroup).value().gid, 1001u);
  EXPECT_EQ(ResolveUser("77", kPasswd, kGroup).value().gid, 0u);
  EXPECT_EQ(ResolveUser("77:88", "", "").value().gid, 88u);
  EXPECT_EQ(ResolveUser("", "", "").value().uid, 0u);
  EXPECT_EQ(ResolveUser("bob:wheel", kPasswd, kGroup).value().gid, 10u);
  EXPECT_TRUE(IsNumericUser("1:2"));
  EXPECT_FALSE(IsNumericUser("bob"));
}

TEST(User, Unknown) {
  EXPECT_TRUE(absl::IsNotFound(ResolveUser("eve", kPasswd, kGroup).status()));
  EXPECT_TRUE(
      absl::IsNotFound(ResolveUser("bob:none", kPasswd, kGroup).status()));
  EXPECT_FALSE(ResolveUser(":1", kPasswd, kGroup).ok());
  EXPECT_FALSE(ResolveUser("1:2:3", kPasswd, kGroup).ok());
  EXPECT_FALSE(ResolveUser("4294967295", kPasswd, kGroup).ok());
}

}  // namespace
}  // namespace bulkhead::cli
