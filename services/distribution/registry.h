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
  // Also asks for the right to push.
  bool push = false;
  // Repositories to mount blobs from: asks for the right to pull from them.
  std::vector<std::string> mount_from;
  // Gets a line for each request: where to, with which login, what came of it.
  // Never a secret. Called in the caller's threads.
  std::function<void(const std::string& line)> explain;
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

  // Pushing goes to the first host that may. With `tag` the question is
  // whether that tag stands for the descriptor, or the request to set it.
  // Errors, beside the common ones: kFailedPrecondition: no host to push to.
  absl::StatusOr<bool> Has(const oci::Descriptor& descriptor,
                           const std::string& tag);
  // Sends `descriptor.size_bytes` bytes of `fd`, or mounts the blob from one of
  // the repositories `mount_from`, in their order; true: mounted. `sent` gets
  // the bytes sent so far, in the HTTP thread.
  absl::StatusOr<bool> PushBlob(const oci::Descriptor& descriptor, int fd,
                                const std::vector<std::string>& mount_from,
                                const std::function<void(int64_t)>& sent);
  absl::Status PushDocument(const oci::Descriptor& descriptor,
                            const std::string& bytes, const std::string& tag);

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
    std::string url;   // Instead of a path: where an upload goes on.
    std::string body;
    int body_fd = -1;  // Instead of `body`: this many bytes of a file.
    int64_t body_fd_bytes = 0;
    std::function<void(int64_t)> sent;
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
  absl::StatusOr<Host*> PushHost();
  absl::StatusOr<bool> PushBlobOnce(Host& host,
                                    const oci::Descriptor& descriptor, int fd,
                                    const std::string& mount_from,
                                    const std::function<void(int64_t)>& sent);
  void Explain(const Host& host, const HttpRequest& request,
               const std::string& login,
               const absl::StatusOr<HttpResponse>& response,
               absl::Duration took) const;
  void Sleep(absl::Duration time) const;
  bool Cancelled() const { return options_.cancelled && options_.cancelled(); }

  const RegistryOptions options_;
  std::vector<std::unique_ptr<Host>> hosts_;
  std::mutex mutex_;
};

}  // namespace bulkhead::distribution

#endif  // BULKHEAD_SERVICES_DISTRIBUTION_REGISTRY_H_
