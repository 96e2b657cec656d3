#include <sys/utsname.h>

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "lib/oci/image.h"

namespace bulkhead::oci {
namespace {

struct Alias {
  const char* name;
  const char* architecture;
  const char* variant;  // nullptr: as given.
};
constexpr Alias kAliases[] = {
    {"x86_64", "amd64", nullptr},  {"x86-64", "amd64", nullptr},
    {"i386", "386", nullptr},      {"i486", "386", nullptr},
    {"i586", "386", nullptr},      {"i686", "386", nullptr},
    {"aarch64", "arm64", nullptr}, {"armhf", "arm", "v7"},
    {"armel", "arm", "v6"},        {"armv7l", "arm", "v7"},
    {"armv6l", "arm", "v6"},
};
constexpr const char* kArchitectures[] = {
    "386",    "amd64",    "arm",   "arm64",   "loong64", "mips",  "mips64",
    "mipsle", "mips64le", "ppc64", "ppc64le", "riscv64", "s390x", "wasm"};
constexpr const char* kSystems[] = {"aix",     "android", "darwin",  "freebsd",
                                    "illumos", "linux",   "netbsd",  "openbsd",
                                    "plan9",   "solaris", "windows", "wasip1"};

template <size_t N>
bool OneOf(const char* const (&list)[N], const std::string& text) {
  return std::find(std::begin(list), std::end(list), text) != std::end(list);
}

bool IsArchitecture(const std::string& text) {
  if (OneOf(kArchitectures, text)) return true;
  return std::any_of(std::begin(kAliases), std::end(kAliases),
                     [&](const Alias& alias) { return alias.name == text; });
}

// "v8.2" is 802; an unset variant is the architecture's base. -1: unknown.
int VariantRank(const std::string& architecture, const std::string& variant) {
  if (variant.empty()) {
    if (architecture == "arm64") return 800;
    if (architecture == "arm") return 700;
    return architecture == "amd64" ? 100 : 0;
  }
  if (variant[0] != 'v') return -1;
  const std::vector<std::string> parts =
      absl::StrSplit(variant.substr(1), absl::MaxSplits('.', 1));
  int major = 0;
  int minor = 0;
  if (!absl::SimpleAtoi(parts[0], &major) || major < 0 || major > 99) return -1;
  if (parts.size() == 2 &&
      (!absl::SimpleAtoi(parts[1], &minor) || minor < 0 || minor > 99)) {
    return -1;
  }
  return major * 100 + minor;
}

// Windows only: the first three numbers must agree if both are known.
bool SameOsVersion(const Platform& wanted, const Platform& offered) {
  if (wanted.os != "windows" || wanted.os_version.empty() ||
      offered.os_version.empty()) {
    return true;
  }
  std::vector<std::string> a = absl::StrSplit(wanted.os_version, '.');
  std::vector<std::string> b = absl::StrSplit(offered.os_version, '.');
  a.resize(3);
  b.resize(3);
  return a == b;
}

}  // namespace

Platform HostPlatform() {
  Platform host;
  host.os = "linux";
  struct utsname names;
  host.architecture = uname(&names) == 0 ? names.machine : "amd64";
  return Normalize(host);
}

Platform Normalize(const Platform& platform) {
  Platform out = platform;
  absl::AsciiStrToLower(&out.os);
  absl::AsciiStrToLower(&out.architecture);
  absl::AsciiStrToLower(&out.variant);
  if (out.os == "macos") out.os = "darwin";
  for (const Alias& alias : kAliases) {
    if (out.architecture != alias.name) continue;
    out.architecture = alias.architecture;
    if (alias.variant != nullptr) out.variant = alias.variant;
    break;
  }
  if (!out.variant.empty() && absl::ascii_isdigit(out.variant[0])) {
    out.variant = "v" + out.variant;
  }
  if (out.architecture == "arm64" &&
      (out.variant == "v8" || out.variant == "v8.0")) {
    out.variant.clear();
  }
  if (out.architecture == "arm" && out.variant.empty()) out.variant = "v7";
  if (out.architecture == "amd64" && out.variant == "v1") out.variant.clear();
  return out;
}

absl::StatusOr<Platform> ParsePlatform(const std::string& text) {
  const absl::Status invalid = absl::InvalidArgumentError(
      absl::StrCat("bad platform \"", text.substr(0, 64),
                   "\": want os/architecture[/variant], like linux/arm64"));
  const std::vector<std::string> parts =
      absl::StrSplit(absl::AsciiStrToLower(text), '/');
  for (const std::string& part : parts) {
    if (part.empty()) return invalid;
    for (char c : part) {
      if (!absl::ascii_isalnum(c) && c != '_' && c != '-' && c != '.') {
        return invalid;
      }
    }
  }
  Platform platform = HostPlatform();
  platform.variant.clear();
  if (parts.size() == 1) {
    if (OneOf(kSystems, parts[0])) {
      platform.os = parts[0];
    } else if (IsArchitecture(parts[0])) {
      platform.architecture = parts[0];
    } else {
      return invalid;
    }
    return Normalize(platform);
  }
  if (parts.size() > 3) return invalid;
  platform.os = parts[0];
  platform.architecture = parts[1];
  if (parts.size() == 3) platform.variant = parts[2];
  return Normalize(platform);
}

std::string FormatPlatform(const Platform& platform) {
  if (platform.empty()) return "unknown";
  std::string out = absl::StrCat(platform.os, "/", platform.architecture);
  if (!platform.variant.empty()) absl::StrAppend(&out, "/", platform.variant);
  return out;
}

int PlatformDistance(const Platform& wanted, const Platform& offered) {
  const Platform want = Normalize(wanted);
  const Platform have = Normalize(offered);
  if (want.os != have.os || !SameOsVersion(want, have)) return -1;
  int worse = 0;
  for (const std::string& feature : have.os_features) {
    const auto& known = want.os_features;
    if (std::find(known.begin(), known.end(), feature) != known.end()) continue;
    if (!known.empty()) return -1;
    ++worse;
  }
  int limit = VariantRank(want.architecture, want.variant);
  if (want.architecture != have.architecture) {
    // What 64-bit processors also run, when there is nothing better.
    if (want.architecture == "amd64" && have.architecture == "386") {
      return worse + 20000;
    }
    if (want.architecture != "arm64" || have.architecture != "arm") return -1;
    worse += 20000;
    limit = 800;
  }
  if (want.architecture == have.architecture && want.variant == have.variant) {
    return worse;
  }
  const int rank = VariantRank(have.architecture, have.variant);
  if (rank < 0 || limit < 0 || rank > limit) return -1;
  return worse + limit - rank;
}

}  // namespace bulkhead::oci
