// The half of Registry that pushes.
#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "lib/base/status_macros.h"
#include "lib/log/log.h"
#include "lib/stats/stats.h"
#include "services/distribution/registry.h"
#include "services/distribution/registry_internal.h"
#include "services/distribution/url.h"

namespace bulkhead::distribution {
namespace {

using oci::Descriptor;

constexpr int kUploadsMax = 4;        // Of one blob, without progress.
constexpr int kUploadRoundsMax = 64;  // Of one blob, in all.
constexpr absl::Duration kUploadWait = absl::Milliseconds(300);
// Of an upload that was cut off once: so much is lost at most the next time.
constexpr int64_t kUploadChunkBytes = 32 << 20;
constexpr int64_t kUploadChunkBytesMax = int64_t{1} << 30;

// "0-9" or "bytes=0-9": 10 bytes are there. -1: it does not say.
int64_t BytesThere(const std::string& range) {
  std::string text = range;
  if (absl::StartsWith(text, "bytes=")) text = text.substr(6);
  int64_t last = -1;
  if (!absl::StartsWith(text, "0-") ||
      !absl::SimpleAtoi(text.substr(2), &last) || last < 0) {
    return -1;
  }
  return last + 1;
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

// One blob on its way to the registry.
struct Registry::Upload {
  const Descriptor& descriptor;
  int fd;
  const std::function<void(int64_t)>& sent;
  std::string location;    // Of the session; empty: none is open.
  int64_t done_bytes = 0;  // Which the registry has, in that session.
  int64_t chunk_bytes = kUploadChunkBytes;
  bool chunks = true;  // False: it refuses PATCH.
};

bool Registry::TakeLocation(Host& host, const HttpResponse& response,
                            const std::string& base, Upload* upload) {
  const std::string header = response.Header("location");
  if (header.empty() && !upload->location.empty()) return true;  // As before.
  upload->location = ResolveUrl(base, header);
  if (!upload->location.empty() &&
      !absl::StrContains(SplitUrl(upload->location).origin, "@")) {
    return true;
  }
  upload->location.clear();
  log::Debug("push", {{"host", host.config.host},
                      {"error", "an upload without a usable Location"}});
  return false;
}

// True: the blob was mounted from `mount_from`, there is nothing to send.
absl::StatusOr<bool> Registry::StartUpload(Host& host, Upload* upload,
                                           const std::string& mount_from) {
  const std::string& digest = upload->descriptor.digest.str();
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
  upload->done_bytes = 0;
  const std::string base =
      absl::StrCat(host.config.Url(SchemeOf(host)), "/",
                   options_.reference.repository, "/", ask.path);
  if (!TakeLocation(host, *opened, base, upload)) {
    return absl::UnknownError(absl::StrCat(
        host.config.host, ": an upload without a usable Location"));
  }
  int64_t least = 0;
  if (absl::SimpleAtoi(opened->Header("oci-chunk-min-length"), &least)) {
    upload->chunk_bytes =
        std::clamp(least, upload->chunk_bytes, kUploadChunkBytesMax);
  }
  return false;
}

absl::Status Registry::FinishUpload(Host& host, Upload* upload) {
  const std::string& digest = upload->descriptor.digest.str();
  const std::string& location = upload->location;
  const int64_t size = upload->descriptor.size_bytes;
  Ask put;
  put.method = "PUT";
  put.url = absl::StrCat(location, absl::StrContains(location, "?") ? "&" : "?",
                         "digest=", UrlEncode(digest));
  put.headers = {{"Content-Type", "application/octet-stream"}};
  if (upload->done_bytes < size) {
    put.body_fd = upload->fd;
    put.body_fd_offset = upload->done_bytes;
    put.body_fd_bytes = size - upload->done_bytes;
    put.sent = upload->sent;
  }
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
      ->Add(size);
  return absl::OkStatus();
}

// After an attempt that was cut off: where the session is now.
void Registry::AskSession(Host& host, Upload* upload) {
  if (upload->location.empty()) return;
  Ask ask;
  ask.url = upload->location;
  const absl::StatusOr<HttpResponse> status = Send(host, ask);
  int64_t there = -1;
  if (status.ok() && IsOneOf(status->status, {200, 202, 204})) {
    there = BytesThere(status->Header("range"));
    if (there < 0) there = 0;
  }
  if (there < 0 || there > upload->descriptor.size_bytes ||
      !TakeLocation(host, *status, ask.url, upload)) {
    upload->location.clear();  // Lost: from the beginning, then.
    upload->done_bytes = 0;
    return;
  }
  upload->done_bytes = there;
}

// What the session lacks, in pieces, so that each failure loses only one.
absl::Status Registry::SendRest(Host& host, Upload* upload) {
  const int64_t size = upload->descriptor.size_bytes;
  while (upload->chunks && upload->done_bytes < size) {
    const int64_t from = upload->done_bytes;
    const int64_t count = std::min(upload->chunk_bytes, size - from);
    Ask patch;
    patch.method = "PATCH";
    patch.url = upload->location;
    patch.headers = {
        {"Content-Type", "application/octet-stream"},
        {"Content-Range", absl::StrCat(from, "-", from + count - 1)}};
    patch.body_fd = upload->fd;
    patch.body_fd_offset = from;
    patch.body_fd_bytes = count;
    patch.sent = upload->sent;
    ASSIGN_OR_RETURN(const HttpResponse response, Send(host, patch));
    if (response.status == 416) {
      return absl::UnavailableError(
          absl::StrCat(host.config.host, ": the upload is at another offset"));
    }
    if (IsOneOf(response.status, {404, 405, 501}) && from == 0) {
      upload->chunks = false;
      upload->location.clear();
      return absl::UnavailableError(
          absl::StrCat(host.config.host, ": it takes no pieces of a blob"));
    }
    if (!IsOneOf(response.status, {200, 201, 202, 204})) {
      return ForStatus(host, response, upload->descriptor.digest.str());
    }
    const int64_t there = BytesThere(response.Header("range"));
    if (there >= 0 && (there <= from || there > from + count)) {
      return absl::UnknownError(
          absl::StrCat(host.config.host, ": it says that it has ", there,
                       " bytes after ", from + count, " were sent"));
    }
    upload->done_bytes = there >= 0 ? there : from + count;
    if (!TakeLocation(host, response, patch.url, upload)) {
      return absl::UnknownError(absl::StrCat(
          host.config.host, ": an upload without a usable Location"));
    }
  }
  return FinishUpload(host, upload);
}

absl::StatusOr<bool> Registry::PushBlob(
    const Descriptor& descriptor, int fd,
    const std::vector<std::string>& mount_from,
    const std::function<void(int64_t)>& sent) {
  ASSIGN_OR_RETURN(Host * host, PushHost());
  Upload upload{descriptor, fd, sent};
  absl::Duration wait = kUploadWait;
  int idle = 0;
  for (int round = 0;; ++round) {
    const int64_t before = upload.done_bytes;
    absl::Status status;
    if (upload.location.empty()) {
      // Only the first try mounts; what failed once is sent.
      const bool mount = round == 0 && !mount_from.empty();
      absl::StatusOr<bool> mounted =
          StartUpload(*host, &upload, mount ? mount_from[0] : "");
      if (mounted.ok() && *mounted) return true;
      status = mounted.status();
    }
    if (status.ok()) {
      status =
          round == 0 ? FinishUpload(*host, &upload) : SendRest(*host, &upload);
      if (status.ok()) return false;
    }
    if (absl::IsUnavailable(status) && !Cancelled()) AskSession(*host, &upload);
    idle = upload.done_bytes > before ? 0 : idle + 1;
    if (idle == 0) wait = kUploadWait;
    if (!absl::IsUnavailable(status) || idle >= kUploadsMax ||
        round >= kUploadRoundsMax || Cancelled()) {
      status = Final(status);
      if (!absl::StrContains(MessageOf(status), descriptor.digest.str())) {
        status =
            Annotate(status, absl::StrCat("pushing ", descriptor.digest.str()));
      }
      return status;
    }
    log::Debug("push", {{"digest", descriptor.digest.str()},
                        {"offset", std::to_string(upload.done_bytes)},
                        {"error", status.ToString()}});
    Sleep(wait);
    wait *= 2;
  }
}

absl::StatusOr<bool> Registry::PushDocument(const Descriptor& descriptor,
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
    return Final(ForStatus(*host, response, digest));
  }
  const std::string got = response.Header("docker-content-digest");
  if (!got.empty() && got != digest) {
    return absl::DataLossError(absl::StrCat(host->config.host, ": stored ", got,
                                            " instead of ", digest));
  }
  return !response.Header("oci-subject").empty();
}

absl::Status Registry::LinkReferrer(const Descriptor& referrer,
                                    const Digest& subject) {
  ASSIGN_OR_RETURN(Host * host, PushHost());
  // The tag that stands in for the referrers API.
  const std::string tag =
      absl::StrCat(AlgorithmName(subject.algorithm()), "-", subject.hex());
  Ask ask;
  ask.headers = {{"Accept", oci::kOciIndex}};
  ask.body_bytes_max = oci::kDocumentBytesMax;
  ask.path = "manifests/" + tag;
  ASSIGN_OR_RETURN(const HttpResponse response, Send(*host, ask));
  oci::Index index;
  if (response.status == 200) {
    ASSIGN_OR_RETURN(index, oci::ParseIndex(response.body));
  } else if (response.status != 404) {
    return ForStatus(*host, response, tag);
  }
  for (const Descriptor& entry : index.manifests) {
    if (entry.digest == referrer.digest) return absl::OkStatus();
  }
  index.media_type = oci::kOciIndex;
  index.manifests.push_back(referrer);
  const std::string text = oci::WriteIndex(index);
  Descriptor desc;
  desc.media_type = oci::kOciIndex;
  desc.digest = Digest::Of(text);
  desc.size_bytes = static_cast<int64_t>(text.size());
  return PushDocument(desc, text, tag).status();
}

}  // namespace bulkhead::distribution
