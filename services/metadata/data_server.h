// Metadata's data socket (lib/dataplane): namespaced open and ingest; the
// descriptors come from the content service and are passed on.
#ifndef BULKHEAD_SERVICES_METADATA_DATA_SERVER_H_
#define BULKHEAD_SERVICES_METADATA_DATA_SERVER_H_

#include <map>
#include <thread>

#include "absl/synchronization/mutex.h"
#include "lib/os/fd.h"
#include "services/metadata/content.h"

namespace bulkhead::metadata {

// Sessions at once; one more is refused with RESOURCE_EXHAUSTED.
constexpr size_t kDataSessionsMax = 256;

// Serves until destroyed, one thread a session. `content` is borrowed.
class DataServer {
 public:
  DataServer(os::UniqueFd listener, Content& content);
  ~DataServer();

 private:
  void Accept();

  const os::UniqueFd listener_;
  Content& content_;
  absl::Mutex mutex_;
  bool stopping_ = false;
  std::map<int, bool> sessions_;  // Sockets of running sessions.
  std::thread accepting_;
};

}  // namespace bulkhead::metadata

#endif  // BULKHEAD_SERVICES_METADATA_DATA_SERVER_H_
