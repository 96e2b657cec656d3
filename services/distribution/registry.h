// A registry, for one image reference: resolve and fetch, with login, several
// hosts, retries and resuming. Thread-safe; calls block.
#ifndef BULKHEAD_SERVICES_DISTRIBUTION_REGISTRY_H_
#define BULKHEAD_SERVICES_DISTRIBUTION_REGISTRY_H_

#include <atomic>
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
constexpr int kReferrerPagesMax = 16;
constexpr size_t kReferrersMax = 4096;
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
  // The lines also tell the headers of requests and answers, secrets hidden.
  bool explain_headers = false;
};

// A part of a blob that is being fetched.
struct Stretch {
  Stretch(int64_t at, int64_t end) : at_bytes(at), end_bytes(end) {}
  std::atomic<int64_t> at_bytes;  // The next byte to come.
  // May be moved by others meanwhile, but not below what has come.
  std::atomic<int64_t> end_bytes;
  // Fails with kUnimplemented if the server would start from the beginning.
  bool ranges_only = false;
  // Ends the fetch with kCancelled when it becomes true.
  const std::atomic<bool>* stop = nullptr;
  // Set once the server has shown that it knows ranges.
  std::atomic<bool> ranges{false};
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

  // The manifests that name `subject` as theirs, of one artifact type or of
  // all (""): from the referrers API, else from the tag that stands in for it.
  // None is OK.
  absl::StatusOr<std::vector<oci::Descriptor>> Referrers(
      const Digest& subject, const std::string& artifact_type);

  // The bytes of a blob from `offset_bytes` on, in order. `sink` gets each
  // once, whatever is retried; its error ends the fetch. Checks the length;
  // the digest is the caller's to check. Sinks run in the HTTP thread.
  absl::Status FetchBlob(
      const oci::Descriptor& descriptor, int64_t offset_bytes,
      const std::function<absl::Status(const char*, size_t)>& sink);

  // The same for a part of it; moves `stretch->at_bytes` after each call of
  // `sink`, up to `stretch->end_bytes`.
  absl::Status FetchStretch(
      const oci::Descriptor& descriptor, Stretch* stretch,
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
  // True if the registry says that it keeps the list of a subject's referrers.
  absl::StatusOr<bool> PushDocument(const oci::Descriptor& descriptor,
                                    const std::string& bytes,
                                    const std::string& tag);
  // Puts `referrer` on the list under the subject's fallback tag.
  absl::Status LinkReferrer(const oci::Descriptor& referrer,
                            const Digest& subject);

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
    int64_t body_fd_offset = 0;
    int64_t body_fd_bytes = 0;
    std::function<void(int64_t)> sent;
    std::vector<std::pair<std::string, std::string>> headers;
    size_t body_bytes_max = 0;
    bool verified = false;  // The caller checks the bytes by digest.
    bool patient = true;    // There is no other host to try instead.
    const std::atomic<bool>* stop = nullptr;
    std::function<absl::Status(const HttpResponse&)> on_headers;
    std::function<absl::Status(const char*, size_t)> sink;
  };

  // One request with login, redirects and retries; any final status is OK.
  absl::StatusOr<HttpResponse> Send(Host& host, const Ask& ask);
  absl::StatusOr<HttpResponse> Follow(Host& host, const Ask& ask,
                                      HttpRequest request,
                                      const std::string& used_scheme);
  std::string SchemeOf(Host& host);
  absl::StatusOr<oci::Descriptor> ResolveAt(Host& host, bool patient);
  absl::Status FetchFrom(
      Host* host, const std::string& url, bool last,
      const oci::Descriptor& descriptor, Stretch* stretch,
      const std::function<absl::Status(const char*, size_t)>& sink,
      bool* fatal);
  absl::Status ForStatus(const Host& host, const HttpResponse& response,
                         const std::string& object) const;
  absl::Status NoSuchImage() const;
  absl::StatusOr<Host*> PushHost();
  struct Upload;
  absl::StatusOr<bool> StartUpload(Host& host, Upload* upload,
                                   const std::string& mount_from);
  absl::Status FinishUpload(Host& host, Upload* upload);
  absl::Status SendRest(Host& host, Upload* upload);
  void AskSession(Host& host, Upload* upload);
  bool TakeLocation(Host& host, const HttpResponse& response,
                    const std::string& base, Upload* upload);
  void Explain(const Host& host, const HttpRequest& request,
               const std::string& login,
               const absl::StatusOr<HttpResponse>& response,
               absl::Duration took) const;
  // A line for those who follow what happens, and for the debug log.
  void Tell(const std::string& line) const;
  void TellHosts() const;
  void Sleep(absl::Duration time) const;
  bool Cancelled() const { return options_.cancelled && options_.cancelled(); }

  const RegistryOptions options_;
  std::vector<std::unique_ptr<Host>> hosts_;
  std::mutex mutex_;
};

}  // namespace bulkhead::distribution

#endif  // BULKHEAD_SERVICES_DISTRIBUTION_REGISTRY_H_
