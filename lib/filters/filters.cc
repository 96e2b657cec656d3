#include "lib/filters/filters.h"

#include <re2/re2.h>

#include <cstdint>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"

namespace bulkhead::filters {

enum class Operator { kPresent, kEqual, kNotEqual, kMatches };

struct Filter::Selector {
  FieldPath path;
  Operator op = Operator::kPresent;
  std::string value;
  std::shared_ptr<const RE2> regex;  // kMatches; null if it is invalid.
};

namespace {

constexpr int64_t kRegexMemoryBytesMax = 1 << 20;

enum class Token {
  kEnd,
  kQuoted,
  kValue,
  kField,
  kSeparator,
  kOperator,
  kIllegal,
  kOther,
};

bool IsQuote(int c) { return c == '"' || c == '/' || c == '|'; }
bool IsSeparator(int c) { return c == ',' || c == '.'; }
bool IsOperator(int c) { return c == '=' || c == '!' || c == '~'; }
bool IsSpace(int c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
bool IsField(int c) {
  return c == '_' || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') ||
         (c >= 'A' && c <= 'Z');
}
// Bytes of a multi-byte character count as printable.
bool IsValue(int c) { return c > ' ' && c != ',' && c != 0x7f; }

int DigitValue(int c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return 16;
}

void AppendUtf8(uint32_t rune, std::string* out) {
  if (rune < 0x80) {
    out->push_back(static_cast<char>(rune));
  } else if (rune < 0x800) {
    out->push_back(static_cast<char>(0xc0 | (rune >> 6)));
    out->push_back(static_cast<char>(0x80 | (rune & 0x3f)));
  } else if (rune < 0x10000) {
    out->push_back(static_cast<char>(0xe0 | (rune >> 12)));
    out->push_back(static_cast<char>(0x80 | ((rune >> 6) & 0x3f)));
    out->push_back(static_cast<char>(0x80 | (rune & 0x3f)));
  } else {
    out->push_back(static_cast<char>(0xf0 | (rune >> 18)));
    out->push_back(static_cast<char>(0x80 | ((rune >> 12) & 0x3f)));
    out->push_back(static_cast<char>(0x80 | ((rune >> 6) & 0x3f)));
    out->push_back(static_cast<char>(0x80 | (rune & 0x3f)));
  }
}

class Parser {
 public:
  explicit Parser(const std::string& input) : input_(input) {}

  absl::StatusOr<std::vector<Filter::Selector>> Selectors() {
    std::vector<Filter::Selector> all;
    while (true) {
      ASSIGN_OR_RETURN(Filter::Selector selector, OneSelector());
      all.push_back(std::move(selector));
      const int next = Peek();
      if (next < 0) return all;
      if (next != ',') {
        return Error(next_,
                     absl::StrCat("unexpected input: ", CharacterAt(next_)));
      }
      Scan();
    }
  }

 private:
  struct Scanned {
    Token token;
    size_t pos;
    std::string text;
  };

  std::string CharacterAt(size_t pos) const {
    size_t end = pos + 1;
    while (end < input_.size() && (input_[end] & 0xc0) == 0x80) ++end;
    return input_.substr(pos, end - pos);
  }

  absl::Status Error(size_t pos, const std::string& why) const {
    if (pos >= input_.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("filters: parse error: [", input_, "]: ", why));
    }
    return absl::InvalidArgumentError(absl::StrCat(
        "filters: parse error: [", input_.substr(0, pos), " >|",
        input_.substr(pos, 1), "|< ", input_.substr(pos + 1), "]: ", why));
  }

  int Peek() const {
    return next_ < input_.size() ? static_cast<unsigned char>(input_[next_])
                                 : -1;
  }
  int Next() {
    const int c = Peek();
    if (c >= 0) ++next_;
    return c;
  }

  // Scans a quoted literal whose opening quote was read. False, with error_
  // set, if it is malformed.
  bool ScanQuoted(int quote) {
    bool legal = true;
    int c = Next();
    while (c != quote) {
      if (c < 0 || c == '\n') {
        SetError("quoted literal not terminated");
        return false;
      }
      c = c == '\\' ? ScanEscape(quote, &legal) : Next();
    }
    return legal;
  }

  // Returns the character after the escape sequence.
  int ScanEscape(int quote, bool* legal) {
    int c = Next();
    int base = 16;
    int digits = 0;
    if (c == quote || c == '\\' ||
        (c > 0 && std::string("abfnrtv").find(static_cast<char>(c)) !=
                      std::string::npos)) {
      return Next();
    }
    if (c >= '0' && c <= '7') {
      base = 8;
      digits = 3;
    } else if (c == 'x' || c == 'u' || c == 'U') {
      digits = c == 'x' ? 2 : c == 'u' ? 4 : 8;
      c = Next();
    } else {
      SetError("illegal escape sequence");
      *legal = false;
      return c;
    }
    for (; digits > 0 && DigitValue(c) < base; --digits) c = Next();
    if (digits > 0) {
      SetError("illegal numeric escape sequence");
      *legal = false;
    }
    return c;
  }

  void SetError(const char* why) {
    if (error_.empty()) error_ = why;
  }

  Scanned Scan() {
    while (IsSpace(Peek())) ++next_;
    const size_t pos = next_;
    const int c = Next();
    Token token = Token::kOther;
    if (c < 0) {
      token = Token::kEnd;
    } else if (IsQuote(c)) {
      token = ScanQuoted(c) ? Token::kQuoted : Token::kIllegal;
    } else if (IsSeparator(c)) {
      value_next_ = false;
      token = Token::kSeparator;
    } else if (IsOperator(c)) {
      while (IsOperator(Peek())) ++next_;
      value_next_ = true;
      token = Token::kOperator;
    } else if (value_next_) {
      while (IsValue(Peek())) ++next_;
      value_next_ = false;
      token = Token::kValue;
    } else if (IsField(c)) {
      while (IsField(Peek())) ++next_;
      token = Token::kField;
    }
    return {token, pos, input_.substr(pos, next_ - pos)};
  }

  absl::StatusOr<std::string> Unquote(const Scanned& scanned,
                                      bool any_quote) const {
    const std::string& text = scanned.text;
    if (!any_quote && text[0] != '"') {
      return Error(scanned.pos, "invalid quote encountered");
    }
    std::string out;
    for (size_t i = 1; i + 1 < text.size(); ++i) {
      if (text[i] != '\\') {
        out.push_back(text[i]);
        continue;
      }
      const char c = text[++i];
      static constexpr char kNames[] = "abfnrtv";
      static constexpr char kValues[] = "\a\b\f\n\r\t\v";
      const char* name =
          std::char_traits<char>::find(kNames, sizeof(kNames) - 1, c);
      if (name != nullptr) {
        out.push_back(kValues[name - kNames]);
      } else if (c == 'x' || c == 'u' || c == 'U' || (c >= '0' && c <= '7')) {
        const int base = c >= '0' && c <= '7' ? 8 : 16;
        int digits = base == 8 ? 3 : c == 'x' ? 2 : c == 'u' ? 4 : 8;
        if (base == 8) --i;
        uint32_t value = 0;
        for (; digits > 0; --digits) {
          value = value * base + DigitValue(text[++i]);
        }
        if (c == 'u' || c == 'U') {
          if (value > 0x10ffff || (value >= 0xd800 && value < 0xe000)) {
            return Error(scanned.pos, "unquoting failed: invalid syntax");
          }
          AppendUtf8(value, &out);
        } else if (value > 0xff) {
          return Error(scanned.pos, "unquoting failed: invalid syntax");
        } else {
          out.push_back(static_cast<char>(value));
        }
      } else {
        out.push_back(c);
      }
    }
    return out;
  }

  absl::StatusOr<std::string> Field() {
    const Scanned scanned = Scan();
    if (scanned.token == Token::kField) return scanned.text;
    if (scanned.token == Token::kQuoted) return Unquote(scanned, false);
    if (scanned.token == Token::kIllegal) return Error(scanned.pos, error_);
    return Error(scanned.pos, "expected field or quoted");
  }

  absl::StatusOr<Filter::Selector> OneSelector() {
    Filter::Selector selector;
    while (true) {
      ASSIGN_OR_RETURN(std::string field, Field());
      selector.path.push_back(std::move(field));
      if (Peek() != '.') break;
      Scan();
    }
    if (Peek() == ',' || Peek() < 0) return selector;
    const Scanned op = Scan();
    if (op.token == Token::kIllegal) return Error(op.pos, error_);
    if (op.token != Token::kOperator) {
      return Error(op.pos, "expected an operator (\"==\"|\"!=\"|\"~=\")");
    }
    if (op.text == "==") {
      selector.op = Operator::kEqual;
    } else if (op.text == "!=") {
      selector.op = Operator::kNotEqual;
    } else if (op.text == "~=") {
      selector.op = Operator::kMatches;
    } else {
      return Error(op.pos,
                   absl::StrCat("unsupported operator \"", op.text, "\""));
    }
    const Scanned value = Scan();
    if (value.token == Token::kValue || value.token == Token::kField) {
      selector.value = value.text;
    } else if (value.token == Token::kQuoted) {
      ASSIGN_OR_RETURN(selector.value,
                       Unquote(value, selector.op == Operator::kMatches));
    } else if (value.token == Token::kIllegal) {
      return Error(value.pos, error_);
    } else {
      return Error(value.pos, "expected value or quoted");
    }
    if (selector.op == Operator::kMatches) {
      RE2::Options options;
      options.set_log_errors(false);
      options.set_max_mem(kRegexMemoryBytesMax);
      auto regex = std::make_shared<const RE2>(selector.value, options);
      if (regex->ok()) selector.regex = std::move(regex);
    }
    return selector;
  }

  const std::string& input_;
  size_t next_ = 0;          // The next byte to read.
  bool value_next_ = false;  // An operator was just read.
  std::string error_;        // Why the last token is illegal.
};

bool Matches(const Filter::Selector& selector, const Adaptor& adaptor) {
  const std::optional<std::string> field = adaptor(selector.path);
  switch (selector.op) {
    case Operator::kPresent:
      return field.has_value();
    case Operator::kEqual:
      return field.has_value() && *field == selector.value;
    case Operator::kNotEqual:
      return field.value_or("") != selector.value;
    case Operator::kMatches:
      return selector.regex != nullptr &&
             RE2::PartialMatch(field.value_or(""), *selector.regex);
  }
  return false;
}

}  // namespace

absl::StatusOr<Filter> Filter::ParseAll(
    const std::vector<std::string>& strings) {
  std::vector<All> any;
  bool everything = strings.empty();
  for (const std::string& string : strings) {
    if (string.empty()) {
      everything = true;
      continue;
    }
    if (string.size() > kFilterBytesMax) {
      return absl::InvalidArgumentError("filters: filter too long");
    }
    ASSIGN_OR_RETURN(All all, Parser(string).Selectors());
    any.push_back(std::move(all));
  }
  Filter filter;
  if (!everything) {
    filter.any_ = std::make_shared<const std::vector<All>>(std::move(any));
  }
  return filter;
}

std::vector<std::vector<Filter::Equal>> Filter::Equals() const {
  std::vector<std::vector<Equal>> rows;
  if (any_ == nullptr) return rows;
  for (const All& all : *any_) {
    rows.emplace_back();
    for (const Selector& selector : all) {
      if (selector.op == Operator::kEqual) {
        rows.back().push_back({selector.path, selector.value});
      }
    }
  }
  return rows;
}

bool Filter::Match(const Adaptor& adaptor) const {
  if (any_ == nullptr) return true;
  for (const All& all : *any_) {
    bool matched = true;
    for (const Selector& selector : all) {
      if (!Matches(selector, adaptor)) {
        matched = false;
        break;
      }
    }
    if (matched) return true;
  }
  return false;
}

}  // namespace bulkhead::filters
