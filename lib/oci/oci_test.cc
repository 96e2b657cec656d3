#include <gtest/gtest.h>

#include "absl/strings/match.h"
#include "lib/base/status_macros.h"
#include "lib/oci/image.h"
#include "lib/oci/reference.h"

namespace bulkhead::oci {
namespace {

const char kA[] =
    "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const char kB[] =
    "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

TEST(Reference, WhatPeopleType) {
  const struct {
    std::string in, full, familiar;
  } kTable[] = {
      {"debian", "docker.io/library/debian:latest", "debian:latest"},
      {"debian:12", "docker.io/library/debian:12", "debian:12"},
      {"a/b", "docker.io/a/b:latest", "a/b:latest"},
      {"index.docker.io/a", "docker.io/library/a:latest", "a:latest"},
      {"docker.io/library/a/b:c", "docker.io/library/a/b:c", "library/a/b:c"},
      {"localhost/x", "localhost/x:latest", "localhost/x:latest"},
      {"localhost:5000/x:y", "localhost:5000/x:y", "localhost:5000/x:y"},
      {"[::1]:5000/x", "[::1]:5000/x:latest", "[::1]:5000/x:latest"},
      {"ghcr.io/a/b__c-d.e", "ghcr.io/a/b__c-d.e:latest",
       "ghcr.io/a/b__c-d.e:latest"},
      {std::string("x@") + kA, std::string("docker.io/library/x@") + kA,
       std::string("x@") + kA},
      {std::string("x:t@") + kA, std::string("docker.io/library/x:t@") + kA,
       std::string("x:t@") + kA},
  };
  for (const auto& row : kTable) {
    const auto reference = ParseNormalized(row.in);
    ASSERT_TRUE(reference.ok()) << row.in << ": " << reference.status();
    EXPECT_EQ(reference->str(), row.full);
    EXPECT_EQ(Familiar(*reference), row.familiar);
    const auto again = ParseFull(row.full);
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(again->str(), row.full);
  }
}

TEST(Reference, RepositoriesForPeople) {
  for (const auto& [in, familiar] :
       std::vector<std::pair<std::string, std::string>>{
           {"debian:12", "debian"},
           {std::string("x:t@") + kA, "x"},
           {"a/b", "a/b"},
           {"docker.io/library/a/b:c", "library/a/b"},
           {"docker.io/a.b/c", "docker.io/a.b/c"},
           {"localhost:5000/x:y", "localhost:5000/x"}}) {
    absl::StatusOr<Reference> reference = ParseNormalized(in);
    ASSERT_TRUE(reference.ok()) << in << ": " << reference.status();
    reference->tag.clear();
    reference->digest = Digest();
    EXPECT_EQ(Familiar(*reference), familiar);
  }
}

TEST(Reference, Refused) {
  const std::string bad[] = {"",
                             ":x",
                             "a:",
                             "A",
                             "a//b",
                             "/a",
                             "a/",
                             "-a",
                             "a..b/c_",
                             "a:t@sha256:1",
                             "a@b",
                             "x y",
                             "a/../b",
                             "a:-t",
                             "a.b:x/c",
                             "https://a",
                             "a:b:c",
                             std::string(2000, 'a'),
                             std::string(64, 'a'),
                             "ex.org:999999/a",
                             "a:" + std::string(129, 't'),
                             "a___b"};
  for (const std::string& text : bad) {
    EXPECT_FALSE(ParseNormalized(text).ok()) << text;
  }
  EXPECT_FALSE(ParseFull("debian").ok());
}

TEST(Platform, FeaturesAndVersionsOfWindows) {
  Platform wanted{"windows", "amd64", "", "", {}};
  Platform offered{"windows", "amd64", "", "10.0.17763.1", {"win32k"}};
  EXPECT_EQ(PlatformDistance(wanted, offered), 1);
  wanted.os_features = {"win32k", "more"};
  EXPECT_EQ(PlatformDistance(wanted, offered), 0);
  wanted.os_features = {"more"};
  EXPECT_EQ(PlatformDistance(wanted, offered), -1);
  wanted.os_features.clear();
  wanted.os_version = "10.0.17763.99";
  EXPECT_EQ(PlatformDistance(wanted, offered), 1);
  wanted.os_version = "10.0.20348.1";
  EXPECT_EQ(PlatformDistance(wanted, offered), -1);
}

TEST(Platform, Distances) {
  const struct {
    std::string wanted, offered;
    int distance;
  } kTable[] = {
      {"linux/amd64", "linux/amd64", 0},
      {"linux/amd64", "linux/x86_64", 0},
      {"linux/amd64", "linux/amd64/v1", 0},
      {"linux/amd64", "linux/amd64/v3", -1},
      {"linux/amd64/v3", "linux/amd64/v2", 100},
      {"linux/amd64", "linux/386", 20000},
      {"linux/amd64", "linux/arm64", -1},
      {"linux/amd64", "windows/amd64", -1},
      {"linux/arm64", "linux/arm64/v8", 0},
      {"linux/arm64", "linux/arm/v7", 20100},
      {"linux/arm", "linux/arm/v7", 0},
      {"linux/arm/v7", "linux/arm/v5", 200},
      {"linux/arm/v6", "linux/arm/v7", -1},
      {"linux/s390x", "linux/s390x", 0},
  };
  for (const auto& row : kTable) {
    const auto wanted = ParsePlatform(row.wanted);
    const auto offered = ParsePlatform(row.offered);
    ASSERT_TRUE(wanted.ok() && offered.ok());
    EXPECT_EQ(PlatformDistance(*wanted, *offered), row.distance)
        << row.wanted << " " << row.offered;
  }
  for (const std::string bad : {"", "/", "linux/", "bogus", "a/b/c/d", "a b"}) {
    EXPECT_FALSE(ParsePlatform(bad).ok()) << bad;
  }
  EXPECT_EQ(FormatPlatform(*ParsePlatform("arm64")), "linux/arm64");
}

TEST(Image, ManifestRoundTrip) {
  Manifest manifest;
  manifest.media_type = kOciManifest;
  manifest.config.media_type = kOciConfig;
  manifest.config.digest = *Digest::Parse(kA);
  manifest.config.size_bytes = 7;
  Descriptor layer;
  layer.media_type = kOciLayerGzip;
  layer.digest = *Digest::Parse(kB);
  layer.size_bytes = int64_t{1} << 40;
  layer.annotations = {{"k", "v"}};
  layer.data = "hello";
  manifest.layers = {layer, layer};
  const std::string text = WriteManifest(manifest);
  const auto parsed = ParseManifest(text);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(WriteManifest(*parsed), text);
  EXPECT_EQ(parsed->layers[1].size_bytes, int64_t{1} << 40);
  EXPECT_EQ(parsed->layers[0].data, "hello");
  EXPECT_EQ(GuessMediaType(text), kOciManifest);
  EXPECT_FALSE(ParseIndex(text).ok());
}

TEST(Image, IndexRoundTrip) {
  Index index;
  index.media_type = kDockerList;
  Descriptor entry;
  entry.media_type = kDockerManifest;
  entry.digest = *Digest::Parse(kA);
  entry.platform = *ParsePlatform("linux/arm/v6");
  index.manifests = {entry};
  const std::string text = WriteIndex(index);
  const auto parsed = ParseIndex(text);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->manifests[0].platform.variant, "v6");
  EXPECT_EQ(WriteIndex(*parsed), text);
  EXPECT_FALSE(ParseManifest(text).ok());
}

TEST(Image, ConfigRoundTrip) {
  ImageConfig config;
  config.platform = *ParsePlatform("linux/amd64");
  config.config.env = {"A=b"};
  config.config.cmd = {"/bin/sh", "-c", "x"};
  config.config.volumes = {"/data"};
  config.config.labels = {{"a", "b"}};
  config.diff_ids = {*Digest::Parse(kA), *Digest::Parse(kB)};
  config.history.push_back({"", "RUN x", "", true});
  const std::string text = WriteImageConfig(config);
  const auto parsed = ParseImageConfig(text);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(WriteImageConfig(*parsed), text);
  EXPECT_TRUE(ParseImageConfig(R"({"config":null,"history":null})").ok());
}

TEST(Image, BadDocuments) {
  const std::string bad[] = {
      "",
      "x",
      "[]",
      "{}",
      R"({"config":{}})",
      R"({"config":{"digest":"sha256:zz"}})",
      std::string(R"({"config":{"digest":")") + kA + R"(","size":-1}})",
      std::string(R"({"config":{"digest":")") + kA + R"(","size":"1"}})",
      std::string(R"({"config":{"digest":")") + kA +
          R"(","size":18446744073709551615}})",
      std::string(R"({"config":{"digest":")") + kA + R"("},"layers":{}})",
      std::string(R"({"config":{"digest":")") + kA + R"("},"layers":[1]})",
  };
  for (const std::string& text : bad) {
    EXPECT_TRUE(absl::IsInvalidArgument(ParseManifest(text).status())) << text;
  }
  const auto schema1 =
      ParseManifest(R"({"schemaVersion":1,"fsLayers":[]})").status();
  EXPECT_TRUE(absl::StrContains(MessageOf(schema1), "schema 1")) << schema1;
  EXPECT_TRUE(absl::IsResourceExhausted(
      ParseManifest(std::string(1000, '[')).status()));
  EXPECT_TRUE(absl::IsResourceExhausted(
      ParseManifest(std::string(5 << 20, ' ')).status()));
  std::string many =
      std::string(R"({"config":{"digest":")") + kA + R"("},"layers":[)";
  for (int i = 0; i < 1025; ++i) {
    many += std::string(i ? "," : "") + R"({"digest":")" + kA + R"("})";
  }
  EXPECT_TRUE(absl::IsResourceExhausted(ParseManifest(many + "]}").status()));
  EXPECT_FALSE(ParseImageConfig(R"({"rootfs":{"diff_ids":["x"]}})").ok());
  EXPECT_FALSE(ParseImageConfig(R"({"config":{"Env":"x"}})").ok());
}

TEST(Image, ChainIdsHashTheWholeStrings) {
  const Digest a = *Digest::Parse(kA);
  const Digest b = *Digest::Parse(kB);
  const auto chain = ChainIds({a, b, a});
  ASSERT_EQ(chain.size(), 3u);
  EXPECT_EQ(chain[0], a);
  EXPECT_EQ(chain[1], Digest::Of(std::string(kA) + " " + kB));
  EXPECT_EQ(chain[2], Digest::Of(chain[1].str() + " " + kA));
}

TEST(Image, ChildLabelsAndRefKeys) {
  Descriptor config;
  config.media_type = kOciConfig;
  config.digest = *Digest::Parse(kA);
  Descriptor layer = config;
  layer.media_type = kDockerLayerGzip;
  Descriptor nested = config;
  nested.media_type = kOciIndex;
  const auto labels = ChildLabels({config, layer, layer, nested, config});
  const std::string prefix = "containerd.io/gc.ref.content.";
  const std::map<std::string, std::string> want = {{prefix + "config", kA},
                                                   {prefix + "config1", kA},
                                                   {prefix + "l.0", kA},
                                                   {prefix + "l.1", kA},
                                                   {prefix + "0", kA}};
  EXPECT_EQ(labels, want);
  EXPECT_EQ(RefKey(layer), std::string("layer-") + kA);
  EXPECT_EQ(RefKey(nested), std::string("index-") + kA);
}

}  // namespace
}  // namespace bulkhead::oci
