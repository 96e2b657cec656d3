// A Store that is somebody's Content service: lets the conformance suite, and
// tests, talk to ours, metadata's or containerd's through a socket.
#ifndef BULKHEAD_SERVICES_CONTENT_REMOTE_STORE_H_
#define BULKHEAD_SERVICES_CONTENT_REMOTE_STORE_H_

#include <grpcpp/channel.h>

#include <memory>
#include <string>

#include "services/content/store.h"

namespace bulkhead::content {

// `ns` and `lease` are sent with each call unless empty. `keep_alive` dies
// after the store. Differences from a local Store, all the wire's: a Writer is
// dead after its first error; Truncate() only goes to 0; a size of 0 is never
// exact.
std::unique_ptr<Store> OpenRemoteStore(
    std::shared_ptr<grpc::Channel> channel, const std::string& ns = "",
    std::shared_ptr<void> keep_alive = nullptr, const std::string& lease = "");

}  // namespace bulkhead::content

#endif  // BULKHEAD_SERVICES_CONTENT_REMOTE_STORE_H_
