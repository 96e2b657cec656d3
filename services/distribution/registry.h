// A registry, for one image reference: resolve and fetch, with login, several
// hosts, retries and resuming. Thread-safe; calls block.
#ifndef BULKHEAD_SERVICES_DISTRIBUTION_REGISTRY_H_
#define BULKHEAD_SERVICES_DISTRIBUTION_REGISTRY_H_

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "lib/oci/image.h"
#include "lib/oci/reference.h"
#include "services/distribution/auth.h"
#include "services/distribution/hosts.h"
#include "services/distribution/http.h"

namespace bulkhead::distribution {

constexpr int kAttemptsMax = 5;     // Of one request.
constexpr int kIdleReopensMax = 3;  // Of a blob, without progress.
constexpr int kReopensMax = 100;    // Of a blob, in all.
constexpr int kRedirectsMax = 10;
constexpr absl::Duration kRetryAfterMax = absl::Seconds(30);

struct RegistryOptions {
  HttpClient* http = nullptr;  // Must outlive the registry.
  oci::Reference reference;
  std::vector<RegistryHost> hosts;
  // Sent with every request to the registry's hosts, never elsewhere.
  std::vector<std::pair<std::string, std::string>> headers;
  CredentialSource credentials;
  absl::Duration stall_timeout = absl::Seconds(30);
  std::function<bool()> cancelled;
};

// All errors name the registry and the object. Common ones:
//   kNotFound, kUnauthenticated, kPermissionDenied (as the registry says),
//   kUnknown (no answer after retries), kResourceExhausted (a limit),
//   kCancelled, kDataLoss: bytes that do not match their digest or size.
class Registry {
 public:
  explicit Registry(RegistryOptions options);

  // What the reference's tag or digest stands for.
  absl::StatusOr<oci::Descriptor> Resolve();

  // A manifest, index or config, verified; at most oci::kDocumentBytesMax.
  absl::StatusOr<std::string> FetchDocument(const oci::Descriptor& descriptor);

  // The bytes of a blob from `offset_bytes` on, in order. `sink` gets each
  // once, whatever is retried; its error ends the fetch. Checks the length;
  // the digest is the caller's to check. Sinks run in the HTTP thread.
  absl::Status FetchBlob(
      const oci::Descriptor& descriptor, int64_t offset_bytes,
      const std::function<absl::Status(const char*, size_t)>& sink);

 private:
  struct Host {
    RegistryHost config;
    std::unique_ptr<HostAuth> auth;
    std::string scheme;  // Guarded by mutex_.
  };
  // What one request wants; see Send.
  struct Ask {
    std::string method = "GET";
    std::string path;  // "manifests/latest"
    std::vector<std::pair<std::string, std::string>> headers;
    size_t body_bytes_max = 0;
    bool verified = false;  // The caller checks the bytes by digest.
    std::function<absl::Status(const HttpResponse&)> on_headers;
    std::function<absl::Status(const char*, size_t)> sink;
  };

  // One request with login, redirects and retries; any final status is OK.
  absl::StatusOr<HttpResponse> Send(Host& host, const Ask& ask);
  absl::StatusOr<HttpResponse> Follow(Host& host, const Ask& ask,
                                      HttpRequest request,
                                      const std::string& used_scheme);
  std::string SchemeOf(Host& host);
  absl::StatusOr<oci::Descriptor> ResolveAt(Host& host);
  absl::Status FetchFrom(
      Host* host, const std::string& url, const oci::Descriptor& descriptor,
      const std::function<absl::Status(const char*, size_t)>& sink,
      int64_t* offset_bytes, bool* fatal);
  absl::Status ForStatus(const Host& host, const HttpResponse& response,
                         const std::string& object) const;
  absl::Status NoSuchImage() const;
  void Sleep(absl::Duration time) const;
  bool Cancelled() const { return options_.cancelled && options_.cancelled(); }

  const RegistryOptions options_;
  std::vector<std::unique_ptr<Host>> hosts_;
  std::mutex mutex_;
};

}  // namespace bulkhead::distribution

#endif  // BULKHEAD_SERVICES_DISTRIBUTION_REGISTRY_H_
