// The registry client against a server that misbehaves, and its parsers.
#include "services/distribution/registry.h"

#include <gtest/gtest.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "lib/base/status_macros.h"
#include "services/distribution/fake_server.h"

namespace bulkhead::distribution {
namespace {

using oci::Descriptor;

HttpClient* Http() {
  static HttpClient* const client = HttpClient::Create("test").release();
  return client;
}

Registry Open(const FakeServer& server,
              std::function<void(RegistryOptions*)> change = nullptr) {
  RegistryOptions options;
  options.http = Http();
  options.reference = *oci::ParseFull(server.host() + "/a/b:1");
  RegistryHost host;
  host.scheme = "http";
  host.host = server.host();
  host.path = "/v2";
  options.hosts = {host};
  options.stall_timeout = absl::Seconds(2);
  if (change) change(&options);
  return Registry(std::move(options));
}

Descriptor Blob(const std::string& bytes) {
  Descriptor out;
  out.media_type = oci::kOciLayerGzip;
  out.digest = Digest::Of(bytes);
  out.size_bytes = static_cast<int64_t>(bytes.size());
  return out;
}

absl::StatusOr<std::string> Fetch(Registry& registry, const Descriptor& blob,
                                  int64_t offset = 0) {
  std::string got;
  RETURN_IF_ERROR(
      registry.FetchBlob(blob, offset, [&](const char* data, size_t n) {
        got.append(data, n);
        return absl::OkStatus();
      }));
  return got;
}

CredentialSource Always(const std::string& user, const std::string& secret) {
  return [=](const std::string&, const std::vector<std::string>&) {
    return Credentials{user, secret, false};
  };
}

TEST(Challenges, Table) {
  auto one = ParseChallenges(
      "Bearer realm=\"https://a/b?c=d\",service=\"x, y\",scope=\"r:a\\\"b\"");
  ASSERT_EQ(one.size(), 1u);
  EXPECT_EQ(one[0].scheme, "bearer");
  EXPECT_EQ(one[0].parameters["realm"], "https://a/b?c=d");
  EXPECT_EQ(one[0].parameters["service"], "x, y");
  EXPECT_EQ(one[0].parameters["scope"], "r:a\"b");
  auto two = ParseChallenges("Basic realm=tests, Bearer REALM = \"http://t\"");
  ASSERT_EQ(two.size(), 2u);
  EXPECT_EQ(two[0].parameters["realm"], "tests");
  EXPECT_EQ(two[1].parameters["realm"], "http://t");
  EXPECT_EQ(ParseChallenges("Negotiate").size(), 1u);
  for (const std::string bad :
       {"", ",,,", "=", "\"", "Bearer realm=\"", "\\"}) {
    (void)ParseChallenges(bad);  // Ends.
  }
}

TEST(Hosts, TomlInFileOrderThenServer) {
  RegistryHost fallback;
  fallback.scheme = "https";
  fallback.host = "ex.org";
  fallback.path = "/v2";
  const auto hosts = ParseHostsToml(R"(
server = "https://up.example"
[host."http://z.example:5000"]
  capabilities = ["pull", "resolve"]
  skip_verify = true
  ca = ["a.pem", "/b.pem"]
  client = [["c.pem", "k.pem"]]
[host."a.example/x"]
  override_path = true
  dial_timeout = "3s"
[host."a.example/x".header]
  x-one = "1"
  x-two = ["2", "3"]
)",
                                    "/etc/h", fallback);
  ASSERT_TRUE(hosts.ok()) << hosts.status();
  ASSERT_EQ(hosts->size(), 3u);
  const RegistryHost& z = (*hosts)[0];
  EXPECT_EQ(z.Url(z.scheme), "http://z.example:5000/v2");
  EXPECT_TRUE(z.https_first && z.pull && z.resolve && !z.push);
  EXPECT_TRUE(z.tls.skip_verify);
  EXPECT_EQ(z.tls.ca_files,
            (std::vector<std::string>{"/etc/h/a.pem", "/b.pem"}));
  EXPECT_EQ(z.tls.client_key, "/etc/h/k.pem");
  const RegistryHost& a = (*hosts)[1];
  EXPECT_EQ(a.Url(a.scheme), "https://a.example/x");
  EXPECT_EQ(a.headers.size(), 3u);
  EXPECT_EQ(a.dial_timeout, absl::Seconds(3));
  EXPECT_EQ((*hosts)[2].Url("https"), "https://up.example/v2");
  for (const std::string bad :
       {"x = [", "capabilities = [\"fly\"]", "host = 1", "[host.\"ftp://x\"]",
        "ca = 3", "dial_timeout = \"x\""}) {
    EXPECT_FALSE(ParseHostsToml(bad, "/d", fallback).ok()) << bad;
  }
}

TEST(Hosts, Defaults) {
  const auto one = [](const std::string& host, const std::string& scheme) {
    const auto hosts = HostsFor(host, {"/nowhere", scheme});
    EXPECT_TRUE(hosts.ok() && hosts->size() == 1);
    return absl::StrCat((*hosts)[0].Url((*hosts)[0].scheme),
                        (*hosts)[0].https_first ? " https first" : "",
                        (*hosts)[0].tls.skip_verify ? " unverified" : "");
  };
  EXPECT_EQ(one("docker.io", ""), "https://registry-1.docker.io/v2");
  EXPECT_EQ(one("ghcr.io", ""), "https://ghcr.io/v2");
  EXPECT_EQ(one("ghcr.io", "http"), "http://ghcr.io/v2");
  EXPECT_EQ(one("localhost:5000", ""),
            "http://localhost:5000/v2 https first unverified");
  EXPECT_EQ(one("127.0.0.1:80", ""), "http://127.0.0.1:80/v2 unverified");
  EXPECT_EQ(one("localhost", ""), "https://localhost/v2 unverified");
  EXPECT_EQ(one("127.0.0.1:5000", "http"),
            "http://127.0.0.1:5000/v2 unverified");
  EXPECT_EQ(one("127.evil.example", ""), "https://127.evil.example/v2");
}

TEST(Registry, ResolvesByHeadOrByGet) {
  const std::string manifest = R"({"schemaVersion":2,"config":{},"layers":[]})";
  bool head_works = true;
  FakeServer server([&](const FakeRequest& request) {
    if (request.method == "HEAD" && !head_works) return Answer(405, "", "");
    return absl::StrCat(
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: ",
        oci::kOciManifest,
        "; charset=x\r\nDocker-Content-Digest: ", Digest::Of(manifest).str(),
        "\r\nContent-Length: ", manifest.size(), "\r\n\r\n",
        request.method == "HEAD" ? "" : manifest);
  });
  Registry registry = Open(server);
  for (int round = 0; round < 2; ++round) {
    const auto got = registry.Resolve();
    ASSERT_TRUE(got.ok()) << got.status();
    EXPECT_EQ(got->digest, Digest::Of(manifest));
    EXPECT_EQ(got->media_type, oci::kOciManifest);
    EXPECT_EQ(got->size_bytes, static_cast<int64_t>(manifest.size()));
    head_works = false;
  }
}

TEST(Registry, ResolveErrors) {
  std::string answer = Answer(404, "", "{}");
  FakeServer server([&](const FakeRequest&) { return answer; });
  Registry registry = Open(server);
  EXPECT_TRUE(absl::IsNotFound(registry.Resolve().status()));
  answer = Answer(403, "", R"({"errors":[{"message":"go away"}]})");
  EXPECT_TRUE(absl::IsPermissionDenied(registry.Resolve().status()));
  EXPECT_TRUE(
      absl::StrContains(MessageOf(registry.Resolve().status()), "go away"));
  answer = Answer(401, "", "");
  EXPECT_TRUE(absl::IsUnauthenticated(registry.Resolve().status()));
  answer = Answer(200, "Content-Type: text/plain\r\n", "{}");
  EXPECT_TRUE(
      absl::StrContains(MessageOf(registry.Resolve().status()), "schema 1"));
  answer = Answer(200, "X: " + std::string(100000, 'x') + "\r\n", "");
  EXPECT_FALSE(registry.Resolve().ok());
  answer =
      Answer(200, absl::StrCat("Content-Type: ", oci::kOciManifest, "\r\n"),
             std::string(5 << 20, ' '));
  EXPECT_TRUE(absl::IsResourceExhausted(registry.Resolve().status()));
}

TEST(Registry, RetriesBusyAnswers) {
  const std::string bytes = "hello";
  int count = 0;
  FakeServer server([&](const FakeRequest&) {
    if (++count == 1) return Answer(429, "Retry-After: 0\r\n", "");
    if (count == 2) return Answer(503, "Retry-After: 0\r\n", "");
    return Answer(200, "", bytes);
  });
  Registry registry = Open(server);
  EXPECT_EQ(Fetch(registry, Blob(bytes)).value(), bytes);
  EXPECT_EQ(server.requests().size(), 3u);
}

TEST(Registry, ResumesABrokenBody) {
  std::string bytes(300000, 'x');
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = char(i * 7 + i / 256);
  for (const bool ranges : {true, false}) {
    int count = 0;
    FakeServer server([&](const FakeRequest& request) {
      const bool cut = ++count <= 2;
      size_t from = 0;
      std::string head = "HTTP/1.1 200 OK\r\nConnection: close\r\n";
      const auto range = request.headers.find("range");
      if (ranges && range != request.headers.end()) {
        EXPECT_TRUE(absl::SimpleAtoi(
            range->second.substr(6, range->second.size() - 7), &from));
        head = absl::StrCat(
            "HTTP/1.1 206 Partial\r\nConnection: close\r\n"
            "Content-Range: bytes ",
            from, "-", bytes.size() - 1, "/", bytes.size(), "\r\n");
      }
      std::string out = absl::StrCat(
          head, "Content-Length: ", bytes.size() - from, "\r\n\r\n");
      return out + bytes.substr(
                       from, cut ? 100000 * count - from : std::string::npos);
    });
    Registry registry = Open(server);
    const auto got = Fetch(registry, Blob(bytes));
    ASSERT_TRUE(got.ok()) << got.status();
    EXPECT_TRUE(*got == bytes);
    EXPECT_EQ(server.requests().size(), 3u);
    EXPECT_EQ(Fetch(registry, Blob(bytes), 200000).value(),
              bytes.substr(200000));
  }
}

TEST(Registry, WrongLengthsAndTruncation) {
  const std::string bytes = "0123456789";
  std::string answer;
  FakeServer server([&](const FakeRequest&) { return answer; });
  Registry registry = Open(server);
  answer = Answer(200, "", bytes + "more");
  EXPECT_TRUE(absl::IsDataLoss(Fetch(registry, Blob(bytes)).status()));
  answer = Answer(200, "", "0123");
  EXPECT_TRUE(absl::IsDataLoss(Fetch(registry, Blob(bytes)).status()));
  // Without a length: too long is seen at once, too short at the end.
  answer = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n0123456789abc";
  EXPECT_TRUE(absl::IsDataLoss(Fetch(registry, Blob(bytes)).status()));
  answer = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n";
  const absl::Status cut = Fetch(registry, Blob(bytes)).status();
  EXPECT_TRUE(absl::StrContains(MessageOf(cut), "ended after 0 of 10 bytes"))
      << cut;
  EXPECT_FALSE(absl::IsUnavailable(cut));
}

TEST(Registry, DocumentsAreVerified) {
  FakeServer server(
      [&](const FakeRequest&) { return Answer(200, "", "hellO"); });
  Registry registry = Open(server);
  const absl::Status status = registry.FetchDocument(Blob("hello")).status();
  EXPECT_TRUE(absl::IsDataLoss(status));
  EXPECT_TRUE(absl::StrContains(MessageOf(status), Digest::Of("hello").str()));
}

TEST(Registry, BasicLogin) {
  const std::string good = BasicHeader("me", "secret");
  FakeServer server([&](const FakeRequest& request) {
    const auto found = request.headers.find("authorization");
    if (found == request.headers.end() || found->second != good) {
      return Answer(401, "WWW-Authenticate: Basic realm=\"x\"\r\n", "");
    }
    return Answer(200, "", "hello");
  });
  int asked = 0;
  Registry registry = Open(server, [&](RegistryOptions* options) {
    options->credentials = [&](const std::string&,
                               const std::vector<std::string>&) {
      ++asked;
      return Credentials{"me", "secret", false};
    };
  });
  EXPECT_EQ(Fetch(registry, Blob("hello")).value(), "hello");
  EXPECT_EQ(Fetch(registry, Blob("hello")).value(), "hello");
  EXPECT_EQ(asked, 1);
  Registry wrong = Open(server, [&](RegistryOptions* options) {
    options->credentials = Always("me", "guess");
  });
  const absl::Status refused = Fetch(wrong, Blob("hello")).status();
  EXPECT_TRUE(absl::IsUnauthenticated(refused));
  EXPECT_FALSE(absl::StrContains(MessageOf(refused), "guess"));
  Registry nobody = Open(server);
  EXPECT_TRUE(absl::IsUnauthenticated(Fetch(nobody, Blob("hello")).status()));
}

TEST(Registry, BearerTokens) {
  for (const bool oauth : {true, false}) {
    FakeServer tokens([&](const FakeRequest& request) {
      if (request.method == "POST") {
        EXPECT_TRUE(absl::StrContains(request.body, "grant_type=password"));
        EXPECT_TRUE(
            absl::StrContains(request.body, "repository%3Aa%2Fb%3Apull"));
        return oauth
                   ? Answer(200, "", R"({"access_token":"t1","expires_in":60})")
                   : Answer(404, "", "");
      }
      EXPECT_FALSE(oauth);
      EXPECT_EQ(request.headers.at("authorization"), BasicHeader("me", "pw"));
      return Answer(200, "", R"({"token":"t1"})");
    });
    FakeServer server([&](const FakeRequest& request) {
      const auto found = request.headers.find("authorization");
      if (found != request.headers.end() && found->second == "Bearer t1") {
        return Answer(200, "", "hello");
      }
      return Answer(401,
                    absl::StrCat("WWW-Authenticate: Bearer realm=\"http://",
                                 tokens.host(), "/token\",service=\"s\"\r\n"),
                    "");
    });
    Registry registry = Open(server, [&](RegistryOptions* options) {
      options->credentials = Always("me", "pw");
    });
    EXPECT_EQ(Fetch(registry, Blob("hello")).value(), "hello");
    EXPECT_EQ(Fetch(registry, Blob("hello")).value(), "hello");
    EXPECT_EQ(server.requests().size(), 3u);  // The token is kept.
  }
}

TEST(Registry, RedirectsCarryNoSecretsElsewhere) {
  FakeServer other([&](const FakeRequest& request) {
    EXPECT_EQ(request.headers.count("authorization"), 0u);
    EXPECT_EQ(request.headers.count("x-secret"), 0u);
    return Answer(200, "", "hello");
  });
  FakeServer server([&](const FakeRequest& request) {
    if (request.headers.count("authorization") == 0) {
      return Answer(401, "WWW-Authenticate: Basic realm=\"x\"\r\n", "");
    }
    if (request.target == "/here") return Answer(200, "", "hello");
    EXPECT_EQ(request.headers.at("x-secret"), "s");
    const bool away = absl::StrContains(request.target, "blobs");
    return Answer(
        307,
        absl::StrCat("Location: ",
                     away ? "http://" + other.host() + "/x?sig=1" : "/here",
                     "\r\n"),
        "");
  });
  Registry registry = Open(server, [&](RegistryOptions* options) {
    options->credentials = Always("me", "pw");
    options->headers = {{"X-Secret", "s"}};
  });
  EXPECT_EQ(Fetch(registry, Blob("hello")).value(), "hello");
  EXPECT_EQ(other.requests().size(), 1u);
  Descriptor manifest = Blob("hello");
  manifest.media_type = oci::kOciManifest;
  EXPECT_EQ(registry.FetchDocument(manifest).value(), "hello");
}

TEST(Registry, RedirectsOnlyToHttpAndNotForEver) {
  std::string location = "file:///etc/passwd";
  FakeServer server([&](const FakeRequest&) {
    return Answer(302, absl::StrCat("Location: ", location, "\r\n"), "");
  });
  Registry registry = Open(server);
  for (const std::string target :
       {"file:///etc/passwd", "ftp://x/", "javascript:1", "", "/loop",
        "http://user:pw@127.0.0.1:1/"}) {
    location = target;
    EXPECT_FALSE(Fetch(registry, Blob("hello")).ok()) << target;
  }
}

TEST(Registry, FallsBackFromHttpsAndToTheNextHost) {
  FakeServer server(
      [&](const FakeRequest&) { return Answer(200, "", "hello"); });
  Registry registry = Open(server, [&](RegistryOptions* options) {
    RegistryHost dead = options->hosts[0];
    dead.host = "127.0.0.1:1";
    options->hosts.insert(options->hosts.begin(), dead);
  });
  EXPECT_EQ(Fetch(registry, Blob("hello")).value(), "hello");
}

TEST(Registry, ABusyTokenServerIsAskedAgainAndARedirectGetsNoSecret) {
  int asked = 0;
  FakeServer elsewhere([&](const FakeRequest& request) {
    EXPECT_EQ(request.headers.count("authorization"), 0u);
    return Answer(200, "", R"({"token":"t1"})");
  });
  FakeServer tokens([&](const FakeRequest& request) {
    if (request.method == "POST") return Answer(404, "", "");
    if (++asked == 1) return Answer(503, "", "");
    EXPECT_EQ(request.headers.at("authorization"), BasicHeader("me", "pw"));
    return Answer(
        307, absl::StrCat("Location: http://", elsewhere.host(), "/t\r\n"), "");
  });
  FakeServer server([&](const FakeRequest& request) {
    const auto found = request.headers.find("authorization");
    if (found != request.headers.end() && found->second == "Bearer t1") {
      return Answer(200, "", "hello");
    }
    return Answer(401,
                  absl::StrCat("WWW-Authenticate: Bearer realm=\"http://",
                               tokens.host(), "/token\"\r\n"),
                  "");
  });
  Registry registry = Open(server, [&](RegistryOptions* options) {
    options->credentials = Always("me", "pw");
  });
  EXPECT_EQ(Fetch(registry, Blob("hello")).value(), "hello");
  EXPECT_EQ(asked, 2);
}

TEST(Registry, RefreshTokensAreTradedIn) {
  FakeServer tokens([&](const FakeRequest& request) {
    EXPECT_TRUE(absl::StrContains(
        request.body, "grant_type=refresh_token&refresh_token=r%2F1"));
    return Answer(200, "", R"({"access_token":"t1"})");
  });
  FakeServer server([&](const FakeRequest& request) {
    const auto found = request.headers.find("authorization");
    if (found != request.headers.end()) return Answer(200, "", "hello");
    return Answer(401,
                  absl::StrCat("WWW-Authenticate: Bearer realm=\"http://",
                               tokens.host(), "/token\"\r\n"),
                  "");
  });
  Registry registry = Open(server, [&](RegistryOptions* options) {
    options->credentials = [](const std::string&,
                              const std::vector<std::string>&) {
      return Credentials{"", "r/1", true};
    };
  });
  EXPECT_EQ(Fetch(registry, Blob("hello")).value(), "hello");
}

TEST(Registry, OnlyTheLastHostIsWaitedFor) {
  FakeServer mirror([&](const FakeRequest&) {
    return Answer(503, "Retry-After: 20\r\n", "");
  });
  FakeServer server(
      [&](const FakeRequest&) { return Answer(200, "", "hello"); });
  Registry registry = Open(server, [&](RegistryOptions* options) {
    RegistryHost first = options->hosts[0];
    first.host = mirror.host();
    options->hosts.insert(options->hosts.begin(), first);
  });
  const absl::Time began = absl::Now();
  EXPECT_EQ(Fetch(registry, Blob("hello")).value(), "hello");
  EXPECT_LT(absl::Now() - began, absl::Seconds(10));
  EXPECT_EQ(mirror.requests().size(), 1u);
}

TEST(Registry, AStretchEndsWhereItIsTold) {
  const std::string bytes = "0123456789";
  bool ranges = true;
  FakeServer server([&](const FakeRequest& request) {
    if (!ranges) return Answer(200, "", bytes);
    EXPECT_EQ(request.headers.at("range"), "bytes=2-6");
    return Answer(206, "Content-Range: bytes 2-6/10\r\n", bytes.substr(2, 5));
  });
  Registry registry = Open(server);
  std::string got;
  const auto sink = [&](const char* data, size_t size) {
    got.append(data, size);
    return absl::OkStatus();
  };
  Stretch stretch(2, 7);
  stretch.ranges_only = true;
  ASSERT_TRUE(registry.FetchStretch(Blob(bytes), &stretch, sink).ok());
  EXPECT_EQ(got, "23456");
  EXPECT_TRUE(stretch.ranges);
  ranges = false;
  Stretch refused(2, 7);
  refused.ranges_only = true;
  EXPECT_TRUE(absl::IsUnimplemented(
      registry.FetchStretch(Blob(bytes), &refused, sink)));
  got.clear();
  Stretch skipped(2, 7);  // Whatever is before, and behind, is dropped.
  ASSERT_TRUE(registry.FetchStretch(Blob(bytes), &skipped, sink).ok());
  EXPECT_EQ(got, "23456");
}

TEST(Registry, AStretchGrowsWhileItIsFetched) {
  const std::string bytes = "0123456789";
  FakeServer server([&](const FakeRequest& request) {
    const bool rest = request.headers.at("range") == "bytes=7-";
    if (!rest) {
      EXPECT_EQ(request.headers.at("range"), "bytes=2-6");
    }
    return Answer(206,
                  rest ? "Content-Range: bytes 7-9/10\r\n"
                       : "Content-Range: bytes 2-6/10\r\n",
                  rest ? bytes.substr(7) : bytes.substr(2, 5));
  });
  std::vector<std::string> told;
  Registry registry = Open(server, [&](RegistryOptions* options) {
    options->explain = [&](const std::string& line) { told.push_back(line); };
  });
  std::string got;
  Stretch stretch(2, 7);
  const auto sink = [&](const char* data, size_t size) {
    stretch.end_bytes = 10;
    got.append(data, size);
    return absl::OkStatus();
  };
  ASSERT_TRUE(registry.FetchStretch(Blob(bytes), &stretch, sink).ok());
  EXPECT_EQ(got, "23456789");
  EXPECT_EQ(server.requests().size(), 2u);
  for (const std::string& line : told) {  // Nothing went wrong.
    EXPECT_FALSE(absl::StrContains(line, "ended after")) << line;
  }
}

TEST(Registry, HeadersAreShownWithoutSecrets) {
  FakeServer server([&](const FakeRequest& request) {
    if (request.headers.count("authorization") == 0) {
      return Answer(401, "WWW-Authenticate: Basic realm=\"x\"\r\n", "");
    }
    return Answer(200, "Set-Cookie: crumb\r\nX-Seen: yes\r\n", "hello");
  });
  std::string lines;
  Registry registry = Open(server, [&](RegistryOptions* options) {
    options->credentials = Always("me", "pw");
    options->explain_headers = true;
    options->explain = [&](const std::string& line) { lines += line; };
  });
  EXPECT_EQ(Fetch(registry, Blob("hello")).value(), "hello");
  EXPECT_TRUE(absl::StrContains(lines, "> Authorization: (hidden)")) << lines;
  EXPECT_TRUE(absl::StrContains(lines, "< HTTP/1.1 200")) << lines;
  EXPECT_TRUE(absl::StrContains(lines, "x-seen: yes")) << lines;
  EXPECT_FALSE(absl::StrContains(lines, "crumb")) << lines;
  EXPECT_FALSE(absl::StrContains(lines, BasicHeader("me", "pw"))) << lines;
}

TEST(Registry, StalledServerAndCancelling) {
  bool cancel = false;
  FakeServer server([&](const FakeRequest&) {
    cancel = true;
    return std::string("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe");
  });
  Registry registry = Open(server, [&](RegistryOptions* options) {
    options->cancelled = [&] { return cancel; };
  });
  EXPECT_TRUE(absl::IsCancelled(Fetch(registry, Blob("hello")).status()));
}

}  // namespace
}  // namespace bulkhead::distribution
