#include "cli/format.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "lib/base/status_macros.h"

namespace bulkhead::cli {
namespace {

constexpr char kGap[] = "   ";

std::string Scaled(double value, double step,
                   const std::vector<const char*>& units) {
  size_t unit = 0;
  while (value >= step && unit + 1 < units.size()) {
    value /= step;
    ++unit;
  }
  std::string digits = absl::StrFormat("%.4g", value);
  if (value < 1000 && unit > 0) digits = absl::StrFormat("%.3g", value);
  return digits + units[unit];
}

// Columns that a UTF-8 text takes, near enough: its code points.
size_t WidthOf(const std::string& text) {
  return static_cast<size_t>(std::count_if(
      text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

std::string JsonText(const nlohmann::ordered_json& json) {
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::string JsonOf(
    const std::vector<std::pair<std::string, std::string>>& fields) {
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  for (const auto& [name, value] : fields) json[name] = value;
  return JsonText(json);
}

std::string Unescape(const std::string& text) {
  std::string plain;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 1 < text.size() &&
        (text[i + 1] == 't' || text[i + 1] == 'n')) {
      plain += text[++i] == 't' ? '\t' : '\n';
    } else {
      plain += text[i];
    }
  }
  return plain;
}

std::vector<std::string> SplitTabs(const std::string& line) {
  std::vector<std::string> cells(1);
  for (const char c : line) {
    if (c == '\t') {
      cells.emplace_back();
    } else {
      cells.back() += c;
    }
  }
  return cells;
}

}  // namespace

std::string HumanBytes(double bytes) {
  return Scaled(bytes, 1000, {"B", "kB", "MB", "GB", "TB", "PB"});
}

std::string HumanBytes1024(double bytes) {
  return Scaled(bytes, 1024, {"B", "KiB", "MiB", "GiB", "TiB", "PiB"});
}

std::string HumanDuration(absl::Duration duration) {
  const int64_t seconds = std::max<int64_t>(0, absl::ToInt64Seconds(duration));
  const int64_t minutes = seconds / 60;
  const int64_t hours = (minutes + 30) / 60;
  if (seconds < 1) return "Less than a second";
  if (seconds == 1) return "1 second";
  if (seconds < 60) return absl::StrCat(seconds, " seconds");
  if (minutes == 1) return "About a minute";
  if (minutes < 60) return absl::StrCat(minutes, " minutes");
  if (hours == 1) return "About an hour";
  if (hours < 48) return absl::StrCat(hours, " hours");
  if (hours < 24 * 14) return absl::StrCat(hours / 24, " days");
  if (hours < 24 * 60) return absl::StrCat(hours / 24 / 7, " weeks");
  if (hours < 24 * 365 * 2) return absl::StrCat(hours / 24 / 30, " months");
  return absl::StrCat(hours / 24 / 365, " years");
}

std::string Shorten(const std::string& text, size_t width_max) {
  if (WidthOf(text) <= width_max) return text;
  std::string cut;
  size_t width = 0;
  for (const char c : text) {
    if ((c & 0xc0) != 0x80 && ++width >= width_max) break;
    cut += c;
  }
  return cut + "…";
}

std::string Printable(const std::string& text) {
  std::string clean = text;
  for (char& c : clean) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  }
  return clean;
}

Listing::Listing(std::vector<Column> columns) : columns_(std::move(columns)) {}

void Listing::Add(std::vector<std::string> values) {
  values.resize(columns_.size());
  rows_.push_back(std::move(values));
}

absl::StatusOr<std::string> Listing::Render(const std::string& format) const {
  std::string text;
  if (format.empty() || format == "table") {
    std::vector<std::vector<std::string>> table(1);
    for (const Column& column : columns_) {
      if (!column.title.empty()) table[0].push_back(column.title);
    }
    for (const auto& row : rows_) {
      std::vector<std::string>& cells = table.emplace_back();
      for (size_t i = 0; i < columns_.size(); ++i) {
        if (!columns_[i].title.empty()) cells.push_back(Printable(row[i]));
      }
    }
    return RenderTable(table);
  }
  const bool json = format == "json";
  absl::string_view shape = format;
  const bool table = absl::ConsumePrefix(&shape, "table ");
  const std::string line_shape = Unescape(std::string(shape));
  std::vector<std::vector<std::string>> cells;
  if (table) {
    std::vector<std::pair<std::string, std::string>> titles;
    for (const Column& column : columns_) {
      titles.emplace_back(column.field,
                          column.title.empty() ? column.field : column.title);
    }
    ASSIGN_OR_RETURN(const std::string head,
                     RenderTemplate(line_shape, titles));
    cells.push_back(SplitTabs(head));
  }
  for (const auto& row : rows_) {
    std::vector<std::pair<std::string, std::string>> fields;
    for (size_t i = 0; i < columns_.size(); ++i) {
      fields.emplace_back(columns_[i].field, row[i]);
    }
    if (json) {
      absl::StrAppend(&text, JsonOf(fields), "\n");
      continue;
    }
    ASSIGN_OR_RETURN(const std::string line,
                     RenderTemplate(line_shape, fields));
    if (table) {
      cells.push_back(SplitTabs(line));
    } else {
      absl::StrAppend(&text, line, "\n");
    }
  }
  return table ? RenderTable(cells) : text;
}

std::string RenderTable(const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths;
  for (const auto& row : rows) {
    if (widths.size() < row.size()) widths.resize(row.size());
    for (size_t i = 0; i < row.size(); ++i) {
      widths[i] = std::max(widths[i], WidthOf(row[i]));
    }
  }
  std::string text;
  for (const auto& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      line += row[i];
      if (i + 1 < row.size()) {
        line += std::string(widths[i] - WidthOf(row[i]), ' ') + kGap;
      }
    }
    text += line + "\n";
  }
  return text;
}

absl::StatusOr<std::string> RenderTemplate(
    const std::string& text,
    const std::vector<std::pair<std::string, std::string>>& fields) {
  std::string out;
  size_t at = 0;
  for (;;) {
    const size_t open = text.find("{{", at);
    if (open == std::string::npos) break;
    const size_t close = text.find("}}", open);
    if (close == std::string::npos) {
      return absl::InvalidArgumentError("--format: '{{' without '}}'");
    }
    out.append(text, at, open - at);
    at = close + 2;
    const std::string inner(absl::StripAsciiWhitespace(
        absl::string_view(text).substr(open + 2, close - open - 2)));
    if (inner == "json ." || inner == ".") {
      out += JsonOf(fields);
      continue;
    }
    absl::string_view name = inner;
    const bool as_json = absl::ConsumePrefix(&name, "json ");
    bool found = false;
    if (absl::ConsumePrefix(&name, ".")) {
      for (const auto& [field, value] : fields) {
        if (field != std::string(name)) continue;
        out += as_json ? JsonText(value) : value;
        found = true;
      }
    }
    if (!found) {
      std::vector<std::string> known;
      for (const auto& [field, value] : fields) known.push_back("." + field);
      return absl::InvalidArgumentError(
          absl::StrCat("--format: unknown '{{", inner, "}}'; there are ",
                       absl::StrJoin(known, " ")));
    }
  }
  return out + text.substr(at);
}

int Report(const absl::Status& status, int code) {
  std::fprintf(stderr, "bulkhead: %s\n", MessageOf(status).c_str());
  return code;
}

}  // namespace bulkhead::cli
