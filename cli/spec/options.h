// Parsing of what people write after `run` flags. Pure, apart from ReadEnvFile.
#ifndef BULKHEAD_CLI_SPEC_OPTIONS_H_
#define BULKHEAD_CLI_SPEC_OPTIONS_H_

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace bulkhead::cli {

constexpr size_t kEnvFileBytesMax = 1 << 20;

// "512", "64k", "1.5g", "10MiB" (powers of 1024). kInvalidArgument.
absl::StatusOr<int64_t> ParseBytes(const std::string& text);

struct MountSpec {
  std::string type;    // "bind", "tmpfs" or "volume".
  std::string source;  // Absolute, for bind; a name or "", for volume.
  std::string target;  // Absolute.
  std::vector<std::string> options;
  bool make_source = false;  // -v makes a missing folder; --mount does not.
};

// "/host:/in[:ro|rw|z|Z|rprivate|rshared|rslave]"; "name:/in" for a volume,
// "/in" for an anonymous one.
absl::StatusOr<MountSpec> ParseVolume(const std::string& text);
// "type=bind,src=/a,dst=/b,readonly", "type=tmpfs,dst=/b,tmpfs-size=1m" and
// "type=volume,src=name,dst=/b".
absl::StatusOr<MountSpec> ParseMount(const std::string& text);
// Letters, digits, '_', '.' and '-', at least two. kInvalidArgument.
absl::Status ValidateVolumeName(const std::string& name);
// "/path[:options]".
absl::StatusOr<MountSpec> ParseTmpfs(const std::string& text);

struct DeviceSpec {
  std::string host_path;
  std::string container_path;
  std::string access = "rwm";
};
// "/dev/x[:/dev/y][:rwm]".
absl::StatusOr<DeviceSpec> ParseDevice(const std::string& text);

struct UlimitSpec {
  std::string type;  // "RLIMIT_NOFILE".
  uint64_t soft = 0;
  uint64_t hard = 0;
};
// "nofile=1024[:2048]"; -1 is no limit.
absl::StatusOr<UlimitSpec> ParseUlimit(const std::string& text);

// KEY=VALUE lines; '#' starts a comment, KEY alone takes the value from
// `lookup` (skipped if it has none).
absl::StatusOr<std::vector<std::string>> ParseEnvFile(
    const std::string& content,
    const std::map<std::string, std::string>& lookup);
absl::StatusOr<std::vector<std::string>> ReadEnvFile(const std::string& path);
// "KEY=VALUE", or "KEY" with this process's value; empty: it has none.
absl::StatusOr<std::string> ResolveEnv(const std::string& text);
// `base` with the entries of `over` replacing those of the same key.
std::vector<std::string> MergeEnv(const std::vector<std::string>& base,
                                  const std::vector<std::string>& over);

// "KEY=VALUE" or "KEY" (empty value).
std::pair<std::string, std::string> SplitPair(const std::string& text);

// "TERM", "SIGTERM", "15", "RTMIN+3". kInvalidArgument.
absl::StatusOr<int> ParseSignal(const std::string& text);

// "CAP_NET_ADMIN" for "net_admin"; "ALL" stays. kInvalidArgument if unknown.
absl::StatusOr<std::string> ParseCapability(const std::string& text);
// All that this code knows, by number.
const std::vector<std::string>& AllCapabilities();

// Words of a shell-like string ("sh -c 'a b'"), for --entrypoint.
std::vector<std::string> SplitWords(const std::string& text);

// Docker's --since/--until: RFC 3339, a Unix time, or "10m" ago.
absl::StatusOr<absl::Time> ParseWhen(const std::string& text, absl::Time now);

}  // namespace bulkhead::cli

#endif  // BULKHEAD_CLI_SPEC_OPTIONS_H_
