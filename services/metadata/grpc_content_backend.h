// ContentBackend over a service's sockets: gRPC for control and, if it is ours,
// descriptors from its data socket for bytes; else Read and Write streams.
#ifndef BULKHEAD_SERVICES_METADATA_GRPC_CONTENT_BACKEND_H_
#define BULKHEAD_SERVICES_METADATA_GRPC_CONTENT_BACKEND_H_

#include <memory>
#include <string>

#include "services/metadata/content_backend.h"

namespace bulkhead::metadata {

// Lazy: a socket that is not there yet is no error. `data_socket` empty: the
// service has none.
std::unique_ptr<ContentBackend> ConnectContentBackend(
    const std::string& socket, const std::string& data_socket);

}  // namespace bulkhead::metadata

#endif  // BULKHEAD_SERVICES_METADATA_GRPC_CONTENT_BACKEND_H_
