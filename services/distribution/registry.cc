#include "services/distribution/registry.h"

#include <algorithm>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "lib/base/status_macros.h"
#include "lib/log/log.h"
#include "lib/os/fd.h"
#include "lib/stats/stats.h"
#include "services/distribution/registry_internal.h"
#include "services/distribution/url.h"

namespace bulkhead::distribution {
namespace {

using oci::Descriptor;

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

// The headers, one a line behind `mark`, without what must not be seen.
std::string ShownHeaders(
    const char* mark,
    const std::vector<std::pair<std::string, std::string>>& headers) {
  std::string out;
  for (const auto& [name, value] : headers) {
    const std::string lower = absl::AsciiStrToLower(name);
    std::string shown = value;
    if (lower == "location" || lower == "link") shown = Shown(value);
    if (absl::StrContains(lower, "authorization") ||
        absl::StrContains(lower, "cookie") ||
        absl::StrContains(lower, "token") || absl::StrContains(lower, "key") ||
        absl::StrContains(lower, "secret")) {
      shown = "(hidden)";
    }
    absl::StrAppend(&out, mark, name, ": ", shown, "\n");
  }
  return out;
}

std::string NextAttempt(absl::Duration wait, int attempt) {
  return absl::StrCat("  next: the same again in ",
                      absl::ToInt64Milliseconds(wait), " ms (attempt ", attempt,
                      " of ", kAttemptsMax, ")");
}

}  // namespace

bool NobodyThere(const absl::Status& status) {
  const std::string text = MessageOf(status);
  return absl::StrContains(text, "Could not resolve") ||
         absl::StrContains(text, "Failed to connect");
}

absl::Status Final(const absl::Status& status) {
  if (!absl::IsUnavailable(status)) return status;
  return absl::UnknownError(status.message());
}

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
    Tell(absl::StrCat("  redirected to ", Shown(next)));
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

namespace {

// A host that may be plain http does not speak TLS, as far as can be told.
bool NoTlsThere(const absl::Status& status, const std::string& host) {
  if (absl::IsAborted(status)) return true;
  if (!absl::IsUnavailable(status)) return false;
  const std::string text = MessageOf(status);
  const bool has_port =
      host.rfind(':') != std::string::npos && !absl::EndsWith(host, "]");
  return absl::StrContains(text, "SSL connection timeout") ||
         (!has_port && absl::StrContains(text, "Failed to connect"));
}

}  // namespace

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
        offset += ask.body_fd_offset;
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
    if (config.https_first && scheme == "https" &&
        NoTlsThere(response.status(), config.host)) {
      Tell("  next: plain http, since no TLS is spoken there");
      std::lock_guard<std::mutex> lock(mutex_);
      host.scheme = "http";
      continue;
    }
    if (absl::IsAborted(response.status()) && scheme == "https") {
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
          ask.body_fd >= 0 || !ask.patient || attempt++ >= kAttemptsMax) {
        return failed;
      }
      if (NobodyThere(failed)) return failed;  // The next host may be.
      Tell(NextAttempt(wait, attempt));
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
      Tell(absl::StrCat("  next: log in, as ", config.host, " asks for ",
                        absl::StrJoin(challenges, ", ")));
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
    if (!IsRetryable(response->status) || !ask.patient ||
        (ask.body_fd >= 0 && response->status != 429) ||
        attempt++ >= kAttemptsMax) {
      return response;
    }
    const absl::Duration pause = RetryAfter(*response, wait);
    Tell(NextAttempt(pause, attempt));
    Sleep(pause);
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
  std::string text = line + "\n";
  if (options_.explain_headers) {
    absl::StrAppend(&text, ShownHeaders("> ", request.headers));
    if (response.ok()) {
      absl::StrAppend(&text, "< ", response->version, " ", response->status,
                      "\n", ShownHeaders("< ", response->headers));
    }
  }
  if (options_.explain) options_.explain(text);
}

void Registry::Tell(const std::string& line) const {
  log::Debug("registry", {{"step", line}});
  if (options_.explain) options_.explain(line + "\n");
}

void Registry::TellHosts() const {
  if (!options_.explain && !log::Enabled(log::Level::kDebug)) return;
  std::string line =
      absl::StrCat(options_.reference.str(), ": hosts to ask, in order:");
  for (const auto& host : hosts_) {
    if (!host->config.resolve) continue;
    absl::StrAppend(&line, " ", host->config.Url(host->config.scheme));
    if (host->config.host != options_.reference.host) {
      absl::StrAppend(&line, " (for ", options_.reference.host, ")");
    }
  }
  for (const char* name : {"HTTPS_PROXY", "https_proxy", "http_proxy"}) {
    const char* const proxy = std::getenv(name);
    if (proxy == nullptr || *proxy == '\0') continue;
    // Not what may stand before an '@'.
    const std::string text(proxy);
    absl::StrAppend(&line, "; ", name, " sends some by way of ",
                    text.substr(text.rfind('@') + 1));
  }
  Tell(line);
}

absl::StatusOr<Descriptor> Registry::ResolveAt(Host& host, bool patient) {
  const std::string object = options_.reference.Object();
  Ask ask;
  ask.method = "HEAD";
  ask.path = "manifests/" + object;
  ask.headers = {{"Accept", ResolveAccept()}};
  ask.patient = patient;
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
  TellHosts();
  for (const auto& host : hosts_) {
    if (!host->config.resolve) continue;
    const bool last = host == hosts_.back();
    absl::StatusOr<Descriptor> got = ResolveAt(*host, last);
    if (got.ok() || absl::IsCancelled(got.status())) return got;
    Tell(absl::StrCat("  ", host->config.host,
                      " did not have it: ", MessageOf(got.status()), "; next: ",
                      host == hosts_.back() ? "nothing, no host is left"
                                            : "the host after it"));
    log::Debug("resolve", {{"host", host->config.host},
                           {"error", got.status().ToString()}});
    if (absl::IsNotFound(failed)) failed = got.status();
  }
  return Final(failed);
}

}  // namespace bulkhead::distribution
