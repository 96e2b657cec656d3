// The data plane of the content service (lib/dataplane/dataplane.h): hands out
// descriptors of blobs and ingests, hashes behind the writers, commits.
//
// Trust: a peer holds a writable descriptor of its ingest, also after the
// commit, and may have changed bytes that were hashed already. Peers are our
// own processes (the socket is 0600); what is checked is that size and
// modification time stand still during the commit.
#ifndef BULKHEAD_SERVICES_CONTENT_DATA_SERVER_H_
#define BULKHEAD_SERVICES_CONTENT_DATA_SERVER_H_

#include <memory>

#include "absl/status/statusor.h"
#include "lib/os/fd.h"
#include "services/content/fs_store.h"

namespace bulkhead::content {

constexpr int kDataSessionsMax = 1024;
constexpr int kDataThreadsMax = 16;

struct DataServerOptions {
  // Hashes a blob before its descriptor is handed out; a damaged one is
  // kDataLoss.
  bool verify_on_open = false;
};

class DataServer {
 public:
  // Serves on `listener` (SOCK_SEQPACKET, listening) until destroyed. `store`
  // is borrowed. Threads: as many as have work at once, at most
  // kDataThreadsMax; each handles one packet of one session at a time.
  static absl::StatusOr<std::unique_ptr<DataServer>> Start(
      os::UniqueFd listener, FsStore* store, const DataServerOptions& options);

  // Ends every session; ingests stay resumable. Blocks until calls under way
  // are done.
  virtual ~DataServer() = default;
};

}  // namespace bulkhead::content

#endif  // BULKHEAD_SERVICES_CONTENT_DATA_SERVER_H_
