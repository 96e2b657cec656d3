#include "cli/pull.h"

#include <google/protobuf/empty.pb.h>
#include <unistd.h>

#include <cstdio>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cli/format.h"
#include "cli/names.h"
#include "cli/remedy.h"
#include "cli/transfer.h"
#include "lib/base/status_macros.h"
#include "lib/oci/image.h"
#include "lib/oci/reference.h"
#include "proto/containerd/services/images/v1/images.pb.h"
#include "proto/containerd/types/transfer/imagestore.pb.h"
#include "proto/containerd/types/transfer/importexport.pb.h"
#include "proto/containerd/types/transfer/registry.pb.h"

namespace bulkhead::cli {
namespace {

namespace transfer = containerd::types::transfer;

absl::StatusOr<oci::Platform> PlatformOr(const std::string& text) {
  if (text.empty()) return oci::HostPlatform();
  return oci::ParsePlatform(text);
}

Credentials CredentialsFor(const std::string& host, const std::string& own_host,
                           const Credentials& given,
                           const std::string& config) {
  // What was typed is for the registry that was typed, no mirror.
  if (!given.user.empty()) return host == own_host ? given : Credentials();
  const absl::StatusOr<Credentials> found = FindCredentials(config, host);
  if (found.ok()) return *found;
  Report(found.status());
  return Credentials();
}

void ExplainCredentials(const std::string& host, const Credentials& found) {
  if (found.empty()) {
    std::fprintf(stderr, "  login for %s: none is kept, so without\n",
                 Printable(host).c_str());
    return;
  }
  const bool token = found.user == kTokenUser;
  std::fprintf(stderr, "  login for %s: %s from %s\n", Printable(host).c_str(),
               token ? "an identity token"
                     : absl::StrCat("user ", Printable(found.user)).c_str(),
               found.source.empty() ? "the command line"
                                    : Printable(found.source).c_str());
}

// A registry's part of the request, with a stream for credentials if there
// could be any.
absl::Status FillRegistry(TransferCall& call, const oci::Reference& reference,
                          const RegistryOptions& options,
                          transfer::OCIRegistry* registry) {
  registry->set_reference(reference.str());
  transfer::RegistryResolver* resolver = registry->mutable_resolver();
  if (options.plain_http) resolver->set_default_scheme("http");
  resolver->set_host_dir(options.hosts_dir);
  if (options.explain) {
    ASSIGN_OR_RETURN(const std::string logs, call.ReceiveLog(STDERR_FILENO));
    resolver->set_logs_stream(logs);
  }
  const std::string config = DockerConfigPath();
  if (options.user.empty() && !MayHaveCredentials(config) && !options.explain) {
    return absl::OkStatus();
  }
  const size_t colon = options.user.find(':');
  const Credentials given = colon == std::string::npos
                                ? Credentials{options.user, ""}
                                : Credentials{options.user.substr(0, colon),
                                              options.user.substr(colon + 1)};
  ASSIGN_OR_RETURN(const std::string stream,
                   call.OfferCredentials(
                       [own_host = reference.host, given, config,
                        explain = options.explain](const std::string& host) {
                         const Credentials found =
                             CredentialsFor(host, own_host, given, config);
                         if (explain) ExplainCredentials(host, found);
                         return found;
                       }));
  resolver->set_auth_stream(stream);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::string> PullImage(Client& client,
                                      const PullOptions& options) {
  ASSIGN_OR_RETURN(const oci::Reference reference,
                   oci::ParseNormalized(options.reference));
  ASSIGN_OR_RETURN(const oci::Platform platform, PlatformOr(options.platform));
  TransferCall call(client, options.quiet, !options.explain);
  RETURN_IF_ERROR(call.Open());
  transfer::OCIRegistry source;
  RETURN_IF_ERROR(FillRegistry(call, reference, options, &source));
  transfer::ImageStore destination;
  destination.set_name(reference.str());
  ToProto(platform, destination.add_platforms());
  destination.set_all_metadata(options.all_metadata);
  if (options.unpack) {
    transfer::UnpackConfiguration* unpack = destination.add_unpacks();
    ToProto(platform, unpack->mutable_platform());
    unpack->set_snapshotter(options.snapshotter);
  }
  RETURN_IF_ERROR(WithRemedy(
      Annotate(call.Run(source, destination), "pull " + reference.str()),
      reference));
  return reference.str();
}

absl::Status PushImage(Client& client, const PushOptions& options) {
  ASSIGN_OR_RETURN(const oci::Reference reference,
                   oci::ParseNormalized(options.reference));
  TransferCall call(client, options.quiet, !options.explain);
  RETURN_IF_ERROR(call.Open());
  transfer::ImageStore source;
  source.set_name(options.image);
  if (!options.platform.empty()) {
    ASSIGN_OR_RETURN(const oci::Platform platform,
                     oci::ParsePlatform(options.platform));
    ToProto(platform, source.add_platforms());
  }
  transfer::OCIRegistry destination;
  RETURN_IF_ERROR(FillRegistry(call, reference, options, &destination));
  return WithRemedy(
      Annotate(call.Run(source, destination), "push " + reference.str()),
      reference);
}

absl::Status SaveImages(Client& client, const SaveOptions& options, int fd) {
  TransferCall call(client, true);
  RETURN_IF_ERROR(call.Open());
  transfer::ImageStore source;
  for (const std::string& image : options.images) {
    source.add_extra_references()->set_name(image);
  }
  transfer::ImageExportStream destination;
  ASSIGN_OR_RETURN(const std::string stream, call.Receive(fd));
  destination.set_stream(stream);
  destination.set_all_platforms(options.all_platforms);
  if (!options.all_platforms) {
    ASSIGN_OR_RETURN(const oci::Platform platform,
                     PlatformOr(options.platform));
    ToProto(platform, destination.add_platforms());
  }
  return Annotate(call.Run(source, destination), "save");
}

absl::StatusOr<std::vector<std::string>> LoadImages(Client& client,
                                                    const LoadOptions& options,
                                                    int fd) {
  ASSIGN_OR_RETURN(const oci::Platform platform, PlatformOr(options.platform));
  TransferCall call(client, options.quiet);
  RETURN_IF_ERROR(call.Open());
  transfer::ImageImportStream source;
  ASSIGN_OR_RETURN(const std::string stream, call.Send(fd));
  source.set_stream(stream);
  source.set_force_compress(options.compress);
  transfer::ImageStore destination;
  transfer::ImageReference* prefix = destination.add_extra_references();
  prefix->set_name(options.base_name);
  prefix->set_is_prefix(true);
  prefix->set_allow_overwrite(true);
  if (options.unpack) {
    transfer::UnpackConfiguration* unpack = destination.add_unpacks();
    ToProto(platform, unpack->mutable_platform());
    unpack->set_snapshotter(options.snapshotter);
  }
  RETURN_IF_ERROR(Annotate(call.Run(source, destination), "load"));
  return call.saved();
}

absl::StatusOr<std::string> FetchManifest(Client& client,
                                          const PullOptions& options) {
  ASSIGN_OR_RETURN(const oci::Reference reference,
                   oci::ParseNormalized(options.reference));
  TransferCall call(client, true);
  RETURN_IF_ERROR(call.Open());
  transfer::OCIRegistry source;
  RETURN_IF_ERROR(FillRegistry(call, reference, options, &source));
  // A platform that no image is for: the server reads what it is offered, and
  // fetches none of it.
  transfer::ImageStore destination;
  const std::string name = "bulkhead.invalid/inspected:" + NewId();
  destination.set_name(name);
  ToProto(oci::Platform{"none", "none", "", "", {}},
          destination.add_platforms());
  const absl::Status status = call.Run(source, destination);
  if (status.ok()) {
    // No image but an artifact, which is for every platform.
    containerd::services::images::v1::DeleteImageRequest request;
    request.set_name(name);
    google::protobuf::Empty empty;
    RETURN_IF_ERROR(
        client.Call(std::string(kImages) + "Delete", request, &empty));
  } else if (call.resolved().empty() || !absl::IsNotFound(status) ||
             !absl::StrContains(MessageOf(status), "no match for platform")) {
    return WithRemedy(Annotate(status, reference.str()), reference);
  }
  return call.resolved();
}

absl::Status TryCredentials(Client& client, const std::string& host,
                            const RegistryOptions& options,
                            const Credentials& credentials) {
  RegistryOptions as_user = options;
  as_user.user = absl::StrCat(credentials.user, ":", credentials.secret);
  ASSIGN_OR_RETURN(const oci::Reference reference,
                   oci::ParseNormalized(absl::StrCat(
                       host, "/bulkhead/login:", NewId().substr(0, 12))));
  TransferCall call(client, true);
  RETURN_IF_ERROR(call.Open());
  transfer::OCIRegistry source;
  RETURN_IF_ERROR(FillRegistry(call, reference, as_user, &source));
  transfer::ImageStore destination;
  destination.set_name(reference.str());
  const absl::Status status = call.Run(source, destination);
  return absl::IsNotFound(status) ? absl::OkStatus() : status;
}

}  // namespace bulkhead::cli
