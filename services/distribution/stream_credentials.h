// Logins that the client of a transfer gives over a stream of its own.
#ifndef BULKHEAD_SERVICES_DISTRIBUTION_STREAM_CREDENTIALS_H_
#define BULKHEAD_SERVICES_DISTRIBUTION_STREAM_CREDENTIALS_H_

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "services/distribution/auth.h"
#include "services/distribution/streams.h"

namespace bulkhead::distribution {

// Thread-safe: asks one question at a time.
class StreamCredentials {
 public:
  explicit StreamCredentials(std::shared_ptr<Stream> stream)
      : stream_(std::move(stream)) {}

  // Asks for what `reference` needs, naming the host too. A client may choose
  // by the reference alone: it must be of the registry that gets the answer.
  // Null `credentials`: an empty source, which has none.
  // The source's errors: kUnauthenticated: the client has closed the stream;
  // kInvalidArgument: its answer is malformed.
  static CredentialSource For(std::shared_ptr<StreamCredentials> credentials,
                              std::string reference);

 private:
  absl::StatusOr<Credentials> Ask(const std::string& reference,
                                  const std::string& host,
                                  const std::vector<std::string>& challenges);

  const std::shared_ptr<Stream> stream_;
  std::mutex mutex_;
};

}  // namespace bulkhead::distribution

#endif  // BULKHEAD_SERVICES_DISTRIBUTION_STREAM_CREDENTIALS_H_
