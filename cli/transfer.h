// One call of the Transfer service and the streams that go with it.
#ifndef BULKHEAD_CLI_TRANSFER_H_
#define BULKHEAD_CLI_TRANSFER_H_

#include <google/protobuf/message_lite.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cli/client.h"
#include "cli/credentials.h"
#include "lib/oci/image.h"
#include "proto/containerd/types/platform.pb.h"

namespace bulkhead::cli {

void ToProto(const oci::Platform& platform, containerd::types::Platform* out);

// Use: Open(), the streams, Run() once. Not thread-safe.
class TransferCall {
 public:
  // Without `quiet` progress goes to stderr; with `live` it redraws itself if
  // that is a terminal.
  TransferCall(Client& client, bool quiet, bool live = true);
  ~TransferCall();

  // Errors: kUnimplemented: the server has no Transfer service.
  absl::Status Open();

  // The name of a stream on which `find` answers the server's questions for
  // credentials of a host; empty ones mean "nobody".
  absl::StatusOr<std::string> OfferCredentials(
      std::function<Credentials(const std::string& host)> find);

  // The name of a stream that carries the bytes of `fd`, as they are wanted.
  // `fd` must outlive Run().
  absl::StatusOr<std::string> Send(int fd);
  // The name of a stream whose bytes are written to `fd`.
  absl::StatusOr<std::string> Receive(int fd);

  // The name of a stream for the server's log lines, written to `fd`.
  absl::StatusOr<std::string> ReceiveLog(int fd);

  // Returns when the transfer is over and every stream is drained.
  absl::Status Run(const google::protobuf::MessageLite& source,
                   const google::protobuf::MessageLite& destination);

  // After Run(): names of images that were written.
  const std::vector<std::string>& saved() const;
  // The digest that the reference of a pull stands for; may be empty.
  const std::string& resolved() const;

 private:
  class View;
  absl::StatusOr<Stream*> NewStream(const std::string& kind, std::string* name);

  Client& client_;
  void FinishLog();

  bool quiet_;
  bool live_;
  std::string id_;
  std::unique_ptr<Stream> progress_;
  std::unique_ptr<View> view_;
  std::unique_ptr<Stream> auth_;
  std::unique_ptr<Stream> bytes_;
  bool receives_ = false;
  absl::Status bytes_status_;  // Of the local file.
  std::thread auth_thread_;
  std::thread bytes_thread_;
  std::unique_ptr<Stream> log_;
  std::thread log_thread_;
  std::atomic<bool> log_ended_{false};
};

}  // namespace bulkhead::cli

#endif  // BULKHEAD_CLI_TRANSFER_H_
