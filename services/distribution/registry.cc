#include "services/distribution/registry.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "lib/base/status_macros.h"
#include "lib/log/log.h"
#include "lib/os/fd.h"
#include "lib/stats/stats.h"
#include "services/distribution/url.h"

namespace bulkhead::distribution {
namespace {

using oci::Descriptor;

constexpr absl::Duration kBackOffStart = absl::Milliseconds(200);
constexpr size_t kMessageBytesMax = 300;

const std::string& ResolveAccept() {
  static const std::string* const accept = new std::string(
      absl::StrCat(oci::kDockerManifest, ", ", oci::kDockerList, ", ",
                   oci::kOciManifest, ", ", oci::kOciIndex, ", */*"));
  return *accept;
}

bool IsRedirect(int status) {
  return status == 301 || status == 302 || status == 303 || status == 307 ||
         status == 308;
}

bool IsRetryable(int status) {
  return status == 408 || status == 429 || status == 500 || status == 502 ||
         status == 503 || status == 504;
}

// Only the start of a URL is fit for messages: queries hold signatures.
std::string Shown(const std::string& url) {
  return url.substr(0, url.find('?'));
}

// What the registry says in {"errors":[{"code","message"}]}.
std::string ServerMessage(const std::string& body) {
  const auto json = nlohmann::json::parse(body, nullptr, false);
  if (!json.is_object()) return "";
  const auto errors = json.find("errors");
  if (errors == json.end() || !errors->is_array() || errors->empty() ||
      !(*errors)[0].is_object()) {
    return "";
  }
  const auto& first = (*errors)[0];
  for (const char* key : {"message", "code"}) {
    const auto found = first.find(key);
    if (found != first.end() && found->is_string()) {
      return ": " + found->get<std::string>().substr(0, kMessageBytesMax);
    }
  }
  return "";
}

// Retry-After in seconds or as a date.
absl::Duration RetryAfter(const HttpResponse& response,
                          absl::Duration fallback) {
  const std::string value = response.Header("retry-after");
  if (value.empty()) return fallback;
  int seconds = 0;
  absl::Duration wait = fallback;
  absl::Time when;
  if (absl::SimpleAtoi(value, &seconds) && seconds >= 0) {
    wait = absl::Seconds(seconds);
  } else if (absl::ParseTime("%a, %d %b %Y %H:%M:%S GMT", value, &when,
                             nullptr)) {
    wait = std::max(when - absl::Now(), absl::ZeroDuration());
  }
  return std::min(wait, kRetryAfterMax);
}

bool NobodyThere(const absl::Status& status) {
  const std::string text = MessageOf(status);
  return absl::StrContains(text, "Could not resolve") ||
         absl::StrContains(text, "Failed to connect");
}

// UNAVAILABLE means that one of our services is down; a registry is not.
absl::Status Final(const absl::Status& status) {
  if (!absl::IsUnavailable(status)) return status;
  return absl::UnknownError(status.message());
}

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

}  // namespace

Url SplitUrl(const std::string& url) {
  const size_t scheme_end = url.find("://");
  if (scheme_end == std::string::npos) return {"", url};
  const size_t slash = url.find_first_of("/?#", scheme_end + 3);
  return {url.substr(0, slash),
          slash == std::string::npos ? "/" : url.substr(slash)};
}

std::string ResolveUrl(const std::string& base, const std::string& location) {
  if (absl::StartsWith(location, "http://") ||
      absl::StartsWith(location, "https://")) {
    return location;
  }
  const Url from = SplitUrl(base);
  if (absl::StartsWith(location, "//")) {
    return from.origin.substr(0, from.origin.find(':') + 1) + location;
  }
  if (absl::StartsWith(location, "/")) return from.origin + location;
  if (location.empty() || absl::StrContains(location, ":")) return "";
  const std::string path = from.rest.substr(0, from.rest.find('?'));
  return from.origin + path.substr(0, path.rfind('/') + 1) + location;
}

Registry::Registry(RegistryOptions options) : options_(std::move(options)) {
  std::string scope = absl::StrCat("repository:", options_.reference.repository,
                                   options_.push ? ":pull,push" : ":pull");
  for (const std::string& from : options_.mount_from) {
    absl::StrAppend(&scope, " repository:", from, ":pull");
  }
  for (const RegistryHost& config : options_.hosts) {
    auto host = std::make_unique<Host>();
    host->config = config;
    host->scheme = config.https_first ? "https" : config.scheme;
    host->auth = std::make_unique<HostAuth>(options_.http, config.host, scope,
                                            options_.credentials);
    hosts_.push_back(std::move(host));
  }
}

std::string Registry::SchemeOf(Host& host) {
  std::lock_guard<std::mutex> lock(mutex_);
  return host.scheme;
}

void Registry::Sleep(absl::Duration time) const {
  const absl::Time end = absl::Now() + time;
  while (absl::Now() < end && !Cancelled()) {
    absl::SleepFor(std::min(end - absl::Now(), absl::Milliseconds(100)));
  }
}

absl::Status Registry::ForStatus(const Host& host, const HttpResponse& response,
                                 const std::string& object) const {
  const std::string what = absl::StrCat(options_.reference.Locator(), " (",
                                        host.config.host, "), ", object);
  const std::string message = ServerMessage(response.body);
  switch (response.status) {
    case 404:
      return absl::NotFoundError(absl::StrCat(what, message));
    case 401:
      return absl::UnauthenticatedError(
          absl::StrCat(what, message, ": the registry asks for a login"));
    case 403:
      return absl::PermissionDeniedError(absl::StrCat(
          what, message, ": the registry denies access (HTTP 403)"));
    default:
      break;
  }
  const std::string text =
      absl::StrCat(what, message, ": the registry answered with HTTP status ",
                   response.status);
  if (IsRetryable(response.status)) return absl::UnavailableError(text);
  return absl::UnknownError(text);
}

absl::Status Registry::NoSuchImage() const {
  return absl::NotFoundError(
      absl::StrCat("image ", options_.reference.str(), " in its registry"));
}

absl::StatusOr<HttpResponse> Registry::Follow(Host& host, const Ask& ask,
                                              HttpRequest request,
                                              const std::string& used_scheme) {
  const std::string origin = SplitUrl(request.url).origin;
  for (int hop = 0; hop <= kRedirectsMax; ++hop) {
    ASSIGN_OR_RETURN(HttpResponse response, options_.http->Do(request));
    if (!IsRedirect(response.status)) {
      // A foreign server's 401 is not the registry's.
      if (response.status == 401 && SplitUrl(request.url).origin != origin) {
        response.headers.clear();
      }
      return response;
    }
    const std::string next =
        ResolveUrl(request.url, response.Header("location"));
    if (next.empty()) {
      return absl::UnknownError(absl::StrCat(
          host.config.host, ": a redirect that leads to no http or https URL"));
    }
    const Url target = SplitUrl(next);
    if (absl::StrContains(target.origin, "@")) {
      return absl::UnknownError(absl::StrCat(
          host.config.host, ": a redirect with a user name in it"));
    }
    if (used_scheme == "https" && absl::StartsWith(next, "http://") &&
        !ask.verified) {
      return absl::UnknownError(
          absl::StrCat(host.config.host,
                       ": a redirect from https to plain http: ", Shown(next)));
    }
    request.url = next;
    if (target.origin != origin) {
      // Another server: nothing secret goes there, now or after.
      request.headers = ask.headers;
      request.tls = TlsOptions{};
      request.tls.skip_verify =
          host.config.tls.skip_verify && IsLoopback(host.config.host);
    }
  }
  return absl::UnknownError(
      absl::StrCat(host.config.host, ": more than 10 redirects"));
}

absl::StatusOr<HttpResponse> Registry::Send(Host& host, const Ask& ask) {
  const RegistryHost& config = host.config;
  absl::Duration wait = kBackOffStart;
  bool logged_in = false;
  for (int attempt = 1;;) {
    if (Cancelled()) return absl::CancelledError("the transfer was cancelled");
    const std::string scheme = SchemeOf(host);
    HttpRequest request;
    request.method = ask.method;
    const std::string own = config.Url(scheme);
    // An upload may go on at another server: nothing secret goes there.
    const bool elsewhere =
        !ask.url.empty() && SplitUrl(ask.url).origin != SplitUrl(own).origin;
    if (ask.url.empty()) {
      request.url =
          absl::StrCat(own, "/", options_.reference.repository, "/", ask.path);
      const char* const separator =
          absl::StrContains(ask.path, "?") ? "&" : "?";
      const std::string& asked_host = options_.reference.host;
      if (asked_host != config.host && asked_host != "docker.io") {
        absl::StrAppend(&request.url, separator, "ns=", UrlEncode(asked_host));
      } else if (asked_host == "docker.io" &&
                 config.host != "registry-1.docker.io") {
        absl::StrAppend(&request.url, separator, "ns=docker.io");
      }
    } else {
      request.url = ask.url;
    }
    request.headers = ask.headers;
    std::string authorization;
    if (!elsewhere) {
      for (const auto& header : config.headers) {
        request.headers.push_back(header);
      }
      for (const auto& header : options_.headers) {
        request.headers.push_back(header);
      }
      authorization = host.auth->Header();
      if (!authorization.empty()) {
        request.headers.emplace_back("Authorization", authorization);
      }
      request.tls = config.tls;
    }
    request.body = ask.body;
    if (ask.body_fd >= 0) {
      request.upload_bytes = ask.body_fd_bytes;
      request.source = [&ask](char* out, size_t size,
                              int64_t offset) -> int64_t {
        const size_t want = static_cast<size_t>(std::min<int64_t>(
            static_cast<int64_t>(size), ask.body_fd_bytes - offset));
        if (want == 0) return 0;
        const absl::StatusOr<size_t> got =
            os::PReadFull(ask.body_fd, out, want, offset);
        if (!got.ok() || *got != want) return -1;
        if (ask.sent) ask.sent(offset + static_cast<int64_t>(want));
        return static_cast<int64_t>(want);
      };
    }
    request.connect_timeout = config.dial_timeout;
    request.stall_timeout = options_.stall_timeout;
    request.cancelled = options_.cancelled;
    if (ask.body_bytes_max > 0) request.body_bytes_max = ask.body_bytes_max;
    request.on_headers = ask.on_headers;
    request.sink = ask.sink;

    const absl::Time began = absl::Now();
    absl::StatusOr<HttpResponse> response = Follow(host, ask, request, scheme);
    Explain(host, request, authorization, response, absl::Now() - began);
    if (attempt > 1) {
      stats::Counter("bulkhead_registry_retries_total",
                     {{"registry", config.host}})
          ->Add();
    }
    if (absl::IsAborted(response.status()) && scheme == "https") {
      if (config.https_first) {
        std::lock_guard<std::mutex> lock(mutex_);
        host.scheme = "http";
        continue;
      }
      return absl::FailedPreconditionError(absl::StrCat(
          config.host, ": ", MessageOf(response.status()),
          " (for a registry without TLS use --plain-http, or `server = "
          "\"http://",
          config.host, "\"` in its hosts.toml)"));
    }
    if (!response.ok()) {
      const absl::Status failed =
          Annotate(response.status(), absl::StrCat("registry ", config.host));
      // With a sink the caller knows how far it got, and retries itself.
      if (!absl::IsUnavailable(failed) || ask.sink != nullptr ||
          ask.body_fd >= 0 || attempt++ >= kAttemptsMax) {
        return failed;
      }
      if (NobodyThere(failed)) return failed;  // The next host may be.
      Sleep(wait);
      wait *= 2;
      continue;
    }
    if (response->status == 401 && !elsewhere && !response->headers.empty()) {
      std::vector<std::string> challenges;
      for (const auto& [name, value] : response->headers) {
        if (name == "www-authenticate") challenges.push_back(value);
      }
      if (challenges.empty() || logged_in) return response;
      absl::Status login = host.auth->Login(challenges, authorization,
                                            scheme == "https", request);
      if (!login.ok()) {
        return Annotate(login, absl::StrCat("registry ", config.host));
      }
      // One retry with the new login; an expired token gets a second one.
      logged_in = authorization.empty() ? false : true;
      if (attempt++ >= kAttemptsMax) return response;
      continue;
    }
    if (!IsRetryable(response->status) ||
        (ask.body_fd >= 0 && response->status != 429) ||
        attempt++ >= kAttemptsMax) {
      return response;
    }
    Sleep(RetryAfter(*response, wait));
    wait *= 2;
  }
}

void Registry::Explain(const Host& host, const HttpRequest& request,
                       const std::string& login,
                       const absl::StatusOr<HttpResponse>& response,
                       absl::Duration took) const {
  const std::string& name = host.config.host;
  const std::string code =
      response.ok() ? std::to_string(response->status) : "error";
  stats::Counter("bulkhead_registry_requests_total",
                 {{"registry", name}, {"code", code}})
      ->Add();
  stats::Latency("bulkhead_registry_request_seconds", {{"registry", name}})
      ->ObserveMicros(absl::ToInt64Microseconds(took));
  if (!options_.explain && !log::Enabled(log::Level::kDebug)) return;
  const char* with = "no login";
  if (absl::StartsWith(login, "Bearer ")) with = "a token";
  if (absl::StartsWith(login, "Basic ")) with = "user name and password";
  std::string route;
  if (name != options_.reference.host) {
    route = absl::StrCat(" for ", options_.reference.host);
  }
  std::string result = response.ok() ? absl::StrCat("HTTP ", response->status)
                                     : MessageOf(response.status());
  if (response.ok() && response->status >= 400) {
    absl::StrAppend(&result, ServerMessage(response->body));
  }
  const std::string line =
      absl::StrCat(request.method, " ", Shown(request.url), route, ", ", with,
                   ": ", result, ", ", absl::ToInt64Milliseconds(took), " ms");
  log::Debug("registry", {{"request", line}});
  if (options_.explain) options_.explain(line + "\n");
}

absl::StatusOr<Descriptor> Registry::ResolveAt(Host& host) {
  const std::string object = options_.reference.Object();
  Ask ask;
  ask.method = "HEAD";
  ask.path = "manifests/" + object;
  ask.headers = {{"Accept", ResolveAccept()}};
  ask.body_bytes_max = oci::kDocumentBytesMax;
  ASSIGN_OR_RETURN(HttpResponse response, Send(host, ask));
  if (response.status == 404 && !options_.reference.digest.empty()) {
    ask.path = "blobs/" + object;
    ask.method = "GET";
    ASSIGN_OR_RETURN(response, Send(host, ask));
  }
  if (response.status == 404) {
    return NoSuchImage();
  }
  Descriptor out;
  const std::string type = response.Header("content-type");
  out.media_type = type.substr(0, type.find(';'));
  int64_t size = -1;
  const bool sized =
      absl::SimpleAtoi(response.Header("content-length"), &size) && size > 0;
  absl::StatusOr<Digest> digest =
      options_.reference.digest.empty()
          ? Digest::Parse(response.Header("docker-content-digest"))
          : options_.reference.digest;
  if (response.status / 100 != 2 || !sized || !digest.ok() ||
      out.media_type.empty() || ask.method == "GET") {
    // A registry that keeps HEAD short, or does not know it: GET and look.
    ask.method = "GET";
    ASSIGN_OR_RETURN(response, Send(host, ask));
    if (response.status == 404) return NoSuchImage();
    if (response.status / 100 != 2) return ForStatus(host, response, object);
    const std::string got = response.Header("content-type");
    out.media_type = got.substr(0, got.find(';'));
    const Digest computed =
        Digest::Of(response.body, options_.reference.digest.empty()
                                      ? DigestAlgorithm::kSha256
                                      : options_.reference.digest.algorithm());
    if (!options_.reference.digest.empty() &&
        computed != options_.reference.digest) {
      return absl::DataLossError(absl::StrCat(
          host.config.host, ": manifest ", options_.reference.digest.str(),
          " has the digest ", computed.str()));
    }
    digest = computed;
    size = static_cast<int64_t>(response.body.size());
    if (!oci::IsManifestType(out.media_type) &&
        !oci::IsIndexType(out.media_type) &&
        !oci::IsSchema1Type(out.media_type)) {
      out.media_type = oci::GuessMediaType(response.body);
    }
  }
  if (oci::IsSchema1Type(out.media_type)) {
    return absl::UnimplementedError(absl::StrCat(
        options_.reference.str(),
        ": the image is in Docker's schema 1 format, which is no longer "
        "supported: push it again with a current client"));
  }
  if (size > oci::kDocumentBytesMax) {
    return absl::ResourceExhaustedError(absl::StrCat(
        options_.reference.str(), ": the manifest has ", size,
        " bytes, more than the limit of ", oci::kDocumentBytesMax));
  }
  out.digest = *digest;
  out.size_bytes = size;
  return out;
}

absl::StatusOr<Descriptor> Registry::Resolve() {
  if (options_.reference.Object().empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        options_.reference.str(), ": a tag or a digest is needed"));
  }
  absl::Status failed = NoSuchImage();
  for (const auto& host : hosts_) {
    if (!host->config.resolve) continue;
    absl::StatusOr<Descriptor> got = ResolveAt(*host);
    if (got.ok() || absl::IsCancelled(got.status())) return got;
    log::Debug("resolve", {{"host", host->config.host},
                           {"error", got.status().ToString()}});
    if (absl::IsNotFound(failed)) failed = got.status();
  }
  return Final(failed);
}

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
    Host* host, const std::string& url, const Descriptor& descriptor,
    const std::function<absl::Status(const char*, size_t)>& sink,
    int64_t* offset, bool* fatal) {
  const std::string& digest = descriptor.digest.str();
  const std::string where =
      host != nullptr ? host->config.host : SplitUrl(url).origin;
  const int64_t size = descriptor.size_bytes;
  stats::Value* const received = stats::Counter(
      "bulkhead_registry_received_bytes_total", {{"registry", where}});
  int64_t skip = 0;
  const auto wrong_length = [&](int64_t got) {
    return absl::DataLossError(absl::StrCat(where, ": ", digest, " has ", got,
                                            " bytes, expected ", size));
  };
  const auto on_headers = [&](const HttpResponse& response) -> absl::Status {
    skip = 0;
    if (response.status == 206) {
      int64_t first = 0;
      int64_t total = -1;
      if (!ParseContentRange(response.Header("content-range"), &first,
                             &total) ||
          first != *offset) {
        return absl::UnavailableError("a wrong Content-Range");
      }
      if (total >= 0 && total != size) return wrong_length(total);
    } else if (response.status == 200) {
      skip = *offset;  // No ranges here: drop what is there already.
      int64_t length = 0;
      if (absl::SimpleAtoi(response.Header("content-length"), &length) &&
          length != size) {
        return wrong_length(length);
      }
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
    if (*offset + static_cast<int64_t>(count) > size) {
      return absl::DataLossError(absl::StrCat(where, ": ", digest,
                                              " is longer than the ", size,
                                              " bytes expected"));
    }
    absl::Status status = sink(data, count);
    if (!status.ok()) {
      *fatal = true;
      return status;
    }
    *offset += count;
    received->Add(static_cast<int64_t>(count));
    return absl::OkStatus();
  };
  Ask ask;
  const bool document = oci::IsManifestType(descriptor.media_type) ||
                        oci::IsIndexType(descriptor.media_type);
  ask.path = absl::StrCat(document ? "manifests/" : "blobs/", digest);
  ask.headers = {{"Accept", descriptor.media_type.empty()
                                ? "*/*"
                                : descriptor.media_type + ", */*"}};
  if (*offset > 0) {
    ask.headers.emplace_back("Range", absl::StrCat("bytes=", *offset, "-"));
  }
  ask.verified = true;
  ask.on_headers = on_headers;
  ask.sink = take;
  HttpResponse response;
  if (host != nullptr) {
    ASSIGN_OR_RETURN(response, Send(*host, ask));
    if (response.status == 404 && document) {
      ask.path = "blobs/" + digest;  // Some registries keep it only there.
      ASSIGN_OR_RETURN(response, Send(*host, ask));
    }
    if (response.status / 100 != 2) return ForStatus(*host, response, digest);
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
    ASSIGN_OR_RETURN(response, Follow(outside, ask, request, "http"));
    if (response.status / 100 != 2) {
      return ForStatus(outside, response, digest);
    }
  }
  if (*offset < size) {
    return absl::UnavailableError(absl::StrCat("registry ", where, ": ", digest,
                                               " ended after ", *offset, " of ",
                                               size, " bytes"));
  }
  return absl::OkStatus();
}

absl::Status Registry::FetchBlob(
    const Descriptor& descriptor, int64_t offset,
    const std::function<absl::Status(const char*, size_t)>& sink) {
  if (offset >= descriptor.size_bytes && descriptor.size_bytes > 0) {
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
    int idle = 0;
    absl::Duration wait = kBackOffStart;
    for (;;) {
      const int64_t before = offset;
      bool fatal = false;
      const absl::Status status =
          FetchFrom(source.host, source.url, descriptor, sink, &offset, &fatal);
      if (status.ok()) return status;
      if (fatal || absl::IsCancelled(status)) return status;
      log::Debug("fetch", {{"digest", descriptor.digest.str()},
                           {"offset", std::to_string(offset)},
                           {"error", status.ToString()}});
      if (first || absl::IsNotFound(failed)) failed = status;
      if (!absl::IsUnavailable(status)) break;
      if (NobodyThere(status) && &source != &sources.back()) break;
      idle = offset > before ? 0 : idle + 1;
      if (offset > before) wait = kBackOffStart;
      if (idle > kIdleReopensMax || ++reopens > kReopensMax) break;
      Sleep(wait);
      wait = std::min(wait * 2, absl::Seconds(5));
    }
    first = false;
  }
  if (!absl::StrContains(MessageOf(failed), descriptor.digest.str())) {
    failed =
        Annotate(failed, absl::StrCat("fetching ", descriptor.digest.str()));
  }
  return Final(failed);
}

}  // namespace bulkhead::distribution
