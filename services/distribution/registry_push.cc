// The half of Registry that pushes.
#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "lib/base/status_macros.h"
#include "lib/stats/stats.h"
#include "services/distribution/registry.h"
#include "services/distribution/url.h"

namespace bulkhead::distribution {
namespace {

using oci::Descriptor;

constexpr int kUploadsMax = 4;  // Of one blob.
constexpr absl::Duration kUploadWait = absl::Milliseconds(300);

bool IsDocument(const Descriptor& descriptor) {
  return oci::IsManifestType(descriptor.media_type) ||
         oci::IsIndexType(descriptor.media_type);
}

bool IsOneOf(int status, std::initializer_list<int> wanted) {
  return std::find(wanted.begin(), wanted.end(), status) != wanted.end();
}

}  // namespace

absl::StatusOr<Registry::Host*> Registry::PushHost() {
  for (const auto& host : hosts_) {
    if (host->config.push) return host.get();
  }
  return absl::FailedPreconditionError(
      absl::StrCat(options_.reference.Locator(),
                   ": no host to push to (see `capabilities` in hosts.toml)"));
}

absl::StatusOr<bool> Registry::Has(const Descriptor& descriptor,
                                   const std::string& tag) {
  ASSIGN_OR_RETURN(Host * host, PushHost());
  const std::string& digest = descriptor.digest.str();
  Ask ask;
  ask.method = "HEAD";
  ask.path = absl::StrCat(IsDocument(descriptor) ? "manifests/" : "blobs/",
                          tag.empty() ? digest : tag);
  ask.headers = {{"Accept", descriptor.media_type.empty()
                                ? "*/*"
                                : descriptor.media_type + ", */*"}};
  ASSIGN_OR_RETURN(const HttpResponse response, Send(*host, ask));
  if (response.status == 404) return false;
  // Without HEAD there is no telling: push it.
  if (response.status == 405) return false;
  if (response.status != 200) return ForStatus(*host, response, digest);
  return tag.empty() || response.Header("docker-content-digest") == digest;
}

absl::StatusOr<bool> Registry::PushBlobOnce(
    Host& host, const Descriptor& descriptor, int fd,
    const std::string& mount_from, const std::function<void(int64_t)>& sent) {
  const std::string& digest = descriptor.digest.str();
  Ask ask;
  ask.method = "POST";
  ask.path = "blobs/uploads/";
  if (!mount_from.empty()) {
    absl::StrAppend(&ask.path, "?mount=", UrlEncode(digest),
                    "&from=", UrlEncode(mount_from));
  }
  absl::StatusOr<HttpResponse> opened = Send(host, ask);
  // The right to read the other repository may be missing.
  if (!mount_from.empty() &&
      (absl::IsUnauthenticated(opened.status()) ||
       (opened.ok() && IsOneOf(opened->status, {401, 403, 404})))) {
    ask.path = "blobs/uploads/";
    opened = Send(host, ask);
  }
  RETURN_IF_ERROR(opened.status());
  if (opened->status == 201) return true;
  if (!IsOneOf(opened->status, {200, 202, 204})) {
    return ForStatus(host, *opened, digest);
  }
  const std::string location =
      ResolveUrl(absl::StrCat(host.config.Url(SchemeOf(host)), "/",
                              options_.reference.repository, "/", ask.path),
                 opened->Header("location"));
  if (location.empty() || absl::StrContains(SplitUrl(location).origin, "@")) {
    return absl::UnknownError(absl::StrCat(
        host.config.host, ": an upload without a usable Location"));
  }
  Ask put;
  put.method = "PUT";
  put.url = absl::StrCat(location, absl::StrContains(location, "?") ? "&" : "?",
                         "digest=", UrlEncode(digest));
  put.headers = {{"Content-Type", "application/octet-stream"}};
  put.body_fd = fd;
  put.body_fd_bytes = descriptor.size_bytes;
  put.sent = sent;
  ASSIGN_OR_RETURN(const HttpResponse done, Send(host, put));
  if (!IsOneOf(done.status, {200, 201, 204})) {
    return ForStatus(host, done, digest);
  }
  const std::string got = done.Header("docker-content-digest");
  if (!got.empty() && got != digest) {
    return absl::DataLossError(absl::StrCat(host.config.host, ": stored ", got,
                                            " instead of ", digest));
  }
  stats::Counter("bulkhead_registry_sent_bytes_total",
                 {{"registry", host.config.host}})
      ->Add(descriptor.size_bytes);
  return false;
}

absl::StatusOr<bool> Registry::PushBlob(
    const Descriptor& descriptor, int fd,
    const std::vector<std::string>& mount_from,
    const std::function<void(int64_t)>& sent) {
  ASSIGN_OR_RETURN(Host * host, PushHost());
  absl::Duration wait = kUploadWait;
  for (int attempt = 1;; ++attempt) {
    // Only the first try mounts; what failed once is sent.
    const absl::StatusOr<bool> result = PushBlobOnce(
        *host, descriptor, fd,
        attempt == 1 && !mount_from.empty() ? mount_from[0] : "", sent);
    if (result.ok()) return result;
    if (!absl::IsUnavailable(result.status()) || attempt >= kUploadsMax ||
        Cancelled()) {
      absl::Status failed = result.status();
      if (absl::IsUnavailable(failed)) {
        failed = absl::UnknownError(failed.message());
      }
      if (!absl::StrContains(MessageOf(failed), descriptor.digest.str())) {
        failed =
            Annotate(failed, absl::StrCat("pushing ", descriptor.digest.str()));
      }
      return failed;
    }
    Sleep(wait);
    wait *= 2;
  }
}

absl::Status Registry::PushDocument(const Descriptor& descriptor,
                                    const std::string& bytes,
                                    const std::string& tag) {
  ASSIGN_OR_RETURN(Host * host, PushHost());
  const std::string& digest = descriptor.digest.str();
  Ask ask;
  ask.method = "PUT";
  ask.path = absl::StrCat("manifests/", tag.empty() ? digest : tag);
  ask.headers = {{"Content-Type", descriptor.media_type}};
  ask.body = bytes;
  ASSIGN_OR_RETURN(const HttpResponse response, Send(*host, ask));
  if (!IsOneOf(response.status, {200, 201, 202, 204})) {
    const absl::Status failed = ForStatus(*host, response, digest);
    return absl::IsUnavailable(failed) ? absl::UnknownError(failed.message())
                                       : failed;
  }
  const std::string got = response.Header("docker-content-digest");
  if (!got.empty() && got != digest) {
    return absl::DataLossError(absl::StrCat(host->config.host, ": stored ", got,
                                            " instead of ", digest));
  }
  return absl::OkStatus();
}

}  // namespace bulkhead::distribution
