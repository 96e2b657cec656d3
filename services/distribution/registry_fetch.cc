// The half of Registry that fetches.
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

constexpr absl::Duration kReopenWaitMax = absl::Seconds(5);
// Less than this before a time-out is no progress: a server that drips.
constexpr int64_t kDripBytes = 1 << 20;

// "bytes 5-9/10" or "bytes 5-9/*".
bool ParseContentRange(const std::string& text, int64_t* first,
                       int64_t* total) {
  if (!absl::StartsWith(text, "bytes ")) return false;
  const size_t dash = text.find('-');
  const size_t slash = text.find('/');
  if (dash == std::string::npos || slash == std::string::npos) return false;
  *total = -1;
  (void)absl::SimpleAtoi(text.substr(slash + 1), total);  // "*": unknown.
  return absl::SimpleAtoi(text.substr(6, dash - 6), first);
}

std::string RangeHeader(int64_t at, int64_t end, int64_t size) {
  if (end < size) return absl::StrCat("bytes=", at, "-", end - 1);
  return absl::StrCat("bytes=", at, "-");
}

}  // namespace

absl::StatusOr<std::string> Registry::FetchDocument(
    const Descriptor& descriptor) {
  if (descriptor.size_bytes > oci::kDocumentBytesMax) {
    return absl::ResourceExhaustedError(absl::StrCat(
        descriptor.digest.str(), ": ", descriptor.size_bytes,
        " bytes, more than the limit of ", oci::kDocumentBytesMax));
  }
  std::string body;
  if (static_cast<int64_t>(descriptor.data.size()) == descriptor.size_bytes &&
      !descriptor.data.empty()) {
    body = descriptor.data;
  } else {
    body.reserve(descriptor.size_bytes);
    RETURN_IF_ERROR(FetchBlob(descriptor, 0, [&](const char* data, size_t n) {
      body.append(data, n);
      return absl::OkStatus();
    }));
  }
  const Digest got = Digest::Of(body, descriptor.digest.algorithm());
  if (got != descriptor.digest) {
    return absl::DataLossError(absl::StrCat(
        options_.reference.Locator(), ": wrong digest from the registry: got ",
        got.str(), ", expected ", descriptor.digest.str()));
  }
  return body;
}

absl::Status Registry::FetchFrom(
    Host* host, const std::string& url, bool last, const Descriptor& descriptor,
    Stretch* stretch,
    const std::function<absl::Status(const char*, size_t)>& sink, bool* fatal) {
  const std::string& digest = descriptor.digest.str();
  const std::string where =
      host != nullptr ? host->config.host : SplitUrl(url).origin;
  const int64_t size = descriptor.size_bytes;
  const int64_t start = stretch->at_bytes;
  const int64_t asked_end = stretch->end_bytes;
  int64_t answer_end = size;  // Where the answer ends.
  stats::Value* const received = stats::Counter(
      "bulkhead_registry_received_bytes_total", {{"registry", where}});
  int64_t skip = 0;
  const auto wrong_length = [&](int64_t got) {
    return absl::DataLossError(absl::StrCat(where, ": ", digest, " has ", got,
                                            " bytes, expected ", size));
  };
  const auto on_headers = [&](const HttpResponse& response) -> absl::Status {
    skip = 0;
    answer_end = response.status == 206 ? asked_end : size;
    if (response.status == 206) {
      int64_t first = 0;
      int64_t total = -1;
      if (!ParseContentRange(response.Header("content-range"), &first,
                             &total) ||
          first != start) {
        return absl::UnavailableError("a wrong Content-Range");
      }
      if (total >= 0 && total != size) return wrong_length(total);
      stretch->ranges = true;
    } else if (response.status == 200) {
      if (stretch->ranges_only) {
        return absl::UnimplementedError("it does not answer with ranges");
      }
      skip = start;  // No ranges here: drop what is there already.
      int64_t length = 0;
      if (absl::SimpleAtoi(response.Header("content-length"), &length) &&
          length != size) {
        return wrong_length(length);
      }
      stretch->ranges =
          absl::StrContains(response.Header("accept-ranges"), "bytes");
    }
    const std::string encoding = response.Header("content-encoding");
    if (response.status / 100 == 2 && !encoding.empty() &&
        encoding != "identity") {
      return absl::UnimplementedError(absl::StrCat(
          where, ": ", digest, ": unasked-for content encoding ", encoding));
    }
    return absl::OkStatus();
  };
  const auto take = [&](const char* data, size_t count) -> absl::Status {
    const size_t dropped = static_cast<size_t>(std::min<int64_t>(skip, count));
    skip -= dropped;
    data += dropped;
    count -= dropped;
    if (count == 0) return absl::OkStatus();
    const int64_t at = stretch->at_bytes;
    if (at + static_cast<int64_t>(count) > size) {
      return absl::DataLossError(absl::StrCat(where, ": ", digest,
                                              " is longer than the ", size,
                                              " bytes expected"));
    }
    // Others fetch what is behind the end. An answer that ends there by itself
    // is read to its end, and leaves its connection to the next request.
    const int64_t end = stretch->end_bytes;
    const int64_t behind = at + static_cast<int64_t>(count) - end;
    const bool enough = behind > 0 || (behind == 0 && end < answer_end);
    if (enough) count = static_cast<size_t>(std::max<int64_t>(end - at, 0));
    absl::Status status = sink(data, count);
    if (!status.ok()) {
      *fatal = true;
      return status;
    }
    stretch->at_bytes = at + static_cast<int64_t>(count);
    received->Add(static_cast<int64_t>(count));
    return enough ? absl::OutOfRangeError("the rest is not needed")
                  : absl::OkStatus();
  };
  const bool document = IsDocument(descriptor);
  Ask ask;
  ask.path = absl::StrCat(document ? "manifests/" : "blobs/", digest);
  ask.headers = {{"Accept", descriptor.media_type.empty()
                                ? "*/*"
                                : descriptor.media_type + ", */*"}};
  if (start > 0 || asked_end < size) {
    ask.headers.emplace_back("Range", RangeHeader(start, asked_end, size));
  }
  ask.patient = last;
  ask.stop = stretch->stop;
  ask.verified = true;
  ask.on_headers = on_headers;
  ask.sink = take;
  absl::StatusOr<HttpResponse> response;
  if (host != nullptr) {
    response = Send(*host, ask);
    if (response.ok() && response->status == 404 && document) {
      ask.path = "blobs/" + digest;  // Some registries keep it only there.
      response = Send(*host, ask);
    }
  } else {
    // The layer's own URL: no login, none of the registry's headers.
    Host outside;
    HttpRequest request;
    request.url = url;
    request.headers = ask.headers;
    request.stall_timeout = options_.stall_timeout;
    request.cancelled = options_.cancelled;
    request.on_headers = on_headers;
    request.sink = take;
    outside.config.host = where;
    response = Follow(outside, ask, request, "http");
    Explain(outside, request, "", response, absl::ZeroDuration());
    if (response.ok() && response->status / 100 != 2) {
      return Final(ForStatus(outside, *response, digest));
    }
  }
  if (absl::IsOutOfRange(response.status())) {
    if (stretch->at_bytes >= stretch->end_bytes) return absl::OkStatus();
    return absl::UnavailableError("the end has been moved");  // Just now.
  }
  RETURN_IF_ERROR(response.status());
  // Send() has been patient already: not to be tried again here.
  if (response->status / 100 != 2) {
    return Final(ForStatus(*host, *response, digest));
  }
  if (stretch->at_bytes < std::min(answer_end, stretch->end_bytes.load())) {
    return absl::UnavailableError(absl::StrCat(
        "registry ", where, ": ", digest, " ended after ",
        stretch->at_bytes.load(), " of ", stretch->end_bytes.load(), " bytes"));
  }
  return absl::OkStatus();
}

absl::Status Registry::FetchBlob(
    const Descriptor& descriptor, int64_t offset_bytes,
    const std::function<absl::Status(const char*, size_t)>& sink) {
  Stretch all(offset_bytes, descriptor.size_bytes);
  return FetchStretch(descriptor, &all, sink);
}

absl::Status Registry::FetchStretch(
    const Descriptor& descriptor, Stretch* stretch,
    const std::function<absl::Status(const char*, size_t)>& sink) {
  if (stretch->at_bytes >= stretch->end_bytes && descriptor.size_bytes > 0) {
    return absl::OkStatus();
  }
  struct Source {
    Host* host;
    std::string url;
  };
  std::vector<Source> sources;
  for (const std::string& url : descriptor.urls) {
    if (absl::StartsWith(url, "https://") || absl::StartsWith(url, "http://")) {
      sources.push_back({nullptr, url});
    }
  }
  for (const auto& host : hosts_) {
    if (host->config.pull) sources.push_back({host.get(), ""});
  }
  absl::Status failed = absl::NotFoundError(absl::StrCat(
      options_.reference.Locator(), ": no host to fetch ",
      descriptor.digest.str(), " from (see `capabilities` in hosts.toml)"));
  bool first = true;
  int reopens = 0;
  for (const Source& source : sources) {
    const bool last = &source == &sources.back();
    int idle = 0;
    absl::Duration wait = kBackOffStart;
    for (;;) {
      const int64_t before = stretch->at_bytes;
      bool fatal = false;
      const absl::Status status = FetchFrom(source.host, source.url, last,
                                            descriptor, stretch, sink, &fatal);
      if (status.ok()) {
        if (stretch->at_bytes >= stretch->end_bytes) return status;
        continue;  // The end was moved behind what had been asked for.
      }
      if (fatal || absl::IsCancelled(status)) return status;
      const int64_t got = stretch->at_bytes - before;
      log::Debug("fetch", {{"digest", descriptor.digest.str()},
                           {"offset", std::to_string(before + got)},
                           {"error", status.ToString()}});
      if (first || absl::IsNotFound(failed)) failed = status;
      if (!absl::IsUnavailable(status)) break;
      if (NobodyThere(status) && !last) break;
      const bool dripped =
          got < kDripBytes && absl::StrContains(MessageOf(status), "timed out");
      const bool progress = got > 0 && !dripped;
      idle = progress ? 0 : idle + 1;
      if (progress) wait = kBackOffStart;
      if (idle > (last ? kIdleReopensMax : 1) || ++reopens > kReopensMax) break;
      Tell(absl::StrCat("  ", MessageOf(status), "; next: the rest, from byte ",
                        stretch->at_bytes.load(), " on, in ",
                        absl::ToInt64Milliseconds(wait), " ms"));
      Sleep(wait);
      wait = std::min(wait * 2, kReopenWaitMax);
    }
    Tell(absl::StrCat("  ", MessageOf(failed), "; next: ",
                      last ? "nothing, no host is left" : "the host after it"));
    first = false;
  }
  if (!absl::StrContains(MessageOf(failed), descriptor.digest.str())) {
    failed =
        Annotate(failed, absl::StrCat("fetching ", descriptor.digest.str()));
  }
  return Final(failed);
}

}  // namespace bulkhead::distribution
