#include "cli/credentials.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/os/fd.h"

namespace bulkhead::cli {
namespace {

using ::nlohmann::json;

constexpr char kDockerHost[] = "docker.io";
constexpr char kDockerAuthKey[] = "https://index.docker.io/v1/";
constexpr size_t kDockerConfigBytesMax = 1 << 20;
constexpr size_t kHelperAnswerBytesMax = 1 << 20;

std::string TextOf(const json& object, const std::string& key) {
  return object.is_object() && object.contains(key) && object[key].is_string()
             ? object[key].get<std::string>()
             : std::string();
}

// What a new entry is filed under.
std::string KeyOf(const std::string& host) {
  return host == kDockerHost ? kDockerAuthKey : host;
}

// What other clients may have filed it under.
std::vector<std::string> KeysOf(const std::string& host) {
  std::vector<std::string> keys = {host, "https://" + host, "http://" + host,
                                   "https://" + host + "/v1/",
                                   "https://" + host + "/v2/"};
  if (host == kDockerHost) keys.insert(keys.begin(), kDockerAuthKey);
  return keys;
}

// An object, empty if there is no file. kFailedPrecondition: not JSON.
absl::StatusOr<json> ReadConfig(const std::string& path) {
  if (path.empty()) return json::object();
  const absl::StatusOr<std::string> text =
      os::ReadFile(path, kDockerConfigBytesMax);
  if (absl::IsNotFound(text.status())) return json::object();
  if (!text.ok()) return text.status();
  if (absl::StripAsciiWhitespace(*text).empty()) return json::object();
  json config = json::parse(*text, nullptr, false);
  if (!config.is_object()) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, " is not a JSON object — repair or remove it"));
  }
  return config;
}

absl::Status WriteConfig(const std::string& path, const json& config) {
  if (path.empty()) {
    return absl::FailedPreconditionError(
        "neither $DOCKER_CONFIG nor $HOME is set");
  }
  RETURN_IF_ERROR(os::MakeDirs(path.substr(0, path.rfind('/')), 0700));
  return os::WriteFileAtomic(
      path, config.dump(4, ' ', false, json::error_handler_t::replace) + "\n",
      0600);
}

struct HelperAnswer {
  int exit_code = 0;
  std::string out;
};

// Runs docker-credential-<name> <verb> with `input`. What it prints on stderr
// goes to ours.
absl::StatusOr<HelperAnswer> RunHelper(const std::string& name,
                                       const std::string& verb,
                                       const std::string& input) {
  if (name.find('/') != std::string::npos) {
    return absl::FailedPreconditionError(
        absl::StrCat("credential helper '", name, "' has a slash in its name"));
  }
  std::string program = "docker-credential-" + name;
  int in[2];
  int out[2];
  if (::pipe2(in, O_CLOEXEC) != 0) return os::ErrnoStatus(errno, "pipe");
  os::UniqueFd in_read(in[0]);
  os::UniqueFd in_write(in[1]);
  if (::pipe2(out, O_CLOEXEC) != 0) return os::ErrnoStatus(errno, "pipe");
  os::UniqueFd out_read(out[0]);
  os::UniqueFd out_write(out[1]);
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_adddup2(&actions, in_read.get(), STDIN_FILENO);
  ::posix_spawn_file_actions_adddup2(&actions, out_write.get(), STDOUT_FILENO);
  std::string word = verb;
  char* argv[] = {program.data(), word.data(), nullptr};
  pid_t pid = 0;
  const int error =
      ::posix_spawnp(&pid, program.c_str(), &actions, nullptr, argv, environ);
  ::posix_spawn_file_actions_destroy(&actions);
  if (error != 0) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the credential helper ", program,
        " cannot be run: ", MessageOf(os::ErrnoStatus(error, "spawn")),
        " — install it, or remove it from config.json"));
  }
  in_read.Reset();
  out_write.Reset();
  // One that ends without reading is judged by its exit code.
  struct sigaction ignore {};
  struct sigaction before {};
  ignore.sa_handler = SIG_IGN;
  ::sigaction(SIGPIPE, &ignore, &before);
  (void)os::WriteFull(in_write.get(), input.data(), input.size());
  ::sigaction(SIGPIPE, &before, nullptr);
  in_write.Reset();
  HelperAnswer answer;
  answer.out.resize(kHelperAnswerBytesMax);
  const absl::StatusOr<size_t> got =
      os::ReadFull(out_read.get(), answer.out.data(), answer.out.size());
  out_read.Reset();
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (!got.ok()) return got.status();
  answer.out.resize(*got);
  answer.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128;
  return answer;
}

absl::StatusOr<Credentials> AskHelper(const std::string& helper,
                                      const std::string& host) {
  ASSIGN_OR_RETURN(const HelperAnswer answer,
                   RunHelper(helper, "get", KeyOf(host)));
  if (answer.exit_code != 0) {
    if (absl::StrContains(answer.out, "not found")) return Credentials();
    return absl::FailedPreconditionError(absl::StrCat(
        "docker-credential-", helper, " failed for ", host, ": ",
        std::string(absl::StripAsciiWhitespace(answer.out)).substr(0, 200)));
  }
  const json found = json::parse(answer.out, nullptr, false);
  if (!found.is_object()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "docker-credential-", helper, " answered something else than JSON"));
  }
  return Credentials{TextOf(found, "Username"), TextOf(found, "Secret")};
}

}  // namespace

std::string DockerConfigPath() {
  const char* folder = std::getenv("DOCKER_CONFIG");
  if (folder != nullptr && *folder != '\0') {
    return std::string(folder) + "/config.json";
  }
  const char* home = std::getenv("HOME");
  if (home != nullptr && *home != '\0') {
    return std::string(home) + "/.docker/config.json";
  }
  return "";
}

std::string RegistryHost(const std::string& text) {
  std::string host = text;
  for (const char* scheme : {"https://", "http://"}) {
    if (absl::StartsWith(host, scheme)) host = host.substr(strlen(scheme));
  }
  host = host.substr(0, host.find('/'));
  if (host.empty() || host == "index.docker.io" ||
      host == "registry-1.docker.io") {
    return kDockerHost;
  }
  return host;
}

Credentials CredentialsFrom(const std::string& config_json,
                            const std::string& host) {
  const json config = json::parse(config_json, nullptr, false);
  if (!config.is_object() || !config.contains("auths") ||
      !config["auths"].is_object()) {
    return {};
  }
  for (const std::string& key : KeysOf(host)) {
    if (!config["auths"].contains(key)) continue;
    const json& entry = config["auths"][key];
    if (!entry.is_object()) continue;
    const std::string token = TextOf(entry, "identitytoken");
    if (!token.empty()) return {kTokenUser, token};
    std::string pair;
    if (absl::Base64Unescape(TextOf(entry, "auth"), &pair)) {
      const size_t colon = pair.find(':');
      if (colon != std::string::npos) {
        return {pair.substr(0, colon), pair.substr(colon + 1)};
      }
    }
    if (!TextOf(entry, "password").empty()) {
      return {TextOf(entry, "username"), TextOf(entry, "password")};
    }
  }
  return {};
}

std::string HelperFor(const std::string& config_json, const std::string& host) {
  const json config = json::parse(config_json, nullptr, false);
  if (!config.is_object()) return "";
  if (config.contains("credHelpers") && config["credHelpers"].is_object()) {
    for (const std::string& key : KeysOf(host)) {
      const std::string helper = TextOf(config["credHelpers"], key);
      if (!helper.empty()) return helper;
    }
  }
  return TextOf(config, "credsStore");
}

bool MayHaveCredentials(const std::string& config_path) {
  const absl::StatusOr<json> config = ReadConfig(config_path);
  if (!config.ok()) return false;
  for (const char* key : {"auths", "credHelpers"}) {
    if (config->contains(key) && (*config)[key].is_object() &&
        !(*config)[key].empty()) {
      return true;
    }
  }
  return !TextOf(*config, "credsStore").empty();
}

absl::StatusOr<Credentials> FindCredentials(const std::string& config_path,
                                            const std::string& host) {
  ASSIGN_OR_RETURN(const json config, ReadConfig(config_path));
  const std::string text = config.dump();
  const std::string helper = HelperFor(text, host);
  if (!helper.empty()) {
    ASSIGN_OR_RETURN(Credentials found, AskHelper(helper, host));
    if (!found.empty()) {
      found.source = "docker-credential-" + helper;
      return found;
    }
  }
  Credentials found = CredentialsFrom(text, host);
  found.source = config_path;
  return found;
}

absl::StatusOr<std::string> SaveCredentials(const std::string& config_path,
                                            const std::string& host,
                                            const Credentials& credentials) {
  ASSIGN_OR_RETURN(json config, ReadConfig(config_path));
  const std::string helper = HelperFor(config.dump(), host);
  if (!config.contains("auths") || !config["auths"].is_object()) {
    config["auths"] = json::object();
  }
  json entry = json::object();
  std::string where = config_path;
  if (!helper.empty()) {
    const json input = {{"ServerURL", KeyOf(host)},
                        {"Username", credentials.user},
                        {"Secret", credentials.secret}};
    ASSIGN_OR_RETURN(const HelperAnswer answer,
                     RunHelper(helper, "store", input.dump()));
    if (answer.exit_code != 0) {
      return absl::FailedPreconditionError(
          absl::StrCat("docker-credential-", helper, " did not take it"));
    }
    where = "docker-credential-" + helper;
  } else if (credentials.user == kTokenUser) {
    entry["auth"] = absl::Base64Escape(absl::StrCat(kTokenUser, ":"));
    entry["identitytoken"] = credentials.secret;
  } else {
    entry["auth"] = absl::Base64Escape(
        absl::StrCat(credentials.user, ":", credentials.secret));
  }
  config["auths"][KeyOf(host)] = entry;
  RETURN_IF_ERROR(WriteConfig(config_path, config));
  return where;
}

absl::StatusOr<bool> EraseCredentials(const std::string& config_path,
                                      const std::string& host) {
  ASSIGN_OR_RETURN(json config, ReadConfig(config_path));
  bool erased = false;
  if (config.contains("auths") && config["auths"].is_object()) {
    for (const std::string& key : KeysOf(host)) {
      erased |= config["auths"].erase(key) > 0;
    }
  }
  const std::string helper = HelperFor(config.dump(), host);
  if (!helper.empty()) {
    ASSIGN_OR_RETURN(const HelperAnswer answer,
                     RunHelper(helper, "erase", KeyOf(host)));
    erased |= answer.exit_code == 0;
  }
  if (erased) RETURN_IF_ERROR(WriteConfig(config_path, config));
  return erased;
}

}  // namespace bulkhead::cli
