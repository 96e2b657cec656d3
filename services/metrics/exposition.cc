#include "services/metrics/exposition.h"

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace bulkhead::metrics {
namespace {

constexpr char kCallsName[] = "grpc_server_handled_total";

// "# TYPE name rest" -> {"TYPE", "name", "rest"}.
std::vector<std::string> Comment(const std::string& line) {
  std::vector<std::string> words =
      absl::StrSplit(line, absl::MaxSplits(' ', 3));
  if (words.size() != 4 || words[0] != "#") return {};
  return {words[1], words[2], words[3]};
}

}  // namespace

void Exposition::Add(const std::string& service, const std::string& text) {
  std::string current;  // The family that the last comment named.
  for (const auto& view : absl::StrSplit(text, '\n')) {
    const std::string line(view);
    if (line.empty()) continue;
    if (line[0] == '#') {
      const std::vector<std::string> words = Comment(line);
      if (words.empty()) continue;
      current = words[1];
      Family& family = families_[current];
      if (words[0] == "TYPE") family.type = words[2];
      if (words[0] == "HELP") family.help = words[2];
      continue;
    }
    const size_t end = line.find_first_of("{ ");
    if (end == std::string::npos || end == 0) continue;
    const std::string name = line.substr(0, end);
    const std::string label = absl::StrCat("{service=\"", service, "\"");
    std::string sample;
    if (line[end] == '{') {
      const bool empty = end + 1 < line.size() && line[end + 1] == '}';
      sample =
          absl::StrCat(name, label, empty ? "" : ",", line.substr(end + 1));
    } else {
      sample = absl::StrCat(name, label, "}", line.substr(end));
    }
    // A histogram's samples have suffixes.
    const bool belongs =
        !current.empty() && absl::StartsWith(name, current) &&
        (name.size() == current.size() || name[current.size()] == '_');
    families_[belongs ? current : name].samples.push_back(std::move(sample));
  }
}

std::string Exposition::Text() const {
  std::string out;
  for (const auto& [name, family] : families_) {
    if (family.samples.empty()) continue;
    if (!family.help.empty()) {
      absl::StrAppend(&out, "# HELP ", name, " ", family.help, "\n");
    }
    if (!family.type.empty()) {
      absl::StrAppend(&out, "# TYPE ", name, " ", family.type, "\n");
    }
    for (const std::string& sample : family.samples) {
      absl::StrAppend(&out, sample, "\n");
    }
  }
  return out;
}

CallTotals SumCalls(const std::string& text) {
  CallTotals totals;
  for (const auto& view : absl::StrSplit(text, '\n')) {
    const std::string line(view);
    if (!absl::StartsWith(line, kCallsName)) continue;
    const size_t space = line.rfind(' ');
    double value = 0;
    if (space == std::string::npos ||
        !absl::SimpleAtod(line.substr(space + 1), &value)) {
      continue;
    }
    totals.calls += value;
    if (!absl::StrContains(line, "grpc_code=\"OK\"")) totals.failed += value;
  }
  return totals;
}

}  // namespace bulkhead::metrics
