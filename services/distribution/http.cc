#include "services/distribution/http.h"

#include <curl/curl.h>
#include <malloc.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <thread>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "lib/base/status_macros.h"
#include "lib/os/fd.h"
#include "services/distribution/bandwidth.h"

namespace bulkhead::distribution {
namespace {

constexpr long kReceiveBufferBytes = 256 << 10;
constexpr long kConnectionsMax = 32;
// Idle for so long: connections are closed.
constexpr absl::Duration kPoll = absl::Seconds(30);
constexpr size_t kCaBytesMax = 4 << 20;
constexpr absl::Duration kCancelCheck = absl::Milliseconds(100);
struct Job {
  const HttpRequest* request = nullptr;
  CURL* easy = nullptr;
  curl_slist* headers = nullptr;
  char error[CURL_ERROR_SIZE] = {};
  std::string ca;
  HttpResponse response;
  size_t header_bytes = 0;
  bool headers_done = false;
  absl::Status failed;     // From a callback.
  absl::Status no_socket;  // Why there was none; libcurl does not tell.
  size_t sent_bytes = 0;
  // The client's; used in its loop only.
  Bandwidth* down = nullptr;
  Bandwidth* up = nullptr;
  int paused = 0;  // CURLPAUSE_*: waits for its turn.

  std::mutex mutex;
  std::condition_variable changed;
  bool done = false;  // Guarded by mutex.
  CURLcode result = CURLE_OK;

  ~Job() {
    if (headers != nullptr) curl_slist_free_all(headers);
    if (easy != nullptr) curl_easy_cleanup(easy);
  }
};

bool TakesBody(const Job& job) {
  return job.request->sink != nullptr &&
         (job.response.status == 200 || job.response.status == 206);
}

curl_socket_t OpenSocket(void* user, curlsocktype, curl_sockaddr* address) {
  os::UniqueFd fd(::socket(address->family, address->socktype | SOCK_CLOEXEC,
                           address->protocol));
  if (!fd.valid()) {
    static_cast<Job*>(user)->no_socket = os::ErrnoStatus(errno, "socket");
    return CURL_SOCKET_BAD;
  }
  return fd.Release();
}

size_t OnHeader(char* data, size_t unit, size_t count, void* user) {
  Job& job = *static_cast<Job*>(user);
  const size_t size = unit * count;
  job.header_bytes += size;
  if (job.header_bytes > kHeaderBytesMax) {
    job.failed = absl::ResourceExhaustedError(absl::StrCat(
        "response headers over the limit of ", kHeaderBytesMax, " bytes"));
    return 0;
  }
  std::string line(data, size);
  absl::StripTrailingAsciiWhitespace(&line);
  if (absl::StartsWith(line, "HTTP/")) {  // Also after a 100 Continue.
    job.response.headers.clear();
    const size_t space = line.find(' ');
    job.response.version = line.substr(0, space);
    if (space == std::string::npos ||
        !absl::SimpleAtoi(line.substr(space + 1, 3), &job.response.status)) {
      job.response.status = 0;
    }
    return size;
  }
  if (line.empty()) {
    if (job.response.status >= 200 && !job.headers_done) {
      job.headers_done = true;
      if (job.request->on_headers) {
        job.failed = job.request->on_headers(job.response);
        if (!job.failed.ok()) return 0;
      }
    }
    return size;
  }
  const size_t colon = line.find(':');
  if (colon == std::string::npos) return size;
  std::string value = line.substr(colon + 1);
  absl::StripAsciiWhitespace(&value);
  job.response.headers.emplace_back(
      absl::AsciiStrToLower(line.substr(0, colon)), std::move(value));
  return size;
}

size_t OnBody(char* data, size_t unit, size_t count, void* user) {
  Job& job = *static_cast<Job*>(user);
  const size_t size = unit * count;
  if (job.down->limited()) {
    if (!job.down->MayMove(&job, absl::Now())) {
      job.paused |= CURLPAUSE_RECV;
      return CURL_WRITEFUNC_PAUSE;  // It is handed in again.
    }
    job.down->Moved(&job, static_cast<int64_t>(size));
  }
  if (TakesBody(job)) {
    job.failed = job.request->sink(data, size);
    return job.failed.ok() ? size : 0;
  }
  std::string& body = job.response.body;
  if (job.response.status / 100 != 2) {  // An error page: its start will do.
    body.append(data,
                std::min(size, kErrorBodyBytesMax -
                                   std::min(body.size(), kErrorBodyBytesMax)));
    return size;
  }
  if (body.size() + size > job.request->body_bytes_max) {
    job.failed = absl::ResourceExhaustedError(
        absl::StrCat("response body over the limit of ",
                     job.request->body_bytes_max, " bytes"));
    return 0;
  }
  body.append(data, size);
  return size;
}

size_t OnUpload(char* buffer, size_t unit, size_t count, void* user) {
  Job& job = *static_cast<Job*>(user);
  size_t room = unit * count;
  if (job.up->limited()) {
    if (!job.up->MayMove(&job, absl::Now())) {
      job.paused |= CURLPAUSE_SEND;
      return CURL_READFUNC_PAUSE;
    }
    room = std::min(room, static_cast<size_t>(job.up->TurnBytes()));
  }
  size_t size = 0;
  if (job.request->source) {
    const int64_t got =
        job.request->source(buffer, room, static_cast<int64_t>(job.sent_bytes));
    if (got < 0) return CURL_READFUNC_ABORT;
    size = static_cast<size_t>(got);
  } else {
    const std::string& body = job.request->body;
    size = std::min(room, body.size() - job.sent_bytes);
    std::memcpy(buffer, body.data() + job.sent_bytes, size);
  }
  job.sent_bytes += size;
  job.up->Moved(&job, static_cast<int64_t>(size));
  return size;
}

// libcurl sends a body again when a kept connection turns out to be dead. Not
// one from a source: who knows how much of it has been taken.
int OnSeek(void* user, curl_off_t offset, int origin) {
  if (static_cast<Job*>(user)->request->source) return CURL_SEEKFUNC_FAIL;
  if (origin != SEEK_SET || offset < 0) return CURL_SEEKFUNC_FAIL;
  static_cast<Job*>(user)->sent_bytes = static_cast<size_t>(offset);
  return CURL_SEEKFUNC_OK;
}

// A header value from outside must not start another header.
bool HasLineBreak(const std::string& text) {
  return text.find_first_of(std::string("\r\n\0", 3)) != std::string::npos;
}

bool IsLoopbackUrl(const std::string& url) {
  std::string host = url.substr(url.find("://") + 3);
  host = host.substr(0, host.find_first_of("/?#"));
  if (absl::StartsWith(host, "[")) return absl::StartsWith(host, "[::1]");
  host = host.substr(0, host.find(':'));
  return host == "localhost" ||
         (absl::StartsWith(host, "127.") &&
          host.find_first_not_of("0123456789.") == std::string::npos);
}

// libcurl reads the environment itself, but for HTTP_PROXY, which servers
// that run CGI programs must not trust; this one runs none.
void SetProxy(CURL* easy, const std::string& url) {
  if (IsLoopbackUrl(url)) {
    curl_easy_setopt(easy, CURLOPT_NOPROXY, "*");
    return;
  }
  if (!absl::StartsWith(url, "http://")) return;
  const char* const lower = std::getenv("http_proxy");
  const char* const upper = std::getenv("HTTP_PROXY");
  if (lower == nullptr && upper != nullptr) {
    curl_easy_setopt(easy, CURLOPT_PROXY, upper);
  }
}

absl::Status Prepare(const HttpRequest& request, const std::string& user_agent,
                     Job* job) {
  if (!absl::StartsWith(request.url, "http://") &&
      !absl::StartsWith(request.url, "https://")) {
    return absl::InvalidArgumentError(
        absl::StrCat("not an http or https URL: ", request.url));
  }
  job->request = &request;
  job->easy = curl_easy_init();
  if (job->easy == nullptr) return absl::ResourceExhaustedError("libcurl");
  CURL* easy = job->easy;
  curl_easy_setopt(easy, CURLOPT_PRIVATE, job);
  curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, job->error);
  curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
  curl_easy_setopt(easy, CURLOPT_FOLLOWLOCATION, 0L);
  curl_easy_setopt(easy, CURLOPT_HTTP_VERSION,
                   static_cast<long>(CURL_HTTP_VERSION_2TLS));
  curl_easy_setopt(easy, CURLOPT_BUFFERSIZE,
                   request.sink == nullptr ? 16384L : kReceiveBufferBytes);
  curl_easy_setopt(easy, CURLOPT_URL, request.url.c_str());
  curl_easy_setopt(easy, CURLOPT_USERAGENT, user_agent.c_str());
  SetProxy(easy, request.url);
  curl_easy_setopt(easy, CURLOPT_NETRC, static_cast<long>(CURL_NETRC_IGNORED));
  curl_easy_setopt(
      easy, CURLOPT_CONNECTTIMEOUT_MS,
      static_cast<long>(absl::ToInt64Milliseconds(request.connect_timeout)));
  curl_easy_setopt(easy, CURLOPT_LOW_SPEED_LIMIT, kStallBytesPerSecond);
  curl_easy_setopt(
      easy, CURLOPT_LOW_SPEED_TIME,
      std::max(1L,
               static_cast<long>(absl::ToInt64Seconds(request.stall_timeout))));
  curl_easy_setopt(easy, CURLOPT_HEADERFUNCTION, OnHeader);
  curl_easy_setopt(easy, CURLOPT_HEADERDATA, job);
  curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, OnBody);
  curl_easy_setopt(easy, CURLOPT_WRITEDATA, job);
  curl_easy_setopt(easy, CURLOPT_OPENSOCKETFUNCTION, OpenSocket);
  curl_easy_setopt(easy, CURLOPT_OPENSOCKETDATA, job);
  if (request.method == "HEAD") {
    curl_easy_setopt(easy, CURLOPT_NOBODY, 1L);
  } else if (request.method == "POST") {
    curl_easy_setopt(easy, CURLOPT_POST, 1L);
    curl_easy_setopt(easy, CURLOPT_POSTFIELDS, request.body.c_str());
    curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE_LARGE,
                     static_cast<curl_off_t>(request.body.size()));
  } else if (request.method == "PUT" || request.method == "PATCH") {
    curl_easy_setopt(easy, CURLOPT_UPLOAD, 1L);
    if (request.method == "PATCH") {
      curl_easy_setopt(easy, CURLOPT_CUSTOMREQUEST, "PATCH");
    }
    curl_easy_setopt(easy, CURLOPT_READFUNCTION, OnUpload);
    curl_easy_setopt(easy, CURLOPT_READDATA, job);
    curl_easy_setopt(easy, CURLOPT_SEEKFUNCTION, OnSeek);
    curl_easy_setopt(easy, CURLOPT_SEEKDATA, job);
    curl_easy_setopt(easy, CURLOPT_UPLOAD_BUFFERSIZE, kReceiveBufferBytes);
    curl_easy_setopt(
        easy, CURLOPT_INFILESIZE_LARGE,
        static_cast<curl_off_t>(request.source ? request.upload_bytes
                                               : int64_t(request.body.size())));
  } else if (request.method != "GET") {
    return absl::InvalidArgumentError(
        absl::StrCat("HTTP method ", request.method));
  }
  for (const auto& [name, value] : request.headers) {
    if (HasLineBreak(name) || HasLineBreak(value)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "line break in the request header ", name.substr(0, 64)));
    }
    // curl's spelling of a header with an empty value.
    job->headers = curl_slist_append(
        job->headers, value.empty() ? absl::StrCat(name, ";").c_str()
                                    : absl::StrCat(name, ": ", value).c_str());
  }
  curl_easy_setopt(easy, CURLOPT_HTTPHEADER, job->headers);
  const TlsOptions& tls = request.tls;
  if (tls.skip_verify) {
    curl_easy_setopt(easy, CURLOPT_SSL_VERIFYPEER, 0L);
    curl_easy_setopt(easy, CURLOPT_SSL_VERIFYHOST, 0L);
  }
  for (const std::string& file : tls.ca_files) {
    absl::StatusOr<std::string> pem = os::ReadFile(file, kCaBytesMax);
    if (!pem.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("CA file: ", MessageOf(pem.status())));
    }
    absl::StrAppend(&job->ca, *pem, "\n");
  }
  if (!job->ca.empty()) {
    curl_blob blob{job->ca.data(), job->ca.size(), CURL_BLOB_COPY};
    curl_easy_setopt(easy, CURLOPT_CAINFO_BLOB, &blob);
  }
  if (!tls.client_cert.empty()) {
    curl_easy_setopt(easy, CURLOPT_SSLCERT, tls.client_cert.c_str());
    if (!tls.client_key.empty()) {
      curl_easy_setopt(easy, CURLOPT_SSLKEY, tls.client_key.c_str());
    }
  }
  return absl::OkStatus();
}

absl::Status ResultStatus(const Job& job) {
  if (!job.failed.ok()) return job.failed;
  if (job.result == CURLE_OK) return absl::OkStatus();
  if (job.result == CURLE_COULDNT_CONNECT && !job.no_socket.ok()) {
    return job.no_socket;
  }
  const std::string text =
      job.error[0] != '\0' ? job.error : curl_easy_strerror(job.result);
  switch (job.result) {
    case CURLE_SSL_CONNECT_ERROR:
      if (absl::StrContains(text, "wrong version number") ||
          absl::StrContains(text, "http request")) {
        return absl::AbortedError(
            "the server answered an https request in plain HTTP");
      }
      return absl::UnavailableError(text);
    case CURLE_PEER_FAILED_VERIFICATION:
      return absl::FailedPreconditionError(absl::StrCat(
          "the server's certificate was not accepted: ", text,
          " (name its authority with `ca` in the host's hosts.toml)"));
    case CURLE_SSL_CERTPROBLEM:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_SSL_ISSUER_ERROR:
      return absl::InvalidArgumentError(absl::StrCat("TLS files: ", text));
    case CURLE_COULDNT_RESOLVE_PROXY:
      return absl::UnavailableError(
          absl::StrCat(text,
                       " (from the environment's http_proxy or "
                       "https_proxy)"));
    case CURLE_URL_MALFORMAT:
    case CURLE_UNSUPPORTED_PROTOCOL:
      return absl::InvalidArgumentError(text);
    case CURLE_OPERATION_TIMEDOUT:
      return absl::UnavailableError(absl::StrCat("timed out: ", text));
    default:
      return absl::UnavailableError(text);
  }
}

class CurlClient : public HttpClient {
 public:
  explicit CurlClient(const std::string& user_agent)
      : user_agent_(user_agent), multi_(NewMulti()) {
    thread_ = std::thread([this] { Loop(); });
  }

  ~CurlClient() override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
      curl_multi_wakeup(multi_);
    }
    thread_.join();
    curl_multi_cleanup(multi_);
  }

  absl::StatusOr<HttpResponse> Do(const HttpRequest& request) override {
    auto job = std::make_shared<Job>();
    RETURN_IF_ERROR(Prepare(request, user_agent_, job.get()));
    Post(job, &added_);
    bool asked = false;
    std::unique_lock<std::mutex> lock(job->mutex);
    while (!job->done) {
      job->changed.wait_for(lock, absl::ToChronoMilliseconds(kCancelCheck));
      if (job->done || asked || !request.cancelled) continue;
      lock.unlock();
      if (request.cancelled()) {
        asked = true;
        Post(job, &cancelled_);
      }
      lock.lock();
    }
    lock.unlock();
    RETURN_IF_ERROR(ResultStatus(*job));
    return std::move(job->response);
  }

  void SetLimits(const HttpLimits& limits) override {
    std::lock_guard<std::mutex> lock(mutex_);
    limits_ = limits;
    new_limits_ = true;
    curl_multi_wakeup(multi_);
  }

 private:
  static CURLM* NewMulti() {
    CURLM* multi = curl_multi_init();
    curl_multi_setopt(multi, CURLMOPT_PIPELINING,
                      static_cast<long>(CURLPIPE_MULTIPLEX));
    curl_multi_setopt(multi, CURLMOPT_MAXCONNECTS, kConnectionsMax);
    return multi;
  }

  void Post(const std::shared_ptr<Job>& job,
            std::deque<std::shared_ptr<Job>>* queue) {
    std::lock_guard<std::mutex> lock(mutex_);
    queue->push_back(job);
    curl_multi_wakeup(multi_);  // Under the lock: the loop may replace it.
  }

  void End(Job* job, CURLcode result) {
    const auto found = running_.find(job);
    if (found == running_.end()) return;
    const std::shared_ptr<Job> keep = found->second;
    running_.erase(found);
    curl_multi_remove_handle(multi_, job->easy);
    down_.Forget(job);
    up_.Forget(job);
    std::lock_guard<std::mutex> lock(job->mutex);
    job->result = result;
    job->done = true;
    job->changed.notify_all();
  }

  // Lets those go on whose turn it is; how long until the next may.
  absl::Duration TakeTurns() {
    absl::Duration wait = absl::InfiniteDuration();
    const std::pair<Bandwidth*, int> ways[] = {{&down_, CURLPAUSE_RECV},
                                               {&up_, CURLPAUSE_SEND}};
    for (const auto& [way, bit] : ways) {
      while (const Bandwidth::Mover who = way->Next(absl::Now())) {
        // Only jobs ask for a turn, and they are forgotten when they end.
        Job* const job = const_cast<Job*>(static_cast<const Job*>(who));
        job->paused &= ~bit;
        // Hands in what it holds back, which may end the turn.
        const CURLcode code = curl_easy_pause(job->easy, job->paused);
        if (code != CURLE_OK) End(job, code);
      }
      wait = std::min(wait, way->UntilNext(absl::Now()));
    }
    return wait;
  }

  void Loop() {
    for (;;) {
      std::deque<std::shared_ptr<Job>> added;
      std::deque<std::shared_ptr<Job>> cancelled;
      {
        std::lock_guard<std::mutex> lock(mutex_);
        if (stopping_) break;
        added.swap(added_);
        cancelled.swap(cancelled_);
        if (new_limits_) {
          new_limits_ = false;
          down_.SetRate(limits_.bytes_per_second, absl::Now());
          up_.SetRate(limits_.bytes_per_second, absl::Now());
          curl_multi_setopt(
              multi_, CURLMOPT_MAX_HOST_CONNECTIONS,
              static_cast<long>(limits_.connections_per_host_max));
        }
      }
      if (!added.empty()) used_ = true;
      for (const auto& job : added) {
        running_[job.get()] = job;
        job->down = &down_;
        job->up = &up_;
        curl_multi_add_handle(multi_, job->easy);
      }
      for (const auto& job : cancelled) {
        if (running_.count(job.get()) == 0) continue;
        job->failed = absl::CancelledError("the transfer was cancelled");
        End(job.get(), CURLE_ABORTED_BY_CALLBACK);
      }
      int active = 0;
      curl_multi_perform(multi_, &active);
      int left = 0;
      while (CURLMsg* message = curl_multi_info_read(multi_, &left)) {
        if (message->msg != CURLMSG_DONE) continue;
        const CURLcode result = message->data.result;
        char* owner = nullptr;
        curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &owner);
        End(reinterpret_cast<Job*>(owner), result);
      }
      // Rounded up: never a poll that does not wait.
      const absl::Duration wait =
          std::min(TakeTurns() + absl::Milliseconds(1), kPoll);
      int ready = 0;
      const absl::Time before = absl::Now();
      curl_multi_poll(multi_, nullptr, 0,
                      static_cast<int>(absl::ToInt64Milliseconds(wait)),
                      &ready);
      if (running_.empty() && used_ && ready == 0 &&
          absl::Now() - before >= kPoll - absl::Milliseconds(100)) {
        CloseIdle();
      }
    }
    while (!running_.empty()) {
      running_.begin()->second->failed =
          absl::CancelledError("the client is closing");
      End(running_.begin()->first, CURLE_ABORTED_BY_CALLBACK);
    }
  }

  // Gives back connections and memory that nobody used for a while.
  void CloseIdle() {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!added_.empty()) return;
    curl_multi_cleanup(multi_);
    multi_ = NewMulti();
    new_limits_ = true;
    used_ = false;
    malloc_trim(0);
  }

  const std::string user_agent_;
  std::mutex mutex_;
  CURLM* multi_;  // Replaced by the loop's thread, under mutex_.
  std::deque<std::shared_ptr<Job>> added_;        // Guarded by mutex_.
  std::deque<std::shared_ptr<Job>> cancelled_;    // Guarded by mutex_.
  bool stopping_ = false;                         // Guarded by mutex_.
  HttpLimits limits_;                             // Guarded by mutex_.
  bool new_limits_ = false;                       // Guarded by mutex_.
  bool used_ = false;                             // The loop's.
  Bandwidth down_;                                // The loop's.
  Bandwidth up_;                                  // The loop's.
  std::map<Job*, std::shared_ptr<Job>> running_;  // The loop's.
  std::thread thread_;
};

}  // namespace

std::string HttpResponse::Header(const std::string& name) const {
  for (const auto& [key, value] : headers) {
    if (key == name) return value;
  }
  return "";
}

std::unique_ptr<HttpClient> HttpClient::Create(const std::string& user_agent) {
  static const CURLcode init = curl_global_init(CURL_GLOBAL_DEFAULT);
  (void)init;  // It fails only without memory.
  return std::make_unique<CurlClient>(user_agent);
}

}  // namespace bulkhead::distribution
