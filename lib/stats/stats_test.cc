#include "lib/stats/stats.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace bulkhead::stats {
namespace {

using ::testing::HasSubstr;

TEST(Stats, TextIsWhatPrometheusReads) {
  Counter("calls_total", {{"method", "a\"b\\c\nd"}})->Add(3);
  EXPECT_EQ(Counter("calls_total", {{"method", "a\"b\\c\nd"}})->Get(), 3);
  Gauge("open")->Set(-2);
  Histogram* latency = Latency("wait_seconds", {{"m", "x"}});
  latency->ObserveMicros(50);
  latency->ObserveMicros(700);
  latency->ObserveMicros(60'000'000);
  const std::string text = Text();
  EXPECT_THAT(text, HasSubstr("# TYPE calls_total counter\n"
                              "calls_total{method=\"a\\\"b\\\\c\\nd\"} 3\n"));
  EXPECT_THAT(text, HasSubstr("# TYPE open gauge\nopen -2\n"));
  EXPECT_THAT(text,
              HasSubstr("wait_seconds_bucket{m=\"x\",le=\"0.0001\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("wait_seconds_bucket{m=\"x\",le=\"0.001\"} 2\n"));
  EXPECT_THAT(text, HasSubstr("wait_seconds_bucket{m=\"x\",le=\"+Inf\"} 3\n"));
  EXPECT_THAT(text, HasSubstr("wait_seconds_count{m=\"x\"} 3\n"));
}

}  // namespace
}  // namespace bulkhead::stats
