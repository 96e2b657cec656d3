#include "services/runtime/shim_binary.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <nlohmann/json.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "lib/base/status_macros.h"
#include "lib/log/log.h"
#include "proto/containerd/runtime/bootstrap/v1/bootstrap.pb.h"
#include "proto/containerd/task/v2/task.pb.h"
#include "services/runtime/process.h"

namespace bulkhead::runtime {
namespace {

namespace bootstrap_v1 = ::containerd::runtime::bootstrap::v1;
using Json = nlohmann::json;

constexpr absl::Duration kStartTimeout = absl::Seconds(60);
constexpr absl::Duration kInfoTimeout = absl::Seconds(10);
constexpr int kVersionMax = 3;
// New shims of others refuse longer folders for their sockets.
constexpr size_t kSocketDirBytesMax = 42;
constexpr char kOwnShim[] = "containerd-shim-bulkhead-";

std::string BaseName(const std::string& path) {
  return path.substr(path.rfind('/') + 1);
}

bool IsProgram(const std::string& path) {
  struct stat info;
  return ::stat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode) &&
         ::access(path.c_str(), X_OK) == 0;
}

absl::Status CheckBootstrap(const Bootstrap& bootstrap) {
  if (bootstrap.version > kVersionMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("unsupported shim version (", bootstrap.version, ")"));
  }
  const bool grpc = bootstrap.protocol == "grpc";
  if (grpc && bootstrap.version < kVersionMax) {
    return absl::UnimplementedError(absl::StrCat(
        "unsupported shim version (", bootstrap.version, ") for grpc"));
  }
  if (!grpc && bootstrap.protocol != "ttrpc") {
    return absl::UnimplementedError(
        absl::StrCat("unsupported shim protocol \"", bootstrap.protocol, "\""));
  }
  if (bootstrap.address.empty()) {
    return absl::InvalidArgumentError("the shim gave no address");
  }
  return absl::OkStatus();
}

bool PrefersLegacy(const std::string& binary) {
  return IsRuncShim(binary) ||
         absl::StrContains(BaseName(binary), "shim-runhcs-v1");
}

}  // namespace

bool IsRuncShim(const std::string& binary) {
  return absl::StrContains(BaseName(binary), "containerd-shim-runc-v");
}

bool IsOwnShim(const std::string& binary) {
  return absl::StartsWith(BaseName(binary), kOwnShim);
}

std::string ToJson(const Bootstrap& bootstrap) {
  return Json{{"version", bootstrap.version},
              {"address", bootstrap.address},
              {"protocol", bootstrap.protocol}}
      .dump(-1, ' ', false, Json::error_handler_t::replace);
}

absl::StatusOr<Bootstrap> BootstrapFromJson(const std::string& json) {
  const Json parsed = Json::parse(json, nullptr, false);
  if (!parsed.is_object()) {
    return absl::InvalidArgumentError("not a JSON object");
  }
  Bootstrap out;
  for (const auto& [key, value] : parsed.items()) {
    if (key == "version" && value.is_number_integer()) {
      out.version = value.get<int>();
    } else if (key == "address" && value.is_string()) {
      out.address = value.get<std::string>();
    } else if (key == "protocol" && value.is_string()) {
      out.protocol = value.get<std::string>();
    }
  }
  RETURN_IF_ERROR(CheckBootstrap(out));
  return out;
}

absl::StatusOr<Bootstrap> ParseBootstrap(const std::string& output) {
  bootstrap_v1::BootstrapResult result;
  if (!output.empty() && result.ParseFromString(output) &&
      !result.address().empty() && !result.protocol().empty() &&
      result.version() > 0) {
    Bootstrap out{result.version(), result.address(), result.protocol()};
    RETURN_IF_ERROR(CheckBootstrap(out));
    return out;
  }
  const std::string text(absl::StripAsciiWhitespace(output));
  if (absl::StartsWith(text, "{")) return BootstrapFromJson(text);
  Bootstrap out{2, text, "ttrpc"};
  RETURN_IF_ERROR(CheckBootstrap(out));
  return out;
}

absl::StatusOr<std::string> ShimBinaries::Resolve(
    const std::string& runtime) const {
  if (absl::StartsWith(runtime, "/")) {
    if (IsProgram(runtime)) return runtime;
    return absl::NotFoundError(
        absl::StrCat("runtime \"", runtime, "\" binary not installed \"",
                     runtime, "\": file does not exist"));
  }
  const std::vector<std::string> parts = absl::StrSplit(runtime, '.');
  if (absl::StrContains(runtime, "/") || parts.size() < 2 || parts[0].empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("invalid runtime name ", runtime,
                     ", correct runtime name should be either format like "
                     "`io.containerd.runc.v2` or a full path to the binary"));
  }
  const std::string name = absl::StrCat(
      "containerd-shim-", parts[parts.size() - 2], "-", parts.back());
  std::vector<std::string> folders = environment_.search_paths;
  const size_t slash = environment_.own_binary.rfind('/');
  if (slash != std::string::npos) {
    folders.push_back(environment_.own_binary.substr(0, slash));
  }
  const char* path = std::getenv("PATH");
  for (auto part : absl::StrSplit(path == nullptr ? "" : path, ':')) {
    folders.emplace_back(part);
  }
  for (const std::string& folder : folders) {
    const std::string candidate = absl::StrCat(folder, "/", name);
    if (absl::StartsWith(folder, "/") && IsProgram(candidate)) {
      return candidate;
    }
  }
  return absl::NotFoundError(absl::StrCat("runtime \"", runtime,
                                          "\" binary not installed \"", name,
                                          "\": file does not exist"));
}

std::vector<std::string> ShimBinaries::Arguments(
    const ShimCommand& command) const {
  std::vector<std::string> out = {command.binary,
                                  "-namespace",
                                  command.ns,
                                  "-address",
                                  environment_.grpc_address,
                                  "-publish-binary",
                                  environment_.own_binary,
                                  "-id",
                                  command.id};
  if (environment_.debug) out.push_back("-debug");
  return out;
}

std::vector<std::string> ShimBinaries::Environment(
    const ShimCommand& command) const {
  // What this service sets itself; not to be overridden from outside, nor to
  // leak from the service manager.
  static constexpr const char* kOwn[] = {
      "GOMAXPROCS=", "MAX_SHIM_VERSION=", "TTRPC_ADDRESS=", "GRPC_ADDRESS=",
      "NAMESPACE=",  "BULKHEAD_",         "NOTIFY_SOCKET=", "LISTEN_"};
  std::vector<std::string> out;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    bool own = false;
    for (const char* prefix : kOwn) own |= absl::StartsWith(*entry, prefix);
    if (!own) out.emplace_back(*entry);
  }
  out.push_back("GOMAXPROCS=2");
  out.push_back("MAX_SHIM_VERSION=2");
  out.push_back("TTRPC_ADDRESS=" + environment_.ttrpc_address);
  out.push_back("GRPC_ADDRESS=" + environment_.grpc_address);
  out.push_back("NAMESPACE=" + command.ns);
  out.push_back("BULKHEAD_OCI_RUNTIME=" + environment_.oci_runtime);
  out.push_back("BULKHEAD_OCI_ROOT=" + environment_.oci_root);
  out.push_back("BULKHEAD_SHIM_SOCKET_DIR=" + environment_.socket_dir);
  return out;
}

absl::StatusOr<Bootstrap> ShimBinaries::Start(const ShimCommand& command,
                                              const Any& options) {
  Command run;
  run.argv = Arguments(command);
  run.argv.push_back("start");
  run.env = Environment(command);
  run.cwd = command.bundle;
  run.merge_stderr = true;
  run.timeout = kStartTimeout;

  std::string legacy_input;
  if (!options.type_url.empty()) {
    google::protobuf::Any any;
    any.set_type_url(options.type_url);
    any.set_value(options.value);
    legacy_input = any.SerializeAsString();
  }
  bootstrap_v1::BootstrapParams params;
  params.set_instance_id(command.id);
  params.set_namespace_(command.ns);
  params.set_log_level(environment_.debug ? bootstrap_v1::LOG_LEVEL_DEBUG
                                          : bootstrap_v1::LOG_LEVEL_INFO);
  params.set_containerd_version("2.1.0");
  params.set_containerd_ttrpc_address(environment_.ttrpc_address);
  params.set_containerd_grpc_address(environment_.grpc_address);
  params.set_containerd_binary(environment_.own_binary);
  if (environment_.socket_dir.size() <= kSocketDirBytesMax) {
    params.set_socket_dir(environment_.socket_dir);
  }
  if (!options.type_url.empty()) {
    auto* any = params.add_extensions()->mutable_value();
    any->set_type_url(options.type_url);
    any->set_value(options.value);
  }

  bool legacy = PrefersLegacy(command.binary);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    auto it = legacy_.find(command.binary);
    if (it != legacy_.end()) legacy = it->second;
  }
  absl::Status first_error;
  for (int attempt = 0; attempt < 2; ++attempt, legacy = !legacy) {
    run.input = legacy ? legacy_input : params.SerializeAsString();
    ASSIGN_OR_RETURN(CommandResult result, RunCommand(run));
    absl::Status error;
    if (result.exit_code == 0) {
      absl::StatusOr<Bootstrap> parsed = ParseBootstrap(result.output);
      if (parsed.ok()) {
        std::lock_guard<std::mutex> lock(mutex_);
        legacy_[command.binary] = legacy;
        return parsed;
      }
      error = parsed.status();
    } else {
      error = absl::UnknownError(
          absl::StrCat("start failed: ",
                       std::string(absl::StripAsciiWhitespace(result.output)),
                       ": exit status ", result.exit_code));
    }
    if (attempt == 0) {
      first_error = error;
      if (IsOwnShim(command.binary)) break;
    }
  }
  return first_error;
}

absl::StatusOr<std::string> ShimBinaries::Info(const std::string& binary,
                                               const Any& options) const {
  Command run;
  run.argv = {binary, "-info"};
  run.env = Environment({binary, "", "", ""});
  run.cwd = "/";
  run.timeout = kInfoTimeout;
  if (!options.type_url.empty()) {
    google::protobuf::Any any;
    any.set_type_url(options.type_url);
    any.set_value(options.value);
    run.input = any.SerializeAsString();
  }
  ASSIGN_OR_RETURN(CommandResult result, RunCommand(run));
  if (result.exit_code != 0) {
    return absl::UnimplementedError(absl::StrCat(
        binary, " -info: ",
        std::string(absl::StripAsciiWhitespace(
            result.errors.empty() ? result.output : result.errors)),
        ": exit status ", result.exit_code));
  }
  return result.output;
}

absl::StatusOr<ShimDeleteResult> ShimBinaries::Delete(
    const ShimCommand& command, absl::Duration timeout) const {
  Command run;
  run.argv = Arguments(command);
  run.argv.insert(run.argv.end(), {"-bundle", command.bundle, "delete"});
  run.env = Environment(command);
  run.cwd = command.bundle;
  run.timeout = timeout;
  ASSIGN_OR_RETURN(CommandResult result, RunCommand(run));
  if (!result.errors.empty()) {
    log::Warn(
        "shim delete printed",
        {{"ns", command.ns},
         {"id", command.id},
         {"stderr", std::string(absl::StripAsciiWhitespace(result.errors))}});
  }
  containerd::task::v2::DeleteResponse response;
  if (result.exit_code != 0 || !response.ParseFromString(result.output)) {
    return absl::UnknownError(
        absl::StrCat("delete failed: exit status ", result.exit_code));
  }
  return ShimDeleteResult{response.pid(), response.exit_status(),
                          response.exited_at().seconds(),
                          response.exited_at().nanos()};
}

}  // namespace bulkhead::runtime
