#include "services/distribution/auth.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "lib/base/status_macros.h"
#include "services/distribution/url.h"

namespace bulkhead::distribution {
namespace {

using nlohmann::json;

constexpr char kClientId[] = "containerd-client";
// The registries' default when a token does not say.
constexpr absl::Duration kTokenLife = absl::Seconds(60);
constexpr absl::Duration kTokenMargin = absl::Seconds(5);
constexpr int kTokenAttemptsMax = 4;
constexpr int kTokenRedirectsMax = 5;
constexpr absl::Duration kTokenWait = absl::Milliseconds(200);

std::string StringOf(const json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>()
                                                     : "";
}

std::string Parameter(const Challenge& challenge, const std::string& name) {
  const auto found = challenge.parameters.find(name);
  return found == challenge.parameters.end() ? "" : found->second;
}

// One request to a token server: tried again if it is busy, redirected on a
// GET, but then without the secret if it leads to another server.
absl::StatusOr<HttpResponse> AskTokens(HttpClient* http, HttpRequest request) {
  absl::Duration wait = kTokenWait;
  int hops = 0;
  for (int attempt = 1;;) {
    absl::StatusOr<HttpResponse> response = http->Do(request);
    const bool busy = absl::IsUnavailable(response.status()) ||
                      (response.ok() && (response->status == 429 ||
                                         response->status / 100 == 5));
    const bool gone = request.cancelled && request.cancelled();
    if (busy && !gone && attempt++ < kTokenAttemptsMax) {
      absl::SleepFor(wait);
      wait *= 2;
      continue;
    }
    if (!response.ok() || response->status / 100 != 3 ||
        request.method != "GET") {
      return response;
    }
    const std::string next =
        ResolveUrl(request.url, response->Header("location"));
    const std::string from = SplitUrl(request.url).origin;
    const std::string to = SplitUrl(next).origin;
    if (next.empty() || absl::StrContains(to, "@") ||
        ++hops > kTokenRedirectsMax ||
        (absl::StartsWith(from, "https:") && absl::StartsWith(to, "http:"))) {
      return absl::UnauthenticatedError("its token server leads nowhere");
    }
    if (to != from) {
      request.headers.clear();
      request.tls = TlsOptions();
    }
    request.url = next;
  }
}

}  // namespace

std::string UrlEncode(const std::string& text) {
  static constexpr char kHex[] = "0123456789ABCDEF";
  std::string out;
  for (unsigned char c : text) {
    if (absl::ascii_isalnum(c) || c == '-' || c == '_' || c == '.' ||
        c == '~') {
      out += static_cast<char>(c);
    } else {
      out += '%';
      out += kHex[c >> 4];
      out += kHex[c & 15];
    }
  }
  return out;
}

std::string BasicHeader(const std::string& username,
                        const std::string& secret) {
  return "Basic " + absl::Base64Escape(username + ":" + secret);
}

std::string HostAuth::Header() {
  std::lock_guard<std::mutex> lock(mutex_);
  // An expired token is sent no more; the 401 that follows brings a new one.
  return absl::Now() < expires_ ? header_ : "";
}

absl::Status HostAuth::AskCredentials(
    const std::vector<std::string>& challenges) {
  if (asked_ || !source_) return absl::OkStatus();
  absl::StatusOr<Credentials> got = source_(host_, challenges);
  if (!got.ok()) return Annotate(got.status(), "asking for credentials");
  credentials_ = *std::move(got);
  asked_ = true;
  return absl::OkStatus();
}

absl::Status HostAuth::Login(const std::vector<std::string>& www_authenticate,
                             const std::string& used, bool secure,
                             const HttpRequest& base) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (header_ != used && absl::Now() < expires_) {
    return absl::OkStatus();  // Another thread has logged in meanwhile.
  }
  const Challenge* basic = nullptr;
  const Challenge* bearer = nullptr;
  std::vector<Challenge> challenges;
  for (const std::string& value : www_authenticate) {
    for (Challenge& challenge : ParseChallenges(value)) {
      challenges.push_back(std::move(challenge));
    }
  }
  for (const Challenge& challenge : challenges) {
    if (challenge.scheme == "bearer" && bearer == nullptr) bearer = &challenge;
    if (challenge.scheme == "basic" && basic == nullptr) basic = &challenge;
  }
  RETURN_IF_ERROR(AskCredentials(www_authenticate));
  if (bearer != nullptr) {
    if (absl::StartsWith(used, "Bearer ") &&
        Parameter(*bearer, "error") == "insufficient_scope") {
      return absl::UnauthenticatedError("insufficient_scope");
    }
    return FetchToken(*bearer, secure, base);
  }
  if (basic == nullptr) {
    return absl::UnauthenticatedError(
        "it asks for a login of a kind that is not supported");
  }
  if (credentials_.secret.empty() || credentials_.username.empty()) {
    return absl::UnauthenticatedError("it asks for a user name and password");
  }
  const std::string header =
      BasicHeader(credentials_.username, credentials_.secret);
  if (header == used) {
    return absl::UnauthenticatedError("the user name or password is wrong");
  }
  header_ = header;
  expires_ = absl::InfiniteFuture();
  return absl::OkStatus();
}

absl::Status HostAuth::FetchToken(const Challenge& challenge, bool secure,
                                  const HttpRequest& base) {
  const std::string realm = Parameter(challenge, "realm");
  if (!absl::StartsWith(realm, "https://") &&
      !absl::StartsWith(realm, "http://")) {
    return absl::UnauthenticatedError("its token server has no usable address");
  }
  const bool has_secret = !credentials_.secret.empty();
  if (has_secret && secure && absl::StartsWith(realm, "http://")) {
    return absl::UnauthenticatedError(
        "its token server is not https: no password is sent there");
  }
  std::set<std::string> scopes;
  const std::vector<std::string> own =
      absl::StrSplit(scope_, ' ', absl::SkipEmpty());
  scopes.insert(own.begin(), own.end());
  const std::vector<std::string> asked =
      absl::StrSplit(Parameter(challenge, "scope"), ' ', absl::SkipEmpty());
  scopes.insert(asked.begin(), asked.end());
  const std::string service = Parameter(challenge, "service");

  HttpRequest request;
  request.tls = base.tls;
  request.connect_timeout = base.connect_timeout;
  request.stall_timeout = base.stall_timeout;
  request.cancelled = base.cancelled;
  request.body_bytes_max = kTokenResponseBytesMax;
  HttpResponse response;
  bool done = false;
  if (has_secret) {
    request.method = "POST";
    request.url = realm;
    request.headers = {
        {"Content-Type", "application/x-www-form-urlencoded; charset=utf-8"}};
    request.body =
        absl::StrCat("client_id=", kClientId,
                     "&scope=", UrlEncode(absl::StrJoin(scopes, " ")),
                     "&service=", UrlEncode(service));
    if (credentials_.refresh_token || credentials_.username.empty()) {
      absl::StrAppend(&request.body, "&grant_type=refresh_token&refresh_token=",
                      UrlEncode(credentials_.secret));
    } else {
      absl::StrAppend(&request.body, "&grant_type=password&username=",
                      UrlEncode(credentials_.username),
                      "&password=", UrlEncode(credentials_.secret));
    }
    ASSIGN_OR_RETURN(response, AskTokens(http_, request));
    done = response.status != 400 && response.status != 401 &&
           response.status != 404 && response.status != 405;
  }
  if (!done) {
    request.method = "GET";
    request.body.clear();
    request.headers.clear();
    request.url = realm;
    char separator = absl::StrContains(realm, "?") ? '&' : '?';
    const auto add = [&](const std::string& name, const std::string& value) {
      request.url +=
          absl::StrCat(std::string(1, separator), name, "=", UrlEncode(value));
      separator = '&';
    };
    if (!service.empty()) add("service", service);
    for (const std::string& scope : scopes) add("scope", scope);
    if (has_secret) {
      request.headers = {{"Authorization", BasicHeader(credentials_.username,
                                                       credentials_.secret)}};
    }
    ASSIGN_OR_RETURN(response, AskTokens(http_, request));
  }
  if (response.status == 401 || response.status == 403) {
    return absl::UnauthenticatedError(
        has_secret ? "its token server refused the user name or password"
                   : "its token server asks for a user name and password");
  }
  if (response.status / 100 != 2) {
    return absl::UnavailableError(absl::StrCat(
        "its token server answered with HTTP status ", response.status));
  }
  const json body = json::parse(response.body, nullptr, false);
  if (!body.is_object()) {
    return absl::UnauthenticatedError("its token server's answer is no JSON");
  }
  std::string token = StringOf(body, "access_token");
  if (token.empty()) token = StringOf(body, "token");
  if (token.empty() || token.size() > kTokenBytesMax) {
    return absl::UnauthenticatedError(
        token.empty() ? "its token server's answer has no token"
                      : "its token is too long");
  }
  absl::Duration life = kTokenLife;
  if (const auto found = body.find("expires_in");
      found != body.end() && found->is_number_integer()) {
    const int64_t seconds = found->get<int64_t>();
    if (seconds > 0) life = absl::Seconds(std::min<int64_t>(seconds, 86400));
  }
  header_ = "Bearer " + token;
  expires_ = absl::Now() + std::max(life - kTokenMargin, absl::Seconds(1));
  return absl::OkStatus();
}

}  // namespace bulkhead::distribution
