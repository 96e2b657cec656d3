// One connection of the data server: what its requests do.
#ifndef BULKHEAD_SERVICES_CONTENT_DATA_SESSION_H_
#define BULKHEAD_SERVICES_CONTENT_DATA_SESSION_H_

#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "lib/dataplane/dataplane.h"
#include "lib/os/fd.h"
#include "services/content/fs_store.h"

namespace bulkhead::content {

// Not thread-safe. Unlocks its ref when it dies.
class DataSession {
 public:
  DataSession(os::UniqueFd socket, FsStore* store, bool verify_on_open)
      : socket_(std::move(socket)),
        store_(*store),
        verify_on_open_(verify_on_open) {}

  int socket() const { return socket_.get(); }
  // Receives one packet and answers it. False: the session is over.
  bool HandleOne();

 private:
  struct Reply {
    nlohmann::json body = nlohmann::json::object();
    os::UniqueFd fd;
  };

  bool Fail(const absl::Status& error);
  absl::StatusOr<Reply> Handle(const std::string& op,
                               const nlohmann::json& request);
  absl::StatusOr<Reply> Open(const nlohmann::json& request);
  absl::StatusOr<Reply> Ingest(const nlohmann::json& request);
  absl::StatusOr<Reply> Commit(const nlohmann::json& request);

  const os::UniqueFd socket_;
  FsStore& store_;
  const bool verify_on_open_;
  std::unique_ptr<FsWriter> writer_;
};

}  // namespace bulkhead::content

#endif  // BULKHEAD_SERVICES_CONTENT_DATA_SESSION_H_
