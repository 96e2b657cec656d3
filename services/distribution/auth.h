// Logging in to one registry host: Basic, and Bearer tokens with a cache.
#ifndef BULKHEAD_SERVICES_DISTRIBUTION_AUTH_H_
#define BULKHEAD_SERVICES_DISTRIBUTION_AUTH_H_

#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "services/distribution/challenge.h"
#include "services/distribution/http.h"

namespace bulkhead::distribution {

constexpr size_t kTokenResponseBytesMax = 1 << 20;
constexpr size_t kTokenBytesMax = 48 << 10;

struct Credentials {
  std::string username;
  std::string secret;          // A password, or a refresh token.
  bool refresh_token = false;  // What `secret` is.
};
// Asks the client; may block on it. Empty credentials: it has none.
using CredentialSource = std::function<absl::StatusOr<Credentials>(
    const std::string& host, const std::vector<std::string>& challenges)>;

// The state of one host during one transfer. Thread-safe; one login at a time.
class HostAuth {
 public:
  // `http` must outlive this object. `secure`: the registry is spoken to in
  // https, so its secrets are never sent to a plain http token server. `scope`:
  // the token scopes to ask for, separated by spaces.
  HostAuth(HttpClient* http, std::string host, std::string scope,
           CredentialSource source)
      : http_(http),
        host_(std::move(host)),
        scope_(std::move(scope)),
        source_(std::move(source)) {}

  // The Authorization header to send, "" for none yet.
  std::string Header();

  // Digests a 401 that answered a request sent with `used` (what Header() gave
  // then); OK: try again. `base` lends TLS options, time-outs, cancelling.
  // Errors: kUnauthenticated: no usable challenge, no credentials, or they
  //   were refused. Others: the token server failed.
  absl::Status Login(const std::vector<std::string>& www_authenticate,
                     const std::string& used, bool secure,
                     const HttpRequest& base);

 private:
  absl::Status FetchToken(const Challenge& challenge, bool secure,
                          const HttpRequest& base);
  absl::Status AskCredentials(const std::vector<std::string>& challenges);

  HttpClient* const http_;
  const std::string host_;
  const std::string scope_;
  const CredentialSource source_;
  std::mutex mutex_;
  bool asked_ = false;
  Credentials credentials_;
  std::string header_;
  absl::Time expires_ = absl::InfiniteFuture();
};

std::string BasicHeader(const std::string& username, const std::string& secret);
// application/x-www-form-urlencoded.
std::string UrlEncode(const std::string& text);

}  // namespace bulkhead::distribution

#endif  // BULKHEAD_SERVICES_DISTRIBUTION_AUTH_H_
