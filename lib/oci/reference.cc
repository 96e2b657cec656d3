#include "lib/oci/reference.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "lib/base/status_macros.h"

namespace bulkhead::oci {
namespace {

constexpr char kDefaultHost[] = "docker.io";
constexpr char kLegacyHost[] = "index.docker.io";
constexpr char kOfficialPrefix[] = "library/";
constexpr char kDefaultTag[] = "latest";

bool IsLowerAlnum(char c) {
  return absl::ascii_islower(c) || absl::ascii_isdigit(c);
}

absl::Status Invalid(const std::string& text, const std::string& why) {
  return absl::InvalidArgumentError(absl::StrCat(
      "invalid image reference \"", text.substr(0, 128), "\": ", why));
}

bool IsPort(const std::string& port) {
  return !port.empty() && port.size() <= 5 &&
         std::all_of(port.begin(), port.end(),
                     [](char c) { return absl::ascii_isdigit(c); });
}

// Labels of letters, digits and inner hyphens; or an IPv6 address in brackets.
bool IsHost(const std::string& host) {
  std::string name = host;
  if (!host.empty() && host[0] == '[') {
    const size_t end = host.find(']');
    if (end == std::string::npos || end < 3) return false;
    for (size_t i = 1; i < end; ++i) {
      if (!absl::ascii_isxdigit(host[i]) && host[i] != ':' && host[i] != '.') {
        return false;
      }
    }
    if (end + 1 == host.size()) return true;
    return host[end + 1] == ':' && IsPort(host.substr(end + 2));
  }
  const size_t colon = host.find(':');
  if (colon != std::string::npos) {
    if (!IsPort(host.substr(colon + 1))) return false;
    name = host.substr(0, colon);
  }
  if (name.empty()) return false;
  const std::vector<std::string> labels = absl::StrSplit(name, '.');
  for (const std::string& label : labels) {
    if (label.empty() || label.front() == '-' || label.back() == '-') {
      return false;
    }
    for (char c : label) {
      if (!absl::ascii_isalnum(c) && c != '-') return false;
    }
  }
  return true;
}

// Lower-case alphanumerics joined by ".", "_", "__" or any number of "-".
bool IsPathComponent(const std::string& part) {
  if (part.empty() || !IsLowerAlnum(part.front()) ||
      !IsLowerAlnum(part.back())) {
    return false;
  }
  for (size_t i = 0; i < part.size();) {
    if (IsLowerAlnum(part[i])) {
      ++i;
      continue;
    }
    size_t end = i;
    while (end < part.size() && !IsLowerAlnum(part[end])) ++end;
    const std::string separator = part.substr(i, end - i);
    const bool hyphens = separator.find_first_not_of('-') == std::string::npos;
    if (!hyphens && separator != "." && separator != "_" && separator != "__") {
      return false;
    }
    i = end;
  }
  return true;
}

bool IsTag(const std::string& tag) {
  if (tag.empty() || tag.size() > kTagBytesMax) return false;
  if (tag.front() == '.' || tag.front() == '-') return false;
  return std::all_of(tag.begin(), tag.end(), [](char c) {
    return absl::ascii_isalnum(c) || c == '_' || c == '.' || c == '-';
  });
}

absl::StatusOr<Reference> ParseAfterHost(const std::string& text,
                                         std::string host, std::string rest) {
  Reference reference;
  reference.host = std::move(host);
  const size_t at = rest.find('@');
  if (at != std::string::npos) {
    absl::StatusOr<Digest> digest = Digest::Parse(rest.substr(at + 1));
    if (!digest.ok()) return Invalid(text, MessageOf(digest.status()));
    reference.digest = *std::move(digest);
    rest.resize(at);
  }
  const size_t colon = rest.find(
      ':', rest.rfind('/') == std::string::npos ? 0 : rest.rfind('/'));
  if (colon != std::string::npos) {
    reference.tag = rest.substr(colon + 1);
    if (!IsTag(reference.tag)) {
      return Invalid(text, absl::StrCat("bad tag \"", reference.tag, "\""));
    }
    rest.resize(colon);
  }
  if (!IsHost(reference.host)) {
    return Invalid(text,
                   absl::StrCat("bad host name \"", reference.host, "\""));
  }
  if (rest.empty()) return Invalid(text, "no repository name");
  if (rest.size() > kRepositoryBytesMax) {
    return Invalid(text, "the repository name is longer than 255 characters");
  }
  const std::vector<std::string> parts = absl::StrSplit(rest, '/');
  for (const std::string& part : parts) {
    if (IsPathComponent(part)) continue;
    if (absl::AsciiStrToLower(part) != part) {
      return Invalid(text, "the repository name must be lower case");
    }
    return Invalid(text, absl::StrCat("bad repository name \"", rest, "\""));
  }
  reference.repository = std::move(rest);
  return reference;
}

absl::Status CheckSize(const std::string& text) {
  if (text.empty()) return Invalid(text, "it is empty");
  if (text.size() > kReferenceBytesMax) {
    return Invalid(text, "it is longer than 1024 characters");
  }
  return absl::OkStatus();
}

}  // namespace

std::string Reference::str() const {
  std::string out = Locator();
  if (!tag.empty()) absl::StrAppend(&out, ":", tag);
  if (!digest.empty()) absl::StrAppend(&out, "@", digest.str());
  return out;
}

absl::StatusOr<Reference> ParseNormalized(const std::string& text) {
  RETURN_IF_ERROR(CheckSize(text));
  if (text.size() == 64 && std::all_of(text.begin(), text.end(), [](char c) {
        return absl::ascii_isdigit(c) || (c >= 'a' && c <= 'f');
      })) {
    return Invalid(text, "64 hexadecimal digits are an id, not a name");
  }
  std::string host = kDefaultHost;
  std::string rest = text;
  const size_t slash = text.find('/');
  if (slash != std::string::npos) {
    const std::string first = text.substr(0, slash);
    if (first.find_first_of(".:[") != std::string::npos ||
        first == "localhost" || absl::AsciiStrToLower(first) != first) {
      host = first;
      rest = text.substr(slash + 1);
    }
  }
  if (host == kLegacyHost) host = kDefaultHost;
  if (host == kDefaultHost && rest.find('/') == std::string::npos) {
    rest = kOfficialPrefix + rest;
  }
  ASSIGN_OR_RETURN(Reference reference,
                   ParseAfterHost(text, std::move(host), std::move(rest)));
  if (reference.tag.empty() && reference.digest.empty()) {
    reference.tag = kDefaultTag;
  }
  return reference;
}

absl::StatusOr<Reference> ParseFull(const std::string& text) {
  RETURN_IF_ERROR(CheckSize(text));
  const size_t slash = text.find('/');
  if (slash == std::string::npos) {
    return Invalid(text, "it must start with the registry's host name");
  }
  return ParseAfterHost(text, text.substr(0, slash), text.substr(slash + 1));
}

std::string Familiar(const Reference& reference) {
  std::string full = reference.str();
  if (reference.host != kDefaultHost) return full;
  full.erase(0, sizeof(kDefaultHost));  // With the slash.
  const std::string& repository = reference.repository;
  if (absl::StartsWith(repository, kOfficialPrefix) &&
      std::count(repository.begin(), repository.end(), '/') == 1) {
    full.erase(0, sizeof(kOfficialPrefix) - 1);
  }
  // "docker.io/a.b/c" without its host would name the host a.b.
  // Both are parsed: without a tag, "latest" is added to either.
  const absl::StatusOr<Reference> again = ParseNormalized(full);
  const absl::StatusOr<Reference> meant = ParseNormalized(reference.str());
  return again.ok() && meant.ok() && again->str() == meant->str()
             ? full
             : reference.str();
}

std::string FamiliarName(const std::string& image_name) {
  absl::StatusOr<Reference> reference = ParseFull(image_name);
  return reference.ok() ? Familiar(*reference) : image_name;
}

}  // namespace bulkhead::oci
