#include "services/distribution/challenge.h"

#include <cstring>

#include "absl/strings/ascii.h"

namespace bulkhead::distribution {
namespace {

bool IsTokenChar(char c) {
  return absl::ascii_isalnum(c) ||
         (c != '\0' && std::strchr("!#$%&'*+-.^_`|~", c) != nullptr);
}

class Scanner {
 public:
  explicit Scanner(const std::string& text) : text_(text) {}

  bool AtEnd() const { return at_ >= text_.size(); }
  char Peek() const { return AtEnd() ? '\0' : text_[at_]; }
  void Skip() {
    if (!AtEnd()) ++at_;
  }
  size_t at() const { return at_; }
  void Return(size_t at) { at_ = at; }
  void SkipSpaces() {
    while (Peek() == ' ' || Peek() == '\t') Skip();
  }
  void SkipSpacesAndCommas() {
    while (Peek() == ' ' || Peek() == '\t' || Peek() == ',') Skip();
  }
  std::string Token() {
    const size_t start = at_;
    while (IsTokenChar(Peek())) Skip();
    return text_.substr(start, at_ - start);
  }
  // A token, or a quoted string with its escapes resolved.
  std::string Value() {
    if (Peek() != '"') return Token();
    Skip();
    std::string out;
    while (!AtEnd() && Peek() != '"') {
      if (Peek() == '\\') Skip();
      if (AtEnd()) break;
      out += Peek();
      Skip();
    }
    Skip();
    return out;
  }

 private:
  const std::string& text_;
  size_t at_ = 0;
};

}  // namespace

std::vector<Challenge> ParseChallenges(const std::string& header) {
  std::vector<Challenge> out;
  Scanner scan(header);
  for (;;) {
    scan.SkipSpacesAndCommas();
    if (scan.AtEnd()) return out;
    Challenge challenge;
    challenge.scheme = absl::AsciiStrToLower(scan.Token());
    if (challenge.scheme.empty()) return out;
    for (;;) {
      scan.SkipSpacesAndCommas();
      const size_t before = scan.at();
      const std::string name = absl::AsciiStrToLower(scan.Token());
      scan.SkipSpaces();
      if (name.empty() || scan.Peek() != '=') {
        scan.Return(before);  // The next challenge, or rubbish.
        break;
      }
      scan.Skip();
      scan.SkipSpaces();
      challenge.parameters[name] = scan.Value();
    }
    const size_t at = scan.at();
    out.push_back(std::move(challenge));
    scan.SkipSpacesAndCommas();
    if (scan.at() == at && !IsTokenChar(scan.Peek())) return out;
  }
}

}  // namespace bulkhead::distribution
