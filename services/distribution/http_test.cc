// The client's bandwidth limit, with real sockets. How exact it is, is
// bandwidth_test's to say: here a slow machine may only make things slower.
#include "services/distribution/http.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <ctime>
#include <memory>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "services/distribution/fake_server.h"

namespace bulkhead::distribution {
namespace {

constexpr int64_t kMib = 1 << 20;
constexpr int64_t kRate = 2 * kMib;
constexpr absl::Duration kBurst = absl::Milliseconds(250);

std::string Pattern(size_t size) {
  std::string out(size, '\0');
  for (size_t i = 0; i < size; ++i) out[i] = static_cast<char>(i * 31 + i / 77);
  return out;
}

std::unique_ptr<HttpClient> Limited(int64_t bytes_per_second) {
  auto client = HttpClient::Create("test");
  client->SetLimits({bytes_per_second, 0});
  return client;
}

HttpRequest GetFrom(const FakeServer& server, std::atomic<int64_t>* got) {
  HttpRequest request;
  request.url = absl::StrCat("http://", server.host(), "/");
  request.sink = [got](const char*, size_t size) {
    *got += static_cast<int64_t>(size);
    return absl::OkStatus();
  };
  return request;
}

absl::Duration ProcessTime() {
  timespec used{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
  return absl::DurationFromTimespec(used);
}

TEST(BandwidthLimit, Download) {
  const std::string body = Pattern(3 * kMib);
  FakeServer server([&](const FakeRequest&) { return Answer(200, "", body); });
  const auto client = Limited(kRate);
  HttpRequest request;
  request.url = absl::StrCat("http://", server.host(), "/");
  std::string got;
  request.sink = [&](const char* data, size_t size) {
    got.append(data, size);
    return absl::OkStatus();
  };
  const absl::Time began = absl::Now();
  const absl::Duration used = ProcessTime();
  const auto response = client->Do(request);
  const absl::Duration took = absl::Now() - began;
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_TRUE(got == body);
  EXPECT_GE(took, absl::Milliseconds(1500) - kBurst);
  EXPECT_LT(took, absl::Seconds(20));
  // Whoever waits does not spin.
  EXPECT_LT(ProcessTime() - used, absl::Milliseconds(700));
}

TEST(BandwidthLimit, Upload) {
  std::atomic<bool> right{false};
  const std::string body = Pattern(3 * kMib);
  FakeServer server([&](const FakeRequest& request) {
    right = request.body == body;
    return Answer(201, "", "");
  });
  const auto client = Limited(kRate);
  HttpRequest request;
  request.method = "PUT";
  request.url = absl::StrCat("http://", server.host(), "/");
  request.upload_bytes = static_cast<int64_t>(body.size());
  request.source = [&](char* buffer, size_t size, int64_t at) -> int64_t {
    const size_t count = std::min(size, body.size() - static_cast<size_t>(at));
    std::memcpy(buffer, body.data() + at, count);
    return static_cast<int64_t>(count);
  };
  const absl::Time began = absl::Now();
  const absl::Duration used = ProcessTime();
  const auto response = client->Do(request);
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_EQ(response->status, 201);
  EXPECT_TRUE(right);
  EXPECT_GE(absl::Now() - began, absl::Milliseconds(1500) - kBurst);
  EXPECT_LT(ProcessTime() - used, absl::Milliseconds(900));
}

TEST(BandwidthLimit, RequestsShareIt) {
  const std::string body = Pattern(2 * kMib);
  const auto handler = [&](const FakeRequest&) {
    return Answer(200, "", body);
  };
  FakeServer one(handler);
  FakeServer two(handler);
  const auto client = Limited(kRate);
  std::atomic<int64_t> got_one{0};
  std::atomic<int64_t> got_two{0};
  int64_t left_behind = -1;
  const absl::Time began = absl::Now();
  std::thread other([&] {
    EXPECT_TRUE(client->Do(GetFrom(two, &got_two)).ok());
    if (got_one < 2 * kMib) left_behind = got_one;
  });
  EXPECT_TRUE(client->Do(GetFrom(one, &got_one)).ok());
  if (got_two < 2 * kMib) left_behind = got_two;
  other.join();
  EXPECT_GE(absl::Now() - began, absl::Seconds(2) - kBurst);
  EXPECT_EQ(got_one + got_two, 4 * kMib);
  // When the first was done the other had come about as far.
  if (left_behind >= 0) {
    EXPECT_GT(left_behind, kMib);
  }
}

TEST(BandwidthLimit, MayBeLiftedMeanwhile) {
  const std::string body = Pattern(8 * kMib);
  FakeServer server([&](const FakeRequest&) { return Answer(200, "", body); });
  const auto client = Limited(64 << 10);
  std::atomic<int64_t> got{0};
  const absl::Time began = absl::Now();
  std::thread lift([&] {
    while (got == 0) absl::SleepFor(absl::Milliseconds(1));
    client->SetLimits({});
  });
  EXPECT_TRUE(client->Do(GetFrom(server, &got)).ok());
  lift.join();
  EXPECT_EQ(got, 8 * kMib);
  EXPECT_LT(absl::Now() - began, absl::Seconds(60));  // Else it takes 128 s.
}

TEST(BandwidthLimit, WhoWaitsCanBeCancelled) {
  const std::string body = Pattern(8 * kMib);
  FakeServer server([&](const FakeRequest&) { return Answer(200, "", body); });
  const auto client = Limited(64 << 10);
  std::atomic<int64_t> got{0};
  HttpRequest request = GetFrom(server, &got);
  request.cancelled = [&] { return got > 0; };
  EXPECT_TRUE(absl::IsCancelled(client->Do(request).status()));
}

}  // namespace
}  // namespace bulkhead::distribution
