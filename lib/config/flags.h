// The flags that every process of the suite takes, and the configuration that
// they and the file make together.
#ifndef BULKHEAD_LIB_CONFIG_FLAGS_H_
#define BULKHEAD_LIB_CONFIG_FLAGS_H_

#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "lib/config/config.h"

namespace bulkhead::config {

// Read when --config is not given, if it is there.
inline constexpr char kDefaultPath[] = "/etc/bulkhead/config.toml";

struct Flags {
  std::string config;      // --config FILE
  std::string root;        // --root DIR
  std::string state;       // --state DIR
  std::string log_level;   // --log-level LEVEL
  std::string log_format;  // --log-format FORMAT
  bool help = false;       // --help, -h
  bool version = false;    // --version
};

// Parses argv[1] and on; "--name value" and "--name=value". `more` are further
// flags with a value and where it goes. Relative paths are taken from the
// working folder. kInvalidArgument names the flag that is wrong.
absl::StatusOr<Flags> ParseFlags(
    int argc, char** argv,
    const std::vector<std::pair<const char*, std::string*>>& more = {});

// The file, with the flags over it.
absl::StatusOr<Config> LoadWithFlags(const Flags& flags);

}  // namespace bulkhead::config

#endif  // BULKHEAD_LIB_CONFIG_FLAGS_H_
