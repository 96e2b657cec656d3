#include "services/metadata/references.h"

#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_split.h"
#include "services/metadata/schema.h"

namespace bulkhead::metadata {
namespace {

// If `label` is `name` alone or goes on with "." or "/".
bool IsReference(const std::string& label, const std::string& name) {
  return absl::StartsWith(label, name) &&
         (label.size() == name.size() || label[name.size()] == '.' ||
          label[name.size()] == '/');
}

bool Compare(absl::Duration left, const std::string& op, absl::Duration right) {
  if (op == "=") return left == right;
  if (op == "!=") return left != right;
  if (op == "<") return left < right;
  if (op == ">") return left > right;
  if (op == "<=") return left <= right;
  return op == ">=" && left >= right;
}

}  // namespace

std::string ReferencedKey(const std::string& ns, const std::string& label,
                          const std::string& value, const std::string& prefix) {
  if (!absl::StartsWith(label, prefix) || value.empty()) return "";
  // What cannot be a name names nothing.
  if (value.find('\0') != std::string::npos) return "";
  const std::string rest = label.substr(prefix.size());
  if (IsReference(rest, "content")) return Key(kind::kBlob, {ns, value});
  if (IsReference(rest, "image")) return Key(kind::kImage, {ns, value});
  if (IsReference(rest, "container")) {
    return Key(kind::kContainer, {ns, value});
  }
  constexpr char kSnapshotPrefix[] = "snapshot.";
  if (absl::StartsWith(rest, kSnapshotPrefix)) {
    std::string snapshotter = rest.substr(sizeof(kSnapshotPrefix) - 1);
    snapshotter = snapshotter.substr(0, snapshotter.find('/'));
    if (snapshotter.find('\0') != std::string::npos) return "";
    return Key(kind::kSnapshot, {ns, snapshotter, value});
  }
  return "";
}

bool ConditionHolds(const std::string& conditions, absl::Duration age) {
  for (const std::string& each :
       std::vector<std::string>(absl::StrSplit(conditions, ','))) {
    constexpr char kName[] = "usedat";
    if (!absl::StartsWith(each, kName)) continue;
    const size_t op = sizeof(kName) - 1;
    const size_t value = each.find_first_not_of("<>=!", op);
    if (value == std::string::npos || value == op) continue;
    absl::Duration bound;
    if (absl::ParseDuration(each.substr(value), &bound) &&
        Compare(age, each.substr(op, value - op), bound)) {
      return true;
    }
  }
  return false;
}

}  // namespace bulkhead::metadata
