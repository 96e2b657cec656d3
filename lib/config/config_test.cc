#include "lib/config/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace bulkhead::config {
namespace {

using ::testing::HasSubstr;

std::string ErrorOf(const std::string& toml) {
  const absl::StatusOr<Config> config = Parse(toml, "c.toml");
  return config.ok() ? "" : config.status().ToString();
}

TEST(Config, EmptyGivesDefaults) {
  const absl::StatusOr<Config> config = Parse("", "c.toml");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->root, "/var/lib/bulkhead");
  EXPECT_EQ(config->GatewayAddress(), "/run/bulkhead/bulkhead.sock");
  EXPECT_EQ(config->TtrpcAddress(), "/run/bulkhead/bulkhead.sock.ttrpc");
  EXPECT_EQ(config->Socket("content"), "/run/bulkhead/content/content.sock");
}

TEST(Config, UnknownKeyIsNamedWithTheNearest) {
  EXPECT_THAT(ErrorOf("[gateway]\nadress = \"/x\"\n"),
              HasSubstr("c.toml: line 2: unknown key 'gateway.adress'; did you "
                        "mean 'gateway.address'?"));
  EXPECT_THAT(ErrorOf("zzz = 1"), HasSubstr("unknown key 'zzz'"));
  EXPECT_THAT(ErrorOf("[proxy_plugins.x]\ntype='snapshot'\naddress='/s'\nq=1"),
              HasSubstr("unknown key 'proxy_plugins.x.q'"));
}

TEST(Config, WrongTypesAndRangesAreNamed) {
  EXPECT_THAT(ErrorOf("root = 3"), HasSubstr("'root' must be a string"));
  EXPECT_THAT(ErrorOf("root = 'relative'"), HasSubstr("must be absolute"));
  EXPECT_THAT(ErrorOf("[distribution]\nmax_concurrent_downloads = 0"),
              HasSubstr("must be between 1 and 64, not 0"));
  EXPECT_THAT(ErrorOf("[log]\nlevel = 'loud'"),
              HasSubstr("must be one of debug, info, warn, error"));
  EXPECT_THAT(ErrorOf("[distribution]\nstall_timeout = 'soon'"),
              HasSubstr("is no duration"));
  EXPECT_THAT(ErrorOf("root = "), HasSubstr("c.toml: line 1, column"));
  EXPECT_THAT(ErrorOf("[proxy_plugins.x]\ntype = 'snapshot'"),
              HasSubstr("needs a 'type' and an 'address'"));
}

TEST(Config, BandwidthLimitIsNoneOrEnough) {
  EXPECT_EQ(ErrorOf("[distribution]\nbandwidth_limit = 0"), "");
  EXPECT_EQ(ErrorOf("[distribution]\nbandwidth_limit = 65536"), "");
  EXPECT_THAT(ErrorOf("[distribution]\nbandwidth_limit = 65535"),
              HasSubstr("'distribution.bandwidth_limit'"));
}

TEST(Config, StreamProcessorsAreRead) {
  const absl::StatusOr<Config> config = Parse(
      "[stream_processors.'io.example.up']\naccepts = ['a/b', 'c/d']\n"
      "returns = 'application/vnd.oci.image.layer.v1.tar'\npath = 'tr'\n"
      "args = ['a', 'b']\nenv = ['X=1']\n",
      "c.toml");
  ASSERT_TRUE(config.ok()) << config.status();
  const StreamProcessor& one = config->stream_processors.at("io.example.up");
  EXPECT_EQ(one.accepts, (std::vector<std::string>{"a/b", "c/d"}));
  EXPECT_EQ(one.returns, "application/vnd.oci.image.layer.v1.tar");
  EXPECT_EQ(one.args, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(one.env, std::vector<std::string>{"X=1"});
  EXPECT_THAT(ErrorOf("[stream_processors.x]\naccepts=['a']\npath='p'"),
              HasSubstr("needs 'accepts', 'returns' and 'path'"));
  EXPECT_THAT(ErrorOf("[stream_processors.x]\nacepts=['a']"),
              HasSubstr("did you mean 'stream_processors.x.accepts'"));
}

// What is shipped parses, and says what the defaults are.
TEST(Config, ShippedFileIsTheDefaults) {
  const absl::StatusOr<Config> config = Load("deploy/config.toml");
  ASSERT_TRUE(config.ok()) << config.status();
  const Config defaults;
  EXPECT_EQ(config->root, defaults.root);
  EXPECT_EQ(config->state, defaults.state);
  EXPECT_EQ(config->gateway.mode, defaults.gateway.mode);
  EXPECT_EQ(config->gateway.connect_timeout, defaults.gateway.connect_timeout);
  EXPECT_EQ(config->metadata.gc_schedule_delay,
            defaults.metadata.gc_schedule_delay);
  EXPECT_EQ(config->metadata.gc_startup_delay,
            defaults.metadata.gc_startup_delay);
  EXPECT_EQ(config->metadata.events_kept_max,
            defaults.metadata.events_kept_max);
  EXPECT_EQ(config->snapshotter.snapshotters,
            defaults.snapshotter.snapshotters);
  EXPECT_EQ(config->snapshotter.layer_bytes_max,
            defaults.snapshotter.layer_bytes_max);
  EXPECT_EQ(config->distribution.stall_timeout,
            defaults.distribution.stall_timeout);
  EXPECT_EQ(config->runtime.default_runtime, defaults.runtime.default_runtime);
  EXPECT_EQ(config->metrics.interval, defaults.metrics.interval);
}

TEST(Config, RoutesCanBeReplaced) {
  const absl::StatusOr<Config> config = Parse(
      "[gateway.routes]\n\"containerd.services.diff.v1.Diff\" = \"/d.sock\"\n",
      "c.toml");
  ASSERT_TRUE(config.ok()) << config.status();
  const auto routes = Routes(*config);
  EXPECT_EQ(routes.at("containerd.services.diff.v1.Diff"), "/d.sock");
  EXPECT_EQ(routes.at("containerd.services.tasks.v1.Tasks"),
            "/run/bulkhead/runtime/runtime.sock");
}

}  // namespace
}  // namespace bulkhead::config
