#include "services/content/main.h"

#include <sys/socket.h>

#include <utility>

#include "lib/base/status_macros.h"
#include "lib/rpc/removal.h"
#include "lib/service/service.h"
#include "services/content/content_service.h"
#include "services/content/data_server.h"
#include "services/content/fs_store.h"

namespace bulkhead {

int ContentMain(int argc, char** argv) {
  service::Options options;
  options.name = "content";
  options.summary = "Stores blobs by digest (a backend without namespaces).";
  options.no_network = true;
  return service::Main(
      argc, argv, options, [](service::Context& context) -> absl::Status {
        const config::Config& config = context.config();
        ASSIGN_OR_RETURN(const std::unique_ptr<content::FsStore> store,
                         content::FsStore::Open(config.RootDir("content")));
        ASSIGN_OR_RETURN(os::UniqueFd listener,
                         context.Listen("data", config.DataSocket("content"),
                                        0600, SOCK_SEQPACKET));
        ASSIGN_OR_RETURN(
            const std::unique_ptr<content::DataServer> data_server,
            content::DataServer::Start(
                std::move(listener), store.get(),
                {.verify_on_open = config.content.verify_on_open}));
        content::ContentService service(store.get());
        rpc::RemovalService removal(
            [&store](const std::string&, const std::vector<std::string>& names)
                -> absl::StatusOr<rpc::Removed> {
              rpc::Removed removed;
              for (const std::string& name : names) {
                const absl::StatusOr<Digest> digest = Digest::Parse(name);
                removed.push_back(digest.ok() ? store->Delete(*digest)
                                              : digest.status());
              }
              return removed;
            });
        RETURN_IF_ERROR(context.ListenGrpc({&service, &removal}));
        context.Run();
        return absl::OkStatus();
      });
}

}  // namespace bulkhead
