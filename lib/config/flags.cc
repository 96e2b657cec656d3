#include "lib/config/flags.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"

namespace bulkhead::config {
namespace {

void MakeAbsolute(std::string* path) {
  if (path->empty() || (*path)[0] == '/') return;
  char* here = ::getcwd(nullptr, 0);
  if (here == nullptr) return;
  *path = absl::StrCat(here, "/", *path);
  std::free(here);
}

}  // namespace

absl::StatusOr<Flags> ParseFlags(
    int argc, char** argv,
    const std::vector<std::pair<const char*, std::string*>>& more) {
  Flags flags;
  std::vector<std::pair<const char*, std::string*>> values = {
      {"--config", &flags.config},
      {"--root", &flags.root},
      {"--state", &flags.state},
      {"--log-level", &flags.log_level},
      {"--log-format", &flags.log_format}};
  values.insert(values.end(), more.begin(), more.end());
  for (int i = 1; i < argc; ++i) {
    std::string name = argv[i];
    if (name == "--help" || name == "-h") {
      flags.help = true;
      continue;
    }
    if (name == "--version") {
      flags.version = true;
      continue;
    }
    std::string value;
    const size_t equals = name.find('=');
    const bool has_value = equals != std::string::npos;
    if (has_value) {
      value = name.substr(equals + 1);
      name.resize(equals);
    }
    const auto found = std::find_if(
        values.begin(), values.end(),
        [&](const auto& candidate) { return name == candidate.first; });
    if (found == values.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat("unknown flag '", name, "'; see --help"));
    }
    if (!has_value) {
      if (i + 1 >= argc) {
        return absl::InvalidArgumentError(
            absl::StrCat("flag '", name, "' needs a value"));
      }
      value = argv[++i];
    }
    *found->second = value;
  }
  for (std::string* path : {&flags.config, &flags.root, &flags.state}) {
    MakeAbsolute(path);
  }
  return flags;
}

absl::StatusOr<Config> LoadWithFlags(const Flags& flags) {
  Config config;
  if (!flags.config.empty()) {
    ASSIGN_OR_RETURN(config, Load(flags.config));
  } else if (::access(kDefaultPath, F_OK) == 0) {
    ASSIGN_OR_RETURN(config, Load(kDefaultPath));
  }
  // Words are checked by the parser of the file.
  if (!flags.log_level.empty()) {
    ASSIGN_OR_RETURN(const Config parsed,
                     Parse(absl::StrCat("log.level = '", flags.log_level, "'"),
                           "--log-level"));
    config.log.level = parsed.log.level;
  }
  if (!flags.log_format.empty()) {
    ASSIGN_OR_RETURN(
        const Config parsed,
        Parse(absl::StrCat("log.format = '", flags.log_format, "'"),
              "--log-format"));
    config.log.format = parsed.log.format;
  }
  if (!flags.root.empty()) config.root = flags.root;
  if (!flags.state.empty()) config.state = flags.state;
  return config;
}

}  // namespace bulkhead::config
