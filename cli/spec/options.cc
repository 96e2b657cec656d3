#include "cli/spec/options.h"

#include <signal.h>

#include <cstdlib>
#include <limits>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "lib/base/status_macros.h"
#include "lib/os/fd.h"

namespace bulkhead::cli {
namespace {

absl::Status Bad(const std::string& what, const std::string& text,
                 const std::string& hint) {
  return absl::InvalidArgumentError(
      absl::StrCat("invalid ", what, " '", text, "': ", hint));
}

absl::Status CheckTarget(const std::string& what, const std::string& text,
                         const std::string& target) {
  if (target.empty() || target[0] != '/') {
    return Bad(what, text, "the path in the container must be absolute");
  }
  if (target == "/") return Bad(what, text, "cannot mount over '/'");
  return absl::OkStatus();
}

bool IsPropagation(const std::string& word) {
  return word == "rprivate" || word == "private" || word == "rshared" ||
         word == "shared" || word == "rslave" || word == "slave";
}

struct SignalName {
  const char* name;
  int number;
};
constexpr SignalName kSignals[] = {
    {"HUP", SIGHUP},       {"INT", SIGINT},       {"QUIT", SIGQUIT},
    {"ILL", SIGILL},       {"TRAP", SIGTRAP},     {"ABRT", SIGABRT},
    {"BUS", SIGBUS},       {"FPE", SIGFPE},       {"KILL", SIGKILL},
    {"USR1", SIGUSR1},     {"SEGV", SIGSEGV},     {"USR2", SIGUSR2},
    {"PIPE", SIGPIPE},     {"ALRM", SIGALRM},     {"TERM", SIGTERM},
    {"STKFLT", SIGSTKFLT}, {"CHLD", SIGCHLD},     {"CONT", SIGCONT},
    {"STOP", SIGSTOP},     {"TSTP", SIGTSTP},     {"TTIN", SIGTTIN},
    {"TTOU", SIGTTOU},     {"URG", SIGURG},       {"XCPU", SIGXCPU},
    {"XFSZ", SIGXFSZ},     {"VTALRM", SIGVTALRM}, {"PROF", SIGPROF},
    {"WINCH", SIGWINCH},   {"IO", SIGIO},         {"PWR", SIGPWR},
    {"SYS", SIGSYS}};
constexpr int kRealTimeMin = 34;  // As C libraries number them.
constexpr int kSignalMax = 64;
constexpr size_t kVolumeNameBytesMax = 128;

constexpr const char* kUlimits[] = {
    "core",     "cpu",        "data",   "fsize", "locks", "memlock",
    "msgqueue", "nice",       "nofile", "nproc", "rss",   "rtprio",
    "rttime",   "sigpending", "stack",  "as"};

}  // namespace

absl::StatusOr<int64_t> ParseBytes(const std::string& text) {
  std::string word = absl::AsciiStrToLower(text);
  if (absl::EndsWith(word, "ib"))
    word.resize(word.size() - 2);
  else if (absl::EndsWith(word, "b"))
    word.resize(word.size() - 1);
  double unit = 1;
  if (!word.empty()) {
    const char last = word.back();
    const size_t power = std::string("kmgtp").find(last);
    if (power != std::string::npos) {
      for (size_t i = 0; i <= power; ++i) unit *= 1024;
      word.pop_back();
    }
  }
  double value = 0;
  if (!absl::SimpleAtod(word, &value) || !(value >= 0) ||
      value * unit > 9.0e18) {
    return Bad("size", text, "a number with b, k, m or g, such as 512m");
  }
  return static_cast<int64_t>(value * unit);
}

absl::Status ValidateVolumeName(const std::string& name) {
  const auto is_alnum = [](char c) { return absl::ascii_isalnum(c); };
  bool good = name.size() >= 2 && name.size() <= kVolumeNameBytesMax &&
              is_alnum(name[0]);
  for (const char c : name) {
    good &= is_alnum(c) || c == '_' || c == '.' || c == '-';
  }
  if (good) return absl::OkStatus();
  return Bad("volume name", name,
             "letters, digits, '_', '.' and '-', at least two (a host folder "
             "begins with '/')");
}

absl::StatusOr<MountSpec> ParseVolume(const std::string& text) {
  std::vector<std::string> parts = absl::StrSplit(text, ':');
  if (parts.size() == 1) parts.insert(parts.begin(), "");  // Anonymous.
  if (parts.size() > 3) return Bad("volume", text, "too many ':'");
  const bool is_volume = parts[0].empty() || parts[0][0] != '/';
  if (is_volume && parts[0].empty() && text[0] == ':') {
    return Bad("volume", text, "the source is missing");
  }
  if (is_volume && !parts[0].empty()) {
    RETURN_IF_ERROR(ValidateVolumeName(parts[0]));
  }
  RETURN_IF_ERROR(CheckTarget("volume", text, parts[1]));
  MountSpec mount{
      is_volume ? "volume" : "bind", parts[0], parts[1], {"rbind"}, true};
  std::string propagation = "rprivate";
  bool read_only = false;
  if (parts.size() == 3) {
    for (const std::string& word :
         std::vector<std::string>(absl::StrSplit(parts[2], ','))) {
      if (word == "ro" || word == "readonly") {
        read_only = true;
      } else if (IsPropagation(word)) {
        propagation = word;
      } else if (word != "rw" && word != "z" && word != "Z" && !word.empty()) {
        return Bad("volume", text, "unknown option '" + word + "'");
      }
    }
  }
  mount.options.push_back(read_only ? "ro" : "rw");
  mount.options.push_back(propagation);
  return mount;
}

absl::StatusOr<MountSpec> ParseMount(const std::string& text) {
  MountSpec mount;
  mount.type = "volume";  // Docker's default.
  std::string propagation = "rprivate";
  std::string size;
  std::string mode;
  bool read_only = false;
  for (const std::string& field :
       std::vector<std::string>(absl::StrSplit(text, ','))) {
    const auto [key, value] = SplitPair(field);
    if (key == "type") {
      mount.type = value;
    } else if (key == "source" || key == "src") {
      mount.source = value;
    } else if (key == "target" || key == "dst" || key == "destination") {
      mount.target = value;
    } else if (key == "readonly" || key == "ro") {
      read_only = value.empty() || value == "true" || value == "1";
    } else if (key == "bind-propagation") {
      if (!IsPropagation(value)) {
        return Bad("mount", text, "unknown bind-propagation '" + value + "'");
      }
      propagation = value;
    } else if (key == "tmpfs-size") {
      ASSIGN_OR_RETURN(const int64_t bytes, ParseBytes(value));
      size = absl::StrCat("size=", bytes);
    } else if (key == "tmpfs-mode") {
      mode = absl::StrCat("mode=", value);
    } else {
      return Bad("mount", text, "unknown key '" + key + "'");
    }
  }
  RETURN_IF_ERROR(CheckTarget("mount", text, mount.target));
  if (mount.type == "bind") {
    if (mount.source.empty() || mount.source[0] != '/') {
      return Bad("mount", text, "bind needs an absolute source");
    }
    mount.options = {"rbind", read_only ? "ro" : "rw", propagation};
  } else if (mount.type == "tmpfs") {
    if (!mount.source.empty()) {
      return Bad("mount", text, "tmpfs takes no source");
    }
    mount.source = "tmpfs";
    mount.options = {"nosuid", "nodev", "noexec"};
    if (read_only) mount.options.push_back("ro");
    if (!size.empty()) mount.options.push_back(size);
    if (!mode.empty()) mount.options.push_back(mode);
  } else if (mount.type == "volume") {
    if (!mount.source.empty()) {
      RETURN_IF_ERROR(ValidateVolumeName(mount.source));
    }
    mount.options = {"rbind", read_only ? "ro" : "rw", propagation};
  } else {
    return Bad("mount", text, "unknown type '" + mount.type + "'");
  }
  return mount;
}

absl::StatusOr<MountSpec> ParseTmpfs(const std::string& text) {
  const size_t colon = text.find(':');
  MountSpec mount{"tmpfs",
                  "tmpfs",
                  text.substr(0, colon),
                  {"nosuid", "nodev", "noexec"},
                  false};
  RETURN_IF_ERROR(CheckTarget("tmpfs", text, mount.target));
  if (colon != std::string::npos) {
    for (const std::string& word : std::vector<std::string>(
             absl::StrSplit(text.substr(colon + 1), ',', absl::SkipEmpty()))) {
      mount.options.push_back(word);
    }
  }
  return mount;
}

absl::StatusOr<DeviceSpec> ParseDevice(const std::string& text) {
  const std::vector<std::string> parts = absl::StrSplit(text, ':');
  const auto is_access = [](const std::string& word) {
    return !word.empty() && word.find_first_not_of("rwm") == std::string::npos;
  };
  DeviceSpec device;
  device.host_path = parts[0];
  device.container_path = parts[0];
  if (parts.size() == 2 && is_access(parts[1])) {
    device.access = parts[1];
  } else if (parts.size() >= 2) {
    device.container_path = parts[1];
  }
  if (parts.size() == 3) device.access = parts[2];
  if (parts.size() > 3 || !absl::StartsWith(device.host_path, "/") ||
      !absl::StartsWith(device.container_path, "/") ||
      !is_access(device.access)) {
    return Bad("device", text, "/dev/x[:/dev/y][:rwm]");
  }
  return device;
}

absl::StatusOr<UlimitSpec> ParseUlimit(const std::string& text) {
  const auto [name, values] = SplitPair(text);
  UlimitSpec limit;
  for (const char* known : kUlimits) {
    if (name == known) {
      limit.type = "RLIMIT_" + absl::AsciiStrToUpper(name);
    }
  }
  if (limit.type.empty()) return Bad("ulimit", text, "unknown name " + name);
  const std::vector<std::string> parts = absl::StrSplit(values, ':');
  const auto parse = [](const std::string& word, uint64_t* value) {
    if (word == "-1" || word == "unlimited") {
      *value = std::numeric_limits<uint64_t>::max();
      return true;
    }
    return absl::SimpleAtoi(word, value);
  };
  if (parts.size() > 2 || !parse(parts[0], &limit.soft) ||
      !parse(parts.back(), &limit.hard)) {
    return Bad("ulimit", text, "name=soft[:hard]");
  }
  if (limit.soft > limit.hard) {
    return Bad("ulimit", text, "the soft limit is above the hard one");
  }
  return limit;
}

std::pair<std::string, std::string> SplitPair(const std::string& text) {
  const size_t equals = text.find('=');
  if (equals == std::string::npos) return {text, ""};
  return {text.substr(0, equals), text.substr(equals + 1)};
}

absl::StatusOr<std::vector<std::string>> ParseEnvFile(
    const std::string& content,
    const std::map<std::string, std::string>& lookup) {
  std::vector<std::string> env;
  int number = 0;
  for (const std::string& raw :
       std::vector<std::string>(absl::StrSplit(content, '\n'))) {
    ++number;
    std::string line(absl::StripLeadingAsciiWhitespace(raw));
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (line.empty() || line[0] == '#') continue;
    const size_t equals = line.find('=');
    const std::string key = line.substr(0, equals);
    if (key.empty() || key.find_first_of(" \t") != std::string::npos) {
      return absl::InvalidArgumentError(
          absl::StrCat("line ", number, ": bad variable name '", key, "'"));
    }
    if (equals != std::string::npos) {
      env.push_back(line);
    } else if (const auto found = lookup.find(key); found != lookup.end()) {
      env.push_back(key + "=" + found->second);
    }
  }
  return env;
}

absl::StatusOr<std::vector<std::string>> ReadEnvFile(const std::string& path) {
  absl::StatusOr<std::string> content = os::ReadFile(path, kEnvFileBytesMax);
  if (!content.ok()) return Annotate(content.status(), "--env-file");
  std::map<std::string, std::string> lookup;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    lookup.insert(SplitPair(*entry));
  }
  absl::StatusOr<std::vector<std::string>> env = ParseEnvFile(*content, lookup);
  if (!env.ok()) return Annotate(env.status(), path);
  return env;
}

absl::StatusOr<std::string> ResolveEnv(const std::string& text) {
  if (text.empty() || text[0] == '=') {
    return Bad("environment variable", text, "KEY=VALUE or KEY");
  }
  if (text.find('=') != std::string::npos) return text;
  const char* value = std::getenv(text.c_str());
  return value == nullptr ? std::string() : text + "=" + value;
}

std::vector<std::string> MergeEnv(const std::vector<std::string>& base,
                                  const std::vector<std::string>& over) {
  std::vector<std::string> merged = base;
  for (const std::string& entry : over) {
    const std::string key = SplitPair(entry).first;
    bool replaced = false;
    for (std::string& known : merged) {
      if (SplitPair(known).first != key) continue;
      known = entry;
      replaced = true;
      break;
    }
    if (!replaced) merged.push_back(entry);
  }
  return merged;
}

absl::StatusOr<int> ParseSignal(const std::string& text) {
  int number = 0;
  if (absl::SimpleAtoi(text, &number)) {
    if (number >= 1 && number <= kSignalMax) return number;
    return Bad("signal", text, "1 to 64");
  }
  std::string name = absl::AsciiStrToUpper(text);
  if (absl::StartsWith(name, "SIG")) name = name.substr(3);
  for (const SignalName& known : kSignals) {
    if (name == known.name) return known.number;
  }
  if (name == "RTMIN") return kRealTimeMin;
  if (name == "RTMAX") return kSignalMax;
  if (absl::StartsWith(name, "RTMIN+") &&
      absl::SimpleAtoi(name.substr(6), &number) && number >= 0 &&
      kRealTimeMin + number <= kSignalMax) {
    return kRealTimeMin + number;
  }
  if (absl::StartsWith(name, "RTMAX-") &&
      absl::SimpleAtoi(name.substr(6), &number) && number >= 0 &&
      kSignalMax - number >= kRealTimeMin) {
    return kSignalMax - number;
  }
  return Bad("signal", text, "a name such as TERM, or a number");
}

const std::vector<std::string>& AllCapabilities() {
  static const auto* all =
      new std::vector<std::string>{"CAP_CHOWN",
                                   "CAP_DAC_OVERRIDE",
                                   "CAP_DAC_READ_SEARCH",
                                   "CAP_FOWNER",
                                   "CAP_FSETID",
                                   "CAP_KILL",
                                   "CAP_SETGID",
                                   "CAP_SETUID",
                                   "CAP_SETPCAP",
                                   "CAP_LINUX_IMMUTABLE",
                                   "CAP_NET_BIND_SERVICE",
                                   "CAP_NET_BROADCAST",
                                   "CAP_NET_ADMIN",
                                   "CAP_NET_RAW",
                                   "CAP_IPC_LOCK",
                                   "CAP_IPC_OWNER",
                                   "CAP_SYS_MODULE",
                                   "CAP_SYS_RAWIO",
                                   "CAP_SYS_CHROOT",
                                   "CAP_SYS_PTRACE",
                                   "CAP_SYS_PACCT",
                                   "CAP_SYS_ADMIN",
                                   "CAP_SYS_BOOT",
                                   "CAP_SYS_NICE",
                                   "CAP_SYS_RESOURCE",
                                   "CAP_SYS_TIME",
                                   "CAP_SYS_TTY_CONFIG",
                                   "CAP_MKNOD",
                                   "CAP_LEASE",
                                   "CAP_AUDIT_WRITE",
                                   "CAP_AUDIT_CONTROL",
                                   "CAP_SETFCAP",
                                   "CAP_MAC_OVERRIDE",
                                   "CAP_MAC_ADMIN",
                                   "CAP_SYSLOG",
                                   "CAP_WAKE_ALARM",
                                   "CAP_BLOCK_SUSPEND",
                                   "CAP_AUDIT_READ",
                                   "CAP_PERFMON",
                                   "CAP_BPF",
                                   "CAP_CHECKPOINT_RESTORE"};
  return *all;
}

absl::StatusOr<std::string> ParseCapability(const std::string& text) {
  std::string name = absl::AsciiStrToUpper(text);
  if (name == "ALL") return name;
  if (!absl::StartsWith(name, "CAP_")) name = "CAP_" + name;
  for (const std::string& known : AllCapabilities()) {
    if (name == known) return name;
  }
  return Bad("capability", text, "unknown; see capabilities(7)");
}

std::vector<std::string> SplitWords(const std::string& text) {
  std::vector<std::string> words;
  std::string word;
  bool started = false;
  char quote = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (quote != 0) {
      if (c == quote) {
        quote = 0;
      } else {
        word += c;
      }
    } else if (c == '\'' || c == '"') {
      quote = c;
      started = true;
    } else if (c == ' ' || c == '\t') {
      if (started) words.push_back(word);
      word.clear();
      started = false;
    } else {
      if (c == '\\' && i + 1 < text.size()) ++i;
      word += text[i];
      started = true;
    }
  }
  if (started) words.push_back(word);
  return words;
}

absl::StatusOr<absl::Time> ParseWhen(const std::string& text, absl::Time now) {
  double seconds = 0;
  if (absl::SimpleAtod(text, &seconds)) {
    return absl::UnixEpoch() + absl::Seconds(seconds);
  }
  absl::Duration ago;
  if (absl::ParseDuration(text, &ago)) return now - ago;
  absl::Time when;
  for (const char* format : {absl::RFC3339_full, "%Y-%m-%dT%H:%M:%E*S",
                             "%Y-%m-%dT%H:%M", "%Y-%m-%d"}) {
    if (absl::ParseTime(format, text, absl::LocalTimeZone(), &when, nullptr)) {
      return when;
    }
  }
  return Bad("time", text, "10m, 1700000000 or 2030-01-31T12:00:00Z");
}

}  // namespace bulkhead::cli
