#include "cli/remedy.h"

#include <algorithm>
#include <initializer_list>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"

namespace bulkhead::cli {
namespace {

bool HasAny(const std::string& text, std::initializer_list<const char*> parts) {
  return std::any_of(parts.begin(), parts.end(), [&](const char* part) {
    return absl::StrContains(text, part);
  });
}

}  // namespace

std::string Remedy(const absl::Status& status,
                   const oci::Reference& reference) {
  if (status.ok()) return "";
  const std::string& host = reference.host;
  const std::string text = absl::AsciiStrToLower(MessageOf(status));
  // Trust and others say themselves what to do.
  if (HasAny(text, {" refused by policy ", "is pinned to", "image verifier",
                    "use --plain-http"})) {
    return "";
  }
  if (HasAny(text, {"no match for platform"})) {
    return absl::StrCat(
        "the image may be there for others: `bulkhead manifest "
        "inspect ",
        reference.str(), "` lists them for --platform");
  }
  if (HasAny(text, {"could not resolve"})) {
    return absl::StrCat("check the spelling of ", host,
                        ", this machine's DNS, and HTTPS_PROXY if a proxy is "
                        "needed");
  }
  if (HasAny(text, {"certificate", "ssl", "tls"})) {
    return absl::StrCat("if ", host,
                        " has an authority of its own, name it: "
                        "`ca = \"FILE\"` in its hosts.toml; a clock that is "
                        "wrong looks the same");
  }
  if (HasAny(text, {"failed to connect", "connection refused"})) {
    return absl::StrCat("is ", host,
                        " up, and is the port right? Behind a proxy set "
                        "HTTPS_PROXY for bulkhead-distribution");
  }
  if (absl::IsUnauthenticated(status)) {
    return absl::StrCat("log in first: `bulkhead login ", host,
                        "`; some registries also answer so for an image that "
                        "is not there");
  }
  if (absl::IsPermissionDenied(status)) {
    return absl::StrCat("this login has no right to it: `bulkhead login ", host,
                        "` as somebody who has, or check the name");
  }
  if (absl::IsDataLoss(status)) {
    return "the registry, or a proxy before it, sends other bytes than it "
           "promised: nothing was kept; try again, or another mirror";
  }
  if (absl::IsNotFound(status)) {
    return absl::StrCat("check the spelling of ", reference.str(),
                        "; `bulkhead pull --explain` tells where it was "
                        "looked for");
  }
  return "";
}

absl::Status WithRemedy(const absl::Status& status,
                        const oci::Reference& reference) {
  const std::string remedy = Remedy(status, reference);
  if (remedy.empty()) return status;
  return absl::Status(status.code(),
                      absl::StrCat(MessageOf(status), " — ", remedy));
}

}  // namespace bulkhead::cli
