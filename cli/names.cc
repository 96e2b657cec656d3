#include "cli/names.h"

#include <sys/random.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace bulkhead::cli {
namespace {

constexpr const char* kAdjectives[] = {
    "able",   "amber",   "ample",    "apt",    "bold",     "bonny",
    "brave",  "breezy",  "bright",   "brisk",  "calm",     "candid",
    "cheery", "clear",   "clever",   "coral",  "cosy",     "crisp",
    "daring", "deep",    "deft",     "eager",  "early",    "earnest",
    "easy",   "fair",    "faithful", "fleet",  "fond",     "frank",
    "fresh",  "gentle",  "glad",     "golden", "grand",    "hardy",
    "hearty", "honest",  "humble",   "jaunty", "jolly",    "keen",
    "kind",   "lively",  "loyal",    "lucid",  "lucky",    "mellow",
    "merry",  "mighty",  "mild",     "modest", "neat",     "nimble",
    "noble",  "patient", "placid",   "plucky", "polite",   "prompt",
    "proud",  "quick",   "quiet",    "rapid",  "ready",    "sage",
    "salty",  "sane",    "serene",   "sharp",  "silver",   "smart",
    "snug",   "sober",   "solid",    "sound",  "spry",     "staunch",
    "steady", "stout",   "sunny",    "swift",  "tidy",     "tranquil",
    "trusty", "upbeat",  "vivid",    "warm",   "watchful", "windy",
    "wise",   "witty",   "zesty"};

constexpr const char* kNouns[] = {
    "albatross", "anchor",  "barge",    "barque",    "beacon",   "bosun",
    "bowsprit",  "brig",    "buoy",     "capstan",   "catboat",  "clipper",
    "cod",       "compass", "coracle",  "cormorant", "crab",     "current",
    "cutter",    "dhow",    "dinghy",   "dolphin",   "dory",     "eddy",
    "ferry",     "fjord",   "frigate",  "galley",    "gannet",   "gull",
    "halyard",   "harbour", "helm",     "herring",   "hull",     "islet",
    "jetty",     "jib",     "keel",     "kelp",      "ketch",    "lagoon",
    "lantern",   "lighter", "lobster",  "lugger",    "mackerel", "manatee",
    "mast",      "mizzen",  "mooring",  "narwhal",   "nautilus", "oar",
    "octopus",   "orca",    "osprey",   "otter",     "pelican",  "petrel",
    "pier",      "pilot",   "porpoise", "puffin",    "quay",     "reef",
    "rudder",    "salmon",  "schooner", "seal",      "sextant",  "shoal",
    "skiff",     "sloop",   "spar",     "spinnaker", "sprat",    "squid",
    "starfish",  "strait",  "tern",     "tide",      "tiller",   "trawler",
    "tug",       "turtle",  "walrus",   "wave",      "wharf",    "yawl"};

void RandomBytes(void* data, size_t size_bytes) {
  char* at = static_cast<char*>(data);
  while (size_bytes > 0) {
    const ssize_t got = ::getrandom(at, size_bytes, 0);
    if (got <= 0) continue;  // Only EINTR is possible for so few bytes.
    at += got;
    size_bytes -= static_cast<size_t>(got);
  }
}

bool IsAlnum(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
         (c >= '0' && c <= '9');
}

}  // namespace

std::string NewId() {
  for (;;) {
    uint8_t bytes[kIdHexDigits / 2];
    RandomBytes(bytes, sizeof(bytes));
    std::string id;
    for (const uint8_t byte : bytes) {
      id += "0123456789abcdef"[byte >> 4];
      id += "0123456789abcdef"[byte & 15];
    }
    const std::string head = id.substr(0, kShortIdHexDigits);
    if (head.find_first_of("abcdef") != std::string::npos) return id;
  }
}

std::string RandomName() {
  uint32_t pick[2];
  RandomBytes(pick, sizeof(pick));
  return absl::StrCat(kAdjectives[pick[0] % std::size(kAdjectives)], "_",
                      kNouns[pick[1] % std::size(kNouns)]);
}

std::string ShortId(const std::string& id) {
  const bool hex =
      id.size() == kIdHexDigits &&
      id.find_first_not_of("0123456789abcdef") == std::string::npos;
  return hex ? id.substr(0, kShortIdHexDigits) : id;
}

absl::Status ValidateName(const std::string& name) {
  const bool valid = !name.empty() && name.size() <= kNameBytesMax &&
                     IsAlnum(name[0]) &&
                     std::all_of(name.begin(), name.end(), [](char c) {
                       return IsAlnum(c) || c == '_' || c == '.' || c == '-';
                     });
  if (valid) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("invalid container name '", name,
                   "': letters, digits, '_', '.' and '-' only, the first a "
                   "letter or digit"));
}

}  // namespace bulkhead::cli
