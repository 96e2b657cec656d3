#include "lib/filters/filters.h"

#include <gtest/gtest.h>

#include <map>

#include "lib/base/status_macros.h"

namespace bulkhead::filters {
namespace {

bool MatchAll(const std::vector<std::string>& strings) {
  absl::StatusOr<Filter> filter = Filter::ParseAll(strings);
  EXPECT_TRUE(filter.ok()) << filter.status();
  if (!filter.ok()) return false;
  const std::map<std::string, std::string> labels = {
      {"a.b", "1"}, {"containerd.io/gc.root", "x"}, {"foo", "b,r \"q\""}};
  return filter->Match(
      [&labels](const FieldPath& path) -> std::optional<std::string> {
        if (path[0] == "name") return "docker.io/library/busybox:latest";
        if (path[0] == "type") return "io.containerd.snapshotter.v1";
        if (path[0] == "topic") return "/tasks/exit";
        if (path[0] == "labels") return MapField(labels, path);
        return std::nullopt;
      });
}

bool Match(const std::string& string) { return MatchAll({string}); }

std::string ErrorOf(const std::string& string) {
  absl::StatusOr<Filter> filter = Filter::ParseAll({string});
  EXPECT_FALSE(filter.ok()) << string;
  if (filter.ok()) return "";
  EXPECT_TRUE(absl::IsInvalidArgument(filter.status()));
  return MessageOf(filter.status());
}

TEST(Filters, Matches) {
  EXPECT_TRUE(MatchAll({}));
  EXPECT_TRUE(Match(""));
  EXPECT_TRUE(MatchAll({"name==x", ""}));
  EXPECT_TRUE(Match("name"));
  EXPECT_FALSE(Match("nope"));
  EXPECT_TRUE(Match("name==docker.io/library/busybox:latest"));
  EXPECT_FALSE(Match("name==busybox"));
  EXPECT_TRUE(Match("type==io.containerd.snapshotter.v1, name~=busybox"));
  EXPECT_FALSE(Match("type==io.containerd.snapshotter.v1,name~=alpine"));
  EXPECT_TRUE(MatchAll({"name==x", "name~=busybox"}));
  EXPECT_TRUE(Match("labels.a.b==1"));
  EXPECT_TRUE(Match("labels.\"a.b\"==1"));
  EXPECT_TRUE(Match("labels.\"containerd.io/gc.root\""));
  EXPECT_FALSE(Match("labels.\"containerd.io/gc\""));
  EXPECT_FALSE(Match("labels"));
  EXPECT_TRUE(Match("labels.foo==\"b,r \\\"q\\\"\""));
  EXPECT_TRUE(Match("topic~=|^/tasks/|"));
  EXPECT_TRUE(Match("topic==\"/tasks/exit\""));
  EXPECT_TRUE(Match("topic~=/^\\/tasks/"));
  EXPECT_TRUE(Match("topic~=\"/tasks/\""));
  EXPECT_TRUE(Match(" name~=\"\\x62usybox\""));
}

TEST(Filters, AbsentFields) {
  EXPECT_TRUE(Match("nope!=x"));
  EXPECT_FALSE(Match("nope==x"));
  EXPECT_TRUE(Match("nope~=\"^$\""));
  EXPECT_FALSE(Match("nope~=x"));
}

TEST(Filters, InvalidRegexMatchesNothing) {
  EXPECT_FALSE(Match("name~=\"[\""));
}

TEST(Filters, Errors) {
  EXPECT_EQ(ErrorOf("topic==/images/create"),
            "filters: parse error: [topic== >|/|< images/create]: "
            "invalid quote encountered");
  EXPECT_EQ(ErrorOf("topic==/create"),
            "filters: parse error: [topic== >|/|< create]: "
            "quoted literal not terminated");
  EXPECT_EQ(ErrorOf("topic==/create/"),
            "filters: parse error: [topic== >|/|< create/]: "
            "invalid quote encountered");
  EXPECT_EQ(ErrorOf("x==.y"),
            "filters: parse error: [x== >|.|< y]: expected value or quoted");
  EXPECT_EQ(ErrorOf("x=="),
            "filters: parse error: [x==]: expected value or quoted");
  EXPECT_EQ(ErrorOf("x=y"),
            "filters: parse error: [x >|=|< y]: unsupported operator \"=\"");
  EXPECT_EQ(ErrorOf("x=!~y"),
            "filters: parse error: [x >|=|< !~y]: unsupported operator "
            "\"=!~\"");
  EXPECT_EQ(ErrorOf("x ,y"),
            "filters: parse error: [x  >|,|< y]: expected an operator "
            "(\"==\"|\"!=\"|\"~=\")");
  EXPECT_EQ(ErrorOf("x==y "),
            "filters: parse error: [x==y >| |< ]: unexpected input:  ");
  EXPECT_EQ(ErrorOf("labels.a-b==c"),
            "filters: parse error: [labels.a >|-|< b==c]: expected an "
            "operator (\"==\"|\"!=\"|\"~=\")");
  EXPECT_EQ(ErrorOf(",x"),
            "filters: parse error: [ >|,|< x]: expected field or quoted");
  EXPECT_EQ(ErrorOf("'x'"),
            "filters: parse error: [ >|'|< x']: expected field or quoted");
  EXPECT_EQ(ErrorOf("x==\"\\q\""),
            "filters: parse error: [x== >|\"|< \\q\"]: illegal escape "
            "sequence");
}

}  // namespace
}  // namespace bulkhead::filters
