#include "services/distribution/main.h"

#include "absl/strings/str_cat.h"
#include "lib/base/status_macros.h"
#include "lib/os/landlock.h"
#include "lib/service/service.h"
#include "services/distribution/streaming_service.h"
#include "services/distribution/transfer_service.h"
#include "services/distribution/verifier_programs.h"

namespace bulkhead::distribution {

int DistributionMain(int argc, char** argv) {
  service::Options options;
  options.name = "distribution";
  options.summary = "Pulls images from registries (Transfer, Streaming).";
  return service::Main(
      argc, argv, options, [](service::Context& context) -> absl::Status {
        // Before any thread: it holds for those made from here on.
        RETURN_IF_ERROR(
            os::RestrictWritesTo({context.config().state + "/distribution"}));
        const auto& verifier = context.config().distribution.image_verifier;
        RETURN_IF_ERROR(os::RestrictExecutionTo(
            ExecutablePaths(verifier.bin_dir, verifier.interpreters)));
        const std::unique_ptr<HttpClient> http = HttpClient::Create(
            absl::StrCat("bulkhead/", service::kProductVersion));
        StreamTable streams;
        StreamingService streaming(&streams);
        TransferService transfer(context.config(), &streams, http.get());
        RETURN_IF_ERROR(transfer.TrustStatus());
        context.OnReload(
            [&](const config::Config& config) { transfer.Reload(config); });
        RETURN_IF_ERROR(context.ListenGrpc({&streaming, &transfer}));
        context.Run();
        return absl::OkStatus();
      });
}

}  // namespace bulkhead::distribution
