// containerd's filter language, as every List and Subscribe takes it:
//
//   filter    = selector {"," selector}          all must match
//   selector  = fieldpath [("==" | "!=" | "~=") value]   bare: is it present
//   fieldpath = field {"." field}
//   field     = letters, digits, "_"  |  quoted
//   value     = quoted  |  printable characters up to a comma or a space
//   quoted    = "..."; after "~=" also /.../ and |...|, with Go's escapes
//
// An absent field differs from every value ("!=") and matches "~=" as "".
#ifndef BULKHEAD_LIB_FILTERS_FILTERS_H_
#define BULKHEAD_LIB_FILTERS_FILTERS_H_

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace bulkhead::filters {

// Past this, a filter string is refused.
constexpr size_t kFilterBytesMax = 64 << 10;

using FieldPath = std::vector<std::string>;
// What the object has at a field path; nullopt: absent.
using Adaptor = std::function<std::optional<std::string>(const FieldPath&)>;

// A parsed list of filter strings, of which any may match. A value: cheap to
// copy, immutable, thread-safe.
class Filter {
 public:
  // Matches everything.
  Filter() = default;

  // No strings, or one that is empty, match everything.
  // Errors: kInvalidArgument "filters: parse error: [before >|c|< after]: why".
  static absl::StatusOr<Filter> ParseAll(
      const std::vector<std::string>& strings);
  // The same from protobuf's repeated strings.
  template <typename Strings>
  static absl::StatusOr<Filter> Parse(const Strings& strings) {
    return ParseAll({strings.begin(), strings.end()});
  }

  bool Match(const Adaptor& adaptor) const;
  bool matches_all() const { return any_ == nullptr; }

  // A selector "path==value".
  struct Equal {
    FieldPath path;
    std::string value;
  };
  // For whoever has an index: the "==" selectors of each filter string. What
  // matches a string matches all of its row; a row may be empty. No rows at
  // all: everything matches.
  std::vector<std::vector<Equal>> Equals() const;

  struct Selector;

 private:
  using All = std::vector<Selector>;
  std::shared_ptr<const std::vector<All>> any_;  // Null: matches everything.
};

// The field of a string map below `prefix_size` path components, which are
// joined with ".": labels.a.b is the key "a.b". For "labels.*" in adaptors.
template <typename Map>
std::optional<std::string> MapField(const Map& map, const FieldPath& path,
                                    size_t prefix_size = 1) {
  if (path.size() <= prefix_size) return std::nullopt;
  std::string key = path[prefix_size];
  for (size_t i = prefix_size + 1; i < path.size(); ++i) {
    key += '.';
    key += path[i];
  }
  auto it = map.find(key);
  if (it == map.end()) return std::nullopt;
  return it->second;
}

}  // namespace bulkhead::filters

#endif  // BULKHEAD_LIB_FILTERS_FILTERS_H_
