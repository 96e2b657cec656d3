// How results are printed: tables, --format, sizes, ages.
#ifndef BULKHEAD_CLI_FORMAT_H_
#define BULKHEAD_CLI_FORMAT_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace bulkhead::cli {

// "1.5MB": powers of 1000, three significant digits, as Docker prints sizes.
std::string HumanBytes(double bytes);
// "1.5MiB": powers of 1024.
std::string HumanBytes1024(double bytes);
// "5 seconds", "About a minute", "3 hours".
std::string HumanDuration(absl::Duration duration);
// Text cut to `width_max` columns, the last of them "…".
std::string Shorten(const std::string& text, size_t width_max);
// Control characters as '?': names from a registry reach a terminal.
std::string Printable(const std::string& text);

// Rows of named fields, printed as the user wants them.
class Listing {
 public:
  struct Column {
    std::string title;  // "CONTAINER ID"; empty: not in the table.
    std::string field;  // "ID": its name in templates and JSON.
  };
  explicit Listing(std::vector<Column> columns);

  void Add(std::vector<std::string> values);

  // `format`: "" or "table" for the table, "json" for one object a line,
  // otherwise a template with {{.Field}}, "table {{.A}}\t{{.B}}" included.
  // kInvalidArgument: an unknown field, named with those there are.
  absl::StatusOr<std::string> Render(const std::string& format) const;

 private:
  std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;
};

// Columns padded to their widest cell, three spaces apart.
std::string RenderTable(const std::vector<std::vector<std::string>>& rows);

// `text` with {{.Field}} replaced and \t and \n understood; {{json .}} is all
// fields as JSON.
absl::StatusOr<std::string> RenderTemplate(
    const std::string& text,
    const std::vector<std::pair<std::string, std::string>>& fields);

// Prints "bulkhead: <message>" on stderr; returns `code`.
int Report(const absl::Status& status, int code = 1);

}  // namespace bulkhead::cli

#endif  // BULKHEAD_CLI_FORMAT_H_
