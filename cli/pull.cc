#include "cli/pull.h"

#include <google/protobuf/any.pb.h>
#include <google/protobuf/empty.pb.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cli/format.h"
#include "cli/names.h"
#include "cli/progress.h"
#include "cli/terminal.h"
#include "lib/base/status_macros.h"
#include "lib/oci/image.h"
#include "lib/oci/reference.h"
#include "lib/os/fd.h"
#include "proto/containerd/services/streaming/v1/streaming.pb.h"
#include "proto/containerd/services/transfer/v1/transfer.pb.h"
#include "proto/containerd/types/transfer/imagestore.pb.h"
#include "proto/containerd/types/transfer/progress.pb.h"
#include "proto/containerd/types/transfer/registry.pb.h"

namespace bulkhead::cli {
namespace {

using ::google::protobuf::Any;
namespace transfer = containerd::types::transfer;

constexpr char kDockerHost[] = "docker.io";
constexpr char kDockerAuthKey[] = "https://index.docker.io/v1/";
constexpr size_t kDockerConfigBytesMax = 1 << 20;

// Type URLs are bare names here (no "type.googleapis.com/").
void Pack(const google::protobuf::MessageLite& message, Any* any) {
  any->set_type_url(message.GetTypeName());
  any->set_value(message.SerializeAsString());
}

bool Is(const Any& any, const google::protobuf::MessageLite& message) {
  const std::string& url = any.type_url();
  const size_t slash = url.rfind('/');
  return (slash == std::string::npos ? url : url.substr(slash + 1)) ==
         message.GetTypeName();
}

// Opens and registers a stream; returns after the server's acknowledgement.
absl::StatusOr<std::unique_ptr<Stream>> OpenStream(Client& client,
                                                   const std::string& id) {
  std::unique_ptr<Stream> stream =
      client.BidiStream(std::string(kStreaming) + "Stream");
  containerd::services::streaming::v1::StreamInit init;
  init.set_id(id);
  Any any;
  Pack(init, &any);
  if (!stream->Write(any) || !stream->Read(&any)) {
    stream->WritesDone();
    const absl::Status status = stream->Finish();
    if (!status.ok()) return status;
    return absl::UnavailableError("the server closed a stream at once");
  }
  return stream;
}

// Shows what arrives on a progress stream, until it ends.
class ProgressView {
 public:
  ProgressView(Stream& stream, bool quiet)
      : quiet_(quiet),
        live_(!quiet && ::isatty(STDERR_FILENO)),
        reader_([this, &stream] { ReadAll(stream); }) {}

  // Blocks until the stream has ended; draws the last state.
  void Finish() {
    reader_.join();
    if (live_) Draw();
  }

 private:
  void ReadAll(Stream& stream) {
    Any any;
    while (stream.Read(&any)) {
      transfer::Progress message;
      if (!Is(any, message) || !message.ParseFromString(any.value())) continue;
      progress_.Update(message.event(), message.name(), message.progress(),
                       message.total(), absl::Now());
      if (quiet_) continue;
      if (live_) {
        Draw();
      } else {
        for (const std::string& line : progress_.News()) {
          std::fprintf(stderr, "%s\n", line.c_str());
        }
      }
    }
  }

  // Over the lines drawn before.
  void Draw() {
    size_t width = SizeOf(STDERR_FILENO).columns;
    if (width == 0) width = 80;
    const std::vector<std::string> lines =
        progress_.Lines(width - 1, absl::Now());
    std::string text;
    if (drawn_ > 0) absl::StrAppend(&text, "\x1b[", drawn_, "A");
    for (const std::string& line : lines) {
      absl::StrAppend(&text, "\r", line, "\x1b[K\n");
    }
    drawn_ = lines.size();
    std::fputs(text.c_str(), stderr);
    std::fflush(stderr);
  }

  bool quiet_;
  bool live_;
  size_t drawn_ = 0;
  Progress progress_;
  std::thread reader_;  // Last: it uses the others.
};

Credentials LoadCredentials(const std::string& user, const std::string& host) {
  if (!user.empty()) {
    const size_t colon = user.find(':');
    if (colon == std::string::npos) return {user, ""};
    return {user.substr(0, colon), user.substr(colon + 1)};
  }
  const char* folder = std::getenv("DOCKER_CONFIG");
  const char* home = std::getenv("HOME");
  std::string path;
  if (folder != nullptr) {
    path = std::string(folder) + "/config.json";
  } else if (home != nullptr) {
    path = std::string(home) + "/.docker/config.json";
  }
  const absl::StatusOr<std::string> json =
      path.empty() ? absl::NotFoundError("no home")
                   : os::ReadFile(path, kDockerConfigBytesMax);
  return json.ok() ? CredentialsFrom(*json, host) : Credentials();
}

// Answers the server's questions for credentials until the stream ends.
void AnswerAuth(Stream& stream, const Credentials& credentials) {
  Any any;
  while (stream.Read(&any)) {
    transfer::AuthRequest request;
    if (!Is(any, request)) continue;
    transfer::AuthResponse response;
    if (credentials.secret.empty()) {
      response.set_authtype(transfer::NONE);
    } else if (credentials.user == "<token>") {
      response.set_authtype(transfer::REFRESH);
      response.set_secret(credentials.secret);
    } else {
      response.set_authtype(transfer::CREDENTIALS);
      response.set_username(credentials.user);
      response.set_secret(credentials.secret);
    }
    Any answer;
    Pack(response, &answer);
    if (!stream.Write(answer)) return;
  }
}

}  // namespace

Credentials CredentialsFrom(const std::string& config_json,
                            const std::string& host) {
  const auto json = nlohmann::json::parse(config_json, nullptr, false);
  if (!json.is_object() || !json.contains("auths") ||
      !json["auths"].is_object()) {
    return {};
  }
  std::vector<std::string> keys = {host, "https://" + host, "http://" + host,
                                   "https://" + host + "/v1/",
                                   "https://" + host + "/v2/"};
  if (host == kDockerHost) keys.insert(keys.begin(), kDockerAuthKey);
  const auto text = [](const nlohmann::json& object, const char* key) {
    return object.contains(key) && object[key].is_string()
               ? object[key].get<std::string>()
               : std::string();
  };
  for (const std::string& key : keys) {
    if (!json["auths"].contains(key)) continue;
    const nlohmann::json& entry = json["auths"][key];
    if (!entry.is_object()) continue;
    const std::string token = text(entry, "identitytoken");
    if (!token.empty()) return {"<token>", token};
    std::string pair;
    if (absl::Base64Unescape(text(entry, "auth"), &pair)) {
      const size_t colon = pair.find(':');
      if (colon != std::string::npos) {
        return {pair.substr(0, colon), pair.substr(colon + 1)};
      }
    }
    if (!text(entry, "password").empty()) {
      return {text(entry, "username"), text(entry, "password")};
    }
  }
  return {};
}

absl::StatusOr<std::string> PullImage(Client& client,
                                      const PullOptions& options) {
  ASSIGN_OR_RETURN(const oci::Reference reference,
                   oci::ParseNormalized(options.reference));
  oci::Platform platform = oci::HostPlatform();
  if (!options.platform.empty()) {
    ASSIGN_OR_RETURN(platform, oci::ParsePlatform(options.platform));
  }
  const Credentials credentials = LoadCredentials(options.user, reference.host);

  const std::string id = NewId().substr(0, 16);
  absl::StatusOr<std::unique_ptr<Stream>> progress =
      OpenStream(client, "progress-" + id);
  if (absl::IsUnimplemented(progress.status())) {
    return absl::UnimplementedError(
        "this server has no Transfer service (containerd before 1.7?) — "
        "import the image with another client");
  }
  if (!progress.ok()) return progress.status();
  absl::StatusOr<std::unique_ptr<Stream>> auth =
      absl::NotFoundError("no credentials");
  if (!credentials.secret.empty()) {
    auth = OpenStream(client, "auth-" + id);
    if (!auth.ok()) return auth.status();
  }

  transfer::OCIRegistry source;
  source.set_reference(reference.str());
  transfer::RegistryResolver* resolver = source.mutable_resolver();
  if (auth.ok()) resolver->set_auth_stream("auth-" + id);
  if (options.plain_http) resolver->set_default_scheme("http");
  resolver->set_host_dir(options.hosts_dir);

  transfer::ImageStore destination;
  destination.set_name(reference.str());
  const auto fill = [&](containerd::types::Platform* out) {
    out->set_os(platform.os);
    out->set_architecture(platform.architecture);
    out->set_variant(platform.variant);
  };
  fill(destination.add_platforms());
  transfer::UnpackConfiguration* unpack = destination.add_unpacks();
  fill(unpack->mutable_platform());
  unpack->set_snapshotter(options.snapshotter);

  containerd::services::transfer::v1::TransferRequest request;
  Pack(source, request.mutable_source());
  Pack(destination, request.mutable_destination());
  request.mutable_options()->set_progress_stream("progress-" + id);

  ProgressView view(**progress, options.quiet);
  std::thread answers;
  if (auth.ok()) {
    answers = std::thread([&] { AnswerAuth(**auth, credentials); });
  }
  google::protobuf::Empty empty;
  const absl::Status status =
      client.Call(std::string(kTransfer) + "Transfer", request, &empty);
  // The server ends the streams when the transfer is over; a foreign one that
  // does not is cut off.
  (*progress)->WritesDone();
  if (!status.ok()) (*progress)->Cancel();
  view.Finish();
  if (auth.ok()) {
    (*auth)->Cancel();
    answers.join();
  }
  if (!status.ok()) return Annotate(status, "pull " + reference.str());
  return reference.str();
}

}  // namespace bulkhead::cli
