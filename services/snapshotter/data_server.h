// The snapshotter's data socket: "apply" (lib/dataplane/dataplane.h and
// README.md).
#ifndef BULKHEAD_SERVICES_SNAPSHOTTER_DATA_SERVER_H_
#define BULKHEAD_SERVICES_SNAPSHOTTER_DATA_SERVER_H_

#include <condition_variable>
#include <mutex>
#include <set>
#include <thread>

#include "absl/status/statusor.h"
#include "lib/os/fd.h"
#include "services/snapshotter/applier.h"

namespace bulkhead::snapshotter {

// Past this, a connection is told RESOURCE_EXHAUSTED.
constexpr int kApplySessionsMax = 64;

// Serves from its own threads, one a session, until destroyed; then sessions
// end at once.
class DataServer {
 public:
  // Takes the listening SOCK_SEQPACKET socket; borrows `applier`.
  DataServer(os::UniqueFd listener, Applier& applier);
  ~DataServer();

 private:
  void AcceptLoop();
  void Serve(int socket);

  os::UniqueFd listener_;
  Applier& applier_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::set<int> sessions_;  // Their sockets.
  bool stopping_ = false;
  std::thread accepting_;
};

}  // namespace bulkhead::snapshotter

#endif  // BULKHEAD_SERVICES_SNAPSHOTTER_DATA_SERVER_H_
