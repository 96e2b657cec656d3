#include "services/metadata/main.h"

#include "lib/config/config.h"
#include "lib/os/fd.h"
#include "lib/service/service.h"
#include "services/metadata/db.h"
#include "services/metadata/object_services.h"
#include "services/metadata/store.h"

namespace bulkhead::metadata {
namespace {

absl::Status Body(service::Context& context) {
  const config::Config& config = context.config();
  const std::string root = config.RootDir("metadata");
  RETURN_IF_ERROR(os::MakeDirs(root, 0700));
  ASSIGN_OR_RETURN(std::unique_ptr<Db> db, Db::Open(root + "/db"));
  EventBus events;
  Store store(std::move(db), &events);
  ObjectServices objects(store, [] { return absl::OkStatus(); });
  RETURN_IF_ERROR(context.ListenGrpc(objects.services()));
  context.Run();
  return absl::OkStatus();
}

}  // namespace

int MetadataMain(int argc, char** argv) {
  service::Options options;
  options.name = "metadata";
  options.summary =
      "namespaces, images, containers, leases, events, content and snapshots "
      "as clients see them";
  options.no_network = true;
  return service::Main(argc, argv, options, Body);
}

}  // namespace bulkhead::metadata
