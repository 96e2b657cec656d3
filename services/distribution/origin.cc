#include "services/distribution/origin.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "lib/base/status_macros.h"
#include "lib/log/log.h"

namespace bulkhead::distribution {

std::string HostWithoutPort(const std::string& host) {
  const size_t colon = host.rfind(':');
  const size_t bracket = host.rfind(']');
  if (colon == std::string::npos ||
      (bracket != std::string::npos && colon < bracket)) {
    return host;
  }
  return host.substr(0, colon);
}

std::vector<oci::Reference> OriginsOf(const std::string& image_name,
                                      const Labels& manifest_labels) {
  std::vector<oci::Reference> origins;
  const auto add = [&](const std::string& host, const std::string& repository) {
    const auto same = [&](const oci::Reference& each) {
      return each.host == host && each.repository == repository;
    };
    if (origins.size() >= kOriginsMax ||
        std::any_of(origins.begin(), origins.end(), same)) {
      return;
    }
    // Through the parser: a label may hold anything.
    absl::StatusOr<oci::Reference> origin =
        oci::ParseFull(absl::StrCat(host, "/", repository));
    if (origin.ok() && origin->tag.empty() && origin->digest.empty()) {
      origins.push_back(*std::move(origin));
    }
  };
  const absl::StatusOr<oci::Reference> named = oci::ParseFull(image_name);
  std::string bare;  // The name's host as labels have it.
  if (named.ok()) {
    add(named->host, named->repository);
    bare = HostWithoutPort(named->host);
  }
  for (const auto& [key, value] : manifest_labels) {
    if (!absl::StartsWith(key, kSourceLabel)) continue;
    const std::string host = key.substr(sizeof(kSourceLabel) - 1);
    const std::vector<std::string> repositories =
        absl::StrSplit(value, ',', absl::SkipEmpty());
    for (const std::string& repository : repositories) {
      add(host == bare ? named->host : host, repository);
    }
  }
  return origins;
}

absl::Status BringLayer(const FetchContext& context,
                        const std::string& image_name,
                        const Labels& manifest_labels,
                        const oci::Descriptor& layer) {
  absl::Status failed =
      absl::NotFoundError("nothing says where the image came from");
  if (context.open_origin) {
    for (const oci::Reference& origin :
         OriginsOf(image_name, manifest_labels)) {
      absl::StatusOr<RegistryOptions> options = context.open_origin(origin);
      if (!options.ok()) {
        failed = options.status();
        continue;
      }
      Registry registry(*std::move(options));
      FetchContext from = context;
      from.registry = &registry;
      from.source_labels = {
          {kSourceLabel + HostWithoutPort(origin.host), origin.repository}};
      BlobFetch fetch(from, layer, {});
      fetch.Run();
      failed = fetch.WaitCommitted();
      if (failed.ok() || absl::IsCancelled(failed)) return failed;
      log::Info("layer not brought from where its image came from",
                {{"layer", layer.digest.str()},
                 {"origin", origin.Locator()},
                 {"error", MessageOf(failed)}});
    }
  }
  return Annotate(
      failed,
      absl::StrCat("layer ", layer.digest.str(), " of ", image_name,
                   " is not here: it was not fetched, since its files are here "
                   "in another compression. Pull the image again with "
                   "--no-unpack. It was looked for"));
}

}  // namespace bulkhead::distribution
